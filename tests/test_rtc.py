"""Real-time chunking: a chunk goes on from the one that the robot carries out while the policy thinks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import served
from small_policies import CASES, Case, look, make

from rlrc.act.evaluate import evaluate
from rlrc.act.realtime import Asynchronous, nothing_left
from rlrc.client import PolicyClient, ServerRefused
from rlrc.configs.evaluate import EvaluateConfig
from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.flow.guidance import STRONGEST, guided, prefix_weights
from rlrc.policies.values import Exploration, Observation, Previous, Sampler

RECORDED = Path(__file__).parent / "fixtures" / "lerobot_rtc" / "rtc.json"
FLOWS = ("pi0", "pi05", "smolvla")


@pytest.mark.parametrize("case", json.loads(RECORDED.read_text()), ids=lambda case: f"{case['time']}-{case['delay']}")
def test_weights_and_pull_are_lerobots(case: dict[str, Any]) -> None:
    x, velocity, previous, expected = (torch.tensor(case[name]) for name in ("x", "velocity", "previous", "guided"))
    horizon = x.shape[1]
    weights = prefix_weights(torch.tensor([case["delay"]]), torch.tensor([case["left"]]), horizon)
    torch.testing.assert_close(weights[0], torch.tensor(case["weights"]))
    padded = torch.nn.functional.pad(previous, (0, 0, 0, horizon - case["left"]))
    times = torch.tensor([case["time"]])
    result = guided(lambda x: velocity + 0 * x, x, times, padded, weights[..., None].expand_as(x))
    torch.testing.assert_close(result, expected)


def test_the_pull_flows_back_through_the_velocity() -> None:
    """For a linear velocity A x the pull is (I - t A)^T of the weighted error, as the paper's equation 2 has it."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 6, generator=generator)
    x, previous = (torch.randn(1, 2, 3, generator=generator) for _ in range(2))
    weights, time = torch.rand(1, 2, 3, generator=generator), 0.4
    result = guided(lambda x: (matrix @ x.flatten()).view(1, 2, 3), x, torch.tensor([time]), previous, weights)
    velocity = matrix @ x.flatten()
    error = weights.flatten() * (previous.flatten() - (x.flatten() - time * velocity))
    factor = min(STRONGEST, (0.6**2 + 0.4**2) / (0.6 * 0.4))
    expected = velocity - factor * (torch.eye(6) - time * matrix).T @ error
    torch.testing.assert_close(result.flatten(), expected)


def with_previous(policy: Policy, observation: Observation, left: list[int], delay: int) -> Observation:
    """Previous chunks of moderate actions, of which so many are left to each row."""
    rows, spec = len(observation), policy.spec
    actions = np.random.default_rng(0).uniform(-0.9, 0.9, (rows, spec.horizon, len(spec.action))).astype(np.float32)
    return replace(observation, previous=Previous(actions, np.array(left), np.full(rows, delay)))


def chunks(policy: Policy, observation: Observation) -> np.ndarray:
    rows = [torch.Generator().manual_seed(row) for row in range(len(observation))]
    inputs = policy.prepare(observation)
    policy.denoise_in(10)
    return policy.to_physical(policy.sample(inputs, Sampler(1.0), rows).actions.numpy())


@pytest.mark.parametrize("family", FLOWS)
def test_actions_that_will_have_been_carried_out_are_kept_and_rows_without_any_are_as_before(family: str) -> None:
    policy = make(CASES[family])
    plain = look(policy, 2)
    observation = with_previous(policy, plain, [policy.spec.horizon, 0], delay=2)
    before, after = chunks(policy, plain), chunks(policy, observation)
    np.testing.assert_allclose(after[1], before[1], atol=1e-5)
    assert observation.previous is not None
    wanted = observation.previous.actions[0, :2]
    distance, was = (np.abs(found[0, :2] - wanted).mean() for found in (after, before))
    assert distance < 0.3 * was, "the first actions have come near to those of the chunk before"
    alone = chunks(policy, observation[[0]])
    np.testing.assert_allclose(alone[0], after[0], atol=1e-4)


def test_what_cannot_be_continued_is_refused() -> None:
    policy = make(CASES["pi0"])
    observation = with_previous(policy, look(policy, 2), [2, 1], 1)
    exploring = Sampler(1.0, exploration=Exploration())
    with pytest.raises(UserError, match="random denoising steps"):
        policy.sample(policy.prepare(observation), exploring)
    assert observation.previous is not None
    wrong = {
        "shape": {"actions": observation.previous.actions[:, :1]},
        "NaN": {"actions": np.full_like(observation.previous.actions, np.nan)},
        "'left'": {"left": np.array([9, 0])},
        "'delay'": {"delay": np.array([-1, 0])},
    }
    for text, change in wrong.items():
        with pytest.raises(UserError, match=text):
            policy.prepare(replace(observation, previous=replace(observation.previous, **change)))


