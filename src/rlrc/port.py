"""A port that robots connect to: how it is opened, who may enter, and what is told to those who may not."""

import base64
import hmac
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from rlrc.errors import UserError, plain
from rlrc.progress import say
from rlrc.served import API_KEY

BACKLOG = 1024
"""Connections that may wait to be let in."""
CLOSING_S = 1.0
"""Seconds that the other side may take to agree that a websocket closes. At the end of a server aiohttp reads nothing
more, so that all of them pass."""
OPEN = ("/healthz", "/health")
"""Addresses that need no key."""


@asynccontextmanager
async def opened(
    application: web.Application, host: str, port: int, request_s: float, grace_s: float
) -> AsyncIterator[str]:
    """Listen within the block, and yield `host:port` as a client writes it.

    Args:
        request_s: seconds that a connection may take until the headers of its first request have arrived, or may
            spend between two requests; then it is closed.
        grace_s: seconds that requests may take which are under way at the end.

    Raises:
        UserError: the port cannot be listened on.
    """
    runner = web.AppRunner(
        application, access_log=None, handle_signals=False, shutdown_timeout=grace_s, keepalive_timeout=request_s
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
        except OSError as error:
            raise UserError(f"port {port} of {host} cannot be listened on: {plain(error)}") from error
        found, number = runner.addresses[0][:2]
        yield f"[{found}]:{number}" if ":" in found else f"{found}:{number}"
    finally:
        await runner.cleanup()


def door(key: str | None) -> Middleware:
    """A middleware that lets in who has the key (all, where it is None), and tells in one line what is wrong."""

    @web.middleware
    async def enter(request: web.Request, handler: Handler) -> web.StreamResponse:
        if key is not None and request.path not in OPEN and not _has_key(request, key):
            return error_answer(401, "the API key is missing or wrong: send the header 'Authorization: Api-Key KEY'")
        try:
            return await handler(request)
        except web.HTTPException as error:
            return error_answer(error.status, error.reason.lower())

    return enter


def _has_key(request: web.Request, key: str) -> bool:
    kind, _, given = request.headers.get("Authorization", "").partition(" ")
    try:
        if kind.lower() == "basic":  # as in ws://:KEY@host, for clients that cannot send headers
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        elif kind.lower() not in ("api-key", "bearer"):
            return False
        return hmac.compare_digest(given.encode(), key.encode())
    except ValueError:  # of bytes that are no base64 or no text
        return False


def error_answer(status: int, line: str) -> web.Response:
    """An answer that says in one line what is wrong."""
    return web.json_response({"error": line}, status=status)


def warn_if_open(address: str, key: str | None) -> None:
    """Say so where a port that others can reach asks for no key; `address` is what `opened` gave."""
    host = address.rpartition(":")[0].strip("[]")
    if key is None and not ipaddress.ip_address(host).is_loopback:
        say(f"anybody who reaches this machine can use the policy; set {API_KEY} to ask for a key")


def notice_dead_peers(request: web.Request) -> None:
    """Let the system ask after two silent minutes whether the other machine is still there. A ping of the websocket
    would not do: a client that simulates for a minute does not answer it, and is alive."""
    connection = request.transport.get_extra_info("socket") if request.transport else None
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def require_resolvable(host: str) -> None:
    """
    Raises:
        UserError: there is no such address.
    """
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise UserError(f"host '{host}': this is no address that the system knows") from error
