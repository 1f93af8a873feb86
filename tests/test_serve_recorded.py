"""What other people's clients sent, byte by byte, played to the server again; `make peers` runs the clients themselves.

`benchmarks/peers --record` kept the bytes of openpi-client 0.1.2, vla-eval 0.8.0, json-numpy 2.1.1 and LeRobot 0.4.4.
"""

import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from serving import Running, served
from websockets.frames import Opcode

import rlrc
from rlrc.policies.make_random import MakeRandomConfig, make_random
from rlrc.trial.greetings import ask as greet
from rlrc.trial.greetings import shared
from rlrc.trial.relay import Relay, listening
from rlrc.wire import unpack, unpack_json

FIXTURES = Path(__file__).parent / "fixtures" / "serving"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve") / "oft"
    make_random(MakeRandomConfig(preset="openvla-oft-tiny", out_folder=folder), folder)
    with served(rlrc.load(folder, spec="libero"), names="libero") as running:
        yield running


def recorded(name: str) -> dict:
    return unpack((FIXTURES / f"ask_{name}.msgpack").read_bytes())


def chunks(server: Running, record: dict) -> np.ndarray:
    """What the policy gives for the recorded observations, without a server."""
    policy = server.service.policy
    rows = []
    for row, text in enumerate(record["text"]):
        images = {camera: record[camera][[row]] for camera in ("front", "wrist")}
        rows.append(policy.act(images, [text], state=record["state"][[row]])[0])
    return np.stack(rows)


def play(port: int, sent: list[bytes], is_whole: Callable[[bytes], bool]) -> bytes:
    """Send each piece as soon as the server has answered the one before, and return all answers once they are whole."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for piece in sent:
            connection.sendall(piece)
            if piece is not sent[-1]:
                got += connection.recv(2**20)
        while not is_whole(got):
            more = connection.recv(2**20)
            assert more, "the server has closed the connection"
            got += more
    return got


def messages(answer: bytes) -> list[bytes]:
    """The binary messages of a websocket's server, which masks none."""
    head, _, data = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101")
    found = []
    while len(data) >= 10:
        kind, length, start = data[0] & 15, data[1], 2
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(data[2:start], "big")
        if kind == Opcode.BINARY and len(data) >= start + length:
            found.append(data[start : start + length])
        data = data[start + length :]
    return found


@pytest.mark.parametrize("name", ["openpi", "lerobot"])
def test_openpi_client_and_lerobot(server: Running, name: str) -> None:
    record = recorded(name)
    (sent,) = record["sent"]
    metadata, *answers = [
        unpack(message) for message in messages(play(server.port, sent, lambda got: len(messages(got)) == 3))
    ]
    assert metadata["spec"]["horizon"] == 8
    np.testing.assert_array_equal([answer["actions"] for answer in answers], chunks(server, record))


def test_openpi_client_in_a_trial(server: Running) -> None:
    record = recorded("openpi")
    (sent,) = record["sent"]
    greeting = shared(greet({"one": server.address}, None))
    with listening(Relay(greeting, None), "127.0.0.1", 0) as robot, robot.trial(server.address) as traffic:
        port = int(robot.address.rpartition(":")[2])
        metadata, *answers = [unpack(one) for one in messages(play(port, sent, lambda got: len(messages(got)) == 3))]
    assert metadata["spec"]["horizon"] == 8
    np.testing.assert_array_equal([answer["actions"] for answer in answers], chunks(server, record))
    assert (traffic.answers, traffic.actions, traffic.error) == (2, 16, "")


def test_vla_eval(server: Running) -> None:
    record = recorded("vla_eval")
    (sent,) = record["sent"]
    hello, *answers = [
        unpack(message) for message in messages(play(server.port, sent, lambda got: len(messages(got)) == 17))
    ]
    assert hello["type"] == "hello" and hello["payload"]["protocol_version"] == 1
    assert {answer["type"] for answer in answers} == {"action"}
    played = np.reshape([answer["payload"]["actions"] for answer in answers], (2, 8, 7))
    np.testing.assert_array_equal(played, chunks(server, record))


def is_whole_reply(got: bytes) -> bool:
    head, _, body = got.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    return length is not None and len(body) == int(length[1])


def test_json_numpy(server: Running) -> None:
    record = recorded("act")
    for number, (sent, chunk) in enumerate(zip(record["sent"], chunks(server, record), strict=True)):
        head, _, body = play(server.port, sent, is_whole_reply).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        text = json.loads(body) if number % 2 else body.decode()
        np.testing.assert_array_equal(unpack_json(text), chunk)
