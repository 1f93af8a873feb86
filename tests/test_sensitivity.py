"""What each part of a policy can bear: rows hold what the verbs make and what the losses of the versions are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_policies import CASES, SHAPE
from two_cameras import two_cameras

import rlrc
from rlrc.configs.prune import PruneConfig, Tower
from rlrc.configs.quantize import QuantizeConfig
from rlrc.configs.sensitivity import SensitivityConfig
from rlrc.data import Demonstrations
from rlrc.errors import UserError
from rlrc.inspect import describe
from rlrc.policies.registry import new_policy
from rlrc.prune import prune
from rlrc.quantize import quantize
from rlrc.sensitivity import sensitivity
from rlrc.sensitivity.frames import Frames
from rlrc.sensitivity.variants import Maker
from rlrc.sensitivity_map import draw_map, table

DEGREES: dict[str, Any] = {"bits": (4,), "widths": (0.5,), "depths": (0.5,), "tokens": (0.25, 0.5)}
ASKED: dict[str, Any] = {"samples": 6, "repeats": 6, "device": "cpu"} | DEGREES

STATISTICS = {
    "robot": {
        name: {"min": [-0.1] * width, "max": [0.1] * width, "mean": [0.0] * width, "std": [0.05] * width}
        | {"q01": [-0.1] * width, "q99": [0.1] * width, "mask": [True] * width}
        for name, width in (("action", 7), ("proprio", 8))
    }
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_cameras(tmp_path_factory.mktemp("two-cameras") / "dataset")


def policy_of(case: str, folder: Path) -> Path:
    """A small policy whose state is as wide as the dataset's."""
    family, options, *_ = CASES[case]
    new_policy(family, SHAPE, ["put carrot on plate", "put red cube on plate"], STATISTICS, 1, options).save(folder)
    return folder


