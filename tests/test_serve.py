"""A served policy, spoken to as openpi's, vla-eval's and OpenVLA's clients do: websockets, msgpack and urllib alone."""

import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from serving import Running, served
from small_policies import CASES, look, make
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from rlrc.policies.contract import Policy
from rlrc.wire import pack, pack_json, unpack, unpack_json


@pytest.fixture(scope="module", params=["openvla", "oft-l1", "oft-tokens"])
def policy(request: pytest.FixtureRequest) -> Policy:
    return make(CASES[request.param])


@pytest.fixture(scope="module")
def server(policy: Policy) -> Iterator[Running]:
    with served(policy) as running:
        yield running


@pytest.fixture(scope="module")
def oft() -> Iterator[Running]:
    with served(make(CASES["oft-l1"]), names="libero") as running:
        yield running


def message(policy: Policy, seed: int, row: int = 0) -> dict[str, Any]:
    """One robot's observation under rlrc's names, with a seed for noise."""
    seen = look(policy, seed=seed)
    state = {} if seen.state is None else {"state": seen.state[row]}
    images = {camera: pictures[row] for camera, pictures in seen.images.items()}
    return {"images": images, "prompt": seen.instruction[row], "seed": seed, **state}


def alone(policy: Policy, seed: int, row: int = 0) -> np.ndarray:
    """The chunk (H, D) that the policy gives for it, without a server."""
    noise = [torch.Generator().manual_seed(seed)]
    return policy.act(look(policy, seed=seed)[[row]], generator=noise)[0].reshape(policy.spec.horizon, -1)


def open_socket(server: Running, **options: Any) -> ClientConnection:
    return connect(server.address, compression=None, max_size=None, **options)


def ask(socket: ClientConnection, observation: Any) -> Any:
    socket.send(pack(observation))
    reply = socket.recv(timeout=60)
    return reply if isinstance(reply, str) else unpack(reply)


