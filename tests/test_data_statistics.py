"""Where a dataset meets a policy: dimensions that fit or not, labels that are clipped, statistics of the data."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_STATS
from dataset_files import CASES, FRONT, copy_case, edit_json
from toy_demonstrations import toy_demonstrations

import rlrc
from rlrc.configs.prune import Magnitude, PruneConfig
from rlrc.configs.quantize import QuantizeConfig
from rlrc.configs.sft import SftConfig
from rlrc.configs.train import Shape, TrainConfig
from rlrc.data import Demonstrations
from rlrc.data.statistics import adopt_statistics, norm_stats, require_fit
from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.prune import prune
from rlrc.quantize import quantize
from rlrc.recover.sft import sft
from rlrc.recover.train import train


@dataclass(frozen=True)
class Choice:
    statistics: str = "policy"
    unnorm_key: str | None = None


def test_the_share_of_clipped_labels_is_told_in_one_line(tiny_policy: Policy, capsys: pytest.CaptureFixture) -> None:
    demonstrations = Demonstrations.load(CASES / "scale")
    adopt_statistics(tiny_policy, demonstrations, Choice())
    (line,) = capsys.readouterr().err.strip().splitlines()
    low, high = (np.array(TINY_STATS["tabletop"]["action"][name]) for name in ("q01", "q99"))
    expected = ((demonstrations.actions < low) | (demonstrations.actions > high)).mean()
    assert 0.4 < expected < 0.9
    assert f"{expected:.1%}" in line
    assert "6 (100%)" in line and "--statistics dataset" in line and str(CASES / "scale") in line


def test_labels_within_the_statistics_are_no_reason_to_speak(
    tiny_policy: Policy, capsys: pytest.CaptureFixture
) -> None:
    for demonstrations in (Demonstrations.load(CASES / "plain"), toy_demonstrations()):
        adopt_statistics(tiny_policy, demonstrations, Choice())
    assert not capsys.readouterr().err
    assert tiny_policy.norm_stats == TINY_STATS


def test_statistics_of_the_dataset_become_the_policys(tiny_policy: Policy, tmp_path: Path) -> None:
    demonstrations = Demonstrations.load(CASES / "scale")
    adopt_statistics(tiny_policy, demonstrations, Choice("dataset"))
    assert tiny_policy.unnorm_key == "scale"
    tiny_policy.save(tmp_path / "saved")
    saved = rlrc.load(tmp_path / "saved")
    assert saved.unnorm_key == "scale"
    assert saved.norm_stats == {**TINY_STATS, **norm_stats(demonstrations, "scale")}
    # What is encoded comes back: to half a bin, but for the most extreme values of each dimension.
    stats = norm_stats(demonstrations, "scale")["scale"]["action"]
    low, high = np.array(stats["q01"]), np.array(stats["q99"])
    expected = np.clip(demonstrations.actions, low, high)
    back = saved.decode(saved.encode(demonstrations.actions))
    assert np.abs(back - expected).max(axis=0) == pytest.approx(0, abs=1) and stats["mask"] == [True] * 7
    assert (np.abs(back - expected) <= (high - low) / 255 + 1e-6).all()
    adopt_statistics(saved, demonstrations, Choice("dataset"))  # the same ones, again
    with pytest.raises(UserError, match="other statistics under 'tabletop'"):
        adopt_statistics(saved, demonstrations, Choice("dataset", "tabletop"))
    adopt_statistics(saved, demonstrations, Choice("dataset", "mine"))
    assert saved.unnorm_key == "mine" and list(saved.norm_stats or {}) == ["tabletop", "scale", "mine"]


def test_constant_and_stateless_data_have_finite_statistics() -> None:
    for name in ("a14", "nostate"):
        demonstrations = Demonstrations.load(CASES / name)
        entry = norm_stats(demonstrations, "x")["x"]
        assert ("proprio" in entry) == (name == "a14")
        json.dumps(entry, allow_nan=False)
        assert len(entry["action"]["mask"]) == demonstrations.actions.shape[1]


def test_a_constant_dimension_comes_back_as_it_was(tiny_policy: Policy) -> None:
    toy = toy_demonstrations()
    actions = toy.actions.copy()
    actions[:, 2] = 0.1
    demonstrations = replace(toy, actions=actions)
    adopt_statistics(tiny_policy, demonstrations, Choice("dataset"))
    back = tiny_policy.decode(tiny_policy.encode(actions))
    np.testing.assert_array_equal(back[:, 2], actions[:, 2])


@pytest.mark.parametrize("statistics", ["policy", "dataset"])
def test_other_dimensions_are_one_line(statistics: str, tiny_policy: Policy) -> None:
    with pytest.raises(UserError, match="actions have 14 dimensions, and the policy's have 7"):
        adopt_statistics(tiny_policy, Demonstrations.load(CASES / "a14"), Choice(statistics))


def test_statistics_of_other_dimensions_are_one_line(tiny_policy: Policy) -> None:
    short = {name: values[:6] for name, values in TINY_STATS["tabletop"]["action"].items()}
    tiny_policy.model.config.norm_stats = {"tabletop": {"action": short}}
    with pytest.raises(UserError, match="actions have 7 dimensions, and those of the policy's statistics have 6"):
        require_fit(tiny_policy, Demonstrations.load(CASES / "plain"))


def test_every_verb_takes_the_statistics_of_the_dataset(tiny_checkpoint: Path, tmp_path: Path) -> None:
    common = {"policy": tiny_checkpoint, "dataset": CASES / "scale", "statistics": "dataset", "unnorm_key": "arm"}
    sft(SftConfig(**common, steps=1, batch_size=2), tmp_path / "sft")
    prune(PruneConfig(**common, ratio=0.5, method=Magnitude()), tmp_path / "prune")
    quantize(QuantizeConfig(**common, bits=8, group_size=8, samples=2), tmp_path / "quantize")
    expected = norm_stats(Demonstrations.load(CASES / "scale"), "arm")["arm"]
    for verb in ("sft", "prune", "quantize"):
        policy = rlrc.load(tmp_path / verb / "checkpoint")
        assert policy.unnorm_key == "arm", verb
        assert (policy.norm_stats or {})["arm"] == expected, verb


def test_cameras_and_episodes_are_chosen_in_a_verb(tiny_checkpoint: Path, tmp_path: Path) -> None:
    common = {"policy": tiny_checkpoint, "dataset": CASES / "two", "steps": 1, "batch_size": 2}
    with pytest.raises(UserError, match="name one with cameras"):
        sft(SftConfig(**common), tmp_path / "open")
    sft(SftConfig(**common, cameras=("wrist_image",), dataset_episodes="0"), tmp_path / "chosen")
    assert (tmp_path / "chosen" / "checkpoint").is_dir()


def test_training_without_a_simulators_state_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shape = Shape(hidden_size=40, num_hidden_layers=1, intermediate_size=40)
    config = TrainConfig(dataset=copy_case("nostate", tmp_path), shape=shape, steps=1, batch_size=2)
    assert "auxiliary_loss" not in train(config, tmp_path / "out")
    assert "without the auxiliary loss" in capsys.readouterr().err
    edit_json(config.dataset / "meta/info.json", lambda info: info["features"][FRONT].update(shape=[64, 64, 1]))
    with pytest.raises(UserError, match="no colour camera"):
        train(config, tmp_path / "other")
