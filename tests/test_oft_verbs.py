"""Every verb on a small OpenVLA-OFT policy with two cameras, a state and chunks, from demonstrations on disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import bandit_world
import numpy as np
import pytest
import torch
from small_policies import SHAPE
from two_cameras import FRAMES, two_cameras

import rlrc
from rlrc import envs
from rlrc.act.action_error import action_error
from rlrc.act.evaluate import evaluate
from rlrc.bench import bench
from rlrc.configs.bench import BenchConfig
from rlrc.configs.evaluate import EvaluateConfig
from rlrc.configs.prune import Depth, Flap, LlmPruner, PruneConfig, StateSaliency, Wanda
from rlrc.configs.quantize import QuantizeConfig
from rlrc.configs.rl import RlConfig
from rlrc.configs.sft import SftConfig
from rlrc.configs.train import OFTOptions, TrainConfig
from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.prune import prune
from rlrc.quantize import quantize
from rlrc.recover.ppo import rl
from rlrc.recover.sft import sft
from rlrc.recover.train import train

HEADS = ("l1", "tokens", "diffusion")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_cameras(tmp_path_factory.mktemp("two-cameras") / "dataset")


@pytest.fixture(scope="module", params=HEADS)
def trained(request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of each kind after a few steps of training from scratch."""
    out = tmp_path_factory.mktemp(f"train-{request.param}")
    options = OFTOptions(horizon=3, head=request.param, cameras=("front", "wrist"))
    learning = {"steps": 10, "batch_size": 4, "warmup_steps": 1, "learning_rate": 2e-3, "state_loss_weight": 0}
    metrics = train(
        TrainConfig(family="openvla-oft", oft=options, shape=SHAPE, dataset=dataset, device="cpu", **learning), out
    )
    assert np.isfinite(metrics["loss"])
    assert ("l1_error" in metrics) == (request.param != "diffusion")
    policy = rlrc.load(out / "checkpoint")
    assert (policy.spec.family, policy.spec.cameras) == ("openvla-oft", ("front", "wrist"))
    assert (policy.spec.horizon, len(policy.spec.state), len(policy.spec.action)) == (3, 8, 7)
    assert policy.spec.execute == 3
    return out / "checkpoint"


METHODS = {
    "taylor": LlmPruner(),
    "saliency": StateSaliency(grid=2),
    "flap": Flap(),
    "wanda": Wanda(),
    "depth": Depth(),
}