def post(server: Running, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(f"{server.http}/act", body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# -- openpi ------------------------------------------------------------------------------------------------------------


def test_openpis_client_gets_the_metadata_and_the_policys_actions(policy: Policy, server: Running) -> None:
    with open_socket(server) as connection:
        metadata = msgpack.unpackb(connection.recv(timeout=10))
        assert metadata["spec"]["cameras"] == list(policy.spec.cameras)
        assert metadata["spec"]["horizon"] == policy.spec.horizon
        for seed in range(3):
            answer = ask(connection, message(policy, seed))
            assert answer["actions"].dtype == np.float32
            np.testing.assert_allclose(answer["actions"], alone(policy, seed), atol=1e-5)
            assert 0 < answer["server_timing"]["infer_ms"] <= answer["server_timing"]["total_ms"]


def test_what_is_wrong_is_one_line_of_text_and_the_connection_closes(policy: Policy, server: Running) -> None:
    good = {**message(policy, 0), "unnorm_key": "toy"}
    with open_socket(server) as connection:
        connection.recv()
        assert "actions" in ask(connection, good)
    wrong = [
        {**good, "images": {}},
        {**good, "prompt": 7},
        {**good, "images": {camera: np.zeros((4, 4), np.int32) for camera in policy.spec.cameras}},
        {**good, "seed": -1},
        {**good, "unnorm_key": "other"},
        {**good, "unnorm_key": np.zeros(2)},
        [1, 2],
        None,
    ]
    if policy.spec.state:
        wrong += [{**good, "state": np.zeros(4)}, {**good, "state": np.full(5, np.nan)}, {**good, "state": "x"}]
    for observation in wrong:
        with open_socket(server) as connection:
            connection.recv()
            line = ask(connection, observation)
            assert isinstance(line, str) and "\n" not in line and "Traceback" not in line and len(line) < 300
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(timeout=10)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011


@pytest.mark.parametrize("name", ["oft-tokens", "oft-diffusion", "pi0", "pi05", "smolvla"])
def test_noise_follows_the_requests_seed(name: str) -> None:
    policy = make(CASES[name])
    with served(policy, temperature=1.0) as server, open_socket(server) as connection:
        connection.recv()
        observation = {**message(policy, 0), "seed": 5}
        first, again = (ask(connection, observation)["actions"] for _ in range(2))
        other = ask(connection, {**observation, "seed": 6})["actions"]
        noise = [torch.Generator().manual_seed(5)]
        alone = policy.act(look(policy, seed=0)[[0]], temperature=1.0, generator=noise)[0]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first, alone, atol=1e-5)
    assert np.abs(first - other).max() > 0.01


@pytest.mark.parametrize("name", ["pi0", "smolvla"])
def test_policies_that_denoise_answer_many_as_if_each_were_alone(name: str) -> None:
    """Prompts of several lengths wait together; noise is each request's own, at the policy's own temperature."""
    policy = make(CASES[name])

    def play(client: int) -> float:
        with open_socket(server) as connection:
            connection.recv(timeout=30)
            got = ask(connection, {**message(policy, client, client % 3), "seed": client})["actions"]
        noise = [torch.Generator().manual_seed(client)]
        expected = policy.act(look(policy, seed=client)[[client % 3]], generator=noise)[0]
        return float(np.abs(got - expected).max())

    with served(policy) as server, ThreadPoolExecutor(9) as pool:
        assert max(pool.map(play, range(9))) < 1e-5


# -- many clients ------------------------------------------------------------------------------------------------------


def test_many_clients_get_their_own_answers_and_are_batched(policy: Policy, server: Running) -> None:
    clients, rounds = 12, 6
    starts = threading.Barrier(clients)

    def play(client: int) -> float:
        worst = 0.0
        with open_socket(server) as connection:
            connection.recv(timeout=30)
            starts.wait(60)
            for number in range(rounds):
                seed, row = 100 * client + number, number % 3
                got = ask(connection, message(policy, seed, row))["actions"]
                worst = max(worst, float(np.abs(got - alone(policy, seed, row)).max()))
        return worst

    with ThreadPoolExecutor(clients) as pool:
        # Sums of a batch are taken in another order: 1.24e-5 at most where MKL multiplies with AVX2.
        assert max(pool.map(play, range(clients))) < 2e-5
    rows = server.service.metrics.rows.collect()[0].samples
    count = next(sample.value for sample in rows if sample.name.endswith("_count"))
    total = next(sample.value for sample in rows if sample.name.endswith("_sum"))
    assert total > count, "no two requests were ever answered together"


def test_one_request_that_fails_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make(CASES["oft-no-state"])
    sample = type(policy).sample

    def fussy(self: Policy, inputs: Any, sampler: Any, generator: Any = None) -> Any:
        if any(noise.initial_seed() == 13 for noise in generator):
            raise RuntimeError("seed 13")
        time.sleep(0.05)
        return sample(self, inputs, sampler, generator)

    monkeypatch.setattr(type(policy), "sample", fussy)

    def play(seed: int) -> Any:
        with open_socket(server) as connection:
            connection.recv()
            return ask(connection, message(policy, seed))

    with served(policy) as server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(play, range(8, 16)))
    for seed, answer in zip(range(8, 16), answers, strict=True):
        if seed == 13:
            assert answer == "the policy failed on this request; the server's console says why"
        else:
            assert answer["actions"].shape == (2, 7)


