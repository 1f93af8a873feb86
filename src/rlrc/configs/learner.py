"""Options that all kinds of training share."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rlrc.config import Config, Seed, Share
from rlrc.configs.augmentation import Augmentation
from rlrc.configs.parts import DemonstrationsPart, DevicePart


class Lora(Config):
    """Train low-rank adapters (Hu et al., 2021) on the decoder's linear layers, and merge them at the end."""

    rank: int = Field(default=32, ge=1, le=4096)
    """Rank of the update of each matrix."""
    alpha: int = Field(default=16, ge=1, le=2**20)
    """The update is scaled by alpha / rank."""


class LearnerConfig(DevicePart):
    """Options of every kind of training."""

    train: Literal["all", "decoder"] = "all"
    """Parameters that are trained. With decoder, the vision towers and the projector stay as they are."""
    lora: Lora | None = None
    """Train low-rank adapters instead of the decoder's weights; everything else stays as it is."""
    keep_zeros: bool = False
    """Weights of the decoder that are zero stay zero, as you want after pruning by wanda or magnitude."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimizer. With muon, Muon trains the layers' weight matrices and AdamW the rest; it helps training from
    scratch."""
    learning_rate: float = Field(default=1e-4, gt=0, le=100)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """Decoupled weight decay of matrices and kernels. Norms, biases and embeddings have none."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1e6)
    """Gradients of a larger norm are scaled down to this norm."""
    gradient_accumulation: int = Field(default=1, ge=1, le=4096)
    """Number of batches whose gradients are averaged for one optimizer step."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the computation. auto is bf16 where the GPU or the processor multiplies it, and fp32 elsewhere. With
    bf16, weights and moments are still kept in float32."""
    save_every: float = Field(default=60.0, ge=0, le=1e6)
    """Seconds between two training states on disk. A run that was cut off continues from the last one."""
    seed: Seed = 0
    """Seed for everything random."""

    @model_validator(mode="after")
    def _zeros_can_stay(self) -> Self:
        if self.keep_zeros and self.lora is not None:
            raise ValueError("keep_zeros: adapters are merged into all weights, those that are zero too; leave one out")
        return self


class SupervisedConfig(LearnerConfig, DemonstrationsPart):
    """Options of training on demonstrations."""

    steps: int = Field(default=1000, ge=1, le=100_000_000)
    """Number of optimizer steps."""
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Number of frames in a batch, for each process."""
    warmup_steps: int = Field(default=50, ge=0, le=1_000_000)
    """Number of steps over which the learning rate rises linearly."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Course of the learning rate after the warm-up: it falls to zero, or it stays constant."""
    augment: Augmentation | None = None
    """Vary training pictures. Without this they are shown as they are."""
    word_dropout: Share = 0.0
    """Probability that a word of the instruction is shown as unknown, so that unknown words are nothing new later."""
    noise_draws: int = Field(default=1, ge=1, le=64)
    """Number of noises and times from which a policy that denoises (pi0, SmolVLA) learns each frame of a batch. Its
    pictures and its text are read once, so that more of them cost little."""
    label_spread: float = Field(default=0.0, ge=0, le=256)
    """Standard deviation, in bins, of a Gaussian that spreads each label over neighbouring bins. Zero leaves it
    whole."""
