"""The config of a flow-matching policy: a vision tower, a language model, an action expert, and its conventions."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from rlrc.policies.flow.schema import FlowFields
from rlrc.policies.parts.config import DecoderConfig
from rlrc.policies.parts.tokens import TokenReduction


class FlowVisionConfig(PreTrainedConfig):
    """A SigLIP tower, all of whose layers are read.

    `stem_channels` puts stride-2 3x3 convolutions before the patch embedding; `patch_size` stays the stride of the
    whole.
    """

    model_type = "rlrc_flow_vision"

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    head_dim: int | None = None
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    stem_channels: list[int] | None = None

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def head_size(self) -> int:
        """Numbers of one head: `head_dim` where layers have lost heads, else their share of the width."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


class FlowConfig(PreTrainedConfig):
    """What pi0, pi0.5 and SmolVLA have in common.

    `state_dim` and `action_dim` are the robot's numbers; the model reads and writes `padded_dim` of them, the rest
    zeros. `execute` actions of the `horizon` are carried out unless told otherwise. `num_steps` are those of denoising.
    `pixel_shuffle` patches a side become one token. `cross_layers` are the expert's layers that read the language
    model's keys and values and nothing else. `state_in_prompt` says how the prompt tells the state: "real" dimensions
    alone, "padded" as lerobot 0.4.4 writes it, or None where it does not. `normalisation` has a kind of statistics for
    "action" and one for "state". `visual_tokens` has the fields of a `TokenReduction`. `action_dims` and `state_dims`
    are the fields of `contract.Dim`.
    """

    sub_configs_defaults = {  # noqa: RUF012
        "text_config": SubConfigSpec(config_class=DecoderConfig, model_type="llama"),
        "expert_config": SubConfigSpec(config_class=DecoderConfig, model_type="llama"),
        "vision_config": SubConfigSpec(config_class=FlowVisionConfig, model_type="rlrc_flow_vision"),
    }

    text_config: Any = None
    expert_config: Any = None
    vision_config: Any = None
    cameras: list[str] | None = None
    state_dim: int = 0
    action_dim: int = 7
    padded_dim: int = 32
    horizon: int = 50
    execute: int = 50
    num_steps: int = 10
    max_prompt_tokens: int = 48
    pixel_shuffle: int = 1
    cross_layers: list[int] | None = None
    state_in_prompt: str | None = None
    visual_tokens: dict[str, Any] | None = None
    min_period: float = 4e-3
    max_period: float = 4.0
    normalisation: dict[str, str] | None = None
    norm_stats: dict | None = None
    default_unnorm_key: str | None = None
    action_dims: list[dict[str, str]] | None = None
    state_dims: list[dict[str, str]] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.cameras = self.cameras or ["front"]
        self.normalisation = self.normalisation or {"action": "mean_std", "state": "mean_std"}

    @classmethod
    def fields(cls) -> type[FlowFields]:
        """The schema of its config.json."""
        return FlowFields

    @property
    def tokens_of_picture(self) -> int:
        """Tokens that one picture becomes."""
        return self.patches_of_picture if self.reduction is None else self.reduction.count

    @property
    def patches_of_picture(self) -> int:
        """Tokens that the vision tower makes of a picture."""
        patches: int = self.vision_config.num_patches
        return patches // self.pixel_shuffle**2

    @property
    def patches_of_token(self) -> int:
        """Tokens of the vision tower that the projector reads side by side."""
        return 1 if self.reduction is None else self.reduction.patches_of_token(self.patches_of_picture)

    @property
    def reduction(self) -> TokenReduction | None:
        """This tells how fewer tokens are made of each picture; None where all of them stay."""
        return None if self.visual_tokens is None else TokenReduction(**self.visual_tokens)
