"""LLM-Pruner's own code is the judge: scores, what stays, and the logits of what is left."""

import re
from pathlib import Path

import pytest
import torch
from conftest import fixture_folder
from llama_source import LlamaFixture, apply, source_of

from rlrc.configs.prune import LlmPruner
from rlrc.prune.criteria import REDUCTIONS
from rlrc.prune.measured import Measured
from rlrc.prune.methods import method_of

IMPORTANCES = ["vectorize", "param_first", "param_second", "param_mix", "magnitude_l1", "magnitude_l2"]


class Fixture(LlamaFixture):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._scores: dict[tuple[str, str], Measured] = {}

    def scores(self, importance: str, reduction: str) -> Measured:
        if (importance, reduction) not in self._scores:
            method = method_of(LlmPruner(importance=importance, reduction=reduction))
            self._scores[importance, reduction] = method.measure(source_of(self.model(), self.ids))
        return self._scores[importance, reduction]

    def stacked(self, importance: str, reduction: str, kind: str) -> torch.Tensor:
        scores = self.scores(importance, reduction)
        return torch.stack([scores[f"{layer}.{kind}"] for layer in range(self.meta["config"]["num_hidden_layers"])])


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture(fixture_folder("llm_pruner"))


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_scores(fixture: Fixture, importance: str) -> None:
    reductions = [name for name in REDUCTIONS if f"{importance}.{name}.scores.head" in fixture.cases]
    assert reductions
    for reduction in reductions:
        for ours, theirs in (("heads", "head"), ("channels", "mlp")):
            expected = fixture.cases[f"{importance}.{reduction}.scores.{theirs}"]
            found = fixture.stacked(importance, reduction, ours)
            torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-6 * float(expected.max()))


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_kept_units_and_logits(fixture: Fixture, importance: str, scope: str) -> None:
    pattern = re.compile(rf"{importance}\.(\w+)\.r([\d.]+)\.{scope}(\.protect_first_last)?\.keep\.heads")
    found = [match for name in fixture.cases if (match := pattern.fullmatch(name))]
    assert found
    for match in found:
        case, model = match.group().removesuffix(".keep.heads"), fixture.model()
        protected = frozenset({0, len(model.model.layers) - 1} if match[3] else ())
        source = source_of(model, ratio=float(match[2]), protected=protected)
        method = method_of(LlmPruner(importance=importance, reduction=match[1], scope=scope))
        measured = fixture.scores(importance, match[1])
        plan = method.plan(measured, source.groups, len(source.blocks), source.target)
        for ours, theirs in (("heads", "heads"), ("channels", "mlp")):
            for layer, row in enumerate(fixture.cases[f"{case}.keep.{theirs}"]):
                everything = list(range(len(row)))
                assert plan.kept[ours].get(layer, everything) == row.nonzero().flatten().tolist(), (case, ours, layer)

        pruned = apply(plan, model)
        assert sum(p.numel() for p in pruned.parameters()) == fixture.meta["summary"][case]["parameters"], case
        torch.testing.assert_close(
            fixture.logits(pruned), fixture.cases[f"{case}.expected.logits"], atol=5e-3, rtol=1e-3
        )
