"""Options of `export`."""

from pydantic import Field

from rlrc.configs.parts import PolicyPart


class ExportConfig(PolicyPart):
    """Write a policy as a LeRobot policy folder, which the unmodified library loads."""

    vlm: str | None = Field(default=None, min_length=1, max_length=4096)
    """Folder or hub id of the VLM whose config gives LeRobot the sizes of a SmolVLA. The published one is meant unless
    you name another."""
