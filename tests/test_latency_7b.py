"""The latency benchmark of `benchmarks/latency_7b`, with tiny policies in the place of OpenVLA-7B's shapes."""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "latency_7b"))

import either
import host
import instructions
import names
import page
import shapes
import turns

from rlrc.policies.openvla.config import OpenVLAConfig
from rlrc.policies.openvla.layout import published_config

ROUNDS = 5
TABLES = (page.seconds_table, page.engine_table, page.busy_table, page.stages_table)
GROUP = [names.TWO_LAYERS, "two-layers-rlrc-4bit"]
SHARED = [names.BASELINE, "rlrc-transformers", "rlrc"]
RATES = {"bytes_per_second": 1e7, "operations_per_second": 1e8}  # so low that no floor rounds to zero


def dense() -> OpenVLAConfig:
    config = OpenVLAConfig.from_dict(published_config(tiny=True))
    config.action_head_only = True
    return config


def pruned() -> OpenVLAConfig:
    config = dense()
    config.text_config.per_layer_config = {1: {"num_attention_heads": 2, "num_key_value_heads": 2}}
    return config


CONFIGS = {"dense": dense, "rlrc": pruned, names.TWO_LAYERS: dense}


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    rows, missing = turns.take_turns(GROUP, ROUNDS, RATES, True, partial(host.make, configs=CONFIGS))
    assert not missing
    return {name: row | {"group": GROUP, "cpu": "this one", "commit": "none"} for name, row in rows.items()}


def test_rows_say_what_was_measured(rows: dict[str, dict[str, Any]]) -> None:
    assert list(rows) == GROUP
    for name, row in rows.items():
        assert page.is_complete(name, row)
        assert row["rounds"] == ROUNDS
        assert row["busy_share"] > 0.1
        assert row["weight_bytes"] < row["peak_bytes"]
    transformers, packed = rows.values()
    assert (transformers["backend"], packed["backend"]) == ("transformers", "rlrc")
    assert packed["dtype"].startswith("W4A")
    assert packed["multipliers"]
    assert not transformers["multipliers"]
    assert packed["busy_stages_ms"].keys() == packed["stages_ms"].keys()
    assert packed["weight_bytes"] < transformers["weight_bytes"]


def test_ratios_lie_in_their_intervals(rows: dict[str, dict[str, Any]]) -> None:
    found = 0
    for row in rows.values():
        for key in [key for key in row if f"{key}_95" in row and row[key] is not None]:
            low, high = row[f"{key}_95"]
            assert low <= row[key] <= high
            found += 1
    assert found == 4  # both over the baseline, quiet and busy
    assert rows[names.TWO_LAYERS]["speedup"] == 1


def test_the_order_of_rounds_is_shuffled() -> None:
    drawn = list(turns.orders(GROUP, 20))
    assert all(sorted(order) == sorted(GROUP) for order in drawn)
    assert {order[0] for order in drawn} == set(GROUP)
    assert drawn == list(turns.orders(GROUP, 20))


def test_seconds_on_the_page_agree_with_its_ratios(rows: dict[str, dict[str, Any]]) -> None:
    stored = [{**row, "name": page.stored_name(name)} for name, row in rows.items()]
    missing = {"two-layers-8bit": "bitsandbytes is not installed"}
    machine = {"cpu": "this one", "used_instructions": {"torch": "AVX2"}}
    text = page.page({"machine": machine, "rows": stored, "missing": missing})
    assert "bitsandbytes is not installed" in text
    assert all(len(row) == len(head) for table in TABLES for head, body in [table(rows)] for row in body)
    compared = 0
    scale = 1000 / min(row["p50_ms"] for row in rows.values())  # tiny policies take no hundredths of a second
    for row in rows.values():
        for key, slow in (("speedup", "baseline_ms"), ("speedup_over_bf16", "bf16_ms")):
            if row[key] is None:
                continue
            cells = page.beside({**row, slow: scale * row[slow]}, slow, key)
            told, low, high = map(float, re.findall(r"[\d.]+", cells[1]))
            mine, theirs = (float(text.split()[0]) for text in (page.seconds(scale * row["p50_ms"]), cells[0]))
            # The ratio of two medians cannot leave the range of the ratios, which the interval of five rounds is.
            assert low - 0.05 <= theirs / mine <= high + 0.05
            assert low <= told <= high
            compared += 1
    assert compared == 2


