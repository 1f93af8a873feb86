"""A server in a thread of the tests' own process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlrc.configs.serve import ServeConfig
from rlrc.policies.contract import Policy
from rlrc.serve.app import listen
from rlrc.serve.service import Service


class Running:
    """A server that listens."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port = service, port
        self.address = f"ws://127.0.0.1:{port}"
        self.http = f"http://127.0.0.1:{port}"


@contextmanager
def served(policy: Policy, key: str | None = None, **options: Any) -> Iterator[Running]:
    """Serve `policy` on a free port within the block."""
    config = ServeConfig(policy=Path("policy"), port=0, **options)
    service = Service(policy, config)
    ports: list[int] = []
    listens = threading.Event()
    loop = asyncio.new_event_loop()
    ends = asyncio.Event()

    def ready(address: str) -> None:
        ports.append(int(address.rpartition(":")[2]))
        listens.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(listen(service, config, key, ends, ready)))
    thread.start()
    assert listens.wait(30)
    try:
        yield Running(service, ports[0])
    finally:
        loop.call_soon_threadsafe(ends.set)
        thread.join(60)
        assert not thread.is_alive(), "the server does not end"
        service.close()
        loop.close()
