"""Read a command line: its words become a verb's config, or one line that says what is wrong with them."""

import contextlib
import dataclasses
import difflib
import io
import re
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import ValidationError

from rlrc.errors import UserError, shorten
from rlrc.verbs import VERBS, Verb

BOX = str.maketrans({"│": "|", "─": "-"})
"""Tyro draws its boxes in ASCII, or their lines alone, where a terminal has nothing else."""


RECIPE_VERBS = (
    Verb("run", "rlrc.pipeline", "rlrc.configs.run", "RunConfig", "", "run a recipe: many stages, resumable"),
    Verb(
        "study",
        "rlrc.study",
        "rlrc.configs.run",
        "StudyConfig",
        "",
        "run a recipe and write its evidence: tables, tests, figures",
    ),
)


def commands() -> dict[str, Verb]:
    """All verbs of the command line by name."""
    return VERBS | {verb.name: verb for verb in RECIPE_VERBS}


def parse(verb: Verb, arguments: list[str], default_out: str) -> Any:
    """The verb's `config`, with `out` (a path or None) and `json` (whether to print what was measured) beside it.

    Args:
        default_out: where the verb writes unless told otherwise, for its help.

    Raises:
        UserError: an option is unknown, missing, or has a wrong value.
        SystemExit: the help was asked for and is printed.
    """
    if "" in arguments:
        before = [word for word in arguments[: arguments.index("")] if word.startswith("--")]
        option = f"{before[-1]}: " if before else ""
        raise UserError(f"{verb.name}: {option}one of the words is empty; give a value or leave the option out")
    cls = verb.config_class()
    where = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help=f"Where to write ({default_out} unless given).")]
    as_json = Annotated[bool, tyro.conf.arg(help="Print what was measured to stdout, as JSON.")]
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("config", Annotated[cls, tyro.conf.arg(name="")]),
            ("out", where, dataclasses.field(default=None)),
            ("json", as_json, dataclasses.field(default=False)),
        ],
    )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                command,
                prog=f"rlrc {verb.name}",
                description=cls.__doc__,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]).replace("_", "-")
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{verb.name}: {f'--{shorten(key)}: ' if key else ''}{message}") from error
    except SystemExit as end:
        if not end.code:
            raise
        wrong = _one_line(said.getvalue(), cls)
        raise UserError(f"{verb.name}: {wrong}; `rlrc {verb.name} --help` lists the options") from None


def _one_line(box: str, cls: type[Any]) -> str:
    """Return in one line what tyro says in a box of many lines."""
    box = re.sub(r" *\|?$", "", box.translate(BOX), flags=re.MULTILINE)
    sections = [" ".join(part.replace("\n|", "\n").split()) for part in re.split(r"^[| ]*-+$", box, flags=re.MULTILINE)]
    if "\n|" not in box:
        del sections[0]  # the title, which a box has in its rim
    text = " ".join(sections)
    if unknown := re.search(r"Unrecognized options: ?(.*?)(?: For full helptext|$)", text):
        return _unknown(unknown[1], cls)
    if "Missing from" in text:
        # The names stand at the left of their sections, with their kind behind them.
        names = re.findall(r"^[| ] {5}(--[\w.-]+|[A-Z][\w.-]*)(?: [A-Z{\[].*)?$", box, re.MULTILINE)
        return f"missing: {', '.join(dict.fromkeys(names))}"
    for pattern, plain in PLAIN:
        if found := re.search(pattern, sections[0]):
            return shorten(found.expand(plain).replace("config.", "").replace("'", ""), 300)
    return shorten(sections[0].removesuffix("."), 300)


PLAIN = (
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: '?(.*?)'?$", r"\1: \2 is not a whole number"),
    (r"Error parsing (\S+): could not convert string to float: '?(.*?)'?$", r"\1: \2 is not a number"),
    (r"Error parsing config\.(\w+): \d+ validation errors? for \w+ (?:Value error, )?(.*?) \[type=.*", r"--\1: \2"),
    (r"Error parsing (\S+): no type matching .*? could be instantiated from \[(.*?)\]", r"\1: \2 does not fit"),
    (r"invalid choice '(.*)' for argument '(.*)'. Expected one of \((.*?),?\)", r"\2: \1 is not one of \3"),
    (r"Missing value for argument '(.*)'. Expected (\d+) values?", r"\1 needs a value"),
)
"""Patterns of tyro's and Python's messages, each with plain words in its place."""


def _unknown(words: str, cls: type[Any]) -> str:
    first = re.split(r",? ", words)[0]
    if subcommands := re.search(r"Available subcommands: (.*)", words):
        near = [name for name in subcommands[1].split(", ") if name.partition(":")[0] == first.partition(":")[0]]
        if near:
            return f"there is no {shorten(first)} (there are {', '.join(near)})"
    options = [f"--{name.replace('_', '-')}" for name in (*cls.model_fields, "out", "json")]
    close = difflib.get_close_matches(first, options, n=1)
    return f"there is no option {shorten(first)}" + (f" (did you mean {close[0]}?)" if close else "")
