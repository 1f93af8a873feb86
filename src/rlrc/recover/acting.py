"""Acting for reinforcement learning: the episodes of one iteration in parallel worlds, kept for PPO to learn from."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from rlrc import envs
from rlrc.act.conventions import Interface, connect
from rlrc.configs.rl import RlConfig
from rlrc.data.batches import vary
from rlrc.envs.world import WorldSpec
from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.device import moved
from rlrc.policies.values import Exploration, Observation, Sampler
from rlrc.recover.loop import Learner, rng
from rlrc.recover.sft import hide_words


@dataclass
class Buffer:
    """T chunks of actions in N worlds; time comes first, so that (t, n) lies at t * N + n when flattened.

    What was seen has a row more: what the last chunk led to.
    """

    seen: "Seen"
    """(T + 1) * N moments, flat."""
    latent: dict[str, torch.Tensor]
    """Record of the chunks that the policy's likelihood needs, each (T, N, ...)."""
    logprobs: torch.Tensor
    """(T, N, H, D), as sampled."""
    executed: torch.Tensor
    """Bool (T, N, H), false of actions that were not carried out."""
    rewards: torch.Tensor
    """(T, N), the discounted sum over the steps of a chunk."""
    masks: torch.Tensor
    """(T + 1, N): 0 after a chunk in which the episode ended."""
    success: torch.Tensor
    """Bool (T, N), at the end of the chunk."""
    succeeded: torch.Tensor
    """Bool (T, N), at any step of the chunk."""
    grasped: torch.Tensor
    privileged: torch.Tensor | None = None
    """((T + 1) * N, C): what a privileged critic reads beside the policy's state, standardised; None for another."""

    def __len__(self) -> int:
        return self.rewards.numel()

    @property
    def steps(self) -> int:
        """Steps that the worlds made."""
        return int(self.executed.sum())

    @property
    def first_episodes(self) -> torch.Tensor:
        """Bool (T, N): the chunks of each world's first episode. Later ones are cut off by the buffer's end, the more
        often the longer they take, so rates are counted over the first ones."""
        ended = self.masks[1:] == 0
        return (ended.cumsum(dim=0) - ended.int()) == 0

    def critic_input(self, states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """What the critic reads of the moments of flat numbers (B,), given the policy's states (B, H) there."""
        return states if self.privileged is None else torch.cat([states, self.privileged[index]], dim=-1)

    def latent_of(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """The record that the likelihood needs of the chunks of flat numbers (B,)."""
        return {name: tensor.flatten(0, 1)[index] for name, tensor in self.latent.items()}


@dataclass(frozen=True)
class Rows:
    """Flat numbers (B,) of moments, at once in the machine's memory and where the policy computes.

    Each tensor is indexed by the numbers that lie beside it, so that no batch waits for a copy of them.
    """

    host: torch.Tensor
    here: torch.Tensor

    @classmethod
    def batches(cls, numbers: torch.Tensor, size: int, device: torch.device) -> "list[Rows]":
        """Numbers in the machine's memory, in batches of `size`; they are copied to the device once."""
        pairs = zip(numbers.split(size), moved(numbers, device).split(size), strict=True)
        return [cls(host, here) for host, here in pairs]


class Seen:
    """The moments that a policy saw: as vision has encoded it where vision is frozen, else as pictures."""

    def __init__(self, policy: Policy, encoded: bool) -> None:
        self._policy, self._encoded = policy, encoded
        self._moments: list[Any] = []

    def add(self, observation: Observation) -> Any:
        """Remember N observations, and return the model inputs that they make."""
        inputs = self._policy.prepare(observation)
        if self._encoded:
            inputs = self._policy.encode(inputs)
        self._moments.append(inputs.to("cpu") if self._encoded else observation)
        return inputs

    def inputs(self, index: torch.Tensor) -> Any:
        """Model inputs of the moments of flat numbers (B,), which are in the machine's memory as the moments are."""
        if len(self._moments) > 1:  # joined when they are first read, and held once
            self._moments = [type(self._moments[0]).concatenate(self._moments)]
        chosen = self._moments[0][index.numpy()]
        return chosen.to(self._policy.device) if self._encoded else self._policy.prepare(chosen)


def exploring(policy: Policy, config: RlConfig) -> Sampler:
    """The way in which a policy is sampled for PPO.

    Raises:
        UserError: the policy has no likelihood when it is sampled so.
    """
    kind = config.exploration or policy.exploration
    if kind is not None and policy.exploration is None:
        raise UserError(f"exploration {kind}: the policy does not denoise; leave exploration out")
    exploration = None if kind is None else Exploration(kind, config.noise_level)
    return Sampler(config.temperature, exploration=exploration)


def act(
    policy: Policy, env: envs.WorkerVectorEnv, iteration: int, config: RlConfig, learner: Learner, execute: int
) -> Buffer:
    """Act for the time of one whole episode in every world, on new episodes in each iteration and on each process.

    Args:
        execute: actions of each chunk that are carried out.
    """
    episodes = Episodes(env, connect(policy.spec, env.world_spec), iteration, config, learner)
    noise, variation = learner.generator("act", iteration), learner.generator("augment", iteration, device="cpu")
    seen, sampler = Seen(policy, encoded=not learner.trains_vision), exploring(policy, config)
    logprobs: list[torch.Tensor] = []
    outcomes: list[tuple[np.ndarray, ...]] = []
    latents: list[dict[str, torch.Tensor]] = []
    privileged: list[np.ndarray] = []

    def look() -> Any:
        observation = episodes.observation()
        if config.privileged_critic:
            privileged.append(episodes.privileged())
        if config.augment is not None:
            varied = {
                name: vary(torch.from_numpy(images), config.augment, variation).numpy()
                for name, images in observation.images.items()
            }
            observation = replace(observation, images=varied)
        return seen.add(observation)

    episodes.start(policy, np.ones(env.num_envs, bool))
    for _ in range(-(-env.max_episode_steps // execute)):
        sample = policy.sample(look(), sampler, noise)
        assert sample.logprobs is not None
        actions = policy.to_physical(sample.actions.cpu().numpy())[:, :execute]
        outcomes.append(episodes.carry_out(policy, actions))
        latents.append(sample.latent)
        logprobs.append(sample.logprobs)
    look()
    executed, rewards, masks, success, succeeded, grasped = (
        moved(torch.from_numpy(np.stack(column)), policy.device) for column in zip(*outcomes, strict=True)
    )
    executed = F.pad(executed, (0, policy.spec.horizon - execute))
    latent = {name: torch.stack([latent[name] for latent in latents]) for name in latents[0]}
    masks = torch.cat([torch.ones_like(masks[:1]), masks])
    buffer = Buffer(seen, latent, torch.stack(logprobs), executed, rewards, masks, success, succeeded, grasped)
    if config.privileged_critic:
        buffer.privileged = standardised(moved(torch.from_numpy(np.concatenate(privileged)), policy.device), learner)
    return buffer


def privileged_count(world: WorldSpec) -> int:
    """Return how many numbers `Episodes.privileged` gives of each world."""
    return 1 + len(world.environment_state_names)


def standardised(numbers: torch.Tensor, learner: Learner) -> torch.Tensor:
    """Numbers (M, C) with the mean and the deviation of each over this buffer's moments in all processes taken out.

    What never changes becomes zero, and what changes rarely is held within 5 deviations. Both drift a little from one
    iteration to the next, as the policy visits other states; nothing has to be saved for an exact resume.
    """
    every = learner.gather(numbers)
    return ((numbers - every.mean(dim=0)) / (every.std(dim=0, correction=0) + 1e-5)).clamp(-5, 5)


class Episodes:
    """The worlds of one iteration: which episode each of them plays, and what its instruction is shown as."""

    def __init__(
        self, env: envs.WorkerVectorEnv, interface: Interface, iteration: int, config: RlConfig, learner: Learner
    ) -> None:
        self._env, self._interface, self._config = env, interface, config
        # The iterations' first episodes walk through the tasks, so that none is left out where worlds are few.
        most = env.num_envs * env.max_episode_steps
        stride = most + (env.num_envs - most) % env.world_spec.num_tasks
        self._next_id = envs.FIRST_TRAINING_EPISODE + (iteration * learner.world_size + learner.rank) * stride
        self._words = rng(config.seed, "words", iteration, learner.rank)
        self._successes, self._steps = np.zeros((2, env.num_envs), int)
        self.instructions = [""] * env.num_envs
        self._seen: dict[str, Any] = {}
        self._state = np.zeros((env.num_envs, len(env.world_spec.environment_state_names)), np.float32)

    def start(self, policy: Policy, where: np.ndarray) -> None:
        """Begin a new episode in the worlds `where` (N,)."""
        ids = self._next_id + np.arange(self._env.num_envs)
        self._next_id += self._env.num_envs
        options = {"split": "ind", "variant": "main", "episode_ids": ids, "reset_mask": where}
        observation, info = self._env.reset(options=options)
        self._seen, self._state = observation, info["environment_state"]
        self._successes[where] = self._steps[where] = 0
        for n in np.flatnonzero(where):
            text = observation["instruction"][n]
            dropout = self._config.word_dropout
            self.instructions[n] = hide_words(policy, text, dropout, self._words) if dropout else text

    def observation(self) -> Observation:
        """The policy's observation now; instructions may have hidden words."""
        return replace(self._interface.seen(self._seen), instruction=list(self.instructions))

    def privileged(self) -> np.ndarray:
        """What the critic alone may know, float32 (N, C): the share of the time that is over, and the world's state."""
        over = self._steps[:, None] / self._env.max_episode_steps
        return np.concatenate([over, self._state], axis=1, dtype=np.float32)

    def carry_out(self, policy: Policy, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Carry out the first actions of chunks (N, k, D), and begin anew where an episode ended.

        A world whose episode ends within the chunk stands still until the others have carried out theirs.

        Returns:
            bool (N, k), which actions counted; and (N,) each: the discounted reward, the mask (0 where the episode
            ended), success at the end and at any step, grasped.
        """
        count = self._env.num_envs
        counted = np.zeros((count, actions.shape[1]), bool)
        reward, success, succeeded, grasped = np.zeros(count, np.float32), *np.zeros((3, count), bool)
        running = np.ones(count, bool)
        for number in range(actions.shape[1]):
            commands = self._interface.action(actions[:, number])
            now, mask, done, held = self._step(np.where(running[:, None], commands, 0))
            counted[:, number] = running
            reward += np.where(running, self._config.gamma**number * now, 0).astype(np.float32)
            success = np.where(running, done, success)
            succeeded |= running & done
            grasped |= running & held
            running = running & (mask > 0)
            if not running.any():
                break
        if not running.all():
            self.start(policy, ~running)
        return counted, reward, running.astype(np.float32), success, succeeded, grasped

    def _step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Make one step: reward, mask (0 where the episode ended), success, grasped; all (N,)."""
        observation, reward, terminated, truncated, info = self._env.step(actions)
        self._seen, self._state = observation, info["environment_state"]
        self._steps += 1
        ended = terminated | truncated
        if self._config.end_on_loss:
            ended = ended | ((self._successes > 0) & ~info["success"])
        self._successes = np.where(info["success"], self._successes + 1, 0)
        if self._config.end_after_success:
            ended = ended | (self._successes >= self._config.end_after_success)
        return reward.astype(np.float32), 1 - ended.astype(np.float32), info["success"], info["grasped"]
