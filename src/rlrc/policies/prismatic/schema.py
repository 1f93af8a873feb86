"""The models of a checkpoint's files: one model a file, with the types and ranges of the fields that rlrc uses.

Unknown fields are kept. Ranges are far beyond every policy that exists; they are there so that a damaged or hostile
file is refused before anything of its size is built.
"""

from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from rlrc.errors import shorten
from rlrc.policies.schema import Name, Number
from rlrc.reading import FileModel

MAX_LAYERS = 1024
MAX_WIDTH = 2**20
MAX_IMAGE_SIZE = 4096
MAX_TOWERS = 2
"""OpenVLA's backbone has a place for two."""

Count = Annotated[StrictInt, Field(ge=1, le=MAX_WIDTH)]
Layers = Annotated[StrictInt, Field(ge=1, le=MAX_LAYERS)]
ImageSize = Annotated[StrictInt, Field(ge=1, le=MAX_IMAGE_SIZE)]
TokenId = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]
Labels = Annotated[StrictInt, Field(ge=0, le=10_000)]
"""No policy has any, but transformers makes a name for each."""
Epsilon = Annotated[Number, Field(gt=0, lt=1)]
DtypeName = Annotated[StrictStr, Field(pattern=r"^(torch\.)?(float16|bfloat16|float32|float64)$")]


class LayerShape(FileModel, extra="forbid"):
    """The fields that one decoder layer has of its own, an entry of `per_layer_config`."""

    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    intermediate_size: Count | None = None


class RopeFields(FileModel):
    """`rope_parameters`; what else a kind of rotary embedding needs is checked by transformers."""

    rope_theta: Annotated[Number, Field(gt=0, le=1e12)] | None = None
    rope_type: Name | None = None
    type: Name | None = None
    """`rope_type` in older files."""

    @field_validator("rope_type", "type")
    @classmethod
    def _known_kind(cls, name: str | None) -> str | None:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        if name not in (None, "default", *ROPE_INIT_FUNCTIONS):
            raise ValueError(f"unknown kind '{shorten(str(name))}' (known: default, {', '.join(ROPE_INIT_FUNCTIONS)})")
        return name


class DecoderFields(FileModel):
    """`text_config` of config.json; a field that is missing has LlamaConfig's default."""

    model_type: Literal["llama"] = "llama"
    vocab_size: Annotated[StrictInt, Field(ge=1, le=2**24)] = 32000
    hidden_size: Count = 4096
    intermediate_size: Count = 11008
    num_hidden_layers: Layers = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: Name = "silu"
    max_position_embeddings: Annotated[StrictInt, Field(ge=1, le=2**24)] = 2048
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Annotated[Number, Field(gt=0, le=1e12)] | None = None
    rope_parameters: RopeFields | None = None
    rope_scaling: RopeFields | None = None
    pad_token_id: TokenId | None = None
    attention_bias: StrictBool = False
    mlp_bias: StrictBool = False
    output_bias: StrictBool = False
    tie_word_embeddings: StrictBool = False
    attention_dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    dtype: DtypeName | None = None
    torch_dtype: DtypeName | None = None
    num_labels: Labels | None = None
    per_layer_config: dict[Annotated[str, Field(pattern=r"^\d{1,4}$")], LayerShape] | None = None

    @field_validator("hidden_act")
    @classmethod
    def _known_activation(cls, name: str) -> str:
        from transformers.activations import ACT2CLS

        if name not in ACT2CLS:
            raise ValueError(f"unknown activation '{shorten(name)}' (known: {', '.join(sorted(ACT2CLS))})")
        return name

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}, and "
                "there is no head_dim"
            )
        if (self.head_dim or self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError("the size of a head (head_dim) must be even")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id {self.pad_token_id} is outside vocab_size {self.vocab_size}")
        _require_whole_groups("", self.num_attention_heads, self.num_key_value_heads)
        for index, layer in (self.per_layer_config or {}).items():
            where = f"per_layer_config.{index}"
            if int(index) >= self.num_hidden_layers:
                raise ValueError(f"{where}: there are {self.num_hidden_layers} layers, numbered from 0")
            heads = layer.num_attention_heads or self.num_attention_heads
            _require_whole_groups(f"{where}: ", heads, layer.num_key_value_heads or self.num_key_value_heads)
        return self


def _require_whole_groups(where: str, heads: int, key_value_heads: int | None) -> None:
    if key_value_heads is not None and heads % key_value_heads:
        raise ValueError(
            f"{where}{heads} num_attention_heads cannot share {key_value_heads} num_key_value_heads equally"
        )


class TowerFields(FileModel, extra="forbid"):
    """An entry of `vision_towers`."""

    hidden_size: Count
    num_hidden_layers: Annotated[StrictInt, Field(ge=2, le=MAX_LAYERS)]
    """The block that is never run counts."""
    num_attention_heads: Count
    intermediate_size: Count
    image_size: ImageSize
    patch_size: ImageSize
    num_register_tokens: Annotated[StrictInt, Field(ge=0, le=1024)] = 0
    class_token: StrictBool = False
    layer_scale: StrictBool = False
    layer_norm_eps: Epsilon = 1e-6
    stem_channels: Annotated[list[Count], Field(max_length=8)] | None = None

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.patch_size % 2 ** len(self.stem_channels or ()):
            raise ValueError(f"patch_size {self.patch_size} cannot be halved by each of the stem's convolutions")
        return self


class QuantizationFields(FileModel):
    """`quantization_config` that `rlrc quantize` wrote."""

    quant_method: Literal["rlrc"]
    bits: Literal[4, 8]
    group_size: Count
    modules: Annotated[list[Name], Field(min_length=1, max_length=100_000)]

    @field_validator("modules")
    @classmethod
    def _once_each(cls, modules: list[str]) -> list[str]:
        if twice := _first_repeated(modules):
            raise ValueError(f"'{shorten(twice)}' is named twice")
        return modules


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


def _first_repeated(names: list[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
