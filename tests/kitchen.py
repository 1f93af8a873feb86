"""Policies that are easy to tell apart, a robot's program that asks them, and an operator who types."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from rlrc.client import PolicyClient
from rlrc.configs.trial import TrialConfig
from rlrc.trial import operator, trial
from rlrc.wire import pack, unpack

NAMES = ("big", "small", "tiny")
SCENES = "- {name: left, instruction: lift the mug, layout: the mug is left, repeats: 2}\n- {name: right}\n"


class Marked:
    """A policy that says in its actions which one it is: the first number is its mark."""

    def __init__(self, mark: int, greeting: Any = None, width: int = 7) -> None:
        self.mark, self.width = mark, width
        self.greeting = {"policy": f"checkpoint {mark}"} if greeting is None else greeting
        self.connections = 0
        self.refuses = ""
        self.header = ""

    def __call__(self, connection: ServerConnection) -> None:
        self.connections += 1
        self.header = (connection.request.headers if connection.request else {}).get("Authorization", "")
        connection.send(pack(self.greeting))
        for message in connection:
            assert isinstance(unpack(message), dict)
            if self.refuses:
                connection.send(self.refuses)
                connection.close(1011)
                return
            connection.send(pack({"actions": np.full((4, self.width), self.mark, np.float32)}))


@contextmanager
def kitchen(*policies: Marked) -> Iterator[list[str]]:
    """Serve policies within the block; yields --policies."""
    servers = [serve(policy, "127.0.0.1", 0, compression=None) for policy in policies]
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    ports = [server.socket.getsockname()[1] for server in servers]
    yield [f"{name}=ws://127.0.0.1:{port}" for name, port in zip(NAMES, ports, strict=False)]
    for server in servers:
        server.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Bench:
    """A robot beside its operator.

    Args:
        outcome: what the operator types at the end of a trial, given the mark of the policy that acted.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, policies: list[str], outcome: Callable[[int], str]
    ) -> None:
        self.out = folder / "out"
        self.scenes = folder / "scenes.yaml"
        if not self.scenes.exists():
            self.scenes.write_text(SCENES)
        self.port = free_port()
        self.policies = policies
        self.outcome = outcome
        self.before: Callable[[], str | None] = lambda: ""
        """What the operator types before a trial."""
        self.marks: list[int] = []
        """The mark of the policy that acted in each trial."""
        self.greetings: list[dict[str, Any]] = []
        """What the robot's program was told in each trial."""
        monkeypatch.setattr(operator, "ask", self.answer)

    @property
    def address(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def run(self, **options: Any) -> dict[str, Any]:
        given = {"policies": self.policies, "scenes": self.scenes, "port": self.port, **options}
        return trial(TrialConfig.parse(given, "test"), self.out)

    def answer(self, question: str) -> str | None:
        return self.act() if question == operator.DURING else self.before()

    def act(self) -> str | None:
        """The robot asks three times, then the operator types."""
        with PolicyClient(self.address) as robot:
            self.greetings.append(robot.metadata)
            marks = {int(robot.infer({"prompt": "lift the mug"})["actions"][0, 0]) for _ in range(3)}
        (mark,) = marks
        self.marks.append(mark)
        return self.outcome(mark)
