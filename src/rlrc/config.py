"""Typed configs: one class serves Python, YAML recipes and the command line."""

from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict

from rlrc.reading import validate


class Config(BaseModel):
    """Base of every config: immutable, unknown keys and infinite numbers refused, a sentence under each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """Validate `values`; `where` names their origin in the error.

        Raises:
            UserError: a key is unknown, missing or of the wrong type.
        """
        return validate(values, cls, where)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
