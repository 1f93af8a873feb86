"""What hostile and broken clients send to a server, each with a connection of its own."""

import os
import random
import socket
import struct
import time
from collections.abc import Callable

import msgpack

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ANSWER_S = 6.0
"""Seconds that an attacker waits for an answer."""


def array(dtype: object, shape: object, data: object) -> dict:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def observation(picture: object, **others: object) -> bytes:
    return msgpack.packb({"images": {"front": picture}, "prompt": "put carrot on plate", **others})


GOOD = observation(array("|u1", (96, 96, 3), bytes(96 * 96 * 3)))


def frame(payload: bytes, length: int | None = None, opcode: int = 2) -> bytes:
    """A masked frame; `length` is what it claims."""
    return (
        bytes([0x80 | opcode, 0xFF])
        + struct.pack(">Q", len(payload) if length is None else length)
        + bytes(4)
        + payload
    )


def post(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: " + str(size).encode() + b"\r\n\r\n" + body


def websocket(payload: Callable[[random.Random], bytes]) -> Callable[[random.Random], bytes]:
    return lambda draw: HANDSHAKE + frame(payload(draw))


def truncated(draw: random.Random) -> bytes:
    return GOOD[: draw.randrange(1, len(GOOD))]


def flipped(draw: random.Random) -> bytes:
    """A good message with some bytes changed in its first hundred, where its structure is."""
    data = bytearray(GOOD)
    for _ in range(draw.randrange(1, 6)):
        data[draw.randrange(100)] = draw.randrange(256)
    return bytes(data)


ATTACKS: dict[str, Callable[[random.Random], bytes]] = {
    "random bytes": websocket(lambda draw: draw.randbytes(draw.randrange(1, 5000))),
    "random bytes without handshake": lambda draw: draw.randbytes(draw.randrange(1, 5000)),
    "truncated msgpack": websocket(truncated),
    "flipped bytes": websocket(flipped),
    "wrong dtype": websocket(
        lambda draw: observation(array(draw.choice(["<i8", "<f2", "|b1", "<c8"]), (2,), bytes(16)))
    ),
    "wrong shape": websocket(lambda draw: observation(array("|u1", (draw.randrange(200), 3), bytes(9)))),
    "object array": websocket(lambda draw: observation(array("|O", (1,), b"cos\nsystem\n(S'true'\ntR."))),
    "a gigabyte claimed": lambda draw: HANDSHAKE + frame(b"x" * 100, 2**30),
    "more bytes claimed than there are addresses": lambda draw: HANDSHAKE + frame(b"x" * 100, 2**64 - 1),
    "a gigabyte of array claimed": websocket(lambda draw: observation(array("|u1", (2**15, 2**15), b""))),
    "a million keys": websocket(lambda draw: b"\xdf" + struct.pack(">I", 10**6) + b"\x01\x01" * 10**6),
    "deep nesting": websocket(lambda draw: b"\x91" * 100_000 + b"\xc0"),
    "not a number": websocket(
        lambda draw: observation(array("<f8", (1, 1, 3), struct.pack("<3d", *[float("nan")] * 3)))
    ),
    "a bomb of a picture": websocket(lambda draw: observation({"__image__": True, "format": "png", "data": bomb()})),
    "text": lambda draw: HANDSHAKE + frame(b"hello", opcode=1),
    "text that is not UTF-8": lambda draw: HANDSHAKE + frame(b"\xff\xfe", opcode=1),
    "unknown opcode": lambda draw: HANDSHAKE + frame(b"hello", opcode=draw.choice([3, 7, 11, 15])),
    "unmasked": lambda draw: HANDSHAKE + b"\x82\x05hello",
    "a long ping": lambda draw: HANDSHAKE + frame(b"x" * 1000, opcode=9),
    "half a frame, then half closed": lambda draw: HANDSHAKE + frame(GOOD)[:-100],
    "half a handshake": lambda draw: HANDSHAKE[: draw.randrange(1, len(HANDSHAKE))],
    "a body that does not come": lambda draw: post(b"{", 10_000),
    "a body that is too long": lambda draw: post(b"{", 10**12),
    "a body of random bytes": lambda draw: post(draw.randbytes(1000)),
    "deep JSON": lambda draw: post(b"[" * 90_000),
    "headers without end": lambda draw: b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    "a seed that is none": websocket(lambda draw: observation(array("|u1", (2, 2, 3), bytes(12)), seed=-(2**62))),
    "killed in mid-request": lambda draw: HANDSHAKE + frame(GOOD),
}


def bomb() -> bytes:
    """A PNG that says it has 60,000 pixels a side."""
    from zlib import compress, crc32

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compress(bytes(1000))) + chunk(b"IEND", b"")


def attack(name: str, port: int, seed: int) -> str:
    """Send it, and return how the server ended it: closed, a status or a close code, or silence.

    Some send slowly and some go without waiting.
    """
    draw = random.Random(seed)
    data = ATTACKS[name](draw)
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
        try:
            if seed % 7 == 0:
                for start in range(0, min(len(data), 600), 100):
                    connection.sendall(data[start : start + 100])
                    time.sleep(0.02)
                data = data[600:]
            connection.sendall(data)
            if name == "killed in mid-request":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return "left"
            if "half" in name:
                connection.shutdown(socket.SHUT_WR)
            return ended(connection)
        except TimeoutError:
            return "silence"
        except OSError:
            return "closed"


def ended(connection: socket.socket) -> str:
    got = b""
    while more := connection.recv(2**16):
        got += more
        if got.startswith(b"HTTP/1.1 4"):
            break
    status = got[9:12].decode(errors="replace")
    if status != "101":
        return f"status {status}" if status.strip() else "closed"
    if b"Traceback" in got:
        return "traceback"
    code = got[got.rindex(b"\x88") + 2 :][:2] if b"\x88" in got else b""
    return f"close code {int.from_bytes(code, 'big')}" if len(code) == 2 else "closed"


if __name__ == "__main__":  # tells what one kind does: python attacks.py PORT
    import sys

    for kind in ATTACKS:
        started = time.monotonic()
        print(f"{kind}: {attack(kind, int(sys.argv[1]), os.getpid())} after {time.monotonic() - started:.2f} s")
