"""The evaluation record: one row an episode, from which every rate, interval and paired test is computed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from rlrc.errors import UserError
from rlrc.files import atomic_path
from rlrc.reading import read_parquet
from rlrc.stats import mcnemar, paired_difference, paired_lower_bound, wilson

Outcome = Literal["success_at_end", "success_once", "grasped"]

HEADLINE: Outcome = "success_at_end"
"""The outcome that tables lead with: the task is still solved when the episode ends, as RL4VLA reads it."""

MOST_TASKS = 100
"""Number of tasks from which on they are not told one by one."""


@dataclass(frozen=True)
class Episode:
    """Record of one episode."""

    policy: str
    world: str
    split: str
    variant: str
    episode_id: int
    seed: int
    success_at_end: bool
    success_once: bool
    grasped: bool
    steps: int | None
    """Control steps until the first success, those that the policy thought through included; None without one."""
    sum_reward: float
    max_reward: float
    path_length: float
    """Metres the gripper travelled."""
    jerk: float | None
    """Root mean square of the gripper's jerk, m/s^3; None where the policy's thinking let the world run on between its
    actions, so that the positions are not evenly spaced in time."""
    task: str = ""
    """Instruction that it began with; empty where that was not recorded."""

    @property
    def condition(self) -> str:
        """The column of tables that it counts in: its split, and its variant unless that is the main one."""
        return self.split if self.variant == "main" else f"{self.split}/{self.variant}"

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        """Key that two policies' episodes share if they are a pair."""
        return self.world, self.split, self.variant, self.episode_id, self.seed


@dataclass(frozen=True)
class Rate:
    """A proportion with Wilson's 95 % interval."""

    successes: int
    n: int
    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, successes: int, n: int) -> Self:
        """Raises UserError where `n` is zero."""
        return cls(successes, n, successes / max(n, 1), *wilson(successes, n))

    def __str__(self) -> str:
        return f"{100 * self.rate:.1f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


@dataclass(frozen=True)
class Comparison:
    """A policy's rate minus the reference's over the same episodes, with Tango's 95 % interval and McNemar's p.

    `lower_bound` is the one-sided 95 % bound: the policy loses less than that much.
    """

    n: int
    difference: float
    low: float
    high: float
    lower_bound: float
    p: float

    @classmethod
    def of(cls, successes: Sequence[bool], reference: Sequence[bool]) -> Self:
        """Compare what a policy and the reference did, pair by pair. Raises UserError where there is no pair."""
        a, b = reference, successes
        return cls(len(a), *paired_difference(a, b), paired_lower_bound(a, b), mcnemar(a, b))


_EPISODES = TypeAdapter(list[Episode])
_INT, _FLOAT = pa.int64(), pa.float32()  # every world measures in float32
_ARROW = {str: pa.string(), bool: pa.bool_(), int: _INT, int | None: _INT, float: _FLOAT, float | None: _FLOAT}
SCHEMA = pa.schema([(name, _ARROW[kind]) for name, kind in get_type_hints(Episode).items()])

_MEASURED = ["path_length", "jerk"]
"""Columns whose values hardly repeat: byte by byte they pack to two thirds of what a dictionary of them takes."""


def write_episodes(path: Path, episodes: Sequence[Episode]) -> None:
    with atomic_path(path) as aside:
        table = pa.Table.from_pylist([asdict(episode) for episode in episodes], SCHEMA)
        pq.write_table(
            table,
            aside,
            compression="zstd",
            compression_level=19,
            use_dictionary=[name for name in SCHEMA.names if name not in _MEASURED],
            use_byte_stream_split=_MEASURED,
        )


def read_episodes(path: Path) -> list[Episode]:
    """The rows of an `episodes.parquet`; a column that has a default may be absent from an older one.

    Raises:
        UserError: the file is missing or is no such table.
    """
    rows = read_parquet(path).to_pylist()
    try:
        return _EPISODES.validate_python(rows)
    except ValidationError as error:
        row, column, *_ = (*error.errors()[0]["loc"], "")
        raise UserError(
            f"{path}: row {row}, '{column}': not a table of episodes ({error.errors()[0]['msg']})"
        ) from error


def video_path(evaluation: Path, condition: str, episode_id: int) -> Path:
    """Return the path of the film of an episode in an evaluation's folder, if it was filmed."""
    return evaluation / "videos" / f"{condition.replace('/', '-')}-{episode_id:05d}.mp4"


def by_condition(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """Episodes grouped by split and variant, in the order they appear."""
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.condition, []).append(episode)
    return groups


def by_task(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """Episodes grouped by task, by name; empty where the tasks do not make a table: one, too many, or single trials."""
    groups: dict[str, list[Episode]] = {}
    for episode in sorted(episodes, key=lambda episode: episode.task):
        groups.setdefault(episode.task, []).append(episode)
    makes_a_table = 1 < len(groups) < MOST_TASKS and all(len(group) > 1 for group in groups.values())
    return groups if makes_a_table else {}


def success_rate(episodes: Sequence[Episode], outcome: Outcome = HEADLINE) -> Rate:
    """Return the rate of an outcome. Raises UserError where there are no episodes."""
    return Rate.of(sum(getattr(episode, outcome) for episode in episodes), len(episodes))


def compare(episodes: Sequence[Episode], reference: Sequence[Episode], outcome: Outcome = HEADLINE) -> Comparison:
    """Compare two policies pair by pair, over the episodes that both were run on.

    Raises:
        UserError: there are none.
    """
    ours = {episode.key: getattr(episode, outcome) for episode in episodes}
    theirs = {episode.key: getattr(episode, outcome) for episode in reference}
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise UserError("a paired comparison needs both policies evaluated on the same episodes with the same seed")
    return Comparison.of([ours[key] for key in shared], [theirs[key] for key in shared])
