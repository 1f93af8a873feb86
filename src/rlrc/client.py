"""A client for policies that are served: `rlrc serve`, openpi, and whoever speaks openpi's websocket.

    from rlrc.client import PolicyClient

    with PolicyClient("ws://192.168.1.20:8000", hold=lambda last: np.zeros(7)) as policy:
        while True:
            action = policy.act({"images/front": picture, "prompt": "put the carrot on the plate"})

It needs numpy, msgpack, websockets and wrapt, and no torch. On a robot's small computer:
`pip install --no-deps . && pip install numpy msgpack websockets wrapt`, in a copy of rlrc's folder.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np
from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from rlrc.errors import plain, shorten
from rlrc.served import DELAY, PREVIOUS, key_header, without_key
from rlrc.wire import WireError, pack, unpack

Hold = np.ndarray | Callable[[np.ndarray | None], np.ndarray]
"""The action that holds the robot still, or how it follows from the last one (None before the first)."""
DELAYS = 10
"""Latest answers from whose delays the next one is expected."""
LONGEST_PAUSE_S = 2.0
"""Longest pause between two attempts to connect again."""


class ServerGone(ConnectionError):
    """The server cannot be reached, or does not answer in time."""


class ServerRefused(RuntimeError):
    """The server answered with an error in place of actions."""


class PolicyClient:
    """A served policy: chunks from the server, actions one by one.

    Args:
        address: such as ws://host:8000.
        api_key: what the server asks for, where it does.
        timeout_s: seconds after which an answer, or a connection, counts as lost.
        execute: actions of each chunk that are played before the server is asked again; None takes what the server
            says, or else the whole chunk.
        ask_ahead: ask for the next chunk while the last one is played, so that the robot need not stop for it. When a
            chunk arrives, its actions whose time has passed are left out, all but the last one.
        continue_chunks: with `ask_ahead`, tell the server what is left of the chunk and how late its answer will be
            (the latest of the last ten), so that the new chunk goes on from the old one (real-time chunking).
        hold: what `act` gives while the server is gone; the connection is made again in the background meanwhile. With
            None `act` raises `ServerGone`, and the next call tries once more.

    Raises:
        ServerGone: nobody answers at the address.
        ServerRefused: it is no policy's server, does not let us in, or its policy cannot continue chunks.
        ValueError: the address is none, nothing would be played, or these options do not go together.
    """

    def __init__(
        self,
        address: str,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        execute: int | None = None,
        ask_ahead: bool = False,
        hold: Hold | None = None,
        continue_chunks: bool = False,
    ) -> None:
        if ask_ahead and execute is not None:
            raise ValueError("execute is not for ask_ahead: a chunk is played until the next one arrives")
        if execute is not None and execute < 1:
            raise ValueError(f"execute {execute}: at least one action of each chunk is played")
        if continue_chunks and not ask_ahead:
            raise ValueError("continue_chunks is for ask_ahead: without it nothing is left when the server is asked")
        self.address = address
        self._told = without_key(address)
        self._headers = key_header(address, api_key)
        self._timeout_s = timeout_s
        self._execute = execute
        self._hold = hold
        self._asker = ThreadPoolExecutor(1, "rlrc-ask") if ask_ahead else None
        self._coming: Future[dict[str, Any]] | None = None
        self._continues = continue_chunks
        self._played = 0  # actions since what is coming was asked for
        self._delays: deque[int] = deque([0], maxlen=DELAYS)  # actions that were played while an answer was on its way
        self._chunk = np.empty((0, 0), np.float32)
        self._last: np.ndarray | None = None
        self._mender: threading.Thread | None = None
        self._is_closed = False
        self.metadata: dict[str, Any] = {}
        """What the server says of itself; of rlrc's it has `spec` and `names`."""
        self._socket: ClientConnection | None = self._connect()
        if continue_chunks and self.metadata.get("continues_chunks") is not True:
            self.close()
            raise ServerRefused(f"{self._told}: its policy cannot continue chunks (only policies that denoise can)")

    # -- asking --------------------------------------------------------------------------------------------------------

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Send an observation and return the server's whole answer; `actions` in it are (H, D).

        A connection that was lost before is made again, once.

        Raises:
            ServerGone: the server cannot be reached, or does not answer in time.
            ServerRefused: it answers with an error.
        """
        return self._exchange(pack(dict(observation)))

    def _exchange(self, message: bytes) -> dict[str, Any]:
        if self._socket is None:
            self._socket = self._connect()
        try:
            self._socket.send(message)
            reply = self._socket.recv(timeout=self._timeout_s)
        except TimeoutError as error:
            self._drop()  # its answer could come later, in place of the next one
            raise ServerGone(f"{self._told}: no answer within {self._timeout_s:g} seconds") from error
        except (WebSocketException, OSError) as error:
            self._drop()
            raise ServerGone(f"{self._told}: the connection is lost ({_why(error)})") from error
        except BaseException:  # such as Ctrl-C: the answer that is on its way belongs to this question
            self._drop()
            raise
        if isinstance(reply, str):
            self._drop()
            raise ServerRefused(shorten(reply, 500))
        return self._understood(reply)

    def _understood(self, reply: bytes) -> dict[str, Any]:
        try:
            answer = unpack(reply)
        except WireError as error:
            raise ServerRefused(f"{self._told}: {error}") from error
        actions = answer.get("actions") if isinstance(answer, dict) else None
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or not len(actions):
            raise ServerRefused(f"{self._told}: the answer holds no 'actions' of shape (chunk, numbers)")
        return answer

    # -- acting --------------------------------------------------------------------------------------------------------

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The next action (D,): of the chunk that is being played, or the first of a new one for this observation.

        With `ask_ahead` it waits for the server only where no action is left to play.

        Raises:
            ServerGone: the server is gone, and the client has nothing to `hold`.
            ServerRefused: it answers with an error.
        """
        if self._asker is not None or not len(self._chunk):
            if self._mender is not None and self._mender.is_alive():
                return self._held()
            try:
                if self._asker is not None:
                    self._refresh(self._asker, observation)
                else:
                    self._chunk = self.infer(observation)["actions"][: self._steps]
            except ServerGone:
                self._chunk = self._chunk[:0]  # by the time that the server is back it is about another world
                if self._hold is None:
                    raise
                self._mender = threading.Thread(target=self._mend, name="reconnect", daemon=True)
                self._mender.start()
                return self._held()
        self._last, self._chunk = self._chunk[0], self._chunk[1:]
        self._played += 1
        return self._last

    def _refresh(self, asker: ThreadPoolExecutor, observation: Mapping[str, Any]) -> None:
        """Take the chunk that has come, ask for the next one where none is on its way, and have something to play."""
        if self._coming is not None and (self._coming.done() or not len(self._chunk)):
            self._take()
        if self._coming is None:
            rest = {PREVIOUS: self._chunk, DELAY: max(self._delays)} if self._continues else {}
            self._played = 0
            self._coming = asker.submit(self._exchange, pack({**observation, **rest}))
        if not len(self._chunk):
            self._take()

    def _take(self) -> None:
        """Wait for the chunk that is on its way, and leave out what is late in it."""
        assert self._coming is not None
        coming, self._coming = self._coming, None
        actions = coming.result()["actions"]
        self._delays.append(self._played)
        self._chunk = actions[min(self._played, len(actions) - 1) :]

    def reset(self) -> None:
        """An episode begins: throw away the rest of the chunk, and the one that is on its way."""
        if self._coming is not None:
            self._coming.exception()
        self._coming = None
        self._chunk, self._last = self._chunk[:0], None

    @property
    def _steps(self) -> int | None:
        if self._execute is not None:
            return self._execute
        spec = self.metadata.get("spec")
        execute = spec.get("execute") if isinstance(spec, dict) else None
        return execute if isinstance(execute, int) and execute > 0 else None

    def _held(self) -> np.ndarray:
        assert self._hold is not None
        return np.asarray(self._hold(self._last) if callable(self._hold) else self._hold)

    # -- connecting ----------------------------------------------------------------------------------------------------

    def _connect(self) -> ClientConnection:
        try:
            # Newer releases of websockets give a connection on entering alone; `_drop` closes it.
            socket = connect(
                self.address,
                compression=None,
                max_size=None,
                additional_headers=self._headers,
                open_timeout=self._timeout_s,
                close_timeout=1,
            ).__enter__()
        except (InvalidURI, ValueError) as error:
            raise ValueError(f"{self._told}: this is no address such as ws://host:8000") from error
        except InvalidHandshake as error:
            raise ServerRefused(f"{self._told}: {shorten(str(error))}") from error
        except (WebSocketException, OSError) as error:
            raise ServerGone(f"{self._told}: nobody answers ({_why(error)})") from error
        try:
            greeting = unpack(socket.recv(timeout=self._timeout_s))  # type: ignore[arg-type]
        except (WireError, TypeError) as error:
            socket.close()
            raise ServerRefused(f"{self._told}: this is no policy's server ({shorten(str(error))})") from error
        except (WebSocketException, OSError) as error:
            socket.close()
            raise ServerGone(f"{self._told}: the server says nothing ({_why(error)})") from error
        self.metadata = greeting if isinstance(greeting, dict) else {}
        return socket

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _mend(self) -> None:
        """Try to connect until it works."""
        pause = 0.1
        while self._socket is None and not self._is_closed:
            try:
                self._socket = self._connect()
            except (ServerGone, ServerRefused):
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
        if self._is_closed:  # while it connected
            self._drop()

    def close(self) -> None:
        """Leave the server."""
        self._is_closed = True
        self._drop()
        if self._asker is not None:
            self._asker.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _why(error: Exception) -> str:
    """What the system or the connection says of an error, in a few words."""
    return shorten(plain(error) if isinstance(error, OSError) else str(error)) or "timeout"
