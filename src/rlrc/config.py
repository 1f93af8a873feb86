"""Typed configs: one class serves Python, YAML recipes and the command line."""

from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlrc.reading import validate

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
LayerNumber = Annotated[int, Field(ge=-1000, lt=1000)]
"""The number of a decoder layer; negative ones count from the last."""
CameraName = Annotated[str, Field(pattern=r"^[\w.-]{1,200}$")]
Bits = Literal[2, 3, 4, 8]
"""Numbers of bits that a packed weight may take."""
TaskNumber = Annotated[int, Field(ge=0, lt=10_000)]


class Config(BaseModel):
    """Base of every config: immutable, unknown keys and infinite numbers refused, a sentence under each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _says_something(cls, values: Any) -> Any:
        if isinstance(values, dict) and (empty := [key for key, value in values.items() if value == ""]):
            raise ValueError(f"'{empty[0]}': an empty text names nothing; give a value or leave the key out")
        return values

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Let help texts flow: the lines in which a field's sentences are written say nothing."""
        for field in cls.model_fields.values():
            field.description = " ".join((field.description or "").split()) or None

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """Validate `values`; `where` names their origin in the error.

        Raises:
            UserError: a key is unknown, missing or of the wrong type.
        """
        return validate(values, cls, where)

    @property
    def is_dry_run(self) -> bool:
        """Whether a verb only tells what it would do with this, and makes no artifact."""
        return getattr(self, "dry_run", False)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
