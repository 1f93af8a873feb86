"""The websocket at `/`: openpi's protocol and vla-eval's, told apart by each message.

openpi's clients wait for a message with the server's metadata; vla-eval's send `hello` and wait for the answer. The
server's first message is both: metadata for the one, and a `hello` for the other.

- openpi: a mapping of names to values in, {"actions": (H, D), "server_timing"} out. An error is a message of text, and
  then the connection is closed with code 1011.
- vla-eval: {"type", "payload", "seq", "timestamp"}. An `observation` is answered by an `action` of one step: the rest
  of the chunk waits for the next observations of the episode. An `error` leaves the connection open.
"""

import asyncio
import time
from typing import Any

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from rlrc.errors import shorten
from rlrc.serve.service import Question, Refused, Service
from rlrc.version import __version__
from rlrc.wire import pack, unpack

PROTOCOL_VERSION = 1
"""That of vla-eval."""
VLA_EVAL_KEYS = {"type", "payload", "seq"}


def greeting(service: Service) -> bytes:
    """The first message of a connection."""
    payload = {
        "harness_version": __version__,
        "protocol_version": PROTOCOL_VERSION,
        "model_server": f"rlrc {__version__}",
        "capabilities": {},
    }
    hello = {"type": "hello", "payload": payload, "seq": 0, "timestamp": time.time()}
    return pack(service.metadata | hello, str)


class Session:
    """One client."""

    def __init__(self, service: Service, socket: web.WebSocketResponse) -> None:
        self._service = service
        self._socket = socket
        self._chunk = np.empty((0, 0))
        """Actions of vla-eval's episode that have not been sent yet."""
        self._is_busy = False
        self._ends = False

    async def run(self) -> None:
        """Greet the client and answer it, one message after another, until it leaves or the server ends."""
        await self._socket.send_bytes(greeting(self._service))
        while not self._ends:
            message = await self._socket.receive()
            if message.type is WSMsgType.BINARY:
                self._is_busy = True
                await self._answer(message.data)
                self._is_busy = False
            elif message.type is WSMsgType.TEXT:
                await self._refuse("messages must be binary msgpack; this one is text")
            else:  # closed, or broken
                return
        await self._socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server ends")

    async def end(self) -> None:
        """Close the connection, after the request that is being answered."""
        self._ends = True
        if not self._is_busy:
            await self._socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server ends")

    async def _answer(self, data: bytes) -> None:
        begun = time.perf_counter()
        try:
            understood = await self._service.read("openpi", lambda: self._understand(data, begun))
            if isinstance(understood, Question):
                await self._openpi(understood)
            else:
                await self._vla_eval(understood)
        except Refused as refusal:
            await self._refuse(str(refusal))

    def _understand(self, data: bytes, begun: float) -> Question | dict[str, Any]:
        """The question in a message of openpi's protocol, or a message of vla-eval's."""
        message = unpack(data)
        if isinstance(message, dict) and message.keys() >= VLA_EVAL_KEYS:
            return message
        return self._service.ask(message, begun)

    # -- openpi --------------------------------------------------------------------------------------------------------

    async def _openpi(self, question: Question) -> None:
        actions, timing = await self._service.answer("openpi", question)
        await self._socket.send_bytes(pack({"actions": actions, "server_timing": timing}))

    async def _refuse(self, line: str) -> None:
        await self._socket.send_str(line)
        await self._socket.close(code=WSCloseCode.INTERNAL_ERROR, message=line.encode()[:120])
        self._ends = True

    # -- vla-eval ------------------------------------------------------------------------------------------------------

    async def _vla_eval(self, message: dict[str, Any]) -> None:
        kind = message["type"] if isinstance(message["type"], str) else repr(message["type"])
        match kind:
            case "observation":
                await self._step(message)
            case "episode_start" | "episode_end":
                self._chunk = self._chunk[:0]
            case "hello" | "error":  # The greeting has answered the first, and the other wants no answer.
                pass
            case _:
                await self._tell(message, "error", {"error": f"there is no message of type {shorten(kind, 40)!r}"})

    async def _step(self, message: dict[str, Any]) -> None:
        if not len(self._chunk):
            begun = time.perf_counter()
            try:
                question = await self._service.read("vla-eval", lambda: self._service.ask(message["payload"], begun))
                actions, _ = await self._service.answer("vla-eval", question)
            except Refused as refusal:
                await self._tell(message, "error", {"error": str(refusal)})
                return
            self._chunk = actions[: self._service.policy.spec.execute]
        action, self._chunk = self._chunk[0], self._chunk[1:]
        await self._tell(message, "action", {"actions": action})

    async def _tell(self, message: dict[str, Any], kind: str, payload: dict[str, Any]) -> None:
        reply = {"type": kind, "payload": payload, "seq": message["seq"], "timestamp": time.time()}
        await self._socket.send_bytes(pack(reply, str))


async def serve_socket(service: Service, socket: web.WebSocketResponse, sessions: set[Session]) -> None:
    """Answer one client; its session is in `sessions` meanwhile."""
    session = Session(service, socket)
    sessions.add(session)
    try:
        await session.run()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # The client is gone, and with it whoever wanted an answer.
    finally:
        sessions.discard(session)
