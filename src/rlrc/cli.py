"""The command line: `rlrc VERB ...`, one subcommand a verb, its flags made from the verb's config.

Everything for people goes to stderr. With --json, what the verb measured goes to stdout as one JSON object.
"""

import errno
import json
import sys
from pathlib import Path
from typing import NoReturn

import rlrc
from rlrc.command_line import parse
from rlrc.config import Config
from rlrc.errors import UserError
from rlrc.verbs import VERBS, function

OUT_OF_RECIPE = {"run": "runs", "study": "results"}
"""Verbs that write to a folder of their recipe's name, and where that lies."""
WITHOUT_STAGE = ("run", "study", "inspect", "report", "assets", "make-random")
"""Verbs that are no stage: they print, or their folder holds what they write and nothing beside it."""


def main() -> None:
    """Entry point of the `rlrc` command; exits 0, 2 on bad input, or 130 when interrupted."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(rlrc.__version__)
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    try:
        _run(arguments[0], arguments[1:])
    except UserError as error:
        _fail(str(error), 2)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _fail("the disk is full; free some space and run the same command again" if full else str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues from here", 130)


def _run(verb: str, arguments: list[str]) -> None:
    if verb not in VERBS:
        raise UserError(f"unknown verb '{verb}' (one of: {', '.join(VERBS)})")
    default = f"{OUT_OF_RECIPE[verb]}/<the recipe's name>" if verb in OUT_OF_RECIPE else f"runs/{verb}"
    command = parse(verb, arguments, default)
    out = command.out or _default_out(verb, command.config)
    # What writes no stage of its own leaves no stage folder behind, which would be in the way of the real thing.
    if verb in WITHOUT_STAGE or getattr(command.config, "dry_run", False):
        result = function(verb)(command.config, out)
    else:
        from rlrc.stage import standalone

        result = standalone(verb, command.config, out).run(restart=False)
    if command.json:
        json.dump(result, sys.stdout, indent=2)
        print()


def _default_out(verb: str, config: Config) -> Path:
    if verb in OUT_OF_RECIPE:
        from rlrc.recipe import read_recipe

        return Path(OUT_OF_RECIPE[verb]) / read_recipe(config.recipe).name  # type: ignore[attr-defined]
    return Path("runs") / verb


def _usage() -> str:
    width = max(len(verb) for verb in VERBS)
    verbs = "\n".join(f"  {verb:<{width}}  {entry.summary}" for verb, entry in VERBS.items())
    return (
        "usage: rlrc VERB [OPTIONS]\n\n"
        "Make a vision-language-action policy small and fast without losing the skill.\n\n"
        f"{verbs}\n\n"
        "rlrc VERB --help lists a verb's options. rlrc run recipes/default.yaml shows all of them at work."
    )


def _fail(message: str, status: int) -> NoReturn:
    print(f"rlrc: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(status)
