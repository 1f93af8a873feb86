"""Costs: counted against the tensors themselves, and timed where the time goes."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import rlrc
from rlrc.bench import STAGES, BenchConfig, bench, peak_memory, stage_clock
from rlrc.files import read_json
from rlrc.inspect import InspectConfig, describe, inspect
from rlrc.models.linear import QuantizedLinear
from rlrc.models.policy import Policy


@pytest.fixture(scope="module")
def measured(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("bench")
    config = BenchConfig(policies=[tiny_checkpoint, tiny_checkpoint], batch_sizes=(1, 4), repeats=5, warmup=1)
    result = bench(config, out)
    assert read_json(out / "bench.json")["policies"][0]["policy"] == str(tiny_checkpoint)
    return result


def test_counts_are_those_of_the_file(measured: dict, tiny_checkpoint: Path) -> None:
    with safe_open(tiny_checkpoint / "model.safetensors", "np") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    entry = measured["policies"][0]
    assert entry["parameters"]["total"] == sum(tensor.size for tensor in tensors)
    assert entry["bytes"]["disk"] == sum(tensor.nbytes for tensor in tensors)
    assert sum(entry["bytes"]["parts"].values()) == entry["bytes"]["memory"] >= entry["bytes"]["disk"]


def test_the_stages_add_up_to_an_action(measured: dict) -> None:
    for entry in measured["policies"]:
        stages = {stage: entry["stages_ms"][stage]["p50"] for stage in STAGES}
        assert all(value > 0 for value in stages.values())
        assert sum(stages.values()) == pytest.approx(entry["latency_ms"]["p50"], rel=0.75)
        assert stages["decode"] > stages["prefill"]  # six passes against one, in a model where overheads rule


def test_a_policy_is_as_fast_as_itself(measured: dict) -> None:
    first, second = measured["policies"]
    assert first["speedup"] == 1.0
    assert second["speedup"] == pytest.approx(1.0, abs=0.4)


def test_the_clock_sees_a_stage_that_slows_down(tiny_policy: Policy) -> None:
    inputs = tiny_policy.prepare(np.zeros((1, 96, 96, 3), np.uint8), ["put carrot on plate"])
    tiny_policy.model.projector.fc1.register_forward_hook(lambda *_: time.sleep(0.05))
    with stage_clock(tiny_policy) as seconds:
        tiny_policy.sample(inputs)
    assert 0.05 <= seconds["projector"] < 0.2 and seconds["vision"] < 0.05
    assert not tiny_policy.model.projector._forward_pre_hooks


def test_peak_memory_is_that_of_a_fresh_process(tiny_checkpoint: Path) -> None:
    ballast = torch.ones(2**28)  # 1 GiB here must not count there
    memory = peak_memory(tiny_checkpoint, "cpu")
    assert 50 * 2**20 < memory["baseline"] <= memory["peak"] < ballast.nbytes


def test_packed_weights_count_as_the_weights_they_stand_for(tiny_policy: Policy) -> None:
    before = describe(tiny_policy)
    layer = tiny_policy.model.language_model.model.layers[1]
    dense = layer.mlp.gate_proj.weight
    layer.mlp.gate_proj = QuantizedLinear.from_linear(layer.mlp.gate_proj, bits=4, group_size=8)
    tiny_policy.model.config.quantization_config = {"bits": 4, "group_size": 8, "modules": []}
    after = describe(tiny_policy)
    assert after["parameters"] == before["parameters"]
    assert before["bytes"]["decoder"] - after["bytes"]["decoder"] == dense.nbytes - layer.mlp.gate_proj.nbytes
    assert after["quantization"] == {"layers": 1, "bits": 4, "group_size": 8}


def test_inspect_prints_parts_and_layers(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = inspect(InspectConfig(policy=tiny_checkpoint), Path("unused"))
    assert described["layers"] == [{"heads": 10, "kv_heads": 10, "channels": 40}] * 3
    total = sum(parameter.numel() for parameter in rlrc.load(tiny_checkpoint).model.parameters())
    assert described["parameters"]["total"] == total
    printed = capsys.readouterr().err
    assert "decoder" in printed and "vision" in printed
