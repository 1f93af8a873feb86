"""The models of every checkpoint's files: the index of its shards, its lineage, a LoRA adapter's config."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, field_validator, model_validator

from rlrc.errors import shorten
from rlrc.reading import FileModel

Number = StrictFloat
Name = Annotated[StrictStr, Field(min_length=1, max_length=500)]


Range = Annotated[list[Number], Field(min_length=1, max_length=256)]
"""An end of the range of each dimension."""


class ActionStatistics(FileModel):
    """The `action` entry of one set of statistics, in physical units."""

    q01: Range
    q99: Range
    min: Range | None = None
    max: Range | None = None
    mask: list[StrictBool] | None = None

    @model_validator(mode="after")
    def _fit(self) -> Self:
        _require_ranges(self, "q01", "q99", "min", "max")
        return self


class BoundStatistics(FileModel):
    """An entry of one set of statistics that is read by its least and largest values, in physical units."""

    min: Range
    max: Range
    mask: list[StrictBool] | None = None

    @model_validator(mode="after")
    def _fit(self) -> Self:
        _require_ranges(self, "min", "max")
        return self


def _require_ranges(stats: FileModel, low_name: str, high_name: str, *others: str) -> None:
    """Check that all fields have as many dimensions as the lower end, and that no range is empty or beyond actions."""
    lowest = getattr(stats, low_name)
    for field in (high_name, *others, "mask"):
        values = getattr(stats, field)
        if values is not None and len(values) != len(lowest):
            raise ValueError(f"{field} has {len(values)} entries and {low_name} has {len(lowest)}")
    for index, (low, high) in enumerate(zip(lowest, getattr(stats, high_name), strict=True)):
        if low > high:
            raise ValueError(f"{low_name} lies above {high_name} in dimension {index} ({low:g} and {high:g})")
        if max(abs(low), abs(high)) > 1e30:
            raise ValueError(f"dimension {index} reaches {max(abs(low), abs(high)):g}, which is no action")


class IndexFields(FileModel):
    """model.safetensors.index.json: which file holds which tensor."""

    weight_map: Annotated[dict[str, StrictStr], Field(min_length=1)]

    @field_validator("weight_map")
    @classmethod
    def _names_files_beside_it(cls, weight_map: dict[str, str]) -> dict[str, str]:
        for name in set(weight_map.values()):
            if not name.endswith(".safetensors") or name.startswith(".") or any(mark in name for mark in "/\\\0:"):
                raise ValueError(f"'{shorten(name)}' is not the plain name of a safetensors file")
        return weight_map


class StageFields(FileModel):
    """One step of a lineage."""

    verb: Name
    config: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)


class LineageFields(FileModel):
    """compression.json: how a checkpoint was made."""

    stages: list[StageFields]


class AdapterFields(FileModel):
    """adapter_config.json of a LoRA adapter that can be merged into the weights of its base."""

    peft_type: Literal["LORA"]
    base_model_name_or_path: Annotated[StrictStr, Field(min_length=1, max_length=4096)]
    r: Annotated[StrictInt, Field(ge=1, le=65536)] = 8
    lora_alpha: Annotated[Number, Field(ge=-1e6, le=1e6)] = 8
    rank_pattern: dict[Name, Annotated[StrictInt, Field(ge=1, le=65536)]] | None = None
    alpha_pattern: dict[Name, Annotated[Number, Field(ge=-1e6, le=1e6)]] | None = None
    use_rslora: StrictBool = False
    fan_in_fan_out: StrictBool = False
    """It changes nothing here: it speaks of layers that store their weight transposed, and OpenVLA has none."""
    bias: Literal["none"] = "none"
    modules_to_save: list[Name] | None = None

    @model_validator(mode="after")
    def _can_be_merged(self) -> Self:
        extra = self.model_extra or {}
        for field in CHANGES_THE_MERGE:
            if extra.get(field):
                raise ValueError(f"'{field}' is set, which rlrc does not merge; merge with peft's merge_and_unload()")
        initial = extra.get("init_lora_weights")
        if isinstance(initial, str) and initial not in ("gaussian", "eva", "orthogonal"):
            raise ValueError(f"init_lora_weights '{shorten(initial)}' changed the base; merge with merge_and_unload()")
        for pattern in (*(self.rank_pattern or {}), *(self.alpha_pattern or {})):
            if not all(mark.isalnum() or mark in "._-" for mark in pattern):
                raise ValueError(
                    f"pattern '{shorten(pattern)}' is no plain name of a layer; merge with peft's merge_and_unload()"
                )
        return self


CHANGES_THE_MERGE = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "megatron_config",
    "corda_config",
    "arrow_config",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
)
"""Fields of adapter_config.json that make the merged weight another one than W + scale * B A."""
