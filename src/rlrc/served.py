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


def without_key(address: str) -> str:
    """An address as it may be written down: without the key that may stand before its host."""
    return re.sub(r"//[^/]*@", "//", address)
