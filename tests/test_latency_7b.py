"""The latency benchmark of `benchmarks/latency_7b`, with tiny policies in the place of OpenVLA-7B's shapes."""

import json
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "latency_7b"))

import either
import instructions
import making
import names
import page
import processes
import results
import rivals
import shapes
import turns
from actor import Actor, Setting
from latency_answers import answers

ROUNDS = 6
TINY = Setting(tiny=True)
TABLES: tuple[Callable[[results.Rows], page.Table], ...] = (
    page.times_table,
    page.engine_table,
    page.busy_table,
    page.stages_table,
)
GROUP = [names.TWO_LAYERS, "two-layers-rlrc-4bit"]
SHARED = [names.BASELINE, "rlrc-transformers", "rlrc"]
RATES = {"bytes_per_second": 1e7, "operations_per_second": 1e8}  # so low that no floor rounds to zero


@pytest.fixture(scope="module", autouse=True)
def time_layers_shortly() -> Iterator[None]:
    with patch.object(either, "LEAST_SECONDS", 0):
        yield


class Here:
    """Policies in this very process, in the place of `processes.Host`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.ended = list(names), False
        self._policies = making.make(names, TINY)

    def ask(self, name: str, question: str) -> Any:
        policy = self._policies[name]
        assert isinstance(policy, Actor), policy
        return getattr(policy, question)()

    def end(self) -> None:
        self.ended = True


def completed(rows: results.Rows, group: list[str]) -> results.Rows:
    """Rows as the file holds them, after what the command line adds."""
    origin = {"group": group, "rates": RATES, "cpu": "this one", "commit": "none"}
    rows = {name: row | origin for name, row in rows.items()}
    results.compare_with_floors(rows.values())
    return rows


@pytest.fixture(scope="module")
def rows() -> results.Rows:
    hosts: list[Here] = []

    def open_host(names: Sequence[str]) -> Any:
        hosts.append(Here(names))
        return hosts[-1]

    rows, missing = turns.take_turns(GROUP, GROUP, ROUNDS, True, False, open_host)
    assert not missing
    assert all(host.ended for host in hosts)
    return completed(rows, GROUP)


def test_rows_say_what_was_measured(rows: results.Rows) -> None:
    assert list(rows) == GROUP
    for name, row in rows.items():
        assert results.is_complete(name, row)
        assert row["rounds"] == ROUNDS
        assert row["busy_share"] > 0
        assert row["weight_bytes"] < row["peak_bytes"]
    transformers, packed = rows.values()
    assert (transformers["backend"], packed["backend"]) == ("transformers", "rlrc")
    assert packed["dtype"].startswith("W4A")
    assert packed["multipliers"]
    assert not transformers["multipliers"]
    assert packed["busy_stages_ms"].keys() == packed["stages_ms"].keys()
    assert packed["weight_bytes"] < transformers["weight_bytes"]


def test_ratios_lie_in_their_intervals(rows: results.Rows) -> None:
    found = 0
    for row in rows.values():
        for key in [key for key in row if f"{key}_95" in row and row[key] is not None]:
            low, high = row[f"{key}_95"]
            assert low <= row[key] <= high
            found += 1
    assert found == 4  # both over the baseline, quiet and busy
    assert rows[names.TWO_LAYERS]["speedup"] == 1


def test_floors_come_from_the_best_rates_of_a_processor(rows: results.Rows) -> None:
    packed = rows[GROUP[1]]
    fast = {**packed, "rates": {"bytes_per_second": 1e8, "operations_per_second": 1e7}}
    elsewhere = {**packed, "gpu": "another one"}
    results.compare_with_floors([packed, fast, elsewhere])
    assert packed["roofline"]["rates"] == {"bytes_per_second": 1e8, "operations_per_second": 1e8}
    assert elsewhere["roofline"]["rates"] == RATES
    for stage, work in packed["work"].items():
        floor = packed["roofline"]["floors_ms"][stage]
        assert floor == pytest.approx(1000 * max(work["bytes"] / 1e8, work["operations"] / 1e8), abs=0.001)
        assert packed["roofline"]["over_floor"][stage] == round(packed["stages_ms"][stage] / floor, 2)
    assert packed["work"]["decode"]["bytes"] == 6 * packed["work"]["prefill"]["bytes"] > 0


def test_the_order_of_rounds_is_shuffled() -> None:
    drawn = list(turns.orders(GROUP, 20))
    assert all(sorted(order) == sorted(GROUP) for order in drawn)
    assert {order[0] for order in drawn} == set(GROUP)
    assert drawn == list(turns.orders(GROUP, 20))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_times_on_the_page_agree_with_its_ratios(rows: results.Rows, device: str) -> None:
    head = {"machine": {"cpu": "this one", "used_instructions": {"torch": "AVX2"}}, "device": device, "tiny": True}
    result = results.result(head, rows, {"two-layers-8bit": "bitsandbytes is not installed"}, {})
    assert results.by_name(result) == rows
    text = page.page(result)
    assert "bitsandbytes is not installed" in text
    assert f"on a {'GPU' if device == 'cuda' else 'CPU'}\n" in text
    assert all(len(row) == len(head) for table in TABLES for head, body in [table(rows)] for row in body)
    compared = 0
    scale = 10_000 / min(row["p50_ms"] for row in rows.values())  # tiny policies take no hundredths of a second
    for row in rows.values():
        for key, slow in (("speedup", "baseline_ms"), ("speedup_over_bf16", "bf16_ms")):
            if row[key] is None:
                continue
            cells = page.beside({**row, slow: scale * row[slow]}, slow, key)
            told, low, high = map(float, re.findall(r"[\d.]+", cells[1]))
            mine, theirs = (float(text.split()[0]) for text in (page.duration(scale * row["p50_ms"]), cells[0]))
            # The ratio of two medians cannot leave the range of the ratios, which the interval of six rounds is.
            assert low - 0.05 <= theirs / mine <= high + 0.05
            assert low <= told <= high
            compared += 1
    assert compared == 2


def test_durations_have_as_many_digits_as_say_something() -> None:
    assert [page.duration(ms) for ms in (16186.9, 1000, 431.2, 20.26, 0.513)] == [
        "16.19 s",
        "1.00 s",
        "431 ms",
        "20.3 ms",
        "0.5 ms",
    ]


def test_a_row_without_what_is_measured_today_counts_as_not_measured(rows: results.Rows) -> None:
    for field in ("rounds", "dtype", "speedup_95", "weight_bytes", "peak_bytes", "libraries_bytes"):
        without = {key: value for key, value in rows[GROUP[1]].items() if key != field}
        assert not results.is_complete(GROUP[1], without)
    assert not results.is_complete("rlrc-overall", {k: v for k, v in rows[GROUP[1]].items() if k != "busy_p50_ms"})


def test_rows_of_an_older_benchmark_stay_until_they_are_measured_again(rows: results.Rows, tmp_path: Path) -> None:
    old = {"name": GROUP[1], "backend": "rlrc", "p50_ms": 77.0, "speedup": 2.0, "weight_bytes": 1, "peak_bytes": 2}
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps({"rows": [old | {"commit": "abc1234"}, rows[GROUP[0]] | {"name": GROUP[0]}]}))
    found = results.stored(path, "cpu", None)
    assert (list(found.rows), list(found.earlier)) == ([GROUP[0]], [GROUP[1]])
    head = {"machine": {"cpu": "this one"}, "device": "cpu", "tiny": True}
    kept = results.result(head, found.rows, {}, found.earlier)
    assert [(row["name"], row.get("earlier")) for row in kept["rows"]] == [(GROUP[0], None), (GROUP[1], True)]
    told = page.page(kept).partition("## Measured earlier")[2]
    assert "| 77.0 ms | 2.00x |" in told and "abc1234" in told
    assert "Measured earlier" not in page.page(results.result(head, rows, {}, found.earlier))


def test_what_is_missing_of_other_groups_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "find_spec", lambda package: None)
    path, row = tmp_path / "cpu.json", f"{names.TWO_LAYERS}-4bit"
    assert row in results.stored(path, "cpu", None).missing
    assert not results.stored(path, "cpu", None, ["balanced"]).missing
    path.write_text(json.dumps({"rows": [], "missing": {row: "bitsandbytes is not installed"}}))
    assert list(results.stored(path, "cpu", None, ["balanced"]).missing) == [row]
    monkeypatch.setattr(names, "find_spec", lambda package: package)
    assert row not in results.stored(path, "cpu", None).missing


def test_what_does_not_run_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    optional = f"{names.TWO_LAYERS}-dynamic-int8"
    for roomy in (True, False):
        assert turns.warm_up({optional: Refuses()}, roomy) == {optional: "no engine"}  # type: ignore[dict-item]
        with pytest.raises(processes.Failed, match="no engine"):
            turns.warm_up({names.TWO_LAYERS: Refuses()}, roomy)  # type: ignore[dict-item]
    monkeypatch.setattr(names, "find_spec", lambda package: None)
    assert names.refusal(f"{names.TWO_LAYERS}-4bit", "cpu", None) == "bitsandbytes is not installed"
    assert names.refusal("rlrc", "cpu", None) is None
    assert "CPUs alone" in str(names.refusal(optional, "cuda", None))
    assert "no setting that holds it" in str(names.refusal(f"{names.TWO_LAYERS}-4bit", "cpu", "avx2"))


class Refuses:
    """A host whose policies cannot act."""

    def ask(self, name: str, what: str) -> None:
        raise processes.Failed("no engine")


def test_a_process_answers_and_says_why_it_cannot() -> None:
    host = processes.Host(["good", "broken"], answers)
    try:
        assert host.ask("good", "act") == 0.5
        with pytest.raises(processes.Failed, match=r"^ValueError: c\+\+: error: no compiler$"):
            host.ask("good", "stages")
        with pytest.raises(processes.Failed, match=r"^RuntimeError: cannot be made$"):
            host.ask("broken", "act")
    finally:
        host.end()
    with pytest.raises(processes.Failed, match="ended with status -9"):
        host.ask("good", "act")


def test_policies_of_one_process_share_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "LEAST_LENT", 2**11)
    made = making.make(SHARED, TINY)
    for actor in made.values():
        assert isinstance(actor, Actor)
        assert actor.act() > 0
    baseline, transformers = (made[name]._policy.llama for name in SHARED[:2])  # type: ignore[union-attr]
    owned = {parameter.untyped_storage().data_ptr() for parameter in baseline.parameters()}
    shared = [parameter.untyped_storage().data_ptr() in owned for parameter in transformers.parameters()]
    assert sum(shared) == sum(parameter.ndim == 2 for parameter in transformers.parameters())
    heads = [layer.self_attn.q_proj.out_features for layer in transformers.model.layers]
    assert heads == [64, *[16] * 6, 64]
    assert transformers.config._attn_implementation == baseline.config._attn_implementation == "sdpa"


def test_every_row_has_a_shape_a_name_on_the_page_and_a_group_to_compare_with() -> None:
    for name in names.NAMES:
        assert names.run_of(name).shape in shapes.SHAPES
        group = next(group for group in names.GROUPS.values() if name in group)
        assert names.bf16_of(name) in (None, *group)
    assert len({(page.label(name), *names.run_of(name)[1:3]) for name in names.NAMES}) == len(names.NAMES)
    assert pickle.loads(pickle.dumps(partial(making.make, setting=TINY))).func is making.make


def test_shapes_are_what_their_names_say() -> None:
    tiny = {shape: shapes.config_of(shape, tiny=True).text_config for shape in shapes.SHAPES}
    assert {shape: text.num_hidden_layers for shape, text in tiny.items()} == {
        shape: 2 if shape in ("two-layers", "depth-0-31") else 8 for shape in shapes.SHAPES
    }
    whole = tiny["dense"].per_layer_config[0].intermediate_size
    pruned = {
        shape: [number for number, layer in enumerate(text.per_layer_config) if layer.intermediate_size < whole]
        for shape, text in tiny.items()
    }
    assert pruned["rlrc"] == pruned["rlrc-overall"] == pruned["oft-rlrc"] == pruned["balanced"] == [1, 2, 3, 4, 5, 6]
    assert pruned["llm-pruner-25"] == [4, 5]
    assert pruned["dense"] == pruned["oft"] == []


def test_every_part_of_the_balanced_policy_is_lighter() -> None:
    dense, balanced = (shapes.config_of(shape, tiny=True) for shape in ("dense", "balanced"))
    (tower,) = balanced.towers
    whole = dense.towers[1]
    assert tower.head_dim == whole.hidden_size // whole.num_attention_heads
    blocks = [tower.per_layer_config[number] for number in range(tower.num_hidden_layers - 1)]
    assert {block.num_attention_heads for block in blocks} == {whole.num_attention_heads // 2}
    assert {block.intermediate_size for block in blocks} == {96}  # half of 160, rounded up to a multiple of 32
    assert balanced.visual_tokens == {"kind": "pool", "count": dense.tokens_of_picture // 4}
    made, before = (shapes.outline(config).model for config in (balanced, dense))
    sizes = [
        [layer.mlp.gate_proj.out_features for layer in model.language_model.model.layers] for model in (made, before)
    ]
    assert [small < large for small, large in zip(*sizes, strict=True)] == [False, *[True] * 6, False]
    assert made.projector.fc1.in_features == before.projector.fc1.in_features // 2
    assert made.projector.fc1.out_features == before.projector.fc1.out_features


def test_shuffled_tokens_lie_side_by_side_in_the_projector() -> None:
    pooled, shuffled = (shapes.config_of(shape, tiny=True) for shape in ("balanced", "balanced-shuffled"))
    assert shuffled.visual_tokens == pooled.visual_tokens | {"kind": "shuffle"}
    inputs = [shapes.outline(config).model.projector.fc1.in_features for config in (pooled, shuffled)]
    assert inputs[1] == 4 * inputs[0]


def test_the_balanced_rows_tell_their_bytes() -> None:
    dense, packed = (making.make([name], TINY)[name] for name in ("balanced", "balanced-4bit"))
    assert isinstance(dense, Actor) and isinstance(packed, Actor)
    for actor in (dense, packed):
        assert actor.act() > 0
        facts = actor.facts()
        assert facts["weight_bytes"] < facts["libraries_bytes"] <= facts["peak_bytes"]
    assert packed.facts()["weight_bytes"] < dense.facts()["weight_bytes"]
    modules = packed._policy._policy.model.config.quantization_config["modules"]  # type: ignore[attr-defined]
    told = [packed._policy._policy.part_of(module) for module in modules]  # type: ignore[attr-defined]
    assert set(told) == set(shapes.PARTS)


def test_every_policy_is_counted_in_the_bytes_that_it_is_stored_in() -> None:
    layer = torch.nn.Linear(64, 32).bfloat16().requires_grad_(False)
    assert rivals.weight_bytes(layer) == 2 * (64 * 32 + 32)
    both = torch.nn.Sequential(layer)
    rivals.with_torch(both, 8)
    scales = 0 if both[0].weight().qscheme() == torch.per_tensor_affine else 8 * 32
    assert rivals.weight_bytes(both) == 64 * 32 + scales + 4 * 32


def test_engine_and_compression_are_told_apart() -> None:
    seconds = {names.BASELINE: [8.0] * ROUNDS, "rlrc-transformers": [4.0] * ROUNDS, "rlrc": [2.0] * ROUNDS}
    rows = {name: turns.row_of(names.BASELINE, name, seconds) | {"group": SHARED} for name in SHARED}
    _, body = page.engine_table(rows)
    assert body == [
        [page.SHAPES["rlrc"], "8.00 s", "4.00 s", "2.00x [2.00, 2.00]", "2.00 s", "2.00x [2.00, 2.00]"],
    ]
    dense = {names.BASELINE: [8.0] * ROUNDS, "dense": [4.0] * ROUNDS}
    rows = {"dense": turns.row_of(names.BASELINE, "dense", dense) | {"group": list(dense)}}
    assert page.engine_table(rows)[1] == [["dense", "", "8.00 s", "", "4.00 s", "2.00x [2.00, 2.00]"]]


def test_layers_compute_in_what_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 2.0, 4.0, 3.0])  # one row in bf16 and float32, then many rows
    monkeypatch.setattr(either, "_fastest_ms", lambda call: next(times))
    layer = torch.nn.Linear(64, 32).bfloat16().requires_grad_(False)
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    bf16, float32 = layer(x[:1]), either.wide_product(x, layer.weight, layer.bias)
    rows = either.choose_for_each([layer])
    assert [(row["rows"], row["in_float32"]) for row in rows] == [(1, False), (280, True)]
    assert either.any_in_float32([layer])
    assert torch.equal(layer(x[:1]), bf16)
    assert torch.equal(layer(x), float32)
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    torch.testing.assert_close(layer(x).double(), exact, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("answer", "held"),
    [
        ("Intel AVX2", True),
        ("AVX2", True),
        ("haswell avx2", True),
        ("2024.0 Product build 20240605 for Intel(R) 64 architecture Intel(R) Architecture processors", True),
        ("Intel(R) Advanced Vector Extensions 2 (Intel(R) AVX2) enabled processors", True),
        ("Intel AVX-512 with Intel DL Boost", False),
        ("native avx2", False),
        ("", False),
    ],
)
def test_what_libraries_say_of_themselves(answer: str, held: bool) -> None:
    assert instructions.is_held(answer, "avx2") is held
