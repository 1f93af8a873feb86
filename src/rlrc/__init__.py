"""rlrc: make a vision-language-action policy small and fast without losing the skill.

`rlrc.load` gives a policy in three lines; every verb of the command line is a function `rlrc.<room>.<verb>`. Importing
the package is light: torch and transformers come with the first call that needs them.
"""

import sys
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from rlrc.models.checkpoint import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from rlrc.models.checkpoint import load

        return load
    raise AttributeError(f"module 'rlrc' has no attribute {name!r}")


@wrapt.when_imported("transformers.models.auto.modeling_auto")
def _register_with_transformers(_: Any) -> None:
    """Make `AutoModelForImageTextToText` know our classes as soon as someone imports it, and not before."""
    # Where our own room is what imports transformers, it registers by itself when it is whole.
    if "rlrc.models" not in sys.modules:
        import rlrc.models  # noqa: F401
