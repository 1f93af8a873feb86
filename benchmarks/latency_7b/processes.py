"""Processes that hold policies and answer questions about them."""

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from rlrc.process import end_with_parent, keep_freed_memory

Make = Callable[[Sequence[str]], Mapping[str, Any]]
"""Makes policies by their names: objects whose methods are questions, or the exceptions that kept them from being
made."""


class Failed(Exception):
    """A policy could not be made, or could not answer; the text says why."""


class Host:
    """A process that holds policies, which it makes when it is first asked for one of them."""

    def __init__(self, names: Sequence[str], make: Make) -> None:
        self.names = list(names)
        self._pipe, far = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve, args=(self.names, make, far), daemon=True)
        self._process.start()
        far.close()

    def ask(self, name: str, question: str) -> Any:
        """What the method `question` of a policy returns.

        Raises:
            Failed: the policy could not be made or cannot do it, or its process has died.
        """
        try:
            self._pipe.send((name, question))
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._process.join()
            raise Failed(f"its process ended with status {self._process.exitcode}") from error
        if isinstance(answer, Failed):
            raise answer
        return answer

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def serve(names: Sequence[str], make: Make, pipe: Connection) -> None:
    """Answer what is asked until the parent closes the pipe."""
    end_with_parent()
    policies: Mapping[str, Any] = {}
    while True:
        try:
            name, question = pipe.recv()
        except EOFError:
            return
        try:
            if not policies:
                policies = make(names)
                keep_freed_memory()  # only now: what packing weights took is given back first
            if isinstance(policies[name], Exception):
                raise policies[name]
            pipe.send(getattr(policies[name], question)())
        except Exception as error:  # an optional row may fail in any way; the parent decides what becomes of it
            pipe.send(Failed(in_one_line(error)))


def in_one_line(error: Exception) -> str:
    """An exception's kind and message; of a message of many lines, the first that tells of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    telling = next((line for line in lines if ": error:" in line), lines[0])
    return f"{type(error).__name__}: {telling}"[:300]