def test_slow_and_dead_clients_stall_nobody(policy: Policy, server: Running) -> None:
    body = pack(message(policy, 0))
    frame = b"\x82\xff" + struct.pack(">Q", len(body)) + b"\0\0\0\0" + body
    handshake = (
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    idle = []
    for sent in (b"", b"GET / HT", handshake, handshake + frame[:50], handshake + frame[:-1], handshake + frame):
        raw = socket.create_connection(("127.0.0.1", server.port))
        raw.sendall(sent)
        idle.append(raw)
    idle[3].shutdown(socket.SHUT_WR)  # half closed
    idle.pop().close()  # in mid-request
    with open_socket(server) as connection:
        connection.recv(timeout=10)
        np.testing.assert_allclose(ask(connection, message(policy, 1))["actions"], alone(policy, 1), atol=1e-5)
    for raw in idle:
        raw.close()


def test_who_never_ends_the_headers_is_let_go() -> None:
    begins = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
    policy = make(CASES["openvla"])
    with served(policy, limits={"upload_s": 1}) as server, open_socket(server) as connection:
        connection.recv()
        for first, again in ((b"", b""), (begins, b""), (begins, b"X: y\r\n")):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
                raw.sendall(first)
                started = time.monotonic()
                while again and time.monotonic() < started + 0.9:
                    raw.sendall(again)
                    time.sleep(0.1)
                assert raw.recv(100) == b"" and 0.9 < time.monotonic() - started < 20
        assert "actions" in ask(connection, message(policy, 0)), "a websocket may be silent for longer"


# -- vla-eval ----------------------------------------------------------------------------------------------------------


def test_vla_evals_client_plays_an_episode(oft: Running) -> None:
    """As vla_eval.connection.Connection does: hello and its answer, then one action for each observation."""
    policy = oft.service.policy

    def tell(kind: str, payload: Any, seq: int) -> None:
        connection.send(msgpack.packb({"type": kind, "payload": payload, "seq": seq, "timestamp": 0.5}))

    def observe(seed: int, seq: int) -> dict[str, Any]:
        seen = look(policy, seed=seed)
        images = {"agentview": seen.images["front"][0], "wrist": seen.images["wrist"][0]}
        payload = {"images": images, "task_description": seen.instruction[0], "states": seen.state[0]}
        connection.send(pack({"type": "observation", "payload": payload, "seq": seq, "timestamp": 0.5}, str))
        return unpack(connection.recv(timeout=30))

    with open_socket(oft) as connection:
        tell("hello", {"harness_version": "0.8.0", "protocol_version": 1}, 1)
        hello = msgpack.unpackb(connection.recv(timeout=10))
        assert hello.keys() >= {"type", "payload", "seq", "timestamp"} and hello["type"] == "hello"
        assert hello["payload"].keys() >= {"harness_version", "protocol_version", "model_server", "capabilities"}
        tell("episode_start", {"task": {"name": "x"}}, 2)
        steps = [observe(seed=step, seq=3 + step) for step in range(4)]
        assert [step["type"] for step in steps] == ["action"] * 4
        assert [step["seq"] for step in steps] == [3, 4, 5, 6]
        chunk = alone(policy, 0)
        np.testing.assert_allclose([step["payload"]["actions"] for step in steps[:3]], chunk, atol=1e-5)
        np.testing.assert_allclose(steps[3]["payload"]["actions"], alone(policy, 3)[0], atol=1e-5)
        tell("episode_end", {}, 7)
        tell("episode_start", {"task": {}}, 8)
        fresh = observe(seed=9, seq=9)
        np.testing.assert_allclose(fresh["payload"]["actions"], alone(policy, 9)[0], atol=1e-5)
        tell("episode_start", {}, 10)
        for payload in ({"images": {}}, None, 3):
            tell("observation", payload, 11)
            error = unpack(connection.recv(timeout=10))
            assert error["type"] == "error" and error["seq"] == 11 and "\n" not in error["payload"]["error"]
        assert observe(seed=1, seq=12)["type"] == "action", "an error leaves the connection open"


# -- HTTP --------------------------------------------------------------------------------------------------------------


def test_openvlas_and_ofts_act(policy: Policy, server: Running) -> None:
    for seed in range(2):
        body = pack_json(message(policy, seed))
        status, text = post(server, body.encode())
        assert status == 200
        got = unpack_json(text)
        assert isinstance(got, np.ndarray) == (policy.spec.horizon == 1)
        np.testing.assert_allclose(np.atleast_2d(got), alone(policy, seed), atol=1e-5)
        status, text = post(server, json.dumps({"encoded": body}).encode())
        np.testing.assert_allclose(np.atleast_2d(unpack_json(json.loads(text))), alone(policy, seed), atol=1e-5)


def test_oft_in_its_own_names(oft: Running) -> None:
    seen = look(oft.service.policy, seed=4)
    own = {
        "full_image": seen.images["front"][0],
        "wrist_image": seen.images["wrist"][0],
        "state": seen.state[0],
        "instruction": seen.instruction[0],
    }
    status, text = post(oft, pack_json(own).encode())
    assert status == 200
    chunk = unpack_json(text)
    assert isinstance(chunk, list) and len(chunk) == 3
    np.testing.assert_allclose(chunk, alone(oft.service.policy, 4), atol=1e-5)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"{}", b"null", b'{"encoded": "{"}', b"[" * 10**5])
def test_bad_bodies_get_status_400_and_one_line(oft: Running, body: bytes) -> None:
    status, text = post(oft, body)
    assert status == 400
    assert "\n" not in json.loads(text)["error"] and len(text) < 400


