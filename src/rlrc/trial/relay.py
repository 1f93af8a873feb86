"""The port that the robot's program talks to: it hands messages to the policy of the trial that runs, and back.

A robot's program is greeted at any time with what is common to all policies, and answered while a trial runs. The end
of a trial closes its connections, so that it comes to the next one without a memory of this one.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from aiohttp import ClientError, ClientSession, ClientWebSocketResponse, ClientWSTimeout, WSCloseCode, WSMsgType, web

from rlrc.errors import shorten
from rlrc.port import CLOSING_S, door, notice_dead_peers, opened
from rlrc.served import key_header
from rlrc.trial.greetings import TIMEOUT_S, Greeting, as_told
from rlrc.wire import WireError, pack, unpack

LARGEST_MESSAGE = 64 * 10**6
"""Bytes of the largest message that is handed on."""
REQUEST_S = 20.0
"""Seconds that the robot's program may take to send the headers of its request."""

T = TypeVar("T")
Socket = web.WebSocketResponse | ClientWebSocketResponse


@dataclass
class Traffic:
    """This is what went through the port during a trial."""

    address: str
    """The policy is served at this address."""
    answers: int = 0
    actions: int = 0
    error: str = ""
    """The last error that the robot's program was told."""


class Relay:
    """What is behind the port. A trial begins and ends on the loop that serves it."""

    def __init__(self, greeting: Greeting, key: str | None) -> None:
        self._greeting = greeting
        self._key = key
        self._traffic: Traffic | None = None
        self._width: int | None = None
        """Numbers of an action, as the first answer had them."""
        self._robots: set[web.WebSocketResponse] = set()
        self.application = web.Application(middlewares=[door(key)])
        self.application.add_routes([web.get("/", self._enter), web.get("/healthz", self._healthz)])
        self.application.on_shutdown.append(self._shut_down)

    async def begin(self, address: str) -> Traffic:
        """From now on the policy at `address` answers; returns what counts its answers."""
        self._traffic = Traffic(address)
        return self._traffic

    async def end(self) -> None:
        """Stop answering, and end all connections."""
        self._traffic = None
        closing = (_close(robot, WSCloseCode.GOING_AWAY, "the trial has ended") for robot in list(self._robots))
        await asyncio.gather(*closing)

    async def _shut_down(self, _: web.Application) -> None:
        await self.end()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="OK\n")

    async def _enter(self, request: web.Request) -> web.StreamResponse:
        robot = web.WebSocketResponse(max_msg_size=LARGEST_MESSAGE, compress=False, timeout=CLOSING_S)
        if not robot.can_prepare(request).ok:
            return web.json_response(self._greeting)
        await robot.prepare(request)
        notice_dead_peers(request)
        self._robots.add(robot)
        try:
            await robot.send_bytes(pack(as_told(self._greeting), str))
            await self._answer(robot)
        except ConnectionError:
            pass  # The robot's program is gone.
        finally:
            self._robots.discard(robot)
        return robot

    async def _answer(self, robot: web.WebSocketResponse) -> None:
        """Wait for the first message, and connect the robot with the policy whose turn it is."""
        first = await robot.receive()
        if first.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
            return
        traffic = self._traffic
        if traffic is None:
            await _refuse(robot, "no trial is running; the operator begins the next one")
            return
        limit = ClientWSTimeout(ws_close=CLOSING_S)
        try:
            async with ClientSession(headers=key_header(traffic.address, self._key)) as session:
                connecting = session.ws_connect(traffic.address, timeout=limit, max_msg_size=LARGEST_MESSAGE)
                async with connecting as policy:
                    await policy.receive(TIMEOUT_S)  # its greeting, which the robot's program does not see
                    await _send(policy, first.type, first.data)
                    await self._both_ways(robot, policy, traffic)
        except (ClientError, ConnectionError, TimeoutError) as error:
            if not robot.closed:
                traffic.error = f"the connection to the policy failed: {shorten(str(error)) or type(error).__name__}"
                await _refuse(robot, "the policy of this trial cannot be reached")

    async def _both_ways(self, robot: web.WebSocketResponse, policy: ClientWebSocketResponse, traffic: Traffic) -> None:
        """Hand on messages until one side leaves, and let the other one know."""
        asking = asyncio.create_task(self._questions(robot, policy))
        answering = asyncio.create_task(self._answers(policy, robot, traffic))
        try:
            done, _ = await asyncio.wait((asking, answering), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if answering in done and not robot.closed:
                traffic.error = traffic.error or "the policy's server ended the connection"
                await _close(robot, policy.close_code or WSCloseCode.INTERNAL_ERROR, "the policy's server has left")
        finally:
            for task in (asking, answering):
                task.cancel()
            await asyncio.gather(asking, answering, return_exceptions=True)

    async def _questions(self, robot: web.WebSocketResponse, policy: ClientWebSocketResponse) -> None:
        async for message in robot:
            await _send(policy, message.type, message.data)

    async def _answers(self, policy: ClientWebSocketResponse, robot: web.WebSocketResponse, traffic: Traffic) -> None:
        async for message in policy:
            if message.type is WSMsgType.TEXT:
                traffic.error = shorten(message.data, 500)
            elif line := self._count(message.data, traffic):
                traffic.error = line
                await _refuse(robot, line)
                return
            await _send(robot, message.type, message.data)

    def _count(self, data: bytes, traffic: Traffic) -> str | None:
        """Count an answer; a line says why the robot must not get it."""
        actions = _actions(data)
        if actions is None:
            return None
        width = actions.shape[-1]
        self._width = self._width or width
        if width != self._width:
            return f"an action has {width} numbers, and those before had {self._width}: the policies cannot be compared"
        traffic.answers += 1
        traffic.actions += len(actions) if actions.ndim == 2 else 1
        return None


@contextmanager
def listening(relay: Relay, host: str, port: int) -> Iterator["Listening"]:
    """Serve the relay in a thread of its own within the block.

    Raises:
        UserError: the port cannot be listened on.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="relay", daemon=True)
    thread.start()
    stack = AsyncExitStack()
    here = Listening(relay, loop)
    try:
        here.address = here.do(stack.enter_async_context(opened(relay.application, host, port, REQUEST_S, CLOSING_S)))
        yield here
    finally:
        here.do(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Listening:
    """A relay that listens, for the thread of the operator."""

    address = ""
    """host:port, where it listens."""

    def __init__(self, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
        self._relay, self._loop = relay, loop

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the relay's loop, and wait for what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @contextmanager
    def trial(self, address: str) -> Iterator[Traffic]:
        """Let the policy at `address` answer within the block."""
        traffic = self.do(self._relay.begin(address))
        try:
            yield traffic
        finally:
            self.do(self._relay.end())


def _actions(data: bytes) -> np.ndarray | None:
    """The actions of an answer, (H, D) of openpi's protocol or also (D,) of vla-eval's; None where it has none."""
    try:
        answer = unpack(data)
    except WireError:
        return None
    answer = answer if isinstance(answer, dict) else {}
    inner = answer.get("payload")
    actions = answer.get("actions", inner.get("actions") if isinstance(inner, dict) else None)
    return actions if isinstance(actions, np.ndarray) and actions.ndim in (1, 2) else None


async def _send(socket: Socket, kind: WSMsgType, data: Any) -> None:
    await (socket.send_bytes(data) if kind is WSMsgType.BINARY else socket.send_str(data))


async def _refuse(robot: web.WebSocketResponse, line: str) -> None:
    """Tell an error as openpi's servers do: a message of text, then the end of the connection."""
    await robot.send_str(line)
    await _close(robot, WSCloseCode.INTERNAL_ERROR, line)


async def _close(robot: web.WebSocketResponse, code: int, line: str) -> None:
    await robot.close(code=code, message=line.encode()[:120])
