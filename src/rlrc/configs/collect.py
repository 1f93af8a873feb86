"""Options of `collect`."""

from typing import Literal

from pydantic import Field

from rlrc.config import Config, Seed, TaskNumber
from rlrc.episode_ids import FIRST_TRAINING_EPISODE, MAX_EPISODE_ID

CameraDtype = Literal["image", "video"]


class CollectConfig(Config):
    """Record demonstrations of a world's scripted expert."""

    world: str = "tabletop"
    """World to record in."""
    episodes: int = Field(default=3000, ge=1, le=1_000_000)
    """Number of successful episodes to record."""
    first_episode_id: int = Field(default=FIRST_TRAINING_EPISODE, ge=0, le=MAX_EPISODE_ID)
    """Id of the first episode to try; the ids count up from there."""
    tasks: tuple[TaskNumber, ...] | None = None
    """Numbers of the tasks to show, in a world that has several. All tasks are shown unless you name some."""
    noise: float = Field(default=0.2, ge=0, le=10)
    """Strength of the noise on executed actions. Each episode draws its standard deviation between zero and this
    fraction of the largest action."""
    cameras: tuple[str, ...] = Field(default=(), max_length=16)
    """Cameras of the world to record. The main one is recorded unless you name some."""
    camera: CameraDtype = "image"
    """Form in which pictures are stored: as images without loss, or as video, which is smaller."""
    image_size: int = Field(default=96, ge=16, le=2048)
    """Side of the pictures in pixels."""
    num_workers: int = Field(default=2, ge=1, le=256)
    """Number of processes that play episodes. The result does not depend on it."""
    seed: Seed = 0
    """Seed for the noise on executed actions."""
