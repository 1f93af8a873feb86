"""Acting for reinforcement learning: the episodes of one iteration in parallel worlds, kept for PPO to learn from."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from rlrc import envs
from rlrc.configs.rl import RlConfig
from rlrc.data.batches import vary
from rlrc.policies.openvla.model import PolicyInputs
from rlrc.policies.contract import Policy
from rlrc.recover.loop import Learner, project, rng
from rlrc.recover.sft import hide_words


@dataclass
class Buffer:
    """T steps in N worlds; time comes first, so that (t, n) lies at t * N + n when flattened.

    Pictures and instructions have a row more: what the last step led to.
    """

    instructions: list[str]
    """(T + 1) * N, flat."""
    images: torch.Tensor
    """Pictures on the CPU: projected patches (T + 1, N, P, hidden) where vision is frozen, else pictures uint8
    (T + 1, N, H, W, 3)."""
    tokens: torch.Tensor
    """Action ids (T, N, 7)."""
    logprobs: torch.Tensor
    """Log-probabilities (T, N), as sampled."""
    rewards: torch.Tensor
    masks: torch.Tensor
    """(T + 1, N): 0 after a step that ended the episode."""
    success: torch.Tensor
    """Bool (T, N)."""
    grasped: torch.Tensor

    def __len__(self) -> int:
        return self.rewards.numel()

    @property
    def first_episodes(self) -> torch.Tensor:
        """Bool (T, N): the steps of each world's first episode. Later ones are cut off by the buffer's end, the more
        often the longer they take, so rates are counted over the first ones."""
        ended = self.masks[1:] == 0
        return (ended.cumsum(dim=0) - ended.int()) == 0

    def inputs(self, policy: Policy, index: torch.Tensor) -> PolicyInputs:
        """Model inputs of flat numbers (B,)."""
        images = self.images.flatten(0, 1)[index.cpu()]
        instructions = [self.instructions[i] for i in index.tolist()]
        if images.dtype == torch.uint8:
            return policy.prepare(images.numpy(), instructions)
        prompts = policy.processor.prompts(instructions)
        return replace(prompts, image_embeddings=images).to(policy.device)


def act(policy: Policy, env: envs.WorkerVectorEnv, iteration: int, config: RlConfig, learner: Learner) -> Buffer:
    """Act for the time of one whole episode in every world, on new episodes in each iteration and on each process."""
    episodes = Episodes(env, iteration, config, learner)
    noise, variation = learner.generator("act", iteration), learner.generator("augment", iteration, device="cpu")
    seen: list[torch.Tensor] = []
    instructions: list[str] = []
    steps: list[tuple[torch.Tensor, ...]] = []

    def look() -> PolicyInputs:
        images = torch.from_numpy(episodes.images)
        if config.augment is not None:
            images = vary(images, config.augment, variation)
        inputs = policy.prepare(images.numpy(), episodes.instructions)
        if not learner.trains_vision:
            inputs = project(policy, inputs)
            assert inputs.image_embeddings is not None
            images = inputs.image_embeddings.cpu()
        seen.append(images)
        instructions.extend(episodes.instructions)
        return inputs

    episodes.start(policy, np.ones(env.num_envs, bool))
    for _ in range(env.max_episode_steps):
        sample = policy.sample(look(), config.temperature, noise)
        outcomes = episodes.step(policy, policy.decode(sample.tokens))
        steps.append((sample.tokens, sample.logprobs, *(torch.tensor(o, device=policy.device) for o in outcomes)))
    look()
    tokens, logprobs, rewards, masks, success, grasped = (torch.stack(column) for column in zip(*steps, strict=True))
    masks = torch.cat([torch.ones_like(masks[:1]), masks])
    return Buffer(instructions, torch.stack(seen), tokens, logprobs, rewards, masks, success, grasped)


class Episodes:
    """The worlds of one iteration: which episode each of them plays, and what its instruction is shown as."""

    def __init__(self, env: envs.WorkerVectorEnv, iteration: int, config: RlConfig, learner: Learner) -> None:
        self._env, self._config = env, config
        most = env.num_envs * env.max_episode_steps
        self._next_id = envs.FIRST_TRAINING_EPISODE + (iteration * learner.world_size + learner.rank) * most
        self._words = rng(config.seed, "words", iteration, learner.rank)
        self._successes = np.zeros(env.num_envs, int)
        self.instructions = [""] * env.num_envs
        self.images: np.ndarray

    def start(self, policy: Policy, where: np.ndarray) -> None:
        """Begin a new episode in the worlds `where` (N,)."""
        ids = self._next_id + np.arange(self._env.num_envs)
        self._next_id += self._env.num_envs
        options = {"split": "ind", "variant": "main", "episode_ids": ids, "reset_mask": where}
        observation, _ = self._env.reset(options=options)
        self.images = observation["image"]
        self._successes[where] = 0
        for n in np.flatnonzero(where):
            text = observation["instruction"][n]
            dropout = self._config.word_dropout
            self.instructions[n] = hide_words(policy, text, dropout, self._words) if dropout else text

    def step(self, policy: Policy, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Act, and begin anew where an episode ended: reward, mask (0 where it ended), success, grasped; all (N,)."""
        observation, reward, terminated, truncated, info = self._env.step(actions)
        self.images = observation["image"]
        ended = terminated | truncated
        if self._config.end_on_loss:
            ended = ended | ((self._successes > 0) & ~info["success"])
        self._successes = np.where(info["success"], self._successes + 1, 0)
        if self._config.end_after_success:
            ended = ended | (self._successes >= self._config.end_after_success)
        outcomes = reward.astype(np.float32), 1 - ended.astype(np.float32), info["success"], info["grasped"]
        if ended.any():
            self.start(policy, ended)
        return outcomes
