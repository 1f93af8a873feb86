"""Schemas of the parts that families share in a checkpoint's config.json: decoders, and packed layers.

Unknown fields are kept. Ranges are far beyond every policy that exists; they are there so that a damaged or hostile
file is refused before anything of its size is built.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from rlrc.config import Bits
from rlrc.errors import shorten
from rlrc.policies.schema import Name, Number
from rlrc.reading import FileModel

MAX_LAYERS = 1024
MAX_WIDTH = 2**20
MAX_IMAGE_SIZE = 4096
MAX_HORIZON = 1024
MAX_CAMERAS = 16
MAX_STATE = 1024

Count = Annotated[StrictInt, Field(ge=1, le=MAX_WIDTH)]
Layers = Annotated[StrictInt, Field(ge=1, le=MAX_LAYERS)]
ImageSize = Annotated[StrictInt, Field(ge=1, le=MAX_IMAGE_SIZE)]
TokenId = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]
Labels = Annotated[StrictInt, Field(ge=0, le=10_000)]
"""No policy has any, but transformers makes a name for each."""
Epsilon = Annotated[Number, Field(gt=0, lt=1)]
DtypeName = Annotated[StrictStr, Field(pattern=r"^(torch\.)?(float16|bfloat16|float32|float64)$")]


Text = Annotated[StrictStr, Field(max_length=200)]


class DimFields(FileModel, extra="forbid"):
    """The meaning of one number of a state or an action."""

    name: Annotated[Text, Field(min_length=1)]
    unit: Text = ""
    convention: Text = ""


class LayerShape(FileModel, extra="forbid"):
    """The fields that one decoder layer has of its own, an entry of `per_layer_config`."""

    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    intermediate_size: Count | None = None


IN_WINDOWS = ("pool", "shuffle")
"""Kinds of fewer tokens that are made of square windows."""


def windows_make(tokens: int, count: int) -> bool:
    """Whether windows of one size make `count` of a square of tokens."""
    side, left = math.isqrt(tokens), math.isqrt(count)
    return side**2 == tokens and left**2 == count > 0 and side % left == 0


class TokenFields(FileModel, extra="forbid"):
    """`visual_tokens`: how fewer tokens are made of each picture."""

    kind: Literal["pool", "shuffle", "merge", "select"]
    count: Count

    def require_fit(self, tokens: int) -> None:
        """
        Raises:
            ValueError: a picture has no such number of tokens, or no windows make this number of them.
        """
        if self.count > tokens:
            raise ValueError(f"visual_tokens: {self.count} of {tokens} tokens cannot stay")
        if self.kind in IN_WINDOWS and not windows_make(tokens, self.count):
            raise ValueError(f"visual_tokens: {tokens} tokens are no square whose windows make {self.count}")


PerLayer = dict[Annotated[str, Field(pattern=r"^\d{1,4}$")], LayerShape]


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
    per_layer_config: PerLayer | None = None

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


class PatchedFields(FileModel):
    """Sizes of a vision transformer that have to fit each other."""

    hidden_size: Count
    num_attention_heads: Count
    intermediate_size: Count
    image_size: ImageSize
    patch_size: ImageSize
    head_dim: Count | None = None
    layer_norm_eps: Epsilon = 1e-6
    stem_channels: Annotated[list[Count], Field(max_length=8)] | None = None
    per_layer_config: PerLayer | None = None

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
    bits: Bits
    group_size: Count
    modules: Annotated[list[Name], Field(min_length=1, max_length=100_000)]

    @field_validator("modules")
    @classmethod
    def _once_each(cls, modules: list[str]) -> list[str]:
        if twice := _first_repeated(modules):
            raise ValueError(f"'{shorten(twice)}' is named twice")
        return modules


def _first_repeated(names: list[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
