"""Serve a policy to robots, over the protocols that their programs already speak.

    rlrc serve --policy runs/default/quantize/checkpoint --names libero

One port has openpi's websocket and vla-eval's protocol at `/`, `POST /act` of OpenVLA and OpenVLA-OFT, `GET /healthz`,
`/health` and `/metrics`. It opens when the policy is loaded, compiled and has acted.
"""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from rlrc.configs.serve import ServeConfig
from rlrc.errors import UserError
from rlrc.policies.checkpoint import load
from rlrc.port import require_resolvable, warn_if_open
from rlrc.process import keep_freed_memory
from rlrc.progress import say
from rlrc.serve.app import listen
from rlrc.serve.names import read_names
from rlrc.serve.service import Service
from rlrc.served import API_KEY


def check(config: ServeConfig) -> None:
    """Look at the names and the address; nothing is loaded.

    Raises:
        UserError: a preset, a file or the address is not there.
    """
    read_names(config.names, ("any",))  # which cameras the policy has, only its folder knows
    require_resolvable(config.host)


def serve(config: ServeConfig, out: Path) -> dict[str, Any]:
    """Serve until SIGTERM or Ctrl-C, then answer what was asked before.

    Args:
        out: unused, since nothing is written.

    Returns:
        The number of requests by protocol.

    Raises:
        UserError: the policy, the names or the address are not there or do not fit.
    """
    check(config)
    keep_freed_memory()
    policy = load(config.policy, config.unnorm_key, config.device, spec=config.spec)
    if not policy.can_read_instructions:
        raise UserError(f"{config.policy}: the folder lacks a tokenizer, so the policy cannot act")
    policy.action_statistics()
    service = Service(policy, config)
    say("acting once, so that the first robot does not wait")
    service.warm_up()
    try:
        asyncio.run(_until_signal(service, config))
    finally:
        service.close()
    return {"requests": service.metrics.counts()}


async def _until_signal(service: Service, config: ServeConfig) -> None:
    ends = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ends.set)
    key = config.api_key or os.environ.get(API_KEY) or None

    def ready(address: str) -> None:
        warn_if_open(address, key)
        say(f"serving {config.policy} on ws://{address} and http://{address}/act; Ctrl-C ends")

    await listen(service, config, key, ends, ready)
