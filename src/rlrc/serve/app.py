"""The port: who may connect, and what each address on it does."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from aiohttp import web
from aiohttp.typedefs import Handler

from rlrc.configs.serve import ServeConfig
from rlrc.port import CLOSING_S, OPEN, door, error_answer, notice_dead_peers, opened
from rlrc.progress import say
from rlrc.serve.service import Question, Refused, Service
from rlrc.serve.websocket import Session, serve_socket
from rlrc.wire import WireError, pack_json, unpack_json

MEGABYTE = 10**6


class Application:
    """All addresses of the port.

    Args:
        key: what clients must send; None lets everybody in.
    """

    def __init__(self, service: Service, config: ServeConfig, key: str | None) -> None:
        self._service, self._limits = service, config.limits
        self._sessions: set[Session] = set()
        self._connected = 0
        self._largest = int(config.limits.message_mb * MEGABYTE)
        self.web = web.Application(middlewares=[door(key), self._admit], client_max_size=self._largest)
        self.web.add_routes(
            [
                web.get("/", self._websocket),
                web.get("/healthz", self._healthz),
                web.get("/health", self._health),
                web.get("/metrics", self._metrics),
                web.post("/act", self._act),
            ]
        )
        self.web.on_shutdown.append(self._shut_down)

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a client in if there is room; who asks how the server is needs none."""
        if request.path in (*OPEN, "/metrics"):
            return await handler(request)
        if self._connected >= self._limits.connections:
            return error_answer(503, f"{self._connected} clients are connected, and no more are let in")
        self._connected += 1
        self._service.metrics.connections.set(self._connected)
        try:
            return await handler(request)
        finally:
            self._connected -= 1
            self._service.metrics.connections.set(self._connected)

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        answer = web.WebSocketResponse(max_msg_size=self._largest, compress=False, timeout=CLOSING_S)
        if not answer.can_prepare(request).ok:
            return web.json_response(self._service.metadata)
        await answer.prepare(request)
        notice_dead_peers(request)
        await serve_socket(self._service, answer, self._sessions)
        return answer

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="OK\n")

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _metrics(self, request: web.Request) -> web.Response:
        text = self._service.metrics.text()
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _act(self, request: web.Request) -> web.Response:
        """OpenVLA's and OpenVLA-OFT's `POST /act`: a payload that was encoded twice gets an answer of that kind."""
        try:
            async with asyncio.timeout(self._limits.upload_s):
                body = await request.read()
        except TimeoutError:
            return error_answer(408, f"the request did not arrive within {self._limits.upload_s:g} seconds")
        begun = time.perf_counter()
        try:
            twice, question = await self._service.read("act", lambda: self._question(body, begun))
            chunk, _ = await self._service.answer("act", question)
        except Refused as refusal:
            return error_answer(400, str(refusal))
        text = pack_json(self._as_published(chunk))
        return web.Response(text=json.dumps(text) if twice else text, content_type="application/json")

    def _question(self, body: bytes, begun: float) -> tuple[bool, Question]:
        """Whether a body was encoded twice, and the question in it."""
        try:
            payload = unpack_json(body.decode())
        except UnicodeDecodeError as error:
            raise WireError("the message is not UTF-8 text") from error
        twice = isinstance(payload, dict) and payload.keys() == {"encoded"} and isinstance(payload["encoded"], str)
        return twice, self._service.ask(unpack_json(payload["encoded"]) if twice else payload, begun)

    def _as_published(self, chunk: np.ndarray) -> Any:
        """An action (D,) of a policy that gives one a call, and else a list of them."""
        return chunk[0] if len(chunk) == 1 else list(chunk)

    async def _shut_down(self, _: web.Application) -> None:
        await asyncio.gather(*(session.end() for session in list(self._sessions)))


async def listen(
    service: Service, config: ServeConfig, key: str | None, ends: asyncio.Event, ready: Callable[[str], None]
) -> None:
    """Open the port and answer until `ends` is set; then answer what was asked before.

    Args:
        ready: called with host:port as soon as clients can connect.

    Raises:
        UserError: the port cannot be listened on.
    """
    application = Application(service, config, key).web
    limits = config.limits
    async with opened(application, config.host, config.port, limits.upload_s, limits.wait_s) as address:
        ready(address)
        await ends.wait()
        say("answering what was asked, then ending")
