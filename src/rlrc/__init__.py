"""rlrc: make a vision-language-action policy small and fast without losing the skill.

`rlrc.load` gives a policy in three lines; every verb of the command line is a function `rlrc.<room>.<verb>`. Importing
the package is light: torch and transformers come with the first call that needs them.

Importing it also puts the settings of `rlrc.process.prepare_for_torch` into the environment, as long as you have not
set them yourself. So a script runs as fast as the command line, which imports this package first. PyTorch reads how
idle threads wait when it is imported: import rlrc before it.
"""

from typing import TYPE_CHECKING, Any

from rlrc import autoclasses
from rlrc.process import prepare_for_torch
from rlrc.version import __version__

if TYPE_CHECKING:
    from rlrc.policies.checkpoint import load

__all__ = ["__version__", "load"]

prepare_for_torch()
autoclasses.register()


def __getattr__(name: str) -> Any:
    if name == "load":
        from rlrc.policies.checkpoint import load

        return load
    raise AttributeError(f"module 'rlrc' has no attribute {name!r}")
