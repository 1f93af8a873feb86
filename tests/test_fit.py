"""`fit`: its losses are those of versions that the verbs make, its bytes those of what its recipe makes, and its choice
the best of all."""

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from small_policies import CASES, SHAPE
from test_sensitivity import STATISTICS
from two_cameras import two_cameras

import rlrc
from rlrc.configs.fit import FitConfig
from rlrc.configs.prune import PruneConfig
from rlrc.configs.quantize import QuantizeConfig
from rlrc.configs.run import RunConfig
from rlrc.data import Demonstrations
from rlrc.data.statistics import adopt_statistics
from rlrc.errors import UserError
from rlrc.fit import check, fit, kept, out_of_reach
from rlrc.fit import costs as costs_module
from rlrc.fit.costs import Cost, Costs, behind, costs_of, exact_bytes
from rlrc.fit.losses import loss_rises
from rlrc.fit.solve import Answer, rise_of, solve
from rlrc.fit.versions import SEEING, WHOLE, Choice, Versions, cuts
from rlrc.fit.written import recipe_text
from rlrc.inspect import describe
from rlrc.pipeline import run
from rlrc.policies.checkpoint import outline
from rlrc.policies.registry import new_policy
from rlrc.prune import Task, prune
from rlrc.quantize import quantize
from rlrc.recipe import NAME, Budget, Recipe
from rlrc.report.budget import budget_table
from rlrc.report.summary import PolicyRow, Summary
from rlrc.resolve import resolve
from rlrc.sensitivity.frames import Frames
from rlrc.sensitivity.variants import LAYERS, TOKENS, Maker, Variant
from rlrc.stage import standalone

