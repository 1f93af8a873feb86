"""The models of a checkpoint's files: one model a file, with the types and ranges of the fields that rlrc uses.

Unknown fields are kept. Ranges are far beyond every policy that exists; they are there so that a damaged or hostile
file is refused before anything of its size is built.
"""

from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from rlrc.policies.parts.schema import (
    MAX_LAYERS,
    Count,
    DecoderFields,
    DtypeName,
    ImageSize,
    Labels,
    PatchedFields,
    QuantizationFields,
    TokenFields,
    TokenId,
)
from rlrc.policies.schema import Name, Number
from rlrc.reading import FileModel

MAX_TOWERS = 2
"""OpenVLA's backbone has a place for two."""


class TowerFields(PatchedFields, extra="forbid"):
    """An entry of `vision_towers`."""

    num_hidden_layers: Annotated[StrictInt, Field(ge=2, le=MAX_LAYERS)]
    """The block that is never run counts."""
    num_register_tokens: Annotated[StrictInt, Field(ge=0, le=1024)] = 0
    class_token: StrictBool = False
    layer_scale: StrictBool = False


class ConfigFields(FileModel):
    """config.json of an OpenVLA checkpoint."""

    text_config: DecoderFields = DecoderFields(vocab_size=32064)
    vision_towers: Annotated[list[TowerFields], Field(min_length=1, max_length=MAX_TOWERS)] | None = None
    timm_model_ids: Annotated[list[Name], Field(min_length=1, max_length=MAX_TOWERS)] | None = None
    image_sizes: Annotated[list[ImageSize], Field(min_length=1, max_length=MAX_TOWERS)] | None = None
    norm_stats: dict[str, dict[str, Any]] | None = None
    n_action_bins: Annotated[StrictInt, Field(ge=2, le=2**16)] = 256
    action_dim: Annotated[StrictInt, Field(ge=1, le=256)] = 7
    pad_to_multiple_of: Annotated[StrictInt, Field(ge=0, le=2**20)] = 64
    pad_token_id: TokenId | None = 32000
    visual_tokens: TokenFields | None = None
    projector_size: Count | None = None
    prompt_template: Annotated[StrictStr, Field(max_length=10_000)] = "{instruction}"
    prompt_end_token_id: TokenId | None = 29871
    default_unnorm_key: Name | None = None
    action_head_only: StrictBool | None = None
    tie_word_embeddings: StrictBool = False
    dtype: DtypeName | None = None
    torch_dtype: DtypeName | None = None
    num_labels: Labels | None = None
    quantization_config: QuantizationFields | None = None

    @field_validator("prompt_template")
    @classmethod
    def _takes_the_instruction_alone(cls, template: str) -> str:
        try:
            parts = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
        except ValueError as error:
            raise ValueError(f"the braces do not match ({error})") from error
        if any(part != ("instruction", "", None) for part in parts):
            raise ValueError("{instruction} is the only field that a prompt may have, without a format of its own")
        if not parts:
            raise ValueError("there is no {instruction} in it, so the policy would never see what it is asked to do")
        return template

    @model_validator(mode="after")
    def _fit(self) -> Self:
        vocabulary = self.text_config.vocab_size
        if vocabulary < self.n_action_bins + self.pad_to_multiple_of:
            raise ValueError(
                f"text_config.vocab_size {vocabulary} is too small for n_action_bins {self.n_action_bins} and "
                f"pad_to_multiple_of {self.pad_to_multiple_of}"
            )
        towers = None if self.vision_towers is None else [tower.image_size for tower in self.vision_towers]
        if towers is not None and self.image_sizes is not None and towers != self.image_sizes:
            raise ValueError(f"image_sizes are {self.image_sizes}, and those of vision_towers are {towers}")
        if self.visual_tokens is not None:
            published = (self.image_sizes or [224])[0] // 14
            tower = None if self.vision_towers is None else self.vision_towers[0]
            side = published if tower is None else tower.image_size // tower.patch_size
            self.visual_tokens.require_fit(side**2)
        for field in ("pad_token_id", "prompt_end_token_id"):
            token = getattr(self, field)
            if token is not None and token >= vocabulary:
                raise ValueError(f"{field} {token} is outside text_config.vocab_size {vocabulary}")
        return self


class Normalisation(FileModel):
    """The mean and deviation that normalise one tower's pictures, an entry of `tvf_normalize_params`."""

    mean: Annotated[list[Number], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[Number, Field(gt=1e-6, le=1e6)]], Field(min_length=3, max_length=3)]


class PreprocessorFields(FileModel):
    """preprocessor_config.json of an OpenVLA checkpoint."""

    image_resize_strategy: Literal["resize-naive"]
    input_sizes: Annotated[
        list[Annotated[list[ImageSize], Field(min_length=3, max_length=3)]], Field(min_length=1, max_length=MAX_TOWERS)
    ]
    tvf_normalize_params: Annotated[list[Normalisation], Field(min_length=1, max_length=MAX_TOWERS)]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if len(self.input_sizes) != len(self.tvf_normalize_params):
            raise ValueError(
                f"input_sizes has {len(self.input_sizes)} entries and tvf_normalize_params "
                f"has {len(self.tvf_normalize_params)}"
            )
        for channels, height, width in self.input_sizes:
            if channels != 3 or height != width:
                raise ValueError(f"input_sizes: [{channels}, {height}, {width}] is no square picture of 3 channels")
        return self
