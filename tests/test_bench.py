"""Costs: counted against the tensors themselves, and timed where the time goes."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import rlrc
from rlrc.bench import STAGES, BenchConfig, bench, stage_clock, stage_timer
from rlrc.inspect import InspectConfig, describe, inspect
from rlrc.packed import cpu, cuda
from rlrc.packed.layers import QuantizedLinear
from rlrc.policies.contract import Policy
from rlrc.policies.folder import stored_bytes
from rlrc.policies.parts.decoding import Decoding
from rlrc.policies.values import Observation
from rlrc.reading import read_json
from rlrc.roofline import ROWS, floors_ms, rates, work

BALLAST = 2**30
"""Bytes that this process holds while a fresh one is measured."""


@pytest.fixture(scope="module")
def measured(tiny_checkpoint: Path, quick_rates: None, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """All that `bench` measures."""
    out = tmp_path_factory.mktemp("bench")
    config = BenchConfig(policies=[tiny_checkpoint], batch_sizes=(1, 4), repeats=3, warmup=1)
    ballast = torch.ones(BALLAST, dtype=torch.uint8)
    result = bench(config, out)
    assert ballast.all()
    assert read_json(out / "bench.json") == result
    with Image.open(out / "bench.png") as picture:
        assert picture.width > 600
    return result


def test_counts_are_those_of_the_file(measured: dict, tiny_checkpoint: Path) -> None:
    with safe_open(tiny_checkpoint / "model.safetensors", "np") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    entry = measured["policies"][0]
    assert entry["parameters"]["total"] == sum(tensor.size for tensor in tensors)
    assert entry["bytes"]["disk"] == sum(tensor.nbytes for tensor in tensors)
    assert sum(entry["bytes"]["parts"].values()) == entry["bytes"]["memory"] >= entry["bytes"]["disk"]


def black(policy: Policy) -> Observation:
    return policy.observation(np.zeros((1, 96, 96, 3), np.uint8), ["put carrot on plate"])


def test_the_stages_of_an_action_add_up_to_its_time(tiny_policy: Policy) -> None:
    measure = stage_timer(tiny_policy, black(tiny_policy))
    started = time.perf_counter()
    seconds = measure()
    elapsed = time.perf_counter() - started
    assert len(seconds) == len(STAGES) and all(value > 0 for value in seconds)
    assert 0.8 * elapsed <= sum(seconds) <= elapsed


def test_the_clock_tells_stages_apart(tiny_policy: Policy) -> None:
    model = tiny_policy.model
    inputs = tiny_policy.prepare(black(tiny_policy))
    for module, nap in (
        (model.vision_backbone.featurizer, 0.3),
        (model.projector.fc1, 0.2),
        (model.language_model.model.norm, 0.1),
    ):
        module.register_forward_hook(lambda *_, nap=nap: time.sleep(nap))
    with stage_clock(tiny_policy) as seconds:
        tiny_policy.sample(inputs)
    naps = {
        "vision": 0.3,
        "projector": 0.2,
        "prefill": 0.1,
        "decode": 0.6,
    }  # one token comes of the prefill, six follow
    assert all(seconds[stage] >= nap for stage, nap in naps.items())
    assert "forward" not in vars(model.projector) and Decoding.advance.__name__ == "advance"


def measured_as(monkeypatch: pytest.MonkeyPatch, seconds: Iterable[Iterator[float]]) -> None:
    """Let `bench` take each policy's times of a call from what is given, and know neither memory nor machine."""
    policies = itertools.cycle(seconds)

    def timed_action(policy: Policy, batch_size: int = 1) -> Callable[[], float]:
        return partial(next, next(policies))

    monkeypatch.setattr("rlrc.bench.timed_action", timed_action)
    monkeypatch.setattr("rlrc.bench.peak_memory", lambda *_: {"peak": 1})
    monkeypatch.setattr("rlrc.bench.rates", lambda _: {"bytes_per_second": 1e9, "operations_per_second": 1e9})


