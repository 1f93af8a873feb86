"""The command `rlrc` as users run it."""

import signal
import subprocess
import sys


def rlrc(*arguments: object) -> str:
    """Run it in a process of its own, which must succeed; returns what it says."""
    command = [sys.executable, "-m", "rlrc", *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def hear_signals() -> None:
    """Let a new process answer signals as from a terminal; what runs in a shell's background ignores some of them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
