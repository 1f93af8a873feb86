"""Options of `cache`."""

from rlrc.config import Config


class CacheConfig(Config):
    """Show what rlrc keeps of datasets' frames on this machine, or remove it."""

    clear: bool = False
    """Remove all frames that are kept. Those that a running process uses stay."""
