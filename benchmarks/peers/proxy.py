"""A relay between a client and a server that keeps what the client sends."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

CHUNK = 2**16


class Recorder:
    """Relays to a local port, within a `with` block.

    `connections` has what each client sent: a list of the bytes between two answers of the server.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connections: list[list[bytes]] = []
        self._thread = threading.Thread(target=self._relay, daemon=True)

    @property
    def port(self) -> int:
        """The relay's own port."""
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _relay(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # the end
                return
            sent: list[bytes] = [b""]
            self.connections.append(sent)
            server = socket.create_connection(("127.0.0.1", self._port))
            for pump in (self._requests, self._answers):
                threading.Thread(target=pump, args=(server, client, sent), daemon=True).start()

    @staticmethod
    def _requests(server: socket.socket, client: socket.socket, sent: list[bytes]) -> None:
        with client, server:
            while data := client.recv(CHUNK):
                sent[-1] += data
                server.sendall(data)

    @staticmethod
    def _answers(server: socket.socket, client: socket.socket, sent: list[bytes]) -> None:
        with contextlib.suppress(OSError):  # the client has left
            while data := server.recv(CHUNK):
                if sent[-1]:
                    sent.append(b"")
                client.sendall(data)
