"""Options of `serve`."""

from pydantic import Field

from rlrc.config import Config, Seed
from rlrc.configs.parts import ActingPart, PolicyPart


class Limits(Config):
    """Limits on what clients may ask of a server."""

    connections: int = Field(default=256, ge=1, le=100_000)
    """Largest number of clients at once; one more is turned away with status 503."""
    message_mb: float = Field(default=32, gt=0, le=1024)
    """Largest message in megabytes."""
    wait_s: float = Field(default=60, gt=0, le=86_400)
    """Seconds after which a request that has no answer yet is given up with an error."""
    upload_s: float = Field(default=20, gt=0, le=86_400)
    """Seconds within which an HTTP request must have arrived: its headers after the connection is made, or after the
    request before, and its body after them."""


class ServeConfig(ActingPart, PolicyPart):
    """Serve a policy to robots: openpi's websocket, vla-eval's protocol, and POST /act of OpenVLA and OpenVLA-OFT."""

    host: str = Field(default="127.0.0.1", max_length=253)
    """Address to listen on. Only this machine can connect, unless you give another one, such as 0.0.0.0."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """Port to listen on; zero takes a free one."""
    names: str = Field(default="rlrc", min_length=1, max_length=1000)
    """Names of pictures and state on the wire: libero, droid, aloha, bridge, so101, a YAML file, or rlrc, which takes
    the names of the policy's cameras."""
    api_key: str | None = Field(default=None, min_length=8, max_length=1000)
    """Key that clients must send. The environment variable RLRC_API_KEY does the same and is not seen by others."""
    max_batch: int = Field(default=16, ge=1, le=4096)
    """Largest number of waiting requests that are answered together."""
    seed: Seed = 0
    """Seed for sampling actions, together with the number of the request; a request may bring a seed of its own."""
    limits: Limits = Limits()
    """Limits on what clients may ask of the server."""
