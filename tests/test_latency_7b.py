"""The latency benchmark of `benchmarks/latency_7b`, with tiny policies in the place of OpenVLA-7B's shapes."""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "latency_7b"))

import host
import names
import page
import turns

from rlrc.policies.openvla.config import OpenVLAConfig
from rlrc.policies.openvla.layout import published_config

ROUNDS = 5
GROUP = [names.BASELINE, "rlrc-transformers", "rlrc", "rlrc-4bit"]
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
    assert {name: row["backend"] for name, row in rows.items()} == dict(
        zip(GROUP, ("transformers", "transformers", "rlrc", "rlrc"), strict=True)
    )
    assert rows["rlrc-4bit"]["dtype"].startswith("W4A")
    assert rows["rlrc-4bit"]["multipliers"] and not rows["rlrc"]["multipliers"]
    assert rows["rlrc"]["busy_stages_ms"].keys() == rows["rlrc"]["stages_ms"].keys()
    assert rows["rlrc-4bit"]["weight_bytes"] < rows["rlrc"]["weight_bytes"]


def test_ratios_lie_in_their_intervals(rows: dict[str, dict[str, Any]]) -> None:
    found = 0
    for row in rows.values():
        for key in [key for key in row if f"{key}_95" in row and row[key] is not None]:
            low, high = row[f"{key}_95"]
            assert low <= row[key] <= high
            found += 1
    # Four speed-ups, quiet and busy, one over bf16 and one of the engine.
    assert found == 10
    assert rows[names.BASELINE]["speedup"] == 1


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
    assert compared == 5


def test_a_row_without_what_is_measured_today_counts_as_not_measured(rows: dict[str, dict[str, Any]]) -> None:
    for field in ("rounds", "dtype", "speedup_95"):
        assert not page.is_complete("rlrc", {key: value for key, value in rows["rlrc"].items() if key != field})
    assert not page.is_complete("rlrc-overall", {k: v for k, v in rows["rlrc"].items() if k != "busy_p50_ms"})


def test_what_does_not_run_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{names.TWO_LAYERS}-dynamic-int8"
    group = [names.TWO_LAYERS, name]
    rows, missing = turns.take_turns(group, 1, RATES, False, without_dynamic)
    assert list(rows) == [names.TWO_LAYERS]
    assert missing == {name: "RuntimeError: no engine"}
    monkeypatch.setattr(names, "find_spec", lambda package: None)
    assert names.refusal(f"{names.TWO_LAYERS}-4bit", None) == "bitsandbytes is not installed"
    assert names.refusal("rlrc", None) is None


def without_dynamic(wanted: list[str]) -> dict[str, Any]:
    if wanted == [names.TWO_LAYERS]:
        return host.make(wanted, CONFIGS)
    return dict.fromkeys(wanted, RuntimeError("no engine"))
