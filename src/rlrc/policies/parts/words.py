"""The option `spec` of published policies: what their files do not say, as words `name=value` with commas between."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rlrc.config import CameraName
from rlrc.errors import UserError, shorten
from rlrc.policies.parts.schema import MAX_CAMERAS


def _split(names: Any) -> Any:
    return names.split("+") if isinstance(names, str) else names


CameraNames = Annotated[tuple[CameraName, ...], BeforeValidator(_split), Field(min_length=1, max_length=MAX_CAMERAS)]
"""The value of a word that names cameras, such as front+wrist."""


def words_of(parts: Sequence[str], where: str, examples: str) -> dict[str, str]:
    """Values by name.

    Args:
        where: what the words come from, for errors.
        examples: what is right, for errors.

    Raises:
        UserError: a part is no word=value, or a name is there twice.
    """
    words: dict[str, str] = {}
    for part in parts:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name in words:
            raise UserError(f"{where}: '{shorten(part)}' is no word=value, or it is there twice; give {examples}")
        words[name] = value
    return words
