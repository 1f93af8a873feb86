"""Bad input, told in one line."""

MAX_SHOWN = 120
"""Largest number of characters that an error shows of a text from outside."""


class UserError(Exception):
    """The user's input is wrong: the message says what and what to do about it.

    The command line prints the message on one line and exits with status 2; Python callers catch it as any exception.
    """


class Impossible(UserError):
    """What was asked for cannot be, whatever the machine and the data are: a share that leaves nothing, say.

    Verbs that try many shapes of a policy leave such a one out, and end with any other error.
    """


EXTRAS = {
    "peft": "train",
    "tensorboard": "train",
    "gymnasium": "sim",
    "mujoco": "sim",
    "scipy": "sim",
    "jinja2": "report",
    "matplotlib": "report",
    "aiohttp": "serve",
    "msgpack": "serve",
    "prometheus_client": "serve",
    "websockets": "serve",
}
"""Packages that the core does without, and the extra of rlrc that brings each."""


def shorten(text: str, limit: int = MAX_SHOWN) -> str:
    """`text` on one line, printable, and cut off where it is longer than an error should be."""
    line = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return line if len(line) <= limit else f"{line[:limit]}..."


def missing_package(error: ModuleNotFoundError) -> UserError | None:
    """Return an error that says what to do about a package that is not installed; None for one that no extra of rlrc
    brings."""
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        return None
    return UserError(f"this needs the package {name}; install it with: pip install 'rlrc[{EXTRAS[name]}]'")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out; torch's own is a RuntimeError on the CPU."""
    text = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text


def is_bug(error: BaseException) -> bool:
    """Return whether rlrc is to blame for an error: neither what was given, nor the system, nor a signal."""
    missing = isinstance(error, ModuleNotFoundError) and missing_package(error) is not None
    told = isinstance(error, UserError | OSError | RecursionError) or is_out_of_memory(error) or missing
    return isinstance(error, Exception) and not told


def plain(error: OSError) -> str:
    """Return what the system says of an error, without its number: the file, and what is wrong with it."""
    if error.strerror is None:
        return str(error)
    name = "" if error.filename is None else str(error.filename)
    return f"{name[:60]}{'...' * (len(name) > 60)}{': ' * bool(name)}{error.strerror}"