ASKED: dict[str, Any] = {"bits": (4,), "widths": (0.5,), "depths": (0.5,), "tokens": (0.5,), "samples": 6, "repeats": 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_cameras(tmp_path_factory.mktemp("two-cameras") / "dataset")


@pytest.fixture(scope="module", params=["oft-l1", "smolvla"])
def config(request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> FitConfig:
    family, options, *_ = CASES[request.param]
    policy = tmp_path_factory.mktemp(request.param) / "policy"
    new_policy(family, SHAPE, ["put carrot on plate", "put red cube on plate"], STATISTICS, 1, options).save(policy)
    cameras: dict[str, Any] = {"cameras": ("front",)} if request.param == "openvla" else {}
    return FitConfig(
        policy=policy, dataset=dataset, statistics="dataset", device="cpu", max_memory="1GB", **ASKED, **cameras
    )


@pytest.fixture(scope="module")
def versions(config: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> Versions:
    parent = outline(config.policy)
    adopt_statistics(parent, Demonstrations.of(config), config)
    return Versions.of(parent, config, tmp_path_factory.mktemp("measured"))


def test_rises_are_those_of_versions_that_the_verbs_make(config: FitConfig, versions: Versions, tmp_path: Path) -> None:
    demonstrations = Demonstrations.of(config)
    own, rises = loss_rises(versions, config, demonstrations)
    dense = rlrc.load(config.policy, device="cpu")
    adopt_statistics(dense, demonstrations, config)
    assert own == pytest.approx(by_hand(dense, config, demonstrations), rel=1e-5)
    parts = {variant.part for variant in rises}
    towers = {variant.degree for variant in rises if variant.kind == "tower"}
    assert parts == {LAYERS, TOKENS, "vision"} and len(rises) == 7 + len(towers)
    assert towers == ({0, 1} if len(dense.vision_stacks()) > 1 else set())
    maker = Maker(config, demonstrations, tmp_path)  # type: ignore[arg-type]  # the options are the same
    for variant, rise in rises.items():
        if variant.kind == "bits":
            continue
        with maker.make(variant) as lighter:
            assert rise == pytest.approx(by_hand(lighter, config, demonstrations) - own, abs=2e-5), variant
            assert rise != 0


def test_rises_of_bits_are_those_of_packed_policies(config: FitConfig, versions: Versions, tmp_path: Path) -> None:
    demonstrations = Demonstrations.of(config)
    own, rises = loss_rises(versions, config, demonstrations)
    for part, packed in (
        ("vision", list(SEEING)),
        (LAYERS, [part for part in versions.packable if part not in SEEING]),
    ):
        out = tmp_path / part
        quantize(QuantizeConfig(policy=config.policy, parts=tuple(packed), device="cpu"), out)  # type: ignore[arg-type]
        lighter = rlrc.load(out / "checkpoint", device="cpu")
        adopt_statistics(lighter, demonstrations, config)
        rise = by_hand(lighter, config, demonstrations) - own
        # Kernels round activations to 8 bits in both, in other batches.
        assert rises[Variant(part, "bits", 4)] == pytest.approx(rise, abs=1e-3)


def by_hand(policy: Any, config: FitConfig, demonstrations: Demonstrations) -> float:
    """The mean of the loss over all numbers of the actions that are there, from one whole forward pass."""
    frames = Frames.draw(policy, demonstrations, config.samples, config.seed)
    with torch.no_grad():
        noise = torch.Generator().manual_seed(frames.seed)
        predicted, target = policy.predict(policy.prepare(frames.observation), frames.actions, noise)
    return float(policy.errors(predicted, target)[~frames.padded].mean())


def test_bytes_are_exact_however_few_layers_are_made(
    config: FitConfig, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs_module, "MADE_BYTES", 1)
    costs = costs_of(versions, config)
    assert set(costs.vision) == set(versions.vision) and len(costs.language) == 2 * 2 * 2 * 2
    pairs = list(itertools.product(costs.vision.items(), costs.language.items()))
    for (vision, seen), (language, spoken) in pairs[:: len(pairs) // 10]:
        if WHOLE in (vision.bits, language.bits) or vision.bits == language.bits:
            assert seen.bytes + spoken.bytes == exact_bytes(versions, vision, language)
        assert seen.ms > 0 and costs.ms(vision, language) > spoken.ms


@pytest.mark.parametrize("config", ["oft-l1"], indirect=True)
def test_the_recipe_makes_what_was_predicted(config: FitConfig, tmp_path: Path) -> None:
    half = describe(outline(config.policy))["bytes"]["total"] // 2
    asked = config.model_copy(update={"max_memory": f"{half / 1000}kB", "sft_steps": 0})
    result = fit(asked, tmp_path / "fit")
    assert result == json.loads((tmp_path / "fit" / "fit.json").read_text())
    assert result["predicted"]["weight_bytes"] <= half
    recipe = yaml.safe_load((tmp_path / "fit" / "fit.yaml").read_text())
    resolve(Recipe.parse(recipe, "fit.yaml"), tmp_path / "run")
    recipe["stages"] = [stage for stage in recipe["stages"] if stage["verb"] not in ("bench", "report")]
    quick = tmp_path / "quick.yaml"
    quick.write_text(yaml.safe_dump(recipe))
    run(RunConfig(recipe=quick), tmp_path / "run")
    made = rlrc.load(tmp_path / "run" / recipe["budget"]["policy"] / "checkpoint", device="cpu")
    assert describe(made)["bytes"]["total"] == result["predicted"]["weight_bytes"]


def test_what_is_out_of_reach_is_told() -> None:
    vision, language = (
        {Choice(width): Cost(ms, size) for width, ms, size in side}
        for side in ([(0.0, 5.0, 900), (0.5, 3.0, 500)], [(0.0, 9.0, 100)])
    )
    costs = Costs(vision, language, {Choice(): 0.0}, 1.0)
    assert solve(costs, {}, (8,), 12.9, float("inf")) is None and solve(costs, {}, (8,), float("inf"), 599) is None
    assert solve(costs, {}, (8,), 13.1, 601) is not None
    asked = FitConfig(policy=Path("p"), dataset=Path("d"), max_latency="2ms")
    told = out_of_reach(costs, asked, Path("runs/fit"))
    assert "no choice meets 2ms: the fastest takes 13ms a call and the smallest 600 B" in told
    assert "--measured runs/fit" in told


def test_a_page_shows_budget_prediction_and_measurement() -> None:
    budget = Budget(policy="quantize", max_latency="20ms", predicted_ms=10.0, predicted_bytes=2048)
    recipe = Recipe(name="fit", budget=budget, stages=[{"verb": "quantize"}])
    row = PolicyRow("quantize", "quantize", cost={"latency_ms": {"p50": 11.0}, "bytes": {"memory": 2048}})
    columns, rows = budget_table(Summary(recipe, [], [row], None)) or ([], [])
    assert rows == [
        ["one call, median", "20ms", "10.0 ms", "11.0 ms", "+10.0%"],
        ["weights in memory", "-", "2.00 KiB", "2.00 KiB", "+0.0%"],
    ]
    assert columns[0] == "quantize"
    _, rows = budget_table(Summary(recipe, [], [], None)) or ([], [])
    assert [row[3] for row in rows] == ["not measured", "not measured"]
    assert budget_table(Summary(Recipe(name="a", stages=[{"verb": "prune"}]), [], [row], None)) is None


def test_the_choice_is_the_best_of_all() -> None:
    random = np.random.default_rng(0)
    widths, bits = (0.0, 0.5, 0.9), (WHOLE, 8, 4)
    vision = [Choice(width, 0.0, number) for width in widths for number in bits]
    language = [Choice(width, 0.0, number, tokens) for width in widths for number in bits for tokens in (0.0, 0.5)]
    for _ in range(20):
        sides = [
            {each: Cost(float(random.uniform(1, 10)), int(random.integers(1, 1000))) for each in side}
            for side in (vision, language)
        ]
        between = {behind(one, two): float(random.uniform(0, 3)) for one in vision for two in language}
        costs = Costs(sides[0], sides[1], between, 1.0)
        rises = {
            Variant(part, kind, degree): float(random.normal())
            for part in ("vision", LAYERS)
            for kind, degrees in (("width", (0.5, 0.9)), ("bits", (8, 4)))
            for degree in degrees
        } | {Variant(TOKENS, "tokens", 0.5): float(random.normal())}
        most_ms, most_bytes = float(random.uniform(4, 18)), float(random.integers(50, 1500))
        answer = solve(costs, rises, (8, 4), most_ms, most_bytes)
        possible = [
            (rise_of(one, "vision", rises) + rise_of(two, LAYERS, rises), costs.ms(one, two))
            for one, two in itertools.product(vision, language)
            if len({one.bits, two.bits} - {WHOLE}) < 2
            and costs.ms(one, two) <= most_ms
            and sides[0][one].bytes + sides[1][two].bytes <= most_bytes
        ]
        assert (answer is None) == (not possible)
        if answer is not None:
            # Of equal choices it is the fastest.
            assert (answer.rise, costs.ms(answer.vision, answer.language)) == pytest.approx(min(possible))


def test_a_rise_never_falls_with_more_of_the_same() -> None:
    rises = {Variant(LAYERS, "width", 0.5): 2.0, Variant(LAYERS, "width", 0.9): 1.0, Variant(LAYERS, "bits", 8): -1.0}
    assert rise_of(Choice(0.9), LAYERS, rises) == 2.0
    assert rise_of(Choice(bits=8), LAYERS, rises) == 0.0
    assert rise_of(Choice(), LAYERS, rises) == 0.0


@pytest.mark.parametrize("width", [0.1, 0.5, 0.6, 0.75, 0.9, 0.97])
def test_cuts_leave_what_one_cut_would(width: float) -> None:
    shares = cuts(width)
    assert np.prod([1 - share for share in shares]) == pytest.approx(1 - width, abs=1e-5)
    assert max(shares) <= 0.6


def written_for(config: FitConfig, **options: Any) -> list[dict[str, Any]]:
    """The stages of a recipe that cuts a part and packs it, with other options of `fit`."""
    versions = cast(Versions, SimpleNamespace(packable=("decoder",)))
    answer = Answer(Choice(0.5), Choice(0.75, bits=4), 0.0)
    asked = config.model_copy(update={"statistics": "policy", "sft_steps": 80, **options})
    text = recipe_text(asked, versions, answer, {"predicted_ms": 1.0, "predicted_bytes": 1})
    recipe = yaml.safe_load(text)
    assert re.fullmatch(NAME, recipe["name"])
    return list(recipe["stages"])


def test_every_stage_reads_the_policy_as_fit_did(config: FitConfig) -> None:
    folder = Path("mein ordner") / ("pölicy 1" + 100 * "x")
    asked = {"policy": folder, "spec": "vlm=V", "unnorm_key": "mine", "world": "tabletop", "rl_iterations": 3}
    stages = written_for(config, **asked)
    assert [stage["verb"] for stage in stages] == [
        *("prune", "sft", "prune", "sft", "prune", "sft", "rl", "quantize", "evaluate", "evaluate", "bench", "report")
    ]
    *acting, report = stages
    assert {(stage["unnorm_key"], stage["device"]) for stage in acting} == {("mine", "cpu")}
    reads_base = [stage.get("policy", stage.get("policies", [""])[0]) == "base" for stage in acting]
    assert [stage.get("spec") for stage in acting] == ["vlm=V" if base else None for base in reads_base]
    assert sum(reads_base) == 3 and report == {"verb": "report"}
    # Where the statistics are made of the dataset, the policy before has none to act by.
    measured = written_for(config, **asked, statistics="dataset")[-3:]
    assert [stage.get("policy", stage.get("policies")) for stage in measured] == ["quantize", ["quantize"], None]


FEW: dict[str, Any] = {"widths": (0.5,), "depths": (0.5,), "tokens": (), "bits": (), "towers": ()}


@pytest.mark.parametrize("config", ["oft-l1"], indirect=True)
def test_another_budget_needs_no_measuring(config: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, first, other = config.model_copy(update=FEW), tmp_path / "first", tmp_path / "other"
    with pytest.raises(UserError, match=f"no choice meets 1kB.*--measured {first}"):
        standalone("fit", few.model_copy(update={"max_memory": "1kB"}), first).run(restart=False)
    monkeypatch.setattr(kept, "loss_rises", never)
    monkeypatch.setattr(kept, "costs_of", never)
    monkeypatch.setattr(Task, "_measure_on", never)
    wanted = few.model_copy(update={"measured": first})
    result = standalone("fit", wanted, other).run(restart=False)
    measured = json.loads((first / "measured.json").read_text())
    assert result["rises"] == [variant | {"rise": rise} for variant, rise in measured["rises"]]
    dense = sum(measured["times"][side][0][1]["ms"] for side in ("vision", "language"))
    dense += measured["times"]["projector"][0][1] + measured["times"]["rest_ms"]
    assert result["dense"]["p50_ms"] == pytest.approx(dense)
    assert sorted(path.name for path in first.glob("*.safetensors")) == [
        path.name for path in sorted(other.glob("*.safetensors"))
    ]
    for options, word in (
        ({"samples": 7}, "other samples"),
        ({"widths": (0.25,)}, "other widths"),
        ({"measured": config.policy}, "has no measured.json"),
    ):
        with pytest.raises(UserError, match=word):
            standalone("fit", wanted.model_copy(update=options), tmp_path / "refused").run(restart=False)
        assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("config", ["oft-l1"], indirect=True)
def test_losses_outlast_a_cut(config: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = config.model_copy(update=FEW)
    with monkeypatch.context() as patched:
        patched.setattr(kept, "costs_of", never)
        with pytest.raises(AssertionError):
            fit(few, tmp_path / "out")
    with pytest.raises(UserError, match="cut off"):
        fit(few.model_copy(update={"measured": tmp_path / "out"}), tmp_path / "other")
    monkeypatch.setattr(kept, "loss_rises", never)
    assert fit(few, tmp_path / "out")["predicted"]
    file = tmp_path / "out" / "measured.json"
    whole = json.loads(file.read_text())
    for damaged in ('{"loss": 1}', json.dumps(whole | {"rises": whole["rises"][1:]}), "["):
        file.write_text(damaged)
        with pytest.raises(UserError, match=r"measured\.json.*delete it"):
            fit(few, tmp_path / "out")


def never(*arguments: Any) -> None:
    raise AssertionError("this was measured before")


@pytest.mark.parametrize("config", ["oft-l1"], indirect=True)
def test_what_its_recipe_cannot_do_is_refused(config: FitConfig, tmp_path: Path) -> None:
    few = config.model_copy(update=FEW)
    with pytest.raises(UserError, match=r"rl_iterations: .*L1 head"):
        fit(few.model_copy(update={"world": "tabletop", "rl_iterations": 3}), tmp_path / "rl")
    with pytest.raises(UserError, match="unknown world 'nowhere'"):
        check(few.model_copy(update={"world": "nowhere"}))


def test_it_starts_from_a_policy_that_is_whole(dataset: Path, tmp_path: Path) -> None:
    family, options, *_ = CASES["oft-l1"]
    new_policy(family, SHAPE, ["put carrot on plate"], STATISTICS, 1, options).save(tmp_path / "policy")
    asked = {"policy": tmp_path / "policy", "dataset": dataset, "statistics": "dataset"}
    prune(PruneConfig(**asked, ratio=0.5, samples=4, protect=(0,)), tmp_path / "pruned")  # type: ignore[arg-type]
    quantize(QuantizeConfig(policy=tmp_path / "policy", bits=4), tmp_path / "packed")
    for name, word in (("pruned", "start from the policy before that"), ("packed", "quantized already")):
        wanted = FitConfig(policy=tmp_path / name / "checkpoint", dataset=dataset, max_latency="5ms", **ASKED)
        with pytest.raises(UserError, match=word):
            fit(wanted, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "a budget is needed"),
        ({"max_latency": "200"}, "max_latency"),
        ({"max_latency": "-1ms"}, "max_latency"),
        ({"max_latency": "0ms"}, "'0ms' is nothing"),
        ({"max_memory": "1TB"}, "max_memory"),
        ({"max_memory": "1GB", "rl_iterations": 3}, "needs a world"),
    ],
)
def test_budgets_that_say_nothing_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        FitConfig.parse({"policy": "p", "dataset": "d"} | options, "fit")


def test_units() -> None:
    asked = FitConfig(policy=Path("p"), dataset=Path("d"), max_latency="1.5s", max_memory="2KiB")
    assert (asked.most_ms, asked.most_bytes) == (1500, 2048)
    assert FitConfig(policy=Path("p"), dataset=Path("d"), max_latency="20ms").most_ms == 20
    assert FitConfig(policy=Path("p"), dataset=Path("d"), max_memory="3MB").most_ms == float("inf")
