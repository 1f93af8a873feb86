"""The port: who may connect, and what each address on it does."""

import asyncio
import base64
import binascii
import hmac
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from aiohttp import web

from rlrc.configs.serve import ServeConfig
from rlrc.errors import UserError, plain
from rlrc.progress import say
from rlrc.serve.service import Refused, Service
from rlrc.serve.websocket import Session, serve_socket
from rlrc.wire import pack_json, unpack_json

MEGABYTE = 10**6
BACKLOG = 1024
"""Connections that may wait to be let in."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OPEN = ("/healthz", "/health")
"""Addresses that need no key."""


class Application:
    """All addresses of the port.

    Args:
        key: what clients must send; None lets everybody in.
    """

    def __init__(self, service: Service, config: ServeConfig, key: str | None) -> None:
        self._service, self._limits, self._key = service, config.limits, key
        self._sessions: set[Session] = set()
        self._connected = 0
        self._largest = int(config.limits.message_mb * MEGABYTE)
        self.web = web.Application(middlewares=[self._admit], client_max_size=self._largest)
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
        """Let a client in if it has the key and there is room; whatever goes wrong is told in one line."""
        if request.path not in OPEN and not self._has_key(request):
            return _error(401, "the API key is missing or wrong: send the header 'Authorization: Api-Key KEY'")
        if self._connected >= self._limits.connections:
            return _error(503, f"{self._connected} clients are connected, and no more are let in")
        self._connected += 1
        self._service.metrics.connections.set(self._connected)
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _error(error.status, error.reason.lower())
        finally:
            self._connected -= 1
            self._service.metrics.connections.set(self._connected)

    def _has_key(self, request: web.Request) -> bool:
        if self._key is None:
            return True
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "basic":  # as in ws://:KEY@host, for clients that cannot send headers
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif kind.lower() not in ("api-key", "bearer"):
            return False
        return hmac.compare_digest(given.encode(), self._key.encode())

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        answer = web.WebSocketResponse(max_msg_size=self._largest, compress=False, timeout=self._limits.upload_s)
        if not answer.can_prepare(request).ok:
            return web.json_response(self._service.metadata)
        await answer.prepare(request)
        _notice_dead_peers(request)
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
            return _error(408, f"the request did not arrive within {self._limits.upload_s:g} seconds")
        try:
            payload = await self._service.read(lambda: unpack_json(body.decode()))
            twice = isinstance(payload, dict) and payload.keys() == {"encoded"} and isinstance(payload["encoded"], str)
            if twice:
                encoded = payload["encoded"]
                payload = await self._service.read(lambda: unpack_json(encoded))
            chunk, _ = await self._service.answer("act", payload)
        except Refused as refusal:
            return _error(400, str(refusal))
        except UnicodeDecodeError:
            return _error(400, "the message is not UTF-8 text")
        text = pack_json(self._as_published(chunk))
        return web.Response(text=json.dumps(text) if twice else text, content_type="application/json")

    def _as_published(self, chunk: np.ndarray) -> Any:
        """An action (D,) of a policy that gives one a call, and else a list of them."""
        return chunk[0] if len(chunk) == 1 else list(chunk)

    async def _shut_down(self, _: web.Application) -> None:
        await asyncio.gather(*(session.end() for session in list(self._sessions)))


def _error(status: int, line: str) -> web.Response:
    return web.json_response({"error": line}, status=status)


def _notice_dead_peers(request: web.Request) -> None:
    """Let the system ask after two silent minutes whether the other machine is still there. A ping of the websocket
    would not do: a client that simulates for a minute does not answer it, and is alive."""
    connection = request.transport.get_extra_info("socket") if request.transport else None
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def listen(
    service: Service, config: ServeConfig, key: str | None, ends: asyncio.Event, ready: Callable[[str, int], None]
) -> None:
    """Open the port and answer until `ends` is set; then answer what was asked before.

    Args:
        ready: called with the address and port as soon as clients can connect.

    Raises:
        UserError: the port cannot be listened on.
    """
    runner = web.AppRunner(
        Application(service, config, key).web,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=config.limits.wait_s,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, config.host, config.port, backlog=BACKLOG).start()
    except OSError as error:
        await runner.cleanup()
        raise UserError(f"port {config.port} of {config.host} cannot be listened on: {plain(error)}") from error
    ready(*runner.addresses[0][:2])
    await ends.wait()
    say("answering what was asked, then ending")
    await runner.cleanup()


def require_resolvable(host: str) -> None:
    """
    Raises:
        UserError: there is no such address.
    """
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise UserError(f"host '{host}': this is no address that the system knows") from error
