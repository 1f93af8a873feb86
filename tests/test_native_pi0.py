"""The pi0 fixture by transformers' own class: another implementation reads the same file and gives the same numbers."""

import sys
from pathlib import Path

import pytest
import torch
from flow_fixtures import SETS, WIDE, FlowSet

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "latency_flow"))

from native_pi0 import load_native, native_inputs

CAMERAS = {"lacks one": None, "has all": {}, "rows differ": {"right_wrist_0_rgb": [True, False]}}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> FlowSet:
    if "pi0/tiny4" not in SETS:
        pytest.skip("reference tensors not found: ../shared/fixtures has no pi0/tiny4")
    return FlowSet("pi0/tiny4", tmp_path_factory.mktemp("pi0"))


@torch.no_grad()
@pytest.mark.parametrize("cameras", CAMERAS)
def test_velocities_and_chunks_agree(case: FlowSet, cameras: str) -> None:
    policy, noise = case.policy, case.cases["in.noise"]
    native = load_native(case.folder / "checkpoint", policy.model.config)
    observation = case.look(CAMERAS[cameras])
    inputs = policy.prepare(observation)
    given = native_inputs(inputs, policy.model.config)
    for time in case.cases["in.velocity_times"].tolist():
        found = native(noise=noise, timestep=torch.full((2,), time), **given).logits
        torch.testing.assert_close(case.velocity(observation, time), found, **WIDE)
    (chunks,) = policy._denoise(inputs, noise, 10)
    torch.testing.assert_close(chunks, native.sample_actions(noise=noise, **given), **WIDE)
