"""Typed configs: one class serves Python, YAML recipes and the command line."""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rlrc.errors import UserError


class Config(BaseModel):
    """Base of every verb's config: immutable, unknown keys refused, documented by the string under each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """Validate `values`; `where` names their origin in the error.

        Raises:
            UserError: a key is unknown, missing or of the wrong type.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(f"{where}: {_first_problem(error, cls)}") from error

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        UserError: the file is missing or not YAML.
    """
    try:
        return yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def _first_problem(error: ValidationError, cls: type[BaseModel]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}' (known: {', '.join(cls.model_fields)})"
    if first["type"] == "missing":
        return f"missing key '{key}'"
    return f"'{key}': {first['msg']}" if key else first["msg"]
