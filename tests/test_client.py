"""The client for robots: chunks played step by step, lost servers, and servers that are none."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
from serving import served
from small_policies import CASES, look, make
from websockets.sync.server import Server, ServerConnection, serve

from rlrc import autoclasses
from rlrc.client import PolicyClient, ServerGone, ServerRefused
from rlrc.wire import pack, unpack

CHUNK = np.arange(8, dtype=np.float32).reshape(4, 2)


class Fake:
    """A server of openpi's protocol that counts what it is asked, and does what a test wants."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers_with: bytes | str | None = None
        self.waits_s = 0.0

    def __call__(self, connection: ServerConnection) -> None:
        connection.send(msgpack.packb({"model": "theirs"}))
        for message in connection:
            assert isinstance(unpack(message), dict)
            self.asked += 1
            time.sleep(self.waits_s)
            connection.send(self.answers_with or pack({"actions": CHUNK + 10 * self.asked}))


def start(fake: Fake, port: int = 0) -> Server:
    server = serve(fake, "127.0.0.1", port, compression=None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def port_of(server: Server) -> int:
    return server.socket.getsockname()[1]


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def address(fake: Fake) -> Iterator[str]:
    server = start(fake)
    yield f"ws://127.0.0.1:{port_of(server)}"
    server.shutdown()


def test_it_needs_what_its_page_lists_and_no_torch() -> None:
    code = (
        "import sys; before = set(sys.modules); import rlrc.client;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    of_compilers = {name for name in done.stdout.split() if "cython" in name}
    assert set(done.stdout.split()) - of_compilers == {"msgpack", "numpy", "rlrc", "websockets", "wrapt"}


def test_a_transformers_that_is_too_old_for_our_models_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    table = SimpleNamespace(CONFIG_MAPPING_NAMES={})
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(__version__="4.57.1"))
    autoclasses._add_configs(table)
    autoclasses._add_models(table)
    assert not table.CONFIG_MAPPING_NAMES


def test_a_chunk_is_played_step_by_step(fake: Fake, address: str) -> None:
    with PolicyClient(address) as client:
        assert client.metadata == {"model": "theirs"}
        steps = [client.act({"state": np.zeros(3)}) for _ in range(5)]
        np.testing.assert_array_equal(steps, [*(CHUNK + 10), (CHUNK + 20)[0]])
        client.reset()
        np.testing.assert_array_equal(client.act({}), (CHUNK + 30)[0])
    with PolicyClient(address, execute=2) as client:
        steps = [client.act({}) for _ in range(3)]
        np.testing.assert_array_equal(steps, [*(CHUNK + 40)[:2], (CHUNK + 50)[0]])


class Gated(Fake):
    """A server whose answers come when the test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)
        self.seen: list[float] = []

    def __call__(self, connection: ServerConnection) -> None:
        connection.send(msgpack.packb({}))
        for message in connection:
            asked = unpack(message)
            assert isinstance(asked, dict)
            self.seen.append(float(asked["step"][0]))
            self.gate.acquire()
            connection.send(pack({"actions": CHUNK + 100 * self.seen[-1]}))


def test_asking_ahead_plays_on_while_the_next_chunk_is_made() -> None:
    """The picture of step 1 is asked about while the first chunk is played; its answer comes after two more steps."""
    fake = Gated()
    server = start(fake)
    step = np.zeros(1)  # which the robot overwrites
    with PolicyClient(f"ws://127.0.0.1:{port_of(server)}", ask_ahead=True) as client:

        def act(number: int) -> float:
            step[:] = number
            return float(client.act({"step": step})[0])

        fake.gate.release()
        assert act(0) == 0  # it had to wait for it
        assert act(1) == 2  # asked for the next one now
        assert act(2) == 4
        fake.gate.release()
        _until(lambda: client._coming is not None and client._coming.done())
        assert act(3) == 100 + 4, "the first two actions of the new chunk are late"
        assert act(4) == 100 + 6
        _until(lambda: fake.seen == [0, 1, 3])
        fake.gate.release()
        client.reset()
        fake.gate.release()
        assert act(5) == 500, "an episode begins with nothing of what was on its way"
        for number in (6, 7, 8):
            act(number)
        fake.gate.release()
        assert act(9) == 606, "of a chunk that is late as a whole the last action is left"
    fake.gate.release(9)  # another question may wait, and the server waits for its answer
    server.shutdown()


def test_asking_ahead_and_the_server_is_gone(fake: Fake) -> None:
    server = start(fake)
    with PolicyClient(f"ws://127.0.0.1:{port_of(server)}", ask_ahead=True) as client:
        client.act({})
        server.shutdown()
        with pytest.raises(ServerGone):
            for _ in range(6):
                client.act({})
    with pytest.raises(ValueError, match="execute is not for ask_ahead"):
        PolicyClient("ws://127.0.0.1:1", execute=2, ask_ahead=True)
    with pytest.raises(ValueError, match="execute 0: at least one action"):
        PolicyClient("ws://127.0.0.1:1", execute=0)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rlrcs_own_server_says_how_many_actions_to_play() -> None:
    policy = make(CASES["oft-l1"])
    seen = look(policy)
    observation = {"images": {name: seen.images[name][0] for name in seen.images}, "prompt": seen.instruction[0]}
    with served(policy) as server, PolicyClient(server.address) as client:
        played = [client.act(observation | {"state": seen.state[0]}) for _ in range(4)]
    chunk = policy.act(seen[[0]])[0]
    np.testing.assert_allclose(played, [*chunk, chunk[0]], atol=1e-5)


def test_a_lost_connection_is_made_again(fake: Fake) -> None:
    server = start(fake)
    port = port_of(server)
    with PolicyClient(f"ws://127.0.0.1:{port}", execute=1) as client:
        client.act({})
        server.shutdown()
        with pytest.raises(ServerGone):
            while True:  # the first call may still be answered
                client.act({})
        with pytest.raises(ServerGone, match="nobody answers"):
            client.act({})
        server = start(fake, port)
        np.testing.assert_array_equal(client.act({}), (CHUNK + 10 * fake.asked)[0])
    server.shutdown()


def test_a_robot_holds_still_while_the_server_is_gone(fake: Fake) -> None:
    server = start(fake)
    port = port_of(server)
    kept = []

    def hold(last: np.ndarray | None) -> np.ndarray:
        assert last is not None
        kept.append(last)
        return np.array([0.0, last[1]], np.float32)

    with PolicyClient(f"ws://127.0.0.1:{port}", execute=1, hold=hold) as client:
        first = client.act({})
        server.shutdown()
        while not kept:
            held = client.act({})
        np.testing.assert_array_equal(held, [0, kept[-1][1]])
        begun = time.monotonic()
        for _ in range(20):
            client.act({})
        assert time.monotonic() - begun < 5, "holding still must not wait for the server"
        server = start(fake, port)
        deadline = time.monotonic() + 20
        count = len(kept)
        while len(kept) > count - 1 and time.monotonic() < deadline:
            count = len(kept) + 1
            action = client.act({})
            time.sleep(0.05)
        assert action[0] == 10 * fake.asked and first[0] == 10
    server.shutdown()


def test_a_late_answer_is_not_taken_for_the_next_one(fake: Fake, address: str) -> None:
    with PolicyClient(address, timeout_s=2, execute=1) as client:
        client.act({})
        fake.waits_s = 3.0
        with pytest.raises(ServerGone, match="no answer within 2 seconds"):
            client.act({})
        fake.waits_s = 0.0
        time.sleep(2)
        np.testing.assert_array_equal(client.act({}), (CHUNK + 10 * fake.asked)[0])


def test_an_answer_to_an_interrupted_question_is_not_taken_for_the_next_one(fake: Fake, address: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with PolicyClient(address, execute=1) as client:
            client.act({})
            fake.waits_s = 1.0
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                client.act({})
            fake.waits_s = 0.0
            time.sleep(1)
            np.testing.assert_array_equal(client.act({}), (CHUNK + 10 * fake.asked)[0])
            assert fake.asked == 3
    finally:
        signal.signal(signal.SIGALRM, before)


def test_errors_do_not_tell_the_key() -> None:
    with pytest.raises(ServerGone) as gone:
        PolicyClient("ws://:a-long-key@127.0.0.1:1")
    assert "127.0.0.1:1" in str(gone.value) and "long-key" not in str(gone.value)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("the camera is missing\nand more", "the camera is missing and more"),
        (b"\xc1", "no msgpack"),
        (pack({"other": 1}), "holds no 'actions'"),
        (pack({"actions": np.zeros(7)}), "holds no 'actions'"),
        (pack({"actions": np.zeros((0, 7))}), "holds no 'actions'"),
    ],
)
def test_what_is_no_action_is_refused(fake: Fake, address: str, answer: bytes | str, reason: str) -> None:
    fake.answers_with = answer
    with PolicyClient(address) as client, pytest.raises(ServerRefused, match=reason):
        client.act({})


def test_addresses_where_no_policy_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ServerGone):
            PolicyClient(f"ws://127.0.0.1:{port}", timeout_s=0.3)
    with pytest.raises(ServerGone, match="nobody answers"):
        PolicyClient(f"ws://127.0.0.1:{port}")
    for wrong in ("http://127.0.0.1", "127.0.0.1:80", "", "ws://127.0.0.1:99999"):
        with pytest.raises((ValueError, ServerGone)):
            PolicyClient(wrong)
    policy = make(CASES["openvla"])
    with served(policy, key="long enough") as server:
        with pytest.raises(ServerRefused, match="401"):
            PolicyClient(server.address)
        PolicyClient(server.address, api_key="long enough").close()
