"""Policies that a server holds: an address such as ws://host:8000 stands where a folder would; names on the wire."""

import re
from pathlib import Path

API_KEY = "RLRC_API_KEY"
"""Name of the environment variable with the key that a server asks for."""
PREVIOUS, DELAY = "previous_actions", "inference_delay"
"""Names on the wire of the actions (K, D) that a robot has still to carry out, and of the control steps until it
expects the answer; with them a policy that can lets its new chunk go on from the old one."""


def address_of(policy: str | Path) -> str | None:
    """The address of the server that holds a policy; None where the policy is a folder or of the hub.

    A path has lost one of the two slashes, which is put back.
    """
    found = re.fullmatch(r"(wss?):/{1,2}(\S+)", str(policy))
    return None if found is None else f"{found[1]}://{found[2]}"


def key_header(address: str, key: str | None) -> dict[str, str] | None:
    """The header with a key, for a server at an address; None where there is none, or the address has its own."""
    return None if key is None or without_key(address) != address else {"Authorization": f"Api-Key {key}"}


def as_written(policy: str | Path) -> str:
    """The name of a policy as it may be written down: a folder, or an address without its key."""
    address = address_of(policy)
    return str(policy) if address is None else without_key(address)


def without_key(address: str) -> str:
    """An address as it may be written down: without the key that may stand before its host."""
    return re.sub(r"//[^/]*@", "//", address)
