"""Options of `quantize`."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rlrc.config import Bits, Seed
from rlrc.configs.parts import PolicyPart, StatisticsPart

Part = Literal[
    "decoder",
    "expert",
    "vision",
    "projector",
    "embedding",
    "head",
    "action_head",
    "proprio",
    "noisy_action",
    "state_proj",
    "action_in_proj",
    "action_out_proj",
    "action_time_mlp_in",
    "action_time_mlp_out",
    "time_mlp_in",
    "time_mlp_out",
]


GROUP_SIZE = 32


class QuantizeConfig(StatisticsPart, PolicyPart):
    """Store a policy's weights in 2, 3, 4 or 8 bits."""

    bits: Bits = 4
    """Number of bits of each weight. Rounding to 2 or 3 changes many actions, and sft can train the result on."""
    group_size: int = Field(default=GROUP_SIZE, ge=1, le=65_536)
    """Number of weights along a layer's input that share a scale and a zero point."""
    parts: tuple[Part, ...] = Field(default=("decoder",), min_length=1)
    """Parts of the policy whose linear layers, convolutions and embeddings are packed. Only OpenVLA-OFT has an
    action_head and projectors of a state (proprio) or of a noisy_action; pi0, pi0.5 and SmolVLA have an expert, and
    around it small layers by their published names."""
    rounding: Literal["nearest", "gptq"] = "nearest"
    """Rule by which weights are rounded: each to its nearest code, or so that errors make up for each other on the
    demonstrations (gptq)."""
    dataset: Path | None = None
    """Demonstrations. On some of them gptq is calibrated; on others it is counted how often the best action token
    changes."""
    samples: int = Field(default=64, ge=1, le=100_000)
    """Number of frames drawn from the demonstrations for each of these two purposes."""
    seed: Seed = 0
    """Seed for choosing these frames."""
    modules_to_not_convert: tuple[str, ...] = ()
    """Layers whose name contains one of these words stay as they are. A first convolution, say, has few weights, and
    every pixel passes through it."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.rounding == "gptq" and self.dataset is None:
            raise ValueError("rounding gptq needs a dataset of demonstrations to calibrate on")
        return self
