"""Wanda's own code is the judge: input norms, what becomes zero, and the logits of what is left."""

import re
from typing import Any

import pytest
import torch
from conftest import fixture_folder
from llama_source import LlamaFixture, source_of

from rlrc.configs.prune import Magnitude, Wanda
from rlrc.policies.groups import DECODER, Block
from rlrc.prune.method import PruningMethod
from rlrc.prune.unstructured import MagnitudeMethod, WandaMethod, lowest_of_rows

PREFIX = r"(wanda|magnitude)\.(unstructured|variant|(\d+)of(\d+))(?:\.p([\d.]+))?\.expected\.logits"


@pytest.fixture(scope="module")
def fixture() -> LlamaFixture:
    return LlamaFixture(fixture_folder("wanda"))


def runs(fixture: LlamaFixture) -> list[re.Match[str]]:
    return [match for name in fixture.cases if (match := re.fullmatch(PREFIX, name))]


def method_of(match: re.Match[str]) -> tuple[PruningMethod, dict[str, Any]]:
    options: dict[str, Any] = {"pattern": f"{match[3]}:{match[4]}"} if match[3] else {}
    target = {"ratio": float(match[5])} if match[5] and not match[3] else {}
    if match[1] == "magnitude":
        return MagnitudeMethod(Magnitude(**options)), target
    return WandaMethod(Wanda(mass=match[2] == "variant", **options)), target


def test_every_run_of_the_fixture(fixture: LlamaFixture) -> None:
    found = runs(fixture)
    assert {match[1] for match in found} == {"wanda", "magnitude"}
    for match in found:
        run = match.group().removesuffix(".expected.logits")
        method, target = method_of(match)
        source = source_of(fixture.model(), fixture.ids, **target)
        measured = method.measure(source)
        for name, expected in fixture.cases.items():
            if name.startswith(f"{run}.scaler_row.model.layers."):
                ours = measured[name.removeprefix(f"{run}.scaler_row.model.layers.")]
                torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-7)

        model = fixture.model()
        dense = {name: module.weight.clone() for name, module in model.named_modules() if "_proj" in name}
        plan = method.plan(measured, source.groups, len(source.blocks), source.target)
        for index, layer in enumerate(model.model.layers):
            plan.edit(index, Block({DECODER: layer}))
        differing = total = 0
        for name, module in model.named_modules():
            if (kept := fixture.cases.get(f"{run}.keep.{name}")) is not None:
                assert torch.equal(module.weight, torch.where(module.weight == 0, 0, dense[name]))
                differing += int(((module.weight != 0) != kept.bool()).sum())
                total += kept.numel()
        assert total > 0 and differing <= total * (0.005 if match[2] == "variant" else 0.0005), (run, differing)
        tolerance = {"atol": 5e-4, "rtol": 1e-3} if differing == 0 else {"atol": 5e-2, "rtol": 5e-2}
        torch.testing.assert_close(fixture.logits(model), fixture.cases[f"{run}.expected.logits"], **tolerance)


@pytest.mark.parametrize("count", [0, 1, 13, 39, 40])
def test_the_lowest_of_rows_are_those_of_a_stable_sort(count: int) -> None:
    """Also where many scores are equal, and where all are."""
    torch.manual_seed(0)
    for score in (torch.randn(20, 40), torch.randint(0, 5, (20, 40)).float(), torch.zeros(3, 40)):
        first = score.sort(dim=1, stable=True).indices[:, :count]
        expected = torch.zeros_like(score, dtype=torch.bool).scatter_(1, first, True)
        assert torch.equal(lowest_of_rows(score, count), expected)
