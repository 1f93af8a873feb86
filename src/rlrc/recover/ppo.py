"""Reinforcement learning: PPO on action tokens, or on the random steps of a policy that denoises.

    rlrc rl --policy runs/default/sft/checkpoint --world tabletop --out runs/default/rl
    accelerate launch --multi_gpu --num_processes 2 -m rlrc rl ...        (the same where there is no GPU)

As RL4VLA does it (Liu et al., arXiv 2505.19789), which RLRC follows: episodes in parallel worlds; the
log-probability of a chunk is the sum over the tokens of its executed actions; actor and critic share the whole
transformer, and the critic reads the state that predicts the first action token. RLRC's critic warm-up and behaviour
cloning are options.

One iteration: act; read the whole buffer once more, teacher-forced, for the old log-probabilities and values; estimate
advantages; update. The reading takes about a tenth of the time. Acting has log-probabilities too, but from another
computation (token by token, with a key-value cache), and in bf16 the two differ: `acting_gap` says by how much. Read by
the very computation that the update differentiates, the first ratios are exactly 1.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlrc import envs
from rlrc.act.actor import Chunked, Plain
from rlrc.act.conventions import connect
from rlrc.act.rollouts import Conditions, rollout
from rlrc.configs.rl import RlConfig
from rlrc.data.demonstrations import Demonstrations
from rlrc.data.statistics import adopt_statistics, policy_key
from rlrc.episode_ids import FIRST_CURVE_EPISODE
from rlrc.episodes import success_rate
from rlrc.errors import UserError
from rlrc.policies.checkpoint import load
from rlrc.policies.contract import Policy
from rlrc.process import keep_freed_memory
from rlrc.recover.acting import Buffer, Rows, act, exploring, privileged_count
from rlrc.recover.critic import Critic, new_critic
from rlrc.recover.gae import approx_kl, explained_variance, gae, huber, normalise, policy_loss, summed, value_loss
from rlrc.recover.loop import Learner, Means, learning_rate_factor, rng
from rlrc.recover.sft import Frames


def check(config: RlConfig) -> None:
    """Hold a config against what its world has; nothing is started.

    Raises:
        UserError: there is no such world, its episodes cannot end early, the dataset cannot be read, or an iteration
            cannot be cut into equal batches, as far as that is known without the policy.
    """
    world = envs.spec(config.world)
    if world.simulation and (config.end_after_success or config.end_on_loss):
        raise UserError(
            f"the episodes of '{config.world}' start together, so end_after_success and end_on_loss cannot be used"
        )
    Demonstrations.check(config)
    if config.execute is not None:
        require_whole_batches(chunks_of(world, config.execute, config), config)


def rl(config: RlConfig, out: Path) -> dict[str, Any]:
    """Improve a policy by PPO, continuing where `out` was left, and write `out/checkpoint` (without the critic).

    Returns:
        The last row of metrics.
    """
    check(config)
    keep_freed_memory()
    policy = load(config.policy, policy_key(config), spec=config.spec)
    demonstrations = None if config.dataset is None else Demonstrations.of(config)
    if demonstrations is not None:
        adopt_statistics(policy, demonstrations, config)
    if policy.no_likelihood is not None:
        raise UserError(f"{config.policy}: {policy.no_likelihood}")
    if config.denoising_steps is not None:
        policy.denoise_in(config.denoising_steps)
    connect(policy.spec, world := envs.spec(config.world))
    privileged = privileged_count(world) if config.privileged_critic else 0
    extra: dict[str, nn.Module] = {"critic": (critic := new_critic(policy, config.seed, privileged))}
    if exploring(policy, config).needs_network:
        extra["noise"] = policy.with_noise_network(config.seed)
    learner = Learner(policy, config, out, extra, {"critic.": config.value_learning_rate})
    actor = Chunked(Plain(policy), config.execute)
    frames = None
    if demonstrations is not None:
        frames = Frames(policy, demonstrations, config.batch_size, learner, config.augment, config.word_dropout)
    done = learner.resume()
    cameras = policy.spec.cameras
    require_whole_batches(chunks_of(world, actor.execute, config), config)
    env = envs.make(
        config.world, config.num_envs, config.num_workers, policy.image_size, config.reward, cameras=cameras
    )
    with closing(env), learner.logbook("rl", config.iterations, done) as record:
        for iteration in range(done, config.iterations):
            started = time.monotonic()
            with learner.acting():
                buffer = envs.repeat_if_lost(partial(act, policy, env, iteration, config, learner, actor.execute))
            acted = time.monotonic()
            values = update(policy, critic, buffer, frames, iteration, config, learner)
            values |= {"acting_seconds": acted - started, "updating_seconds": time.monotonic() - acted}
            values["learning_rate"] = config.learning_rate * rate_factor(iteration, config)
            values["steps_per_second"] = buffer.steps * learner.world_size / (time.monotonic() - started)
            if config.eval_every and (iteration == 0 or (iteration + 1) % config.eval_every == 0):
                values |= learning_curve_point(actor, env, config, learner)
            record(iteration + 1, values, f"success {100 * values['success_at_end']:.0f} %")
            learner.save_if_due(iteration + 1)
    return learner.finish("rl", **({} if frames is None else frames.facts))


def chunks_of(world: envs.WorldSpec, execute: int, config: RlConfig) -> int:
    """Number of chunks of actions in one iteration."""
    return config.num_envs * -(-world.max_episode_steps // execute)


def require_whole_batches(chunks: int, config: RlConfig) -> None:
    """
    Raises:
        UserError: the buffer of an iteration, of so many chunks, cannot be cut into equal batches.
    """
    if chunks % (config.batch_size * config.gradient_accumulation):
        raise UserError(
            f"{chunks} chunks of actions an iteration cannot be cut into batches of {config.batch_size} "
            f"x gradient_accumulation {config.gradient_accumulation}; change batch_size or num_envs"
        )


@dataclass
class Targets:
    """Targets of the update of one buffer: all (T * N, ...), in the buffer's flat order."""

    logprobs: torch.Tensor
    """Log-probabilities of the policy that acted, of each number of a chunk: (T * N, H, D)."""
    hidden: torch.Tensor
    """What the critic read: this policy's states, and what a privileged critic knows beside them."""
    values: torch.Tensor
    returns: torch.Tensor
    advantages: torch.Tensor
    """Advantages, normalised over the buffers of all processes."""


