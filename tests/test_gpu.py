"""What only a GPU can show: recorded actions, packed weights beside PyTorch's own kernel, training steps."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_policies import CASES, Case, look, make
from torch import nn

import rlrc
from rlrc.packed.layers import QuantizedLinear
from rlrc.packed.layout import unpack
from rlrc.policies.contract import Policy
from rlrc.quantize import linear_names, quantize_linears

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def on_gpu(case: Case, dtype: torch.dtype, bits: int | None = None) -> Policy:
    policy = make(case)
    policy.model.to(dtype)
    if bits is not None:
        quantize_linears(policy.model, linear_names(policy, ["decoder", "vision", "projector"]), bits, 32)
    policy.model.to("cuda")
    return policy


def generators(seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator("cuda").manual_seed(seed + row) for row in range(3)]


@pytest.mark.parametrize("bits", [None, 4, 8])
@torch.no_grad()
def test_a_graph_computes_what_is_launched_one_by_one(case: Case, bits: int | None) -> None:
    """On other pictures than those that it was recorded with."""
    policy = on_gpu(case, torch.float32, bits)
    for seed in range(4):
        inputs = policy.prepare(look(policy, seed=seed))
        assert policy.records
        found = policy.sample(inputs, case.sampler, generators(seed)).actions.cpu()
        policy.eager = True
        expected = policy.sample(inputs, case.sampler, generators(seed)).actions.cpu()
        policy.eager = False
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_predictions_are_those_of_the_processor(case: Case) -> None:
    if case.denoising_steps is not None or case.exploring.exploration is not None:
        pytest.skip("a GPU draws other noise than the processor")
    predicted = []
    for policy in (make(case), on_gpu(case, torch.float32)):
        actions = torch.zeros(3, policy.spec.horizon, 7, device=policy.device)
        predicted.append(policy.predict(policy.prepare(look(policy)), actions)[0].cpu())
    torch.testing.assert_close(*predicted, atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_weights_that_move_are_recorded_anew(case: Case) -> None:
    policy = on_gpu(case, torch.float32)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        policy.model.to(dtype)
        for _ in range(3):
            assert policy.sample(policy.prepare(look(policy)), case.sampler, generators()).actions.isfinite().all()


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_products_agree_with_pytorchs_own(rows: int) -> None:
    """`torch._weight_int4pack_mm` multiplies (code - 8) * scale + zero, in groups of 32, from an order of its own."""
    torch.manual_seed(0)
    packed = QuantizedLinear.from_linear(nn.Linear(1024, 256).cuda().bfloat16(), 4, 32)
    weight = packed.packed_weight
    codes = unpack(weight.codes, 4, 1024)
    scales, zeros = weight.scales, unpack(weight.zeros, 4, weight.scales.shape[1])
    shifts = ((8 - zeros.float()) * scales.float()).bfloat16()
    stored = torch._convert_weight_to_int4pack((codes[:, ::2] << 4 | codes[:, 1::2]).contiguous(), 8)
    x = torch.randn(rows, 1024, device="cuda", dtype=torch.bfloat16)
    theirs = torch._weight_int4pack_mm(x, stored, 32, torch.stack((scales, shifts), -1).transpose(0, 1).contiguous())
    ours = packed(x) - (0 if packed.bias is None else packed.bias)
    torch.testing.assert_close(ours.float(), theirs.float(), atol=0.05, rtol=0.02)


def test_training_on_a_gpu(tmp_path: Path) -> None:
    """`sft` and `rl` of a few steps on the GPU, by the command line."""
    checkpoint, data = tmp_path / "policy", tmp_path / "demos"
    make(CASES["openvla"]).save(checkpoint)
    steps: list[list[Any]] = [
        ["collect", "--world", "tabletop", "--episodes", 4, "--out", data],
        ["sft", "--policy", checkpoint, "--dataset", data / "dataset", "--steps", 12, "--batch-size", 8, "--out",
         tmp_path / "sft"],
        ["rl", "--policy", tmp_path / "sft" / "checkpoint", "--world", "tabletop", "--num-envs", 8, "--iterations", 3,
         "--batch-size", 8, "--learning-rate", 1e-3, "--out", tmp_path / "rl"],
    ]  # fmt: skip
    for step in steps:
        command = [sys.executable, "-m", "rlrc", *map(str, step)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    # What acts is recorded once, and has to act with the weights of each iteration.
    gaps = [json.loads(line)["acting_gap"] for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert len(gaps) == 3 and max(gaps) < 0.3, gaps
    acted = rlrc.load(tmp_path / "rl" / "checkpoint")
    assert acted.device.type == "cuda"
