"""The command line: `rlrc VERB ...`, one subcommand a verb, its flags made from the verb's config.

Everything for people goes to stderr. With --json, what the verb measured goes to stdout as one JSON object.
"""

import contextlib
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from rlrc.errors import UserError, is_out_of_memory, missing_package, plain
from rlrc.process import (
    check_environment,
    cleaning_up,
    fill_standard_streams,
    handle_signals,
    silence_stdout,
    stopped,
)

if TYPE_CHECKING:
    from pathlib import Path

    from rlrc.config import Config

OUT_OF_RECIPE = {"run": "runs", "study": "results"}
"""Verbs that write to a folder of their recipe's name, and where that lies."""
WITHOUT_STAGE = ("run", "study", "inspect", "report", "cache", "assets", "make-random", "serve", "trial")
"""Verbs that are no stage: they print, or their folder holds what they write and nothing beside it."""
BUG, WRONG_INPUT, NOBODY_READS = 1, 2, 141
"""Exit statuses, beside 0 and those of signals: 130 (Ctrl-C), 143 (SIGTERM), 129 (SIGHUP)."""
LONGEST_LINE = 600
"""Largest number of characters of an error's line."""


def main() -> None:
    """Entry point of the `rlrc` command; whatever goes wrong is told in one line, see the exit statuses above."""
    fill_standard_streams()
    handle_signals()
    try:
        _run(sys.argv[1:])
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
        raise SystemExit(NOBODY_READS) from None
    except Exception as error:
        if signal := stopped():
            _fail(f"{signal}; the same command continues from here", 128 + signal.number)
        _fail(*_told(error))
    except KeyboardInterrupt:
        signal = stopped()
        number = signal.number if signal else 2
        _fail(f"{signal or 'interrupted'}; the same command continues from here", 128 + number)


def _told(error: Exception) -> tuple[str, int]:
    """Return what a user is told of an error, and the exit status."""
    from rlrc.files import is_disk_full

    if os.environ.get("RLRC_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError) and (missing := missing_package(error)):
        error = missing
    if isinstance(error, UserError):
        return str(error), WRONG_INPUT
    if is_disk_full(error):
        return "the disk is full; free some space and run the same command again", WRONG_INPUT
    if isinstance(error, OSError):
        return plain(error), WRONG_INPUT
    if is_out_of_memory(error):
        return f"out of memory: ask for less at once, such as a smaller batch or image ({error})", WRONG_INPUT
    if isinstance(error, RecursionError):
        return "what was given is nested too deeply", WRONG_INPUT
    log = f"the traceback is in {notes[0]}" if (notes := getattr(error, "__notes__", None)) else ""
    hint = log or "run the same command with RLRC_DEBUG=1 to see the traceback"
    return f"this is a bug in rlrc, please report it; {hint} ({type(error).__name__}: {error})", BUG


def _run(arguments: list[str]) -> None:
    from rlrc.command_line import commands, parse
    from rlrc.version import __version__

    if arguments == ["--version"]:
        print(__version__)
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    name = arguments[0]
    if name not in commands():
        raise UserError(f"unknown verb '{name}' (one of: {', '.join(commands())})")
    verb = commands()[name]
    check_environment()
    default = f"{OUT_OF_RECIPE[name]}/<the recipe's name>" if name in OUT_OF_RECIPE else f"runs/{name}"
    command = parse(verb, arguments[1:], default)
    out = command.out or _default_out(name, command.config)
    work = verb.function()
    # What writes no stage of its own leaves no stage folder behind, which would be in the way of the real thing.
    if name in WITHOUT_STAGE or command.config.is_dry_run:
        with cleaning_up():
            result = work(command.config, out)
    else:
        from rlrc.progress import say
        from rlrc.stage import standalone

        stage = standalone(name, command.config, out)
        with cleaning_up():
            if stage.result() is not None:
                say(f"{out}: the same command has finished here before; nothing is done again")
            result = stage.run(restart=False)
    if command.json:
        import json

        print(json.dumps(result, indent=2))


def _default_out(verb: str, config: "Config") -> "Path":
    from pathlib import Path

    if verb in OUT_OF_RECIPE:
        from rlrc.recipe import read_recipe

        return Path(OUT_OF_RECIPE[verb]) / read_recipe(config.recipe).name  # type: ignore[attr-defined]
    return Path("runs") / verb


def _usage() -> str:
    from rlrc.command_line import commands

    width = max(map(len, commands()))
    verbs = "\n".join(f"  {verb.name:<{width}}  {verb.summary}" for verb in commands().values())
    return (
        "usage: rlrc VERB [OPTIONS]\n\n"
        "Make a vision-language-action policy small and fast without losing the skill.\n\n"
        f"{verbs}\n\n"
        "rlrc VERB --help lists a verb's options. rlrc run recipes/default.yaml shows all of them at work."
    )


def _fail(message: str, status: int) -> NoReturn:
    from rlrc.reading import shorten

    with contextlib.suppress(OSError):  # of a console that is full or gone
        print(f"rlrc: {shorten(message, LONGEST_LINE - 10)}", file=sys.stderr, flush=True)
    raise SystemExit(status)