@torch.no_grad()
def targets(policy: Policy, critic: Critic, buffer: Buffer, config: RlConfig, learner: Learner) -> Targets:
    """Read the buffer once, teacher-forced, and estimate advantages and returns."""
    # The last row holds the states that the last actions led to; their own actions were never chosen, and the critic,
    # which reads what comes before the first token, does not depend on them.
    last = {name: torch.cat([tensor, tensor[-1:]]).flatten(0, 1) for name, tensor in buffer.latent.items()}
    readings = []
    for rows in Rows.batches(torch.arange(len(buffer) + buffer.rewards.shape[1]), config.batch_size, policy.device):
        latent = {name: tensor[rows.here] for name, tensor in last.items()}
        with learner.autocast():
            likelihood = policy.likelihood(buffer.seen.inputs(rows.host), latent, exploring(policy, config))
        hidden = buffer.critic_input(likelihood.state, rows.here)
        readings.append((likelihood.logprobs, hidden, critic(hidden)))
    logprobs, hidden, values = (torch.cat(column) for column in zip(*readings, strict=True))
    chunk = int(buffer.executed.sum(dim=-1).max())
    by_time = values.view(-1, buffer.rewards.shape[1])
    advantages, returns = gae(buffer.rewards, by_time, buffer.masks, config.gamma**chunk, config.gae_lambda)
    advantages = normalise(advantages, learner.gather(advantages))
    acted = slice(len(buffer))
    return Targets(logprobs[acted], hidden[acted], values[acted], returns.flatten(), advantages.flatten())


def update(
    policy: Policy,
    critic: Critic,
    buffer: Buffer,
    frames: Frames | None,
    iteration: int,
    config: RlConfig,
    learner: Learner,
) -> dict[str, float]:
    """Learn from one buffer; returns the vitals of the iteration, means over its minibatches and over processes."""
    target = targets(policy, critic, buffer, config, learner)
    means = Means()
    first, executed = buffer.first_episodes, buffer.executed.flatten(0, 1)
    read, sampled = (summed(logprobs, executed)[0] for logprobs in (target.logprobs, buffer.logprobs.flatten(0, 1)))
    means.add(
        success_once=(buffer.succeeded & first).any(dim=0).float().mean(),
        success_at_end=buffer.success.gather(0, first.sum(dim=0, keepdim=True) - 1).float().mean(),
        grasped=(buffer.grasped & first).any(dim=0).float().mean(),
        episode_return=(buffer.rewards * first).sum(dim=0).mean(),
        episodes=(buffer.masks[1:] == 0).sum().float(),
        value=target.values.mean(),
        explained_variance=explained_variance(target.values, target.returns),
        acting_gap=(read - sampled).abs().mean(),
    )
    warming_up = iteration < config.critic_warmup_iterations
    epochs = config.critic_warmup_epochs if warming_up else config.epochs
    orders = [
        rng(config.seed, "update", iteration, epoch, learner.rank).permutation(len(buffer)) for epoch in range(epochs)
    ]
    batches = Rows.batches(torch.from_numpy(np.concatenate(orders)), config.batch_size, policy.device)
    if warming_up:
        for vitals in fit_critic(critic, target, batches, config, learner, 1.0):
            means.add(**vitals)
    else:
        if frames is not None:
            frames.seek(iteration * len(batches))
        improve(policy, critic, buffer, target, batches, frames, rate_factor(iteration, config), config, learner, means)
    return means.take(learner)