def test_a_row_without_what_is_measured_today_counts_as_not_measured(rows: dict[str, dict[str, Any]]) -> None:
    for field in ("rounds", "dtype", "speedup_95"):
        assert not page.is_complete(GROUP[1], {key: value for key, value in rows[GROUP[1]].items() if key != field})
    assert not page.is_complete("rlrc-overall", {k: v for k, v in rows[GROUP[1]].items() if k != "busy_p50_ms"})


def test_what_does_not_run_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    optional = f"{names.TWO_LAYERS}-dynamic-int8"
    assert turns.warm_up({optional: Refuses()}) == {optional: "no engine"}
    with pytest.raises(host.Failed, match="no engine"):
        turns.warm_up({names.TWO_LAYERS: Refuses()})
    monkeypatch.setattr(names, "find_spec", lambda package: None)
    assert names.refusal(f"{names.TWO_LAYERS}-4bit", None) == "bitsandbytes is not installed"
    assert names.refusal("rlrc", None) is None


class Refuses:
    """A host whose policies cannot act."""

    def ask(self, name: str, what: str) -> None:
        raise host.Failed("no engine")


def test_policies_of_one_process_share_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "LEAST_LENT", 2**13)
    made = host.make(SHARED, CONFIGS)
    for policy in made.values():
        assert host.answer(policy, "act", None, 0) > 0
    baseline, transformers = made[names.BASELINE].llama, made["rlrc-transformers"].llama
    owned = {parameter.untyped_storage().data_ptr() for parameter in baseline.parameters()}
    shared = [parameter.untyped_storage().data_ptr() in owned for parameter in transformers.parameters()]
    assert sum(shared) == sum(parameter.ndim == 2 for parameter in transformers.parameters())
    heads = [layer.self_attn.q_proj.out_features for layer in transformers.model.layers]
    assert heads == [64, 32, 64, 64]
    assert transformers.config._attn_implementation == baseline.config._attn_implementation == "sdpa"


def test_engine_and_compression_are_told_apart() -> None:
    seconds = {names.BASELINE: [8.0, 8.0], "rlrc-transformers": [4.0, 4.0], "rlrc": [2.0, 2.0]}
    rows = {name: turns.row_of(names.BASELINE, name, seconds) | {"group": SHARED} for name in SHARED}
    _, body = page.engine_table(rows)
    assert body == [
        [page.SHAPES["rlrc"], "8.00 s", "4.00 s", "2.00x [2.00, 2.00]", "2.00 s", "2.00x [2.00, 2.00]"],
    ]
    dense = {names.BASELINE: [8.0, 8.0], "dense": [4.0, 4.0]}
    rows = {"dense": turns.row_of(names.BASELINE, "dense", dense) | {"group": list(dense)}}
    assert page.engine_table(rows)[1] == [["dense", "", "8.00 s", "", "4.00 s", "2.00x [2.00, 2.00]"]]


def test_layers_compute_in_what_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 2.0, 4.0, 3.0])  # one row in bf16 and float32, then many rows
    monkeypatch.setattr(either, "_fastest_ms", lambda call: next(times))
    layer = torch.nn.Linear(64, 32).bfloat16().requires_grad_(False)
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    bf16, float32 = layer(x[:1]), either.wide(x, layer.weight, layer.bias)
    rows = either.choose_for_each([layer])
    assert [(row["rows"], row["in_float32"]) for row in rows] == [(1, False), (280, True)]
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
        ("Intel AVX-512 with Intel DL Boost", False),
        ("native avx2", False),
        ("", False),
    ],
)
def test_what_libraries_say_of_themselves(answer: str, held: bool) -> None:
    assert instructions.is_held(answer, "avx2") is held
