"""Our PPO against tensors that RL4VLA's own code computed (tolerances from the fixture's meta.json)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fixture_folder
from safetensors.torch import load_file
from test_openvla_fixtures import whole_checkpoint

from rlrc.policies.checkpoint import load
from rlrc.policies.contract import Policy
from rlrc.policies.prismatic.inputs import PrismaticInputs
from rlrc.policies.values import Sampler
from rlrc.recover.critic import Critic, new_critic
from rlrc.recover.gae import gae, huber, normalise, policy_loss, value_loss


@dataclass
class Fixture:
    folder: Path
    meta: dict[str, Any]

    def __getitem__(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def assert_close(self, actual: torch.Tensor, expected: torch.Tensor, kind: str) -> None:
        tolerance = {"rtol": 0.0, **self.meta["tolerance"][kind]}
        torch.testing.assert_close(actual, expected.view_as(actual), check_dtype=False, **tolerance)


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    folder = fixture_folder("rl4vla")
    return Fixture(folder, json.loads((folder / "meta.json").read_text()))


@pytest.mark.parametrize("case", ["default", "midend"])
def test_advantages_and_returns(fixture: Fixture, case: str) -> None:
    data = {name.removeprefix(f"{case}."): tensor for name, tensor in fixture["gae"].items()}
    gamma, lam = data["gamma_lambda"].tolist()
    rewards, values, masks = (data[name].squeeze(-1) for name in ("rewards", "value_preds", "masks"))
    advantages, returns = gae(rewards, values, masks, gamma, lam)
    fixture.assert_close(returns, data["expected.returns"], "gae")
    fixture.assert_close(normalise(advantages, advantages), data["expected.advantages"], "gae")


def test_buffers_are_flattened_time_first(fixture: Fixture) -> None:
    order = fixture["gae"]["flatten_order"]
    assert torch.equal(torch.arange(order.numel()).view_as(order), order)


@pytest.mark.parametrize("case", ["default", "entropy"])
def test_losses_and_their_gradients(fixture: Fixture, case: str) -> None:
    data = {name.removeprefix(f"{case}."): tensor for name, tensor in fixture["loss"].items()}
    config = fixture.meta["config"]
    entropy_coefficient, accumulation = data["entropy_coef_accum"].tolist()
    leaves = {name: data[name].squeeze(-1).requires_grad_() for name in ("logprob", "values", "entropy")}
    old_logprobs, old_values, returns, advantages = (
        data[name].squeeze(-1) for name in ("old_logprob", "value_preds_old", "returns", "advantages")
    )
    actor = policy_loss(leaves["logprob"], old_logprobs, advantages, config["ppo_clip"])
    critic = value_loss(leaves["values"], old_values, returns, config["value_clip"], config["huber_delta"])
    fixture.assert_close(actor, data["expected.policy_loss"], "losses")
    fixture.assert_close(critic, data["expected.value_loss"], "losses")
    loss = (actor + critic - entropy_coefficient * leaves["entropy"].mean()) / accumulation
    fixture.assert_close(loss, data["expected.loss"], "losses")
    loss.backward()
    expected = {name.removeprefix("expected.grad."): t for name, t in data.items() if name.startswith("expected.grad.")}
    assert expected.keys() >= {"logprob", "values"}
    for name, gradient in expected.items():
        fixture.assert_close(leaves[name].grad, gradient, "losses")


def test_huber(fixture: Fixture) -> None:
    data = fixture["loss"]
    fixture.assert_close(huber(data["huber.error"], 10.0), data["huber.expected"], "losses")


@pytest.fixture(scope="module")
def policy(fixture: Fixture, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """The tiny OpenVLA that RL4VLA's code ran, with its value head."""
    checkpoint = whole_checkpoint(fixture_folder("openvla/fused224"), tmp_path_factory.mktemp("rl4vla") / "checkpoint")
    return load(checkpoint, dtype=torch.float32)


@pytest.fixture(scope="module")
def critic(fixture: Fixture, policy: Policy) -> Critic:
    critic = new_critic(policy, 0)
    critic.load_state_dict(fixture["value_head"])
    return critic


@pytest.fixture(scope="module")
def inputs(fixture: Fixture) -> PrismaticInputs:
    data = fixture["policy"]
    pixels = load_file(fixture_folder("openvla/fused224") / "processor.safetensors")
    pixel_values = torch.stack([pixels[f"expected.pixel_values.{i}"] for i in range(3)])
    return PrismaticInputs(data["input_ids"], data["attention_mask"], pixel_values)


def test_greedy_actions_with_logprobs_and_values(
    fixture: Fixture, policy: Policy, critic: Critic, inputs: PrismaticInputs
) -> None:
    data = fixture["policy"]
    sample = policy.sample(inputs)
    assert torch.equal(sample.latent["tokens"][:, 0], data["expected.greedy_tokens"])
    fixture.assert_close(sample.logprobs.sum(dim=(1, 2)), data["expected.greedy_logprob"], "policy")
    state = policy.likelihood(inputs, sample.latent, Sampler(1.0)).state
    fixture.assert_close(critic(state), data["expected.values"], "policy")


def test_teacher_forced_actor_critic_and_its_gradients(
    fixture: Fixture, policy: Policy, critic: Critic, inputs: PrismaticInputs
) -> None:
    data = fixture["policy"]
    likelihood = policy.likelihood(inputs, {"tokens": data["evaluate.actions"][:, None]}, Sampler(1.0))
    logprobs, values = likelihood.logprobs.sum(dim=(1, 2)), critic(likelihood.state)
    fixture.assert_close(logprobs, data["evaluate.expected.logprob"], "policy")
    entropy = likelihood.entropy.mean(dim=(1, 2))
    fixture.assert_close(entropy, data["evaluate.expected.entropy"], "policy")
    fixture.assert_close(values, data["evaluate.expected.values"], "policy")
    (logprobs.sum() + 0.5 * values.sum() + 0.1 * entropy.sum()).backward()
    prefix = "evaluate.expected.grad."
    names = [name.removeprefix(prefix) for name in data if name.startswith(prefix)]
    assert len(names) == 6
    parameters = dict(policy.model.named_parameters()) | {
        f"value_head.{name}": parameter for name, parameter in critic.named_parameters()
    }
    for name in names:
        fixture.assert_close(parameters[name].grad, data[prefix + name], "policy")