def test_bench(trained: Path, quick_rates: None, tmp_path: Path) -> None:
    config = BenchConfig(policies=[trained], batch_sizes=(1,), repeats=2, warmup=0, device="cpu")
    (entry,) = bench(config, tmp_path)["policies"]
    assert entry["actions_per_call"] == 3 and entry["stages_ms"]["vision"]["p50"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_prune(trained: Path, dataset: Path, method: str, tmp_path: Path) -> None:
    """Every method measures, cuts and saves, the same way each time."""
    config = PruneConfig(policy=trained, dataset=dataset, ratio=0.4, samples=6, method=METHODS[method], device="cpu")
    result = prune(config, tmp_path / "first")
    policy = rlrc.load(tmp_path / "first" / "checkpoint")
    before = result["metrics"]["linear_parameters_before"]
    if method == "wanda":
        assert result["metrics"]["zeros"] == pytest.approx(0.4, abs=0.02)
    else:
        assert result["metrics"]["linear_parameters"] < 0.8 * before
    kept = prune(config, tmp_path / "second")
    assert kept["layers"] == result["layers"]
    for name, tensor in rlrc.load(tmp_path / "second" / "checkpoint").model.state_dict().items():
        assert torch.equal(tensor, policy.model.state_dict()[name])
    assert policy.spec == rlrc.load(trained).spec


def test_fine_tuning(trained: Path, dataset: Path, tmp_path: Path) -> None:
    config = SftConfig(policy=trained, dataset=dataset, steps=10, batch_size=4, warmup_steps=1, device="cpu")
    assert np.isfinite(sft(config, tmp_path)["loss"])
    old, new = (rlrc.load(path).model.state_dict() for path in (trained, tmp_path / "checkpoint"))
    assert old.keys() == new.keys()
    assert not torch.equal(old["proprio_projector.fc1.weight"], new["proprio_projector.fc1.weight"])


@pytest.mark.parametrize("head", HEADS)
def test_fine_tuning_to_another_form_of_actions(trained: Path, dataset: Path, head: Any, tmp_path: Path) -> None:
    """The trunk stays what it was, and what the new form needs is there and is trained."""
    config = SftConfig(
        policy=trained, dataset=dataset, head=head, steps=1, batch_size=4, learning_rate=1e-9, device="cpu"
    )
    sft(config, tmp_path)
    old, new = rlrc.load(trained), rlrc.load(tmp_path / "checkpoint")
    assert new.model.config.head == head and new.spec == old.spec
    kept = {"l1": {"action_head"}, "tokens": set(), "diffusion": {"action_head", "noisy_action"}}[head]
    assert new.parts.keys() & {"action_head", "noisy_action"} == kept
    tensors = new.model.state_dict()
    for name, tensor in old.model.state_dict().items():
        if old.part_of(name) not in ("action_head", "noisy_action"):
            assert torch.equal(tensors[name], tensor)
    again = tmp_path / "again"
    sft(config.model_copy(update={"steps": 10, "learning_rate": 1e-2, "warmup_steps": 1}), again)
    assert rlrc.load(again / "checkpoint").model.state_dict().keys() == tensors.keys()


def test_a_teacher_has_actions_of_the_same_form(trained: Path, dataset: Path, tmp_path: Path) -> None:
    config = SftConfig(policy=trained, dataset=dataset, head="diffusion", teacher=trained, steps=1, device="cpu")
    if rlrc.load(trained).model.config.head != "diffusion":
        with pytest.raises(UserError, match="the teacher's actions have another form"):
            sft(config, tmp_path)


def test_a_quantized_policy_keeps_its_form_of_actions(trained: Path, dataset: Path, tmp_path: Path) -> None:
    quantize(QuantizeConfig(policy=trained, bits=8, device="cpu"), tmp_path / "packed")
    config = SftConfig(policy=tmp_path / "packed" / "checkpoint", dataset=dataset, head="tokens", device="cpu")
    with pytest.raises(UserError, match="head: a quantized policy keeps its form"):
        sft(config, tmp_path / "sft")
    assert not (tmp_path / "sft" / "checkpoint").exists()


def test_openvla_has_one_form_of_actions(tiny_policy: Policy) -> None:
    with pytest.raises(UserError, match="head tokens: policies of the family openvla have one form of actions"):
        tiny_policy.with_head("tokens", seed=0)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_quantize(trained: Path, dataset: Path, rounding: str, tmp_path: Path) -> None:
    parts = [part for part in rlrc.load(trained).parts if part != "embedding"]
    config = QuantizeConfig(
        policy=trained, bits=8, dataset=dataset, samples=6, rounding=rounding, parts=parts, device="cpu"
    )
    result = quantize(config, tmp_path)
    actions = result["actions"]
    if "tokens" in actions:
        assert 0 <= actions["bins"] < 20
    else:
        assert 0 < actions["l1_change"] < 0.1
    packed = {layer["name"].partition(".")[0] for layer in result["per_layer"]}
    assert {"language_model", "vision_backbone", "projector"} <= packed
    rlrc.load(tmp_path / "checkpoint")


def test_action_error(trained: Path, dataset: Path, tmp_path: Path) -> None:
    result = action_error(EvaluateConfig(policy=trained, dataset=dataset, num_envs=3, device="cpu"), tmp_path)
    assert result["frames"] == 2 * FRAMES


@pytest.fixture
def bandit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world with two cameras and the state that the policies read."""
    monkeypatch.setitem(envs.WORLDS, "bandit", "bandit_world")
    monkeypatch.setattr(bandit_world, "SPEC", replace(bandit_world.SPEC, cameras=("front", "wrist")))


@pytest.mark.usefixtures("bandit")
def test_evaluate(trained: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        policy=trained, world="bandit", episodes=4, num_envs=2, num_workers=0, videos=0, device="cpu"
    )
    evaluate(config, tmp_path)
    assert (tmp_path / "eval.json").exists()


@pytest.mark.usefixtures("bandit")
def test_rl(trained: Path, tmp_path: Path) -> None:
    """PPO trains action tokens, and says of the other heads why it cannot."""
    options = {"num_envs": 4, "num_workers": 0, "iterations": 2, "batch_size": 4, "ratio_of": "token", "device": "cpu"}
    config = RlConfig(policy=trained, world="bandit", **options)
    if rlrc.load(trained).no_likelihood is not None:
        with pytest.raises(UserError, match=r"PPO needs the likelihood of an action.*sft --head tokens"):
            rl(config, tmp_path)
        return
    metrics = rl(config, tmp_path)
    assert np.isfinite(metrics["policy_loss"]) and metrics["acting_gap"] < 0.2
    assert rlrc.load(tmp_path / "checkpoint").spec == rlrc.load(trained).spec


def test_what_does_not_fit_is_told(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="options oft belong to the family openvla-oft"):
        TrainConfig(dataset=dataset, oft=OFTOptions(horizon=4))
    options = OFTOptions(cameras=("front", "left"))
    config = TrainConfig(family="openvla-oft", oft=options, shape=SHAPE, dataset=dataset, steps=1, device="cpu")
    with pytest.raises(UserError, match="left"):
        train(config, tmp_path)
