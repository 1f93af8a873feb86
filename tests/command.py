"""The command `rlrc` as users run it."""

import signal
import subprocess
import sys

SHORT = """
import sys
from dataclasses import replace
from rlrc import cli, envs

spec, steps = envs.spec, int(sys.argv.pop(1))
envs.spec = lambda world: replace(spec(world), max_episode_steps=steps)
cli.main()
"""


def rlrc(*arguments: object, max_episode_steps: int | None = None) -> str:
    """Run it in a process of its own, which must succeed; returns what it says.

    Args:
        max_episode_steps: ends the episodes of worlds earlier, apart from those that other processes play.
    """
    start = ["-m", "rlrc"] if max_episode_steps is None else ["-c", SHORT, str(max_episode_steps)]
    command = [sys.executable, *start, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def hear_signals() -> None:
    """Let a new process answer signals as from a terminal; what runs in a shell's background ignores some of them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
