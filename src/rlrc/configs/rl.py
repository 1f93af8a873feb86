"""Options of `rl`."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rlrc.config import Config, Share
from rlrc.configs.augmentation import Augmentation
from rlrc.configs.learner import LearnerConfig
from rlrc.configs.parts import PolicyPart, StatisticsPart


class RewardTerms(Config):
    """Reward for each kind of progress."""

    grasped: float = Field(default=0.1, ge=-1000, le=1000)
    """Reward for having grasped the object in this episode."""
    consecutive_grasp: float = Field(default=0.0, ge=-1000, le=1000)
    """Reward for having held it for five control steps in a row (RL4VLA gives 0.1, RLRC nothing)."""
    success: float = Field(default=1.0, ge=-1000, le=1000)
    """Reward for an object that rests where it should, released, and has been grasped in this episode."""


class RlConfig(LearnerConfig, StatisticsPart, PolicyPart):
    """Improve a policy by acting in a world (PPO)."""

    world: str = "tabletop"
    """World to act in."""
    num_envs: int = Field(default=32, ge=1, le=8192)
    """Number of episodes that run at once, for each process."""
    num_workers: int = Field(default=2, ge=0, le=256)
    """Number of processes that simulate them."""
    iterations: int = Field(default=100, ge=1, le=10_000_000)
    """Number of iterations of acting and updating, critic warm-up included."""
    reward: RewardTerms = RewardTerms()
    """Reward for each kind of progress."""
    end_after_success: int = Field(default=0, ge=0, le=100_000)
    """Number of steps of success in a row after which an episode ends and another begins in its place, so that acting
    is not spent on standing still. What would be lost again later is then neither trained nor counted, so that the
    metric success_at_end lies above that of an evaluation. Zero lets every episode last its full time."""
    end_on_loss: bool = False
    """End an episode also when a success is lost again. Otherwise losing it costs next to nothing, since it can be won
    back: the reward is the difference that a step makes."""
    augment: Augmentation | None = None
    """Vary the pictures that the policy acts upon. Without this they are shown as they are."""
    word_dropout: Share = 0.0
    """Probability that a word of an episode's instruction is shown as unknown."""
    temperature: float = Field(default=1.0, ge=1e-3, le=100)
    """Temperature at which actions are sampled. PPO improves the policy that it samples from. Where a policy denoises,
    the starting noise and the random steps are multiplied by it."""
    exploration: Literal["flow-sde", "flow-noise"] | None = None
    """Random denoising steps of a policy that denoises (pi0, SmolVLA), which give its actions a likelihood: one random
    step of each action (flow-sde), or all of them with a deviation that a small network learns beside the policy
    (flow-noise). Policies with action tokens have none; others take flow-sde unless you say flow-noise."""
    noise_level: float = Field(default=0.5, gt=0, le=10)
    """Noise level of flow-sde."""
    denoising_steps: int | None = Field(default=None, ge=2, le=1000)
    """Number of denoising steps; the policy's own unless you give one (pi_RL takes 4). The checkpoint keeps it, for
    PPO improves the way in so many steps."""
    execute: int | None = Field(default=None, ge=1, le=1000)
    """Number of actions of each chunk that are carried out before the policy is asked again. A policy that gives one
    action a call has chunks of one; others have a number of their own unless you give one."""
    gamma: Share = 0.99
    """Discount of future rewards."""
    gae_lambda: Share = 0.95
    """Parameter lambda of generalised advantage estimation: 0 gives one-step, 1 gives Monte-Carlo advantages."""
    train: Literal["all", "decoder"] = "decoder"
    """Parameters that are trained. With decoder, the pictures pass the vision towers only once, while acting."""
    epochs: int = Field(default=1, ge=1, le=1000)
    """Number of passes over the buffer in each iteration."""
    batch_size: int = Field(default=160, ge=1, le=65_536)
    """Number of steps in a minibatch, for each process."""
    learning_rate: float = Field(default=1e-4, gt=0, le=100)
    """Learning rate of the policy."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rates over the iterations after the critic's warm-up and their own: they stay constant,
    or they fall to zero."""
    warmup_iterations: int = Field(default=0, ge=0, le=10_000_000)
    """Number of iterations, after those in which the critic alone learns, over which all learning rates rise to their
    peak. Without them the first updates are the largest, since the optimizer knows no gradient yet."""
    value_learning_rate: float = Field(default=3e-3, gt=0, le=100)
    """Learning rate of the critic, which AdamW trains."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay of matrices and kernels. Norms, biases and embeddings have none."""
    max_grad_norm: float = Field(default=10.0, gt=0, le=1e6)
    """Gradients of a larger norm are scaled down to this norm."""
    clip: float = Field(default=0.2, gt=0, le=1e6)
    """Distance from 1 at which the ratio of new to old probabilities is clipped in the policy loss."""
    ratio_of: Literal["chunk", "action", "token"] = "chunk"
    """What has a ratio of its own, which is clipped by itself: all executed actions of a chunk together, each action,
    or each number of an action. The ratio of a chunk of many numbers leaves the clip range much sooner than that of
    one number. Policies that give one action a call have chunks of one action."""
    value_clip: float = Field(default=0.2, gt=0, le=1e6)
    """Distance of a value from its old value beyond which the clipped loss takes over."""
    huber_delta: float = Field(default=10.0, gt=0, le=1e6)
    """Errors of the value beyond this count linearly."""
    value_coefficient: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of the value loss."""
    entropy_coefficient: float = Field(default=0.0, ge=0, le=1e6)
    """Weight of the entropy bonus."""
    detach_critic: bool = False
    """Keep the value loss from changing the policy's layers, which the critic reads: its gradient ends there. RL4VLA
    lets it through, and pi_RL's recipes for pi0 end it."""
    privileged_critic: bool = False
    """Let the critic also know how much of an episode's time is over, and the state of the world that a simulator
    knows. Policies do not see it, and the critic is needed in training alone (Pinto et al., arXiv 1710.06542). The
    worlds maniskill:... give the robot's state alone."""
    critic_warmup_iterations: int = Field(default=0, ge=0, le=10_000_000)
    """Number of first iterations in which the critic alone learns."""
    critic_warmup_epochs: int = Field(default=10, ge=1, le=10_000)
    """Number of passes over the buffer in each of them. They are cheap, since the transformer stands still."""
    bc_coefficient: float = Field(default=0.0, ge=0, le=1e6)
    """Weight of behaviour cloning on the dataset beside PPO."""
    dataset: Path | None = None
    """Demonstrations for behaviour cloning. They are varied by augment and word_dropout as well."""
    label_spread: float = Field(default=0.0, ge=0, le=256)
    """Standard deviation, in bins, of the demonstrated labels, as in supervised fine-tuning. Cloning single bins in a
    policy that was taught spread ones costs it its greedy success."""
    target_kl: float | None = Field(default=None, gt=0, le=1e6)
    """An iteration's updates of the policy stop once it has moved this far from the one that acted. The critic goes
    on. The distance is that of one ratio (ratio_of), so a chunk's is that of all its actions together."""
    eval_every: int = Field(default=0, ge=0, le=10_000_000)
    """Number of iterations between two points of the learning curve. The first point comes after the first iteration;
    zero draws no curve."""
    eval_episodes: int = Field(default=64, ge=1, le=90_000)
    """Number of episodes, in and out of distribution each, for such a point."""
    eval_temperature: float | None = Field(default=None, ge=0, le=100)
    """Temperature at which the policy acts in them; zero is greedy, and None is the policy's own way to act."""

    @model_validator(mode="after")
    def _rates_reach_their_peak(self) -> Self:
        if self.warmup_iterations and self.critic_warmup_iterations + self.warmup_iterations >= self.iterations:
            raise ValueError(
                f"critic_warmup_iterations {self.critic_warmup_iterations} and warmup_iterations "
                f"{self.warmup_iterations} leave nothing of {self.iterations} iterations; make iterations more"
            )
        return self

    @model_validator(mode="after")
    def _cloning_has_data(self) -> Self:
        if (self.bc_coefficient > 0) != (self.dataset is not None):
            raise ValueError("give bc_coefficient > 0 and dataset together, or neither")
        return self
