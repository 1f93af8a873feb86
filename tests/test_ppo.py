"""PPO: it finds what pays, resumes to the bit, and moves nothing that it should not.

The arithmetic itself is held to RL4VLA's in `test_rl4vla_fixtures.py`.
"""

import json
import math
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import bandit_world
import numpy as np
import pytest
import torch
from bandit_world import STEPS
from mortal_world import mortal
from test_sft import changed, train
from toy_demonstrations import toy_demonstrations

import rlrc
from rlrc import envs
from rlrc.configs.augmentation import Augmentation
from rlrc.configs.learner import Lora
from rlrc.data.demonstrations import Demonstrations
from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.values import Likelihood, Sampler
from rlrc.quantize import QuantizeConfig, quantize
from rlrc.recover import ppo
from rlrc.recover.acting import Episodes, Rows, Seen, privileged_count
from rlrc.recover.critic import Critic, new_critic
from rlrc.recover.gae import approx_kl, explained_variance, summed
from rlrc.recover.loop import STATE_FILE, Learner, Means
from rlrc.recover.muon import Muon
from rlrc.recover.ppo import RlConfig, act, check, rl, targets

NUM_ENVS = 16


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(envs.WORLDS, "bandit", "bandit_world")
    monkeypatch.setattr(Demonstrations, "of", lambda config: toy_demonstrations())


def config(checkpoint: Path, **values: Any) -> RlConfig:
    defaults = {"num_envs": NUM_ENVS, "num_workers": 0, "iterations": 2, "batch_size": 16, "learning_rate": 1e-3}
    return RlConfig(policy=checkpoint, world="bandit", save_every=0, **{**defaults, **values})


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of a single action, so that nothing but that action earns the reward."""
    monkeypatch.setattr(bandit_world, "SPEC", replace(bandit_world.SPEC, max_episode_steps=1))


@pytest.mark.usefixtures("one_step")
def test_it_finds_what_pays(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A policy that was shown to go left or right by colour learns that only right is paid."""
    train(tiny_checkpoint, tmp_path / "sft", steps=60, batch_size=16, precision="bf16")
    chosen = config(
        tmp_path / "sft" / "checkpoint",
        iterations=13,
        num_envs=128,
        batch_size=64,
        temperature=0.5,
        critic_warmup_iterations=2,
        eval_every=13,
    )
    result = rl(chosen, tmp_path / "rl")
    rows = metrics(tmp_path / "rl")
    assert rows[0]["success_at_end"] < 0.6
    assert min(row["success_at_end"] for row in rows[-2:]) > 0.85
    assert rows[-1]["episode_return"] == pytest.approx(1.1 * rows[-1]["success_at_end"], rel=1e-4)
    assert result["eval_ind_success"] > 0.85 and result["eval_ood_success"] > 0.85
    policy = rlrc.load(tmp_path / "rl" / "checkpoint")
    assert policy.model.state_dict().keys() == rlrc.load(tiny_checkpoint).model.state_dict().keys(), "a critic is left"
    assert [stage["verb"] for stage in policy.lineage["stages"]] == ["sft", "rl"]


def test_a_lost_worker_costs_the_acting_alone(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bandit_world, "SPEC", mortal(tmp_path / "lost"))
    values = {"augment": Augmentation(), "word_dropout": 0.5}
    rl(config(tiny_checkpoint, num_workers=1, **values), tmp_path / "survived")
    assert (tmp_path / "lost").exists()
    assert capsys.readouterr().err.count("died (SIGSEGV); it was replaced") == 1
    rl(config(tiny_checkpoint, num_workers=1, **values), tmp_path / "whole")
    assert not changed(tmp_path / "whole" / "checkpoint", tmp_path / "survived" / "checkpoint")


