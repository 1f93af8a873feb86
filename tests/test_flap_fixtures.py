"""FLAP's own code is the judge: metrics, what stays, compensation biases, and the logits of what is left."""

import re

import pytest
import torch
from conftest import fixture_cases, fixture_folder
from llama_source import LlamaFixture, apply, source_of

from rlrc.configs.prune import Flap
from rlrc.prune.flap import FlapMethod
from rlrc.prune.measured import Measured


class Fixture(LlamaFixture):
    def measured(self, metric: str) -> Measured:
        return FlapMethod(Flap(metric=metric)).measure(source_of(self.model(), self.ids))


KINDS = (("heads", "heads", "o_proj"), ("channels", "mlp", "down_proj"))


@pytest.fixture(scope="module", params=fixture_cases("flap"))
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(fixture_folder(f"flap/{request.param}"))


@pytest.mark.parametrize("metric", ["IFV", "WIFV", "WIFN"])
def test_metrics_and_means(fixture: Fixture, metric: str) -> None:
    measured = fixture.measured(metric)
    for kind, _, matrix in KINDS:
        for layer, expected in enumerate(fixture.cases[f"{metric}.metric.{matrix}"]):
            torch.testing.assert_close(measured[f"{layer}.{kind}.metric"], expected, rtol=2e-3, atol=1e-9)
            mean = fixture.cases[f"mean_input.{matrix}"][layer]
            torch.testing.assert_close(measured[f"{layer}.{kind}.mean"], mean, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("metric", ["IFV", "WIFV", "WIFN"])
def test_kept_units_biases_and_logits(fixture: Fixture, metric: str) -> None:
    pattern = re.compile(rf"{metric}\.(AL-AM|UL-UM)\.p([\d.]+)\.keep\.heads")
    found = [match for name in fixture.cases if (match := pattern.fullmatch(name))]
    assert found
    measured = fixture.measured(metric)
    for match in found:
        case, model = match.group().removesuffix(".keep.heads"), fixture.model()
        source = source_of(model, ratio=float(match[2]))
        method = FlapMethod(Flap(metric=metric, structure=match[1]))
        plan = method.plan(measured, source.groups, len(source.blocks), source.target)
        for kind, theirs, _ in KINDS:
            for layer, row in enumerate(fixture.cases[f"{case}.keep.{theirs}"]):
                everything = list(range(len(row)))
                assert plan.kept[kind].get(layer, everything) == row.nonzero().flatten().tolist(), (case, kind, layer)

        pruned = apply(plan, model)
        for layer, block in enumerate(pruned.model.layers):
            for module, matrix in ((block.self_attn.o_proj, "o_proj"), (block.mlp.down_proj, "down_proj")):
                expected = fixture.cases[f"{case}.expected.bias.{matrix}"][layer]
                torch.testing.assert_close(module.bias.detach(), expected, atol=5e-4, rtol=1e-3)
        torch.testing.assert_close(
            fixture.logits(pruned), fixture.cases[f"{case}.expected.logits"], atol=5e-4, rtol=1e-3
        )
        assert sum(p.numel() for p in pruned.parameters()) == fixture.meta["summary"][case]["parameters"], case
