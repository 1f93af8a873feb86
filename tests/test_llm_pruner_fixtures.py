"""LLM-Pruner's own code is the judge: scores, what stays, and the logits of what is left."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlrc.prune.allocate import Rounding, choose
from rlrc.prune.criteria import REDUCTIONS, LlmPruner
from rlrc.prune.groups import coupled_groups
from rlrc.prune.structured import cut

IMPORTANCES = ["vectorize", "param_first", "param_second", "param_mix", "magnitude_l1", "magnitude_l2"]


class Fixture:
    def __init__(self, folder: Path) -> None:
        self.meta = json.loads((folder / "meta.json").read_text())
        self.cases = load_file(folder / "cases.safetensors")
        self.weights = load_file(folder / "model.safetensors")
        self._scores: dict[tuple[str, str], list[torch.Tensor]] = {}

    def model(self) -> LlamaForCausalLM:
        known = {key: value for key, value in self.meta["config"].items() if not key.startswith("calibration_")}
        rope = {"rope_type": "default", "rope_theta": known.pop("rope_theta")}
        model = LlamaForCausalLM(LlamaConfig(**known, rope_parameters=rope, tie_word_embeddings=False))
        model.load_state_dict(self.weights)
        return model.eval()

    def scores(self, importance: str, reduction: str) -> list[torch.Tensor]:
        if (importance, reduction) not in self._scores:
            model = self.model()
            rows = self.cases["calibration.input_ids"]

            def loss(samples: Sequence[int]) -> torch.Tensor:
                ids = rows[list(samples)]
                return model(ids, labels=ids, use_cache=False).loss

            layers = model.model.layers
            criterion = LlmPruner(importance=importance, reduction=reduction)
            found = criterion.scores(layers, coupled_groups(layers), loss, len(rows))
            assert all(p.grad is None for layer in layers for p in layer.parameters() if p.ndim == 2)
            self._scores[importance, reduction] = found
        return self._scores[importance, reduction]


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Fixture:
    return Fixture(shared / "fixtures" / "llm_pruner")


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_scores(fixture: Fixture, importance: str) -> None:
    reductions = [name for name in REDUCTIONS if f"{importance}.{name}.scores.head" in fixture.cases]
    assert reductions
    for reduction in reductions:
        scores = fixture.scores(importance, reduction)
        for kind, found in (("head", scores[0::2]), ("mlp", scores[1::2])):
            expected = fixture.cases[f"{importance}.{reduction}.scores.{kind}"]
            torch.testing.assert_close(torch.stack(found), expected, rtol=2e-3, atol=1e-6 * float(expected.max()))


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_kept_units_and_logits(fixture: Fixture, importance: str, scope: str) -> None:
    pattern = re.compile(rf"{importance}\.(\w+)\.r([\d.]+)\.{scope}(\.protect_first_last)?\.keep\.heads")
    found = [match for name in fixture.cases if (match := pattern.fullmatch(name))]
    assert found
    for match in found:
        case = match.group().removesuffix(".keep.heads")
        model = fixture.model()
        layers = model.model.layers
        protected = frozenset({0, len(layers) - 1} if match[3] else ())
        groups = coupled_groups(layers)
        scores = fixture.scores(importance, match[1])
        kept = choose(groups, scores, protected, scope, float(match[2]), None, Rounding())
        for kind, units in (("heads", kept[0::2]), ("mlp", kept[1::2])):
            expected = [row.nonzero().flatten().tolist() for row in fixture.cases[f"{case}.keep.{kind}"]]
            assert [indices.tolist() for indices in units] == expected, (case, kind)

        cut(layers, model.config, groups, kept)
        assert sum(p.numel() for p in model.parameters()) == fixture.meta["summary"][case]["parameters"], case
        with torch.no_grad():
            logits = model(fixture.cases["eval.input_ids"], use_cache=False).logits
        torch.testing.assert_close(logits, fixture.cases[f"{case}.expected.logits"], atol=5e-3, rtol=1e-3)