class Listener:
    """A thinker that keeps what it is told."""

    device = torch.device("cpu")
    continues_chunks = True

    def __init__(self, policy: Policy) -> None:
        self.spec, self.told = policy.spec, list[Previous]()

    def reset(self) -> None:
        """It remembers what it was told."""

    def act(self, observation: Observation, *_: Any) -> np.ndarray:
        assert observation.previous is not None
        self.told.append(observation.previous)
        shape = len(observation), self.spec.horizon, len(self.spec.action)
        return np.full(shape, len(self.told), np.float32) + np.arange(self.spec.horizon)[:, None] / 10


def test_the_robot_tells_what_it_has_left() -> None:
    policy = make(CASES["pi0"])  # chunks of three
    listener = Listener(policy)
    robot = Asynchronous(listener, delay=1, continues=True)
    for _ in range(3):
        robot.act(look(policy, 2))
    first, second, third = listener.told
    assert first.left.tolist() == [0, 0] and first.delay.tolist() == [1, 1]
    assert second.left.tolist() == [2, 2], "of three actions one came too late"
    np.testing.assert_allclose(second.actions[0, :2, 0], [1.1, 1.2])
    np.testing.assert_allclose(third.actions[0, :2, 0], [2.1, 2.2])


def test_the_server_and_its_client_continue_chunks() -> None:
    policy = make(CASES["pi0"])
    observation = with_previous(policy, look(policy, 1), [2], 1)
    previous = observation.previous
    assert previous is not None
    message = {f"images/{name}": pictures[0] for name, pictures in observation.images.items()}
    message |= {"state": observation.state[0], "prompt": observation.instruction[0], "seed": 3}
    with served(policy) as server:
        told = {"previous_actions": previous.actions[0, :2], "inference_delay": 1}
        with PolicyClient(server.address) as client:
            answer = client.infer(message | told)["actions"]
            plain = client.infer(message)["actions"]
        sampler = Sampler(policy.default_temperature)
        inputs = policy.prepare(observation)
        expected = policy.sample(inputs, sampler, [torch.Generator().manual_seed(3)])
        np.testing.assert_allclose(answer, policy.to_physical(expected.actions.numpy())[0], atol=1e-5)
        assert np.abs(answer - plain).max() > 1e-3
        for wrong in ({"inference_delay": 1.5}, {"previous_actions": np.zeros((99, 7))}, {"previous_actions": "x"}):
            with PolicyClient(server.address) as client, pytest.raises(ServerRefused, match="previous_actions"):
                client.infer(message | told | wrong)
        with PolicyClient(server.address, ask_ahead=True, continue_chunks=True) as client:
            assert all(np.isfinite(client.act(message)).all() for _ in range(5))


def test_a_server_whose_policy_cannot_is_refused() -> None:
    policy = make(Case("openvla"))
    with served(policy) as server:
        with pytest.raises(ServerRefused, match="cannot continue chunks"):
            PolicyClient(server.address, ask_ahead=True, continue_chunks=True)
        message = {"images/front": np.zeros((32, 32, 3), np.uint8), "prompt": "stop"}
        told = {"previous_actions": np.zeros((1, 7)), "inference_delay": 0}
        with PolicyClient(server.address) as client, pytest.raises(ServerRefused, match="previous_actions"):
            client.infer(message | told)
        with pytest.raises(ValueError, match="ask_ahead"):
            PolicyClient(server.address, continue_chunks=True)


def test_a_policy_that_cannot_is_refused_before_anything_runs(tmp_path: Path) -> None:
    policy = Path(__file__).parents[1] / "checkpoints" / "tabletop-base"
    config = EvaluateConfig(policy=policy, world="tabletop", realtime="rtc", num_workers=0, device="cpu")
    with pytest.raises(UserError, match="policies that denoise"):
        evaluate(config, tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_episode_begins_with_nothing_left() -> None:
    policy = make(CASES["smolvla"])
    previous = nothing_left(policy.spec, 2)
    observation = replace(look(policy, 2), previous=previous)
    np.testing.assert_allclose(chunks(policy, observation), chunks(policy, look(policy, 2)), atol=1e-5)