@pytest.mark.parametrize(
    "values",
    [
        {"critic_warmup_iterations": 1, "bc_coefficient": 0.5, "dataset": Path("toy")},
        {"lora": Lora(rank=4), "epochs": 2, "gradient_accumulation": 2, "precision": "fp32"},
        {"train": "all"},
        {"privileged_critic": True, "target_kl": 1e-4, "critic_warmup_iterations": 1, "warmup_iterations": 2},
        {"end_after_success": 1, "augment": Augmentation(), "word_dropout": 0.5, "schedule": "cosine"},
    ],
    ids=["warmup-and-cloning", "lora", "all", "privileged", "varied"],
)
def test_a_killed_run_ends_with_the_same_bits(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    chosen = config(tiny_checkpoint, iterations=4, **values)
    rl(chosen, tmp_path / "whole")
    acted = []

    def dies(policy: Policy, env: Any, iteration: int, *rest: Any) -> ppo.Buffer:
        acted.append(iteration)
        if len(acted) == 3:
            raise KeyboardInterrupt
        return act(policy, env, iteration, *rest)

    monkeypatch.setattr(ppo, "act", dies)
    with pytest.raises(KeyboardInterrupt):
        rl(chosen, tmp_path / "killed")
    rl(chosen, tmp_path / "killed")
    assert acted == [0, 1, 2, 2, 3]
    assert not changed(tmp_path / "whole" / "checkpoint", tmp_path / "killed" / "checkpoint")
    assert [row["step"] for row in metrics(tmp_path / "killed")] == [1, 2, 3, 4]
    assert not (tmp_path / "killed" / STATE_FILE).exists()


@pytest.mark.usefixtures("one_step")
def test_a_quantized_policy_finds_what_pays_and_stays_quantized(tiny_checkpoint: Path, tmp_path: Path) -> None:
    train(tiny_checkpoint, tmp_path / "sft", steps=60, batch_size=16)
    quantize(QuantizeConfig(policy=tmp_path / "sft" / "checkpoint", bits=3), tmp_path / "packed")
    packed = tmp_path / "packed" / "checkpoint"
    options = {"iterations": 10, "num_envs": 128, "batch_size": 64, "temperature": 0.5, "precision": "fp32"}
    result = rl(config(packed, **options), tmp_path / "rl")
    assert result["success_at_end"] > metrics(tmp_path / "rl")[0]["success_at_end"] + 0.2
    assert metrics(tmp_path / "rl")[0]["acting_gap"] < 1e-4, "acting and learning are by the same weights"
    moved = changed(packed, tmp_path / "rl" / "checkpoint")
    assert any(name.endswith("_proj.codes") for name in moved)
    assert not [name for name in moved if name.startswith(("vision", "projector"))]


@pytest.mark.usefixtures("one_step")
def test_critic_warmup_moves_the_critic_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rl(config(tiny_checkpoint, iterations=3, critic_warmup_iterations=3, num_envs=64), tmp_path)
    assert not changed(tiny_checkpoint, tmp_path / "checkpoint")
    rows = metrics(tmp_path)
    assert abs(rows[0]["value"]) < 0.1
    assert rows[-1]["value"] == pytest.approx(sum(row["episode_return"] for row in rows) / 3, abs=0.2)


def test_only_the_decoder_moves_by_default(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rl(config(tiny_checkpoint, iterations=1), tmp_path)
    moved = changed(tiny_checkpoint, tmp_path / "checkpoint")
    assert moved and all(name.startswith("language_model.") for name in moved)


@pytest.fixture
def setting(tiny_policy: Policy, tmp_path: Path) -> Any:
    """Makes a policy with a critic act once, under the given config."""

    def make(**values: Any) -> tuple[RlConfig, Learner, Critic, ppo.Buffer]:
        chosen = config(tmp_path, **values)
        privileged = privileged_count(envs.spec("bandit")) if chosen.privileged_critic else 0
        critic = new_critic(tiny_policy, 0, privileged)
        learner = Learner(tiny_policy, chosen, tmp_path, {"critic": critic})
        env = envs.make("bandit", NUM_ENVS, image_size=tiny_policy.image_size)
        with closing(env), learner.autocast(), torch.no_grad():
            return chosen, learner, critic, act(tiny_policy, env, 0, chosen, learner, execute=1)

    return make


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_the_first_ratio_is_one(tiny_policy: Policy, setting: Any, precision: str, temperature: float) -> None:
    chosen, learner, critic, buffer = setting(precision=precision, temperature=temperature)
    target = targets(tiny_policy, critic, buffer, chosen, learner)
    rows = Rows.batches(torch.randperm(len(buffer)), 16, tiny_policy.device)[0]
    _, vitals = ppo.ppo_loss(tiny_policy, critic, buffer, target, rows, chosen, learner)
    assert vitals["ratio_max"].item() == pytest.approx(1, abs=1e-5 if precision == "fp32" else 1e-2)
    gap = (target.logprobs - buffer.logprobs.flatten(0, 1)).sum(dim=(1, 2)).abs().max()
    assert gap < (1e-4 if precision == "fp32" else 0.2), "acting and learning disagree about the same actions"


@pytest.mark.parametrize("each", ["chunk", "action", "token"])
def test_a_ratio_counts_only_what_was_executed(each: Literal["chunk", "action", "token"]) -> None:
    logprobs, counts = torch.randn(3, 4, 2), [4, 1, 2]
    executed = torch.tensor([[number < count for number in range(4)] for count in counts])
    found, rows = summed(logprobs, executed, each)
    expected = []
    for row, count in enumerate(counts):
        actions = [[logprobs[row, step, dim].item() for dim in range(2)] for step in range(count)]
        parts = {
            "chunk": [sum(map(sum, actions))],
            "action": [sum(action) for action in actions],
            "token": [value for action in actions for value in action],
        }
        expected += [(value, row) for value in parts[each]]
    assert rows.tolist() == [row for _, row in expected]
    assert found.tolist() == pytest.approx([value for value, _ in expected], abs=1e-5)


def test_temperature_shapes_logprobs_and_entropy(tiny_policy: Policy, setting: Any) -> None:
    buffer = setting(precision="fp32")[-1]
    inputs, latent = buffer.seen.inputs(torch.arange(8)), buffer.latent_of(torch.arange(8))
    tokens = latent["tokens"][:, 0]
    with torch.no_grad():
        logits, hidden = tiny_policy.model.action_logits(inputs, tokens)
        likelihood = tiny_policy.likelihood(inputs, latent, Sampler(0.5))
    distribution = torch.distributions.Categorical(logits=logits / 0.5)
    bins = tiny_policy.actions.ids_to_bins(tokens)
    torch.testing.assert_close(likelihood.logprobs[:, 0], distribution.log_prob(bins), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(likelihood.entropy[:, 0], distribution.entropy(), rtol=1e-4, atol=1e-4)
    assert torch.equal(likelihood.state, hidden)


def test_kept_patches_are_what_the_pictures_project_to(tiny_policy: Policy, setting: Any) -> None:
    """A frozen vision lets the buffer hold patches; they lead to the same log-probabilities as the pictures."""
    chosen, learner, critic, pictures = setting(precision="fp32", train="all")
    every = torch.arange((STEPS + 1) * NUM_ENVS)
    inputs = pictures.seen.inputs(every)
    assert inputs.pixel_values is not None and inputs.image_embeddings is None
    with torch.no_grad():
        patches = tiny_policy.model.project_images(inputs).embeddings
        kept = replace(pictures, seen=Seen(tiny_policy, encoded=True))
        for moment in pictures.seen._moments:
            kept.seen.add(moment)
    encoded = kept.seen.inputs(every)
    assert encoded.pixel_values is None
    torch.testing.assert_close(encoded.image_embeddings, patches, rtol=1e-4, atol=1e-5)
    a, b = (targets(tiny_policy, critic, buffer, chosen, learner) for buffer in (pictures, kept))
    torch.testing.assert_close(a.logprobs, b.logprobs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.advantages, b.advantages, rtol=1e-3, atol=1e-3)


def test_returns_are_discounted_to_the_end_and_not_beyond(tiny_policy: Policy, setting: Any) -> None:
    chosen, learner, critic, buffer = setting(gamma=0.5, gae_lambda=1.0)
    target = targets(tiny_policy, critic, buffer, chosen, learner)
    expected = sum(0.5**t * buffer.rewards[t] for t in range(STEPS))
    torch.testing.assert_close(target.returns.view(STEPS, NUM_ENVS)[0], expected, rtol=1e-4, atol=1e-5)
    assert abs(target.advantages.mean()) < 1e-5
    assert target.advantages.std(correction=0).item() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("end_on_loss", [False, True])
def test_an_episode_that_succeeded_makes_room_for_another(tiny_policy: Policy, setting: Any, end_on_loss: bool) -> None:
    """The bandit succeeds with each action that points to +x: two in a row end the episode, and so may a lost one."""
    chosen, learner, critic, buffer = setting(end_after_success=2, end_on_loss=end_on_loss, gamma=0.5, gae_lambda=1.0)
    won, rewards = buffer.success.int(), buffer.rewards
    ended = torch.zeros(STEPS, NUM_ENVS, dtype=torch.bool)
    for n in range(NUM_ENVS):
        row, age = 0, 0
        for t in range(STEPS):
            lost = row > 0 and not won[t, n]
            row, age = (row + 1) * int(won[t, n]), age + 1
            ended[t, n] = row == 2 or age == STEPS or (end_on_loss and lost)
            if ended[t, n]:
                row, age = 0, 0
    assert torch.equal(buffer.masks[1:] == 0, ended)
    assert ended[:-1].any() and not ended[-1].all(), "nothing to test"
    expected = torch.zeros(STEPS, NUM_ENVS, dtype=torch.bool)
    for n in range(NUM_ENVS):
        expected[: (int(ended[:, n].int().argmax()) + 1 if ended[:, n].any() else STEPS), n] = True
    assert torch.equal(buffer.first_episodes, expected)
    # Where the buffer cuts an episode off, the critic's value of what came next stands for the rest of it.
    target = targets(tiny_policy, critic, buffer, chosen, learner)
    last = torch.arange(STEPS * NUM_ENVS, (STEPS + 1) * NUM_ENVS)
    with torch.no_grad(), learner.autocast():
        _, hidden = tiny_policy.model.action_logits(buffer.seen.inputs(last), buffer.latent["tokens"][-1, :, 0])
    beyond = critic(hidden.float()).detach()
    returns = target.returns.view(STEPS, NUM_ENVS)[-1]
    torch.testing.assert_close(returns, rewards[-1] + 0.5 * beyond * ~ended[-1], rtol=1e-2, atol=1e-2)


def test_target_kl_ends_the_updates_of_an_iteration(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rl(config(tiny_checkpoint, iterations=1, learning_rate=3e-2, target_kl=1e-3), tmp_path)
    assert metrics(tmp_path)[0]["updates"] < NUM_ENVS * STEPS // 16


def test_a_privileged_critic_knows_the_time_and_the_state_of_the_world(tiny_policy: Policy, setting: Any) -> None:
    """Where pictures say nothing of the time, a critic that knows it knows how much can still be won."""
    errors = {}
    for privileged in (False, True):
        chosen, learner, critic, buffer = setting(privileged_critic=privileged, precision="fp32", gae_lambda=1.0)
        if privileged:
            time, episode, steps, *nothing = buffer.privileged.view(STEPS + 1, NUM_ENVS, 1 + 6).unbind(dim=-1)
            assert (time[:-1].diff(dim=0) > 0).all() and (time == time[:, :1]).all()
            assert torch.equal(time[-1], time[0]), "after the last step of an episode another begins"
            torch.testing.assert_close(steps, time, atol=1e-3, rtol=0)  # the state has the steps made and the episode
            assert (episode[:-1] == episode[0]).all() and (episode.diff(dim=1) > 0).all()
            assert not torch.stack(nothing).any()
        target = targets(tiny_policy, critic, buffer, chosen, learner)
        returns = torch.arange(STEPS, 0, -1.0).repeat_interleave(NUM_ENVS)  # one for each step that is left
        target.returns = returns
        rows = Rows.batches(torch.arange(len(buffer)).repeat(60), 16, tiny_policy.device)
        assert len(list(ppo.fit_critic(critic, target, rows, chosen, learner, 1.0))) == len(rows)
        errors[privileged] = (critic(target.hidden) - returns).square().mean().item()
    assert errors[True] < 0.02 < 0.1 < errors[False]


def test_learning_rates_rise_after_the_critics_warm_up() -> None:
    chosen = config(Path(), iterations=8, critic_warmup_iterations=2, warmup_iterations=2, schedule="cosine")
    factors = [ppo.rate_factor(iteration, chosen) for iteration in range(2, 8)]
    assert factors == pytest.approx([0.5, 1, *(0.5 * (1 + math.cos(math.pi * part / 4)) for part in range(4))])
    with pytest.raises(ValueError, match="leave nothing of 4 iterations"):
        config(Path(), iterations=4, critic_warmup_iterations=2, warmup_iterations=2)


def test_the_critic_alone_takes_steps_of_as_many_batches_as_the_policy(tiny_policy: Policy, setting: Any) -> None:
    ends = []
    for batch_size, accumulated in ((16, 1), (8, 2)):
        chosen, learner, critic, buffer = setting(
            precision="fp32", batch_size=batch_size, gradient_accumulation=accumulated
        )
        target = targets(tiny_policy, critic, buffer, chosen, learner)
        rows = Rows.batches(torch.arange(len(buffer)), batch_size, tiny_policy.device)
        vitals = list(ppo.fit_critic(critic, target, rows, chosen, learner, 1.0))
        assert sum("grad_norm" in row for row in vitals) == len(buffer) // 16
        ends.append([parameter.detach().clone() for parameter in critic.parameters()])
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_the_critic_goes_on_where_the_policy_has_moved_far_enough(
    tiny_policy: Policy, setting: Any, coefficient: float
) -> None:
    chosen, learner, critic, buffer = setting(precision="fp32", target_kl=1e-9, value_coefficient=coefficient)
    target = targets(tiny_policy, critic, buffer, chosen, learner)
    rows = Rows.batches(torch.arange(len(buffer)), 16, tiny_policy.device)
    means = Means()
    ppo.improve(tiny_policy, critic, buffer, target, rows, None, 1.0, chosen, learner, means)
    updates = means.take(learner)["updates"]
    assert updates < len(rows) - 1
    steps = [learner._moments(parameter)["step"].item() for parameter in critic.parameters()]
    assert steps == [len(rows) if coefficient else updates] * len(steps)
    weight = tiny_policy.model.language_model.model.layers[0].mlp.up_proj.weight
    assert learner._moments(weight)["step"].item() == updates


def test_the_entropy_bonus_counts_only_what_was_executed(
    tiny_policy: Policy, setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, learner, critic, buffer = setting(precision="fp32")
    target = targets(tiny_policy, critic, buffer, chosen, learner)
    rows = Rows.batches(torch.arange(4), 4, tiny_policy.device)[0]
    # Chunks of two actions, of which one row carried out both and three the first alone.
    logprobs, entropy = torch.zeros(4, 2, 7), torch.tensor([[1.0, 3.0]] * 4)[..., None].expand(4, 2, 7)
    state = target.hidden[rows.here]
    monkeypatch.setattr(tiny_policy, "likelihood", lambda *_: Likelihood(logprobs, entropy, state))
    executed = torch.tensor([[True, True], [True, False], [True, False], [True, False]])
    buffer.executed = torch.cat([executed, executed.repeat(len(buffer) // 4 - 1, 1)]).view(STEPS, NUM_ENVS, 2)
    target.logprobs = torch.zeros(len(buffer), 2, 7)
    assert ppo.ppo_loss(tiny_policy, critic, buffer, target, rows, chosen, learner)[1]["entropy"] == 7 / 5


@pytest.mark.parametrize("detached", [False, True])
def test_the_value_loss_may_leave_the_policy_alone(tiny_policy: Policy, setting: Any, detached: bool) -> None:
    chosen, learner, critic, buffer = setting(precision="fp32", detach_critic=detached)
    target = targets(tiny_policy, critic, buffer, chosen, learner)
    target.advantages = torch.zeros_like(target.advantages)  # the value loss alone has a gradient
    rows = Rows.batches(torch.arange(16), 16, tiny_policy.device)[0]
    ppo.ppo_loss(tiny_policy, critic, buffer, target, rows, chosen, learner)[0].backward()
    policy, values = (
        [parameter.grad for parameter in module.parameters() if parameter.grad is not None and parameter.grad.any()]
        for module in (tiny_policy.model, critic)
    )
    assert values and bool(policy) != detached


def test_the_critic_takes_adamws_steps_beside_muon(tiny_policy: Policy, tmp_path: Path) -> None:
    critic = new_critic(tiny_policy, seed=0)
    learner = Learner(tiny_policy, config(tmp_path, optimizer="muon"), tmp_path, {"critic": critic})
    by_kind = {type(optimizer): optimizer for optimizer in learner._optimizers}
    moved = {
        kind: {id(member) for group in optimizer.param_groups for member in group["params"]}
        for kind, optimizer in by_kind.items()
    }
    assert {id(parameter) for parameter in critic.parameters()} <= moved[torch.optim.AdamW]
    assert id(tiny_policy.model.language_model.model.layers[0].mlp.up_proj.weight) in moved[Muon]


def test_behaviour_cloning_pulls_towards_the_demonstrations(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rl(config(tiny_checkpoint, iterations=6, learning_rate=3e-3, bc_coefficient=1.0, dataset=Path("toy")), tmp_path)
    rows = metrics(tmp_path)
    assert rows[0]["bc_loss"] > 0.9 * math.log(256)
    assert rows[-1]["bc_loss"] < 0.8 * rows[0]["bc_loss"]


@pytest.mark.parametrize("ends", [{"end_after_success": 3}, {"end_on_loss": True}])
def test_episodes_that_start_together_cannot_end_early(tiny_checkpoint: Path, ends: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="'putonplate:gpu' start together"):
        check(RlConfig(policy=tiny_checkpoint, world="putonplate:gpu", **ends))
    check(RlConfig(policy=tiny_checkpoint, world="putonplate", **ends))


@pytest.mark.parametrize("num_envs", [8, 9, 10, 32])
def test_every_task_begins_an_iteration_as_often_as_the_others(tmp_path: Path, num_envs: int) -> None:
    """An episode's task is its id modulo the number of tasks, and LIBERO's lengths are multiples of that number."""
    started: list[int] = []

    def reset(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        started.extend(options["episode_ids"])
        return {"instruction": ["x"] * num_envs}, {"environment_state": np.zeros((num_envs, 0))}

    world = SimpleNamespace(num_tasks=10, environment_state_names=())
    env: Any = SimpleNamespace(num_envs=num_envs, max_episode_steps=220, world_spec=world, reset=reset)
    for iteration in range(10):
        for rank in range(2):
            learner: Any = SimpleNamespace(world_size=2, rank=rank)
            Episodes(env, cast(Any, None), iteration, config(tmp_path), learner).start(
                cast(Any, None), np.ones(num_envs, bool)
            )
    assert len(set(started)) == len(started)
    assert set(np.bincount(np.array(started) % 10)) == {2 * num_envs}


def test_a_dataset_that_cannot_be_read_is_told_before_anything_starts(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        check(RlConfig(policy=tiny_checkpoint, dataset=tmp_path, bc_coefficient=1.0))


def test_bad_choices_are_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cut into batches of 48"):
        rl(config(tiny_checkpoint, batch_size=48), tmp_path)
    with pytest.raises(UserError, match="cut into batches of 48"):
        check(config(tiny_checkpoint, batch_size=48, execute=1))
    with pytest.raises(UserError, match="bc_coefficient > 0 and dataset together"):
        RlConfig.parse({"policy": "x", "bc_coefficient": 0.1}, "recipe")


def test_approximate_kl_is_the_kl_on_average() -> None:
    """Against the closed form for two Gaussians, from samples of the first."""
    old, new = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.3, 1.2)
    torch.manual_seed(0)
    x = old.sample((200_000,))
    estimate = approx_kl(new.log_prob(x) - old.log_prob(x))
    assert estimate.item() == pytest.approx(torch.distributions.kl_divergence(old, new).item(), rel=0.03)


def test_explained_variance() -> None:
    returns = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.full((4,), 7.0), returns) == 0
    assert explained_variance(-returns, returns) == pytest.approx(-3)


def test_a_float16_checkpoint_is_trained_in_float32_and_saved_as_it_was(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rlrc.load(tiny_checkpoint).save(tmp_path / "half", dtype=torch.float16)
    assert rlrc.load(tmp_path / "half").model.dtype == torch.float16
    rl(config(tmp_path / "half", iterations=1), tmp_path / "rl")
    trained = rlrc.load(tmp_path / "rl" / "checkpoint")
    assert trained.model.dtype == torch.float16 and changed(tmp_path / "half", tmp_path / "rl" / "checkpoint")
