"""Policies that a server holds: an address such as ws://host:8000 stands where a folder would."""

import re
from pathlib import Path

API_KEY = "RLRC_API_KEY"
"""Name of the environment variable with the key that a server asks for."""


def address_of(policy: str | Path) -> str | None:
    """The address of the server that holds a policy; None where the policy is a folder or of the hub.

    A path has lost one of the two slashes, which is put back.
    """
    found = re.fullmatch(r"(wss?):/{1,2}(\S+)", str(policy))
    return None if found is None else f"{found[1]}://{found[2]}"


def without_key(address: str) -> str:
    """An address as it may be written down: without the key that may stand before its host."""
    return re.sub(r"//[^/]*@", "//", address)
