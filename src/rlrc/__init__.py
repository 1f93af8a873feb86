"""rlrc: make a vision-language-action policy small and fast without losing the skill.

`rlrc.load` gives a policy in three lines; every verb of the command line is a function `rlrc.<room>.<verb>`. Importing
the package is light: torch and transformers come with the first call that needs them.
"""

from typing import TYPE_CHECKING, Any

from rlrc import autoclasses

if TYPE_CHECKING:
    from rlrc.models.checkpoint import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

autoclasses.register()


def __getattr__(name: str) -> Any:
    if name == "load":
        from rlrc.models.checkpoint import load

        return load
    raise AttributeError(f"module 'rlrc' has no attribute {name!r}")
