"""Bad input, told in one line."""


class UserError(Exception):
    """The user's input is wrong: the message says what and what to do about it.

    The command line prints the message on one line and exits with status 2; Python callers catch it as any exception.
    """


EXTRAS = {
    "peft": "train",
    "tensorboard": "train",
    "gymnasium": "sim",
    "mujoco": "sim",
    "scipy": "sim",
    "jinja2": "report",
    "matplotlib": "report",
}
"""Packages that the core does without, and the extra of rlrc that brings each."""


def missing_package(error: ModuleNotFoundError) -> UserError | None:
    """What to do about a package that is not installed; None for one that no extra of rlrc brings."""
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        return None
    return UserError(f"this needs the package {name}; install it with: pip install 'rlrc[{EXTRAS[name]}]'")
