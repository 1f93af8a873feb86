"""Options of `evaluate`."""

from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from rlrc.config import Config, LayerNumber, Seed, Share, TaskNumber
from rlrc.configs.parts import ActingPart, DatasetPart, PolicyPart
from rlrc.episode_ids import MAX_EPISODE_ID
from rlrc.served import address_of

Realtime = Literal["synchronous", "asynchronous", "rtc"]
"""Ways to think while the world's clock runs; see `act/realtime.py`."""

WORLD_OPTIONS = (
    *("splits", "variants", "episodes", "first_episode_id", "tasks", "num_workers", "vla_cache", "videos"),
    *("realtime", "latency_ms"),
)
"""Options that say nothing about a dataset."""

DATASET_OPTIONS = tuple(name for name in DatasetPart.model_fields if name != "dataset")
"""Options that say nothing about a world."""

SERVERS_OWN = ("unnorm_key", "spec", "device", "temperature", "denoising_steps", "center_crop", "vla_cache")
"""Options of a policy that a server holds, which the server has been given."""


class VlaCacheConfig(Config):
    """Reuse keys and values of what does not move. The defaults are the authors', for 256 patches and 32 layers."""

    similarity: float = Field(default=0.996, ge=-1, le=1)
    """Cosine of a patch's raw pixels before and now from which on the patch counts as static."""
    static_patches: int = Field(default=130, ge=0, le=100_000)
    """Largest number of static patches; the most similar ones are taken."""
    relevant_patches: int = Field(default=120, ge=0, le=100_000)
    """Number of patches that the instruction attends to most and that are never reused."""
    attention_layer: int = Field(default=15, ge=0, le=1000)
    """Layer whose attention tells which patches the instruction looks at."""
    layers: tuple[LayerNumber, ...] = (2, 6, 9, 11)
    """Layers at which patches leave the prompt."""
    growth: Share = 0.55
    """Share of each rise in reuse, from layer to layer, that is followed. One follows rises at once, zero never."""


class EvaluateConfig(ActingPart, DatasetPart, PolicyPart):
    """Measure a policy's success rates in a world, or its action error on a dataset."""

    world: str | None = None
    """World to act in. It is the tabletop, unless you name one or give a dataset."""
    dataset: Path | None = None
    """Demonstrations, where the robot has no simulator: the actions of the policy are compared with those shown. The
    folder of a LeRobotDataset, version 3.0 or 2.1, which the policy should not have learned from."""
    splits: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Splits of episodes, in and out of the distribution that was demonstrated (ind, ood). All splits of the world are
    played unless you name some."""
    variants: tuple[str, ...] = Field(default=("main",), min_length=1)
    """Named variants of the world. The variant main has all splits; the others are out of distribution."""
    episodes: int = Field(default=128, ge=1, le=1_000_000)
    """Number of episodes for each condition, which is a split and a variant."""
    first_episode_id: int = Field(default=0, ge=0, le=MAX_EPISODE_ID)
    """Id of the first episode; the ids count up from there. Equal ids are equal episodes."""
    tasks: tuple[TaskNumber, ...] | None = None
    """Numbers of the tasks to act in, in a world that has several. All tasks are played unless you name some."""
    num_envs: int = Field(default=32, ge=1, le=8192)
    """Number of episodes that run at once, or of a dataset's frames that are looked at at once."""
    num_workers: int = Field(default=2, ge=0, le=256)
    """Number of processes that simulate them. With the policy on a GPU, two halves take turns, and each half has this
    many processes."""
    seed: Seed = 0
    """Seed for sampling actions."""
    names: str | None = Field(default=None, min_length=1, max_length=1000)
    """Names on the wire of a policy that a server holds (--policy ws://host:8000), where the server does not say them:
    libero, droid, aloha, bridge, so101, or a YAML file."""
    execute: int | None = Field(default=None, ge=1, le=1000)
    """Number of actions of each chunk that are carried out before the policy is asked again. A policy that gives one
    action a call has chunks of one; others have a number of their own unless you give one."""
    realtime: Realtime | None = None
    """Let the world's clock run while the policy thinks, instead of waiting for it. Synchronous: the robot holds still
    until the actions are there. Asynchronous: it carries out the rest of the old chunk meanwhile. Rtc (real-time
    chunking): asynchronous, and the new chunk goes on from the old one; for policies that denoise their actions."""
    latency_ms: float | None = Field(default=None, ge=0, le=3_600_000)
    """Milliseconds that the policy takes to think, with realtime, for comparisons that anyone can repeat. Unless you
    give them they are measured on this machine, for one robot."""
    vla_cache: VlaCacheConfig | None = None
    """Reuse keys and values of what does not move, from one action to the next."""
    videos: int = Field(default=4, ge=0, le=100_000)
    """Number of episodes of each condition to film."""

    @model_validator(mode="before")
    @classmethod
    def _tabletop_unless_told(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("world") is None and values.get("dataset") is None:
            return values | {"world": "tabletop"}
        return values

    @model_validator(mode="after")
    def _world_or_dataset(self) -> Self:
        if self.dataset is None:
            return self._without(DATASET_OPTIONS, "is for a dataset, and none is given")
        if self.world is not None:
            raise ValueError("world and dataset are both given: give a world to act in, or a dataset to compare with")
        return self._without(WORLD_OPTIONS, "is for a world, and a dataset is given")

    @model_validator(mode="after")
    def _of_a_server(self) -> Self:
        if address_of(self.policy) is None:
            if self.names is not None:
                raise ValueError("names is for a policy that a server holds, such as --policy ws://host:8000")
            return self
        if self.dataset is not None:
            raise ValueError("a policy that a server holds acts in a world, and a dataset is given")
        return self._without(SERVERS_OWN, "is for the server that holds the policy: give it there")

    def _without(self, options: tuple[str, ...], reason: str) -> Self:
        """Refuse each of these options that is not as it is by default."""
        for option in options:
            if getattr(self, option) != type(self).model_fields[option].get_default():
                raise ValueError(f"{option} {reason}")
        return self

    @model_validator(mode="after")
    def _on_the_clock(self) -> Self:
        if self.realtime is None and self.latency_ms is not None:
            raise ValueError("latency_ms is for realtime: give --realtime " + " or ".join(get_args(Realtime)))
        if self.realtime in ("asynchronous", "rtc") and self.execute is not None:
            raise ValueError(f"execute is not for {self.realtime}: a chunk is carried out until the next one arrives")
        if self.realtime is not None and self.latency_ms is None and self.vla_cache is not None:
            raise ValueError("vla_cache takes more or less time by what moves: with realtime, give --latency-ms")
        return self

    @model_validator(mode="after")
    def _whole_pictures(self) -> Self:
        if self.center_crop and self.vla_cache is not None:
            raise ValueError("center_crop and vla_cache do not go together: patches are compared in the whole picture")
        return self
