"""What several verbs ask in the same words: which policy, and which dataset."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rlrc.config import Config


class PolicyPart(Config):
    """How a policy is read; the verb itself says which one."""

    unnorm_key: str | None = Field(default=None, min_length=1, max_length=200)
    """Name of the action statistics to use, where the checkpoint holds several and names no default."""
    device: str | None = Field(default=None, pattern=r"^(cpu|cuda(:\d{1,3})?|mps)$")
    """Device to compute on: cpu, cuda, cuda:1 or mps. A GPU is used where there is one, unless you name a device."""


class DatasetPart(Config):
    """How a LeRobotDataset is read; the verb itself says which one."""

    cameras: tuple[str, ...] = Field(default=(), max_length=16)
    """Cameras to show to the policy, such as observation.images.front. OpenVLA sees one. They may be left out where the
    dataset has no others."""
    action_key: str | None = Field(default=None, min_length=1, max_length=200)
    """Name of the column of actions. It may be left out where it is called action or actions."""
    state_key: str | None = Field(default=None, min_length=1, max_length=200)
    """Name of the column of proprioception. It may be left out where it is called observation.state or state."""
    dataset_episodes: str | None = Field(default=None, pattern=r"^\d{1,9}(:\d{1,9})?(,\d{1,9}(:\d{1,9})?)*$")
    """Episodes to use, such as 0:50 for the first fifty, or 0:50,60,70. All are used unless you name some."""
    statistics: Literal["policy", "dataset"] = "policy"
    """Statistics that normalise actions: those that the policy holds, or those of this dataset. The dataset's are
    written into the new checkpoint, under unnorm_key or else under the dataset's name."""


class DemonstrationsPart(DatasetPart):
    """Demonstrations that a verb needs."""

    dataset: Path
    """Demonstrations: the folder of a LeRobotDataset, version 3.0 or 2.1."""