@pytest.fixture(scope="module", params=["openvla", "oft-l1", "smolvla"])
def done(
    request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SensitivityConfig, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp(f"sensitivity-{request.param}")
    policy = policy_of(request.param, folder / "policy")
    options = {"cameras": ("front",)} if request.param == "openvla" else {}
    config = SensitivityConfig(policy=policy, dataset=dataset, statistics="dataset", **ASKED, **options)
    return config, sensitivity(config, folder), folder


def test_every_part_and_stack_has_its_row(done: tuple[SensitivityConfig, dict[str, Any], Path]) -> None:
    config, result, folder = done
    policy = rlrc.load(config.policy, device="cpu")
    found = [(row["part"], row["kind"], row["degree"]) for row in result["rows"]]
    stacks = {stack.name for stack in policy.stacks()}
    assert {part for part, kind, _ in found if kind == "width"} == stacks | {"vision"}
    assert {"decoder", "vision", "projector"} <= {part for part, kind, _ in found if kind == "bits"}
    towers = [(part, degree) for part, kind, degree in found if kind == "tower"]
    assert towers == ([("vision", 0), ("vision", 1)] if len(policy.vision_stacks()) > 1 else [])
    assert {("layers", "depth", 0.5), ("vision", "depth", 0.5), ("tokens", "tokens", 0.5)} <= set(found)
    assert len(set(found)) == len(found) and not any("refused" in row for row in result["rows"])
    assert result == json.loads((folder / "sensitivity.json").read_text())
    assert (folder / "sensitivity.png").stat().st_size > 10_000


def test_a_row_is_what_the_verb_makes_and_what_its_loss_is(
    done: tuple[SensitivityConfig, dict[str, Any], Path], tmp_path: Path
) -> None:
    config, result, _ = done
    reading = config.model_dump(include={"policy", "dataset", "cameras", "statistics", "device"})
    quantize(QuantizeConfig(**reading, bits=4, samples=6), tmp_path / "bits")
    prune(PruneConfig(**reading, ratio=0.5, samples=6, stacks=("decoder",)), tmp_path / "width")
    made = [("decoder", "bits"), ("decoder", "width")]
    if len(rlrc.load(config.policy, device="cpu").vision_stacks()) > 1:
        prune(PruneConfig(**reading, samples=6, method=Tower(keep=0)), tmp_path / "tower")
        made.append(("vision", "tower"))
    for part, kind in made:
        lighter = rlrc.load(tmp_path / kind / "checkpoint", device="cpu")
        row = next(row for row in result["rows"] if (row["part"], row["kind"]) == (part, kind))
        assert row["bytes"] == describe(lighter)["bytes"]["total"] < result["own"]["bytes"]
        demonstrations = Demonstrations.of(config)
        frames = Frames.draw(lighter, demonstrations, 6, config.seed)
        mean = by_hand(lighter, frames)
        assert row["loss_change"]["mean"] == pytest.approx(mean - result["own"]["loss"], abs=2e-5)
        assert 0 <= row["changed"]["mean"] <= 1


def by_hand(policy: Any, frames: Frames) -> float:
    """The mean over frames of the loss on the actions that are there, one frame at a time."""
    means = []
    for row in range(len(frames.observation)):
        inputs = policy.prepare(frames.observation[[row]])
        noise = [torch.Generator().manual_seed(frames.seed + row)]
        with torch.no_grad():
            predicted, target = policy.predict(inputs, frames.actions[[row]], noise)
        errors = policy.errors(predicted, target)[0]
        means.append(float(errors[~frames.padded[row]].mean()))
    return float(np.mean(means))


def test_what_was_cut_off_goes_on(
    done: tuple[SensitivityConfig, dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, result, _ = done
    kept = result | {"rows": result["rows"][:-1]}
    (tmp_path / "sensitivity.json").write_text(json.dumps(kept))
    made, make_version = [], Maker.make
    monkeypatch.setattr(Maker, "make", lambda self, variant: made.append(variant) or make_version(self, variant))
    again = sensitivity(config, tmp_path)
    assert [str(variant) for variant in made] == ["tokens, 50 % of each picture's gone"]
    assert again["rows"][:-1] == result["rows"][:-1]
    assert again["rows"][-1]["loss_change"] == pytest.approx(result["rows"][-1]["loss_change"])


def test_what_cannot_be_is_told_in_its_row(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = policy_of("oft-l1", tmp_path / "policy")
    options = ASKED | {"bits": (8,), "parts": ("decoder",), "widths": (), "depths": (0.8,), "towers": (), "tokens": ()}
    config = SensitivityConfig(policy=policy, dataset=dataset, statistics="dataset", **options)
    (tmp_path / "out").mkdir()
    rows = sensitivity(config, tmp_path / "out")["rows"]
    assert ["refused" in row for row in rows] == [False, False, True]
    assert rows[2]["refused"] == "depth: a ratio of 0.8 takes 3 of 4 layers; 2 is the most that can go"
    draw_map(tmp_path / "map.png", rows, 1000)
    assert table(rows, 1000)[1][2][0] == "vision, 80 % of layers gone: not done"


def test_what_goes_wrong_is_no_row(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is no property of the policy."""
    policy = policy_of("oft-l1", tmp_path / "policy")
    options = ASKED | {"bits": (8,), "parts": ("decoder",), "widths": (), "depths": (), "towers": (), "tokens": ()}
    config = SensitivityConfig(policy=policy, dataset=dataset, statistics="dataset", **options)

    def full(*_: Any) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("rlrc.sensitivity.variants.quantize", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="the disk is full"):
        sensitivity(config, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_new_statistics_go_with_every_version(dataset: Path, tmp_path: Path) -> None:
    policy = policy_of("oft-l1", tmp_path / "policy")
    options = ASKED | {"bits": (8,), "parts": ("decoder",), "widths": (0.5,), "depths": (), "towers": (), "tokens": ()}
    config = SensitivityConfig(policy=policy, dataset=dataset, statistics="dataset", unnorm_key="mine", **options)
    (tmp_path / "out").mkdir()
    assert ["refused" in row for row in sensitivity(config, tmp_path / "out")["rows"]] == [False] * 3


def test_wrong_policies_and_parts_are_refused(dataset: Path, tmp_path: Path) -> None:
    policy = policy_of("oft-l1", tmp_path / "policy")
    asked = {"dataset": dataset, "statistics": "dataset", **ASKED}
    with pytest.raises(UserError, match=r"'expert'; it has .*decoder"):
        sensitivity(SensitivityConfig(policy=policy, parts=("expert",), **asked), tmp_path)
    quantize(QuantizeConfig(policy=policy, device="cpu"), tmp_path / "packed")
    with pytest.raises(UserError, match="quantized already"):
        sensitivity(SensitivityConfig(policy=tmp_path / "packed" / "checkpoint", **asked), tmp_path)
    nothing = asked | {"bits": (), "widths": (), "depths": (), "tokens": (), "towers": ()}
    with pytest.raises(UserError, match="nothing would become lighter; give bits"):
        sensitivity(SensitivityConfig(policy=policy, **nothing), tmp_path)
    with pytest.raises(UserError, match="14 frames"):
        sensitivity(SensitivityConfig(policy=policy, **asked | {"samples": 50}), tmp_path)
    assert not (tmp_path / "sensitivity.json").exists()
