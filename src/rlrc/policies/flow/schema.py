"""The schema of a flow-matching policy's config.json as rlrc writes it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, StrictInt, field_validator, model_validator

from rlrc.config import CameraName
from rlrc.policies.flow.normalisation import Kind
from rlrc.policies.parts.schema import (
    MAX_CAMERAS,
    MAX_HORIZON,
    MAX_STATE,
    Count,
    DecoderFields,
    DimFields,
    DtypeName,
    Labels,
    Layers,
    PatchedFields,
    QuantizationFields,
    TokenFields,
)
from rlrc.policies.schema import Name, Number
from rlrc.reading import FileModel

MAX_STEPS = 1000
Dimensions = Annotated[StrictInt, Field(ge=1, le=MAX_STATE)]


class VisionFields(PatchedFields):
    """`vision_config`."""

    num_hidden_layers: Layers


class FlowFields(FileModel):
    """config.json."""

    text_config: DecoderFields
    expert_config: DecoderFields
    vision_config: VisionFields
    cameras: Annotated[list[CameraName], Field(min_length=1, max_length=MAX_CAMERAS)]
    state_dim: Annotated[StrictInt, Field(ge=0, le=MAX_STATE)]
    action_dim: Dimensions
    padded_dim: Dimensions = 32
    horizon: Annotated[StrictInt, Field(ge=1, le=MAX_HORIZON)]
    execute: Annotated[StrictInt, Field(ge=1, le=MAX_HORIZON)]
    num_steps: Annotated[StrictInt, Field(ge=1, le=MAX_STEPS)] = 10
    max_prompt_tokens: Count = 48
    pixel_shuffle: Annotated[StrictInt, Field(ge=1, le=64)] = 1
    cross_layers: list[Annotated[StrictInt, Field(ge=0)]] | None = None
    state_in_prompt: Literal["real", "padded"] | None = None
    visual_tokens: TokenFields | None = None
    min_period: Annotated[Number, Field(gt=0)] = 4e-3
    max_period: Annotated[Number, Field(gt=0)] = 4.0
    normalisation: dict[Literal["action", "state"], Kind]
    norm_stats: dict[str, dict[str, Any]] | None = None
    default_unnorm_key: Name | None = None
    action_dims: list[DimFields] | None = None
    state_dims: list[DimFields] | None = None
    tie_word_embeddings: StrictBool = False
    dtype: DtypeName | None = None
    torch_dtype: DtypeName | None = None
    num_labels: Labels | None = None
    quantization_config: QuantizationFields | None = None

    @field_validator("cameras")
    @classmethod
    def _once_each(cls, cameras: list[str]) -> list[str]:
        if len(set(cameras)) < len(cameras):
            raise ValueError(f"cameras {', '.join(cameras)}: one is named twice")
        return cameras

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.normalisation.keys() != {"action", "state"}:
            raise ValueError("normalisation names a kind of statistics for 'action' and one for 'state'")
        if max(self.state_dim, self.action_dim) > self.padded_dim:
            raise ValueError(f"state_dim {self.state_dim} or action_dim {self.action_dim} is above padded_dim")
        if self.execute > self.horizon:
            raise ValueError(f"execute {self.execute} is above horizon {self.horizon}")
        if self.text_config.num_hidden_layers != self.expert_config.num_hidden_layers:
            raise ValueError(
                f"text_config has {self.text_config.num_hidden_layers} layers and expert_config "
                f"{self.expert_config.num_hidden_layers}; each layer of the expert reads the one of its number"
            )
        if any(layer >= self.expert_config.num_hidden_layers for layer in self.cross_layers or ()):
            raise ValueError(f"cross_layers {self.cross_layers}: there is no such layer")
        side = self.vision_config.image_size // self.vision_config.patch_size
        if side % self.pixel_shuffle:
            raise ValueError(f"pixel_shuffle {self.pixel_shuffle} does not divide {side} patches a side")
        if self.visual_tokens is not None:
            self.visual_tokens.require_fit((side // self.pixel_shuffle) ** 2)
        stacks = (self.text_config, self.expert_config)
        heads = [stack.head_dim or stack.hidden_size // stack.num_attention_heads for stack in stacks]
        if heads[0] != heads[1]:
            raise ValueError(f"text_config.head_dim {heads[0]} is not expert_config.head_dim {heads[1]}")
        if self.min_period >= self.max_period:
            raise ValueError(f"min_period {self.min_period:g} is not below max_period {self.max_period:g}")
        for field, count in (("action_dims", self.action_dim), ("state_dims", self.state_dim)):
            dims = getattr(self, field)
            if dims is not None and len(dims) != count:
                raise ValueError(f"{field} names {len(dims)} numbers, and there are {count}")
        return self


class StateFields(FlowFields):
    """config.json of a family that always reads the robot's state as numbers."""

    state_dim: Dimensions