def rate_factor(iteration: int, config: RlConfig) -> float:
    """Return the factor of the learning rates in an iteration; they begin after the critic's warm-up."""
    alone = config.critic_warmup_iterations
    left = max(config.iterations - alone, 1)
    return learning_rate_factor(max(iteration - alone, 0), left, config.warmup_iterations, config.schedule)


def fit_critic(
    critic: Critic,
    target: Targets,
    batches: Sequence[Rows],
    config: RlConfig,
    learner: Learner,
    rate_factor: float,
) -> Iterator[dict[str, torch.Tensor]]:
    """Fit the critic, and nothing else, to the returns, in steps as large as the policy's; yields each batch's vitals.

    It reads states as they were when the policy acted.
    """
    for number, rows in enumerate(batches, 1):
        loss = huber(target.returns[rows.here] - critic(target.hidden[rows.here]), config.huber_delta).mean()
        (loss / config.gradient_accumulation).backward()
        vitals = {"value_loss": loss}
        if number % config.gradient_accumulation == 0:
            vitals["grad_norm"] = learner.step(rate_factor)
        yield vitals


def improve(
    policy: Policy,
    critic: Critic,
    buffer: Buffer,
    target: Targets,
    batches: Sequence[Rows],
    frames: Frames | None,
    rate_factor: float,
    config: RlConfig,
    learner: Learner,
    means: Means,
) -> None:
    """PPO's update, with behaviour cloning of `frames` beside it where there are any."""
    updates = len(batches)
    for first in range(0, len(batches), config.gradient_accumulation):
        kl = torch.zeros((), device=policy.device)
        for number in range(first, first + config.gradient_accumulation):
            loss, vitals = ppo_loss(policy, critic, buffer, target, batches[number], config, learner)
            (loss / config.gradient_accumulation).backward()
            means.add(**vitals)
            kl += vitals["approx_kl"] / config.gradient_accumulation
            if frames is not None:
                batch = frames.next()
                with learner.autocast():
                    cloning = policy.loss(batch.inputs, batch.actions, batch.padded, config.label_spread, batch.noise)[
                        "loss"
                    ]
                (config.bc_coefficient * cloning / config.gradient_accumulation).backward()
                means.add(bc_loss=cloning)
        if config.target_kl is not None and learner.mean(kl) > config.target_kl:
            learner.zero_grad()
            updates = first
            break
        means.add(grad_norm=learner.step(rate_factor))
    if config.value_coefficient:  # where the policy has moved far enough, the critic alone learns from the rest
        deque(fit_critic(critic, target, batches[updates:], config, learner, rate_factor), maxlen=0)
    means.add(updates=torch.tensor(updates // config.gradient_accumulation, device=policy.device))


def ppo_loss(
    policy: Policy,
    critic: Critic,
    buffer: Buffer,
    target: Targets,
    rows: Rows,
    config: RlConfig,
    learner: Learner,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of one minibatch, and its vitals."""
    index = rows.here
    with learner.autocast():
        inputs = buffer.seen.inputs(rows.host)
        likelihood = policy.likelihood(inputs, buffer.latent_of(index), exploring(policy, config))
    executed = buffer.executed.flatten(0, 1)[index]
    logprobs, owners = summed(likelihood.logprobs, executed, config.ratio_of)
    old_logprobs, _ = summed(target.logprobs[index], executed, config.ratio_of)
    actor = policy_loss(logprobs, old_logprobs, target.advantages[index][owners], config.clip)
    read = likelihood.state.detach() if config.detach_critic else likelihood.state
    values = critic(buffer.critic_input(read, index))
    entropy = (likelihood.entropy.mean(dim=-1) * executed).sum() / executed.sum()
    critical = value_loss(values, target.values[index], target.returns[index], config.value_clip, config.huber_delta)
    loss = actor + config.value_coefficient * critical - config.entropy_coefficient * entropy
    with torch.no_grad():
        log_ratio = logprobs - old_logprobs
        ratio = log_ratio.exp()
        vitals = {
            "policy_loss": actor,
            "value_loss": critical,
            "entropy": entropy,
            "approx_kl": approx_kl(log_ratio),
            "clipfrac": ((ratio - 1).abs() > config.clip).float().mean(),
            "ratio_mean": ratio.mean(),
            "ratio_max": ratio.max(),
        }
    return loss, vitals


def learning_curve_point(
    actor: Chunked, env: envs.WorkerVectorEnv, config: RlConfig, learner: Learner
) -> dict[str, float]:
    """Success rates, in and out of distribution, over episodes that stay the same; on the main process."""
    if not learner.is_main:
        return {}
    own = learner.policy.default_temperature
    temperature = own if config.eval_temperature is None else config.eval_temperature
    episode_ids = range(FIRST_CURVE_EPISODE, FIRST_CURVE_EPISODE + config.eval_episodes)
    with learner.acting():
        return {
            f"eval_{split}_success": success_rate(
                rollout(
                    actor,
                    env,
                    episode_ids,
                    Conditions(split, temperature=temperature, seed=config.seed),
                )
            ).rate
            for split in env.world_spec.splits
        }