def test_a_policy_may_be_named_by_its_hub_id(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_as(monkeypatch, [itertools.repeat(1.0)])
    monkeypatch.setattr("rlrc.policies.locate._download", lambda hub_id, wanted: tiny_checkpoint)
    config = BenchConfig(policies=[Path("me/tiny")], batch_sizes=(1,), repeats=1, warmup=0)
    (entry,) = bench(config, tmp_path)["policies"]
    assert entry["policy"] == "me/tiny"
    assert entry["bytes"]["disk"] == sum(stored_bytes(tiny_checkpoint).values())


def test_ratios_survive_a_machine_that_slows_down(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowing(pace: float) -> Iterator[float]:
        return (pace * 10**i for i in itertools.count())

    measured_as(monkeypatch, (slowing(6.0), slowing(2.0)))
    config = BenchConfig(policies=[tiny_checkpoint, tiny_checkpoint], batch_sizes=(1,), repeats=4, warmup=1)
    first, second = bench(config, tmp_path)["policies"]
    assert (first["speedup"], second["speedup"]) == (1.0, pytest.approx(3.0))
    assert first["speedup_95"] is None, "four rounds have no interval"


def test_the_interval_of_a_speed_is_over_the_rounds_that_policies_share(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_as(monkeypatch, (itertools.repeat(6.0), itertools.cycle([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])))
    config = BenchConfig(policies=[tiny_checkpoint, tiny_checkpoint], batch_sizes=(1,), repeats=6, warmup=0)
    first, second = bench(config, tmp_path)["policies"]
    assert first["speedup_95"] == [1.0, 1.0]
    assert second["speedup"] == pytest.approx((6 / 3 + 6 / 4) / 2)
    assert second["speedup_95"] == [1.0, 6.0], "six rounds bound their median by the extremes"


def test_peak_memory_is_that_of_a_fresh_process(measured: dict) -> None:
    memory = measured["policies"][0]["peak_memory"]
    assert 50 * 2**20 < memory["baseline"] <= memory["peak"] < BALLAST


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


@pytest.mark.parametrize("bits", [2, 3])
def test_the_backend_of_few_bits_is_told_with_the_reasons_of_the_others(tiny_policy: Policy, bits: int) -> None:
    layer = tiny_policy.model.language_model.model.layers[1]
    layer.mlp.gate_proj = QuantizedLinear.from_linear(layer.mlp.gate_proj, bits)
    tiny_policy.model.config.quantization_config = {"bits": bits, "group_size": 32, "modules": []}
    (kind,) = describe(tiny_policy)["multipliers"]
    assert kind["backend"] == ("reference" if cpu.missing() else "cpu") and kind["bits"] == bits
    assert cuda.refuses(layer.mlp.gate_proj.packed_weight, torch.device("cuda"), torch.bfloat16) == (
        f"they multiply 4 and 8 bits, not {bits}"
    )


def test_a_stage_is_no_faster_than_reading_its_weights_nor_than_multiplying_them(tiny_policy: Policy) -> None:
    done = work(tiny_policy.stages(tiny_policy.prepare(black(tiny_policy))))
    decoder = tiny_policy.model.language_model.model.layers
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    nbytes = sum(parameter.nbytes for parameter in decoder.parameters())
    assert done["decode"] == {"bytes": 6 * nbytes, "operations": 6 * 2 * parameters}
    assert done["prefill"]["bytes"] == nbytes
    assert done["prefill"]["operations"] % (2 * parameters) == 0
    slow_to_read = {"bytes_per_second": 1000.0, "operations_per_second": 1e15}
    slow_to_multiply = {"bytes_per_second": 1e15, "operations_per_second": 1000.0}
    for stage, least in floors_ms(done, slow_to_read).items():
        assert least == pytest.approx(done[stage]["bytes"])
    for stage, least in floors_ms(done, slow_to_multiply).items():
        assert least == pytest.approx(done[stage]["operations"])


@pytest.mark.parametrize("faster", [torch.bfloat16, torch.float32])
def test_the_rate_of_products_is_that_of_the_faster_type(
    quick_rates: None, monkeypatch: pytest.MonkeyPatch, faster: torch.dtype
) -> None:
    monkeypatch.setattr("rlrc.roofline._fastest", lambda call, _: 1.0 if call().dtype == faster else 4.0)
    assert rates("cpu")["operations_per_second"] == 2 * ROWS * 64 * 64


def test_inspect_prints_parts_and_layers(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = inspect(InspectConfig(policy=tiny_checkpoint), Path("unused"))
    assert described["layers"] == [{"heads": 10, "kv_heads": 10, "channels": 40}] * 3
    total = sum(parameter.numel() for parameter in rlrc.load(tiny_checkpoint).model.parameters())
    assert described["parameters"]["total"] == total
    printed = capsys.readouterr().err
    assert "decoder" in printed and "vision" in printed
