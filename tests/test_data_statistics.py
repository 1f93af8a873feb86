"""Where a dataset meets a policy: dimensions that fit or not, labels that are clipped, statistics of the data."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_STATS
from dataset_files import CASES, FRONT, copy_case, edit_json
from toy_demonstrations import toy_demonstrations

import rlrc
from rlrc.configs.learner import LearnerConfig
from rlrc.configs.prune import Magnitude, PruneConfig
from rlrc.configs.quantize import QuantizeConfig
from rlrc.configs.sft import SftConfig
from rlrc.configs.train import Shape, TrainConfig
from rlrc.data import Demonstrations
from rlrc.data.samples import observe
from rlrc.data.statistics import adopt_statistics, norm_stats, require_fit
from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.dim import Dim
from rlrc.policies.openvla.policy import OpenVLAPolicy
from rlrc.prune import prune
from rlrc.quantize import quantize
from rlrc.recover.loop import Learner
from rlrc.recover.sft import Frames, sft
from rlrc.recover.train import train


@dataclass(frozen=True)
class Choice:
    statistics: str = "policy"
    unnorm_key: str | None = None


def there_and_back(policy: OpenVLAPolicy, actions: np.ndarray) -> np.ndarray:
    """Actions (T, D) through the tokens that the policy learns and makes."""
    tokens = policy.tokens_of(torch.from_numpy(policy.to_normalised(actions))[:, None])
    return policy.to_physical(policy.actions.decode(tokens.numpy()))


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
    back = there_and_back(saved, demonstrations.actions)
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
    back = there_and_back(tiny_policy, actions)
    np.testing.assert_array_equal(back[:, 2], actions[:, 2])


@pytest.mark.parametrize("statistics", ["policy", "dataset"])
def test_other_dimensions_are_one_line(statistics: str, tiny_policy: Policy) -> None:
    with pytest.raises(UserError, match="actions have 14 dimensions, and the policy's have 7"):
        adopt_statistics(tiny_policy, Demonstrations.load(CASES / "a14"), Choice(statistics))


def test_statistics_of_other_dimensions_are_one_line(tiny_policy: Policy) -> None:
    short = {name: values[:6] for name, values in TINY_STATS["tabletop"]["action"].items()}
    tiny_policy.model.config.norm_stats = {"tabletop": {"action": short}}
    with pytest.raises(UserError, match="has 6 dimensions, and the policy's action_dim is 7"):
        require_fit(tiny_policy, Demonstrations.load(CASES / "plain"))


def reads(policy: Policy, dimensions: int) -> None:
    policy.spec = replace(policy.spec, state=tuple(Dim(str(number)) for number in range(dimensions)))


def test_a_state_that_is_missing_or_has_other_dimensions_is_one_line(tiny_policy: Policy, tmp_path: Path) -> None:
    plain = Demonstrations.load(CASES / "plain")
    assert plain.state is not None and plain.state.shape[1] == 2
    reads(tiny_policy, 2)
    require_fit(tiny_policy, plain)
    np.testing.assert_array_equal(observe(plain, np.array([3, 1]), tiny_policy).state, plain.state[[3, 1]])
    reads(tiny_policy, 8)
    with pytest.raises(UserError, match=r"plain: the state has 2 dimensions, and the policy's has 8$"):
        require_fit(tiny_policy, plain)
    with pytest.raises(UserError, match=r"reads a state of 8 dimensions.*observation.state nor state.*state_key"):
        Frames(tiny_policy, Demonstrations.load(CASES / "nostate"), 2, Learner(tiny_policy, LearnerConfig(), tmp_path))


def test_a_camera_that_is_missing_is_one_line(tiny_policy: Policy) -> None:
    tiny_policy.spec = replace(tiny_policy.spec, cameras=("front", "wrist"))
    with pytest.raises(UserError, match=r"toy: the policy sees 2 cameras \(front, wrist\), and the dataset has fewer"):
        require_fit(tiny_policy, toy_demonstrations())


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
    with pytest.raises(UserError, match="name them with cameras"):
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