def test_health_and_metrics(policy: Policy, server: Running) -> None:
    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(server.http + path, timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    assert get("/healthz") == (200, "OK\n")
    assert json.loads(get("/health")[1]) == {"status": "ok"}
    assert json.loads(get("/")[1])["spec"]["horizon"] == policy.spec.horizon
    assert get("/other")[0] == 404 and get("/act")[0] == 405
    before = answered(get("/metrics")[1])
    post(server, pack_json(message(policy, 0)).encode())
    assert answered(get("/metrics")[1]) == before + 1


def answered(metrics: str) -> float:
    lines = [line for line in metrics.splitlines() if line.startswith('rlrc_requests_total{protocol="act"}')]
    return float(lines[0].split()[1]) if lines else 0.0


# -- limits ------------------------------------------------------------------------------------------------------------


def test_the_key_is_asked_for() -> None:
    policy = make(CASES["openvla"])
    with served(policy, key="correct horse") as server:
        for headers in (
            None,
            {"Authorization": "Api-Key wrong"},
            {"Authorization": "Basic %%%"},
            {"Authorization": "Bearer caf\xe9"},
            {"Authorization": ""},
        ):
            with pytest.raises(InvalidStatus) as refusal:
                open_socket(server, additional_headers=headers)
            assert refusal.value.response.status_code == 401
            assert post(server, b"{}", headers)[0] == 401
        for word in ("Api-Key", "Bearer"):
            with open_socket(server, additional_headers={"Authorization": f"{word} correct horse"}) as connection:
                connection.recv()
                assert "actions" in ask(connection, message(policy, 0))
        with connect(f"ws://:correct%20horse@127.0.0.1:{server.port}") as connection:
            connection.recv()
        with urllib.request.urlopen(f"{server.http}/healthz") as reply:
            assert reply.status == 200


def test_connections_and_messages_are_limited() -> None:
    policy = make(CASES["openvla"])
    with served(policy, limits={"connections": 2, "message_mb": 0.1}) as server:
        with open_socket(server), open_socket(server), pytest.raises(InvalidStatus) as refusal:
            for path in ("healthz", "health", "metrics"):  # asked by who restarts servers that do not answer
                with urllib.request.urlopen(f"{server.http}/{path}") as reply:
                    assert reply.status == 200
            open_socket(server)
        assert refusal.value.response.status_code == 503
        deadline = time.monotonic() + 20
        while post(server, b"{}")[0] == 503 and time.monotonic() < deadline:
            time.sleep(0.05)  # until the server has seen that they are gone
        assert post(server, b"x" * 200_000)[0] == 413
        with open_socket(server) as connection:
            connection.recv()
            connection.send(b"x" * 200_000)
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(timeout=10)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_a_request_that_waits_too_long_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make(CASES["openvla"])
    with served(policy, limits={"wait_s": 0.2}) as server, open_socket(server) as connection:
        connection.recv()
        sample = type(policy).sample
        monkeypatch.setattr(type(policy), "sample", lambda *given: (time.sleep(1), sample(*given))[1])
        line = ask(connection, message(policy, 0))
        assert line == "no answer within 0.2 seconds; too many requests wait"


def test_sigterm_answers_what_was_asked_and_ends(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "rlrc", "serve", "--policy", str(tiny_checkpoint), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("serving "))
        port = int(line.split("ws://127.0.0.1:")[1].split()[0])
        picture = np.zeros((32, 32, 3), np.uint8)
        asked = pack({"images": {"front": picture}, "prompt": "put carrot on plate"})
        with connect(f"ws://127.0.0.1:{port}", compression=None) as busy, connect(f"ws://127.0.0.1:{port}") as idle:
            busy.recv(), idle.recv()
            busy.send(asked)
            busy.recv()
            busy.send(asked)
            process.send_signal(signal.SIGTERM)
            reply = busy.recv(timeout=30)
            assert isinstance(reply, bytes) and unpack(reply)["actions"].shape == (1, 7)
            for connection in (busy, idle):
                with pytest.raises(ConnectionClosed) as closed:
                    connection.recv(timeout=10)  # the time until Docker kills what it stops
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
        rest = process.stderr.read()
        assert process.wait(30) == 0, rest
        assert "Traceback" not in rest
