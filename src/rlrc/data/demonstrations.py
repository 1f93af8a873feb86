"""Demonstrations, read from a LeRobotDataset folder of version 3.0 or 2.1, whoever wrote it.

The tables are held in memory. Pictures stay where they are until they are asked for (see `pictures.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Self

import numpy as np

from rlrc.configs.parts import DatasetPart
from rlrc.data import format as fmt
from rlrc.data.choice import choose_actions, choose_cameras, choose_episodes, choose_state, match_cameras
from rlrc.data.images import ImagePictures
from rlrc.data.info import Info, read_info
from rlrc.data.layout import read_episodes, read_tasks, table_files, tasks_path, video_places
from rlrc.data.pictures import Pictures
from rlrc.data.tables import Rows, read_rows
from rlrc.data.videos import VideoPictures
from rlrc.errors import UserError
from rlrc.files import sha256_tree
from rlrc.progress import track


@dataclass(frozen=True)
class Demonstrations:
    """T frames of all episodes, one after the other."""

    path: Path
    pictures: dict[str, Pictures]
    """Pictures that each camera saw, by the dataset's name of the camera, T of each; each is decoded when it is asked
    for."""
    state: np.ndarray | None
    """float32 (T, S), proprioception; None where it was not recorded"""
    environment_state: np.ndarray | None
    """float32 (T, E), what only a simulator knows; None where it was not recorded"""
    actions: np.ndarray
    """float32 (T, D), in physical units"""
    tasks: list[str]
    task_index: np.ndarray
    """int64 (T,), into `tasks`"""
    episode_index: np.ndarray
    """int64 (T,)"""
    fps: float
    """Control steps a second."""
    cameras_named: bool = False
    """True where the user has named the cameras, in the order in which a policy sees them."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        cameras: str | Sequence[str] = (),
        action_key: str | None = None,
        state_key: str | None = None,
        episodes: str | Sequence[int] | None = None,
    ) -> Self:
        """Read a dataset.

        Args:
            cameras: the cameras, such as "observation.images.front" or "front", in the order in which a policy sees
                them; all that see colours, unless given (see `seen_by`).
            action_key: feature of actions; it may be left out where it is called action or actions.
            state_key: feature of proprioception; it may be left out where it is called observation.state or state.
            episodes: numbers of the episodes to read, or a text such as "0:50,60"; all, unless given.

        Raises:
            UserError: the dataset is missing, malformed or of another version, its numbers are not finite, or a choice
                is open.
        """
        root = Path(path)
        info = read_info(root)
        named = [cameras] if isinstance(cameras, str) else cameras
        keys = choose_cameras(info, named, root)
        action, state = choose_actions(info, action_key, root), choose_state(info, state_key, root)
        environment = fmt.ENVIRONMENT_STATE if fmt.ENVIRONMENT_STATE in info.features else None
        sizes = {name: prod(info.features[name].shape) for name in (action, state, environment) if name is not None}
        if empty := [name for name, size in sizes.items() if size == 0]:
            raise UserError(f"{root / fmt.INFO_PATH}: feature '{empty[0]}' holds no numbers")
        listed = read_episodes(root, info)
        wanted = listed.take(choose_episodes(episodes, listed.number, root))
        rows, task_index, vectors = read_rows(table_files(root, info, wanted), sizes, listed, wanted)
        tasks, task_index = _tasks_of(read_tasks(root, info), tasks_path(root, info), rows, task_index)
        return cls(
            path=root,
            pictures={key: _open_pictures(root, info, key, rows) for key in keys},
            state=None if state is None else vectors[state],
            environment_state=None if environment is None else vectors[environment],
            actions=vectors[action],
            tasks=tasks,
            task_index=task_index,
            episode_index=rows.episode,
            fps=info.fps,
            cameras_named=bool(named),
        )

    @classmethod
    def of(cls, config: DatasetPart) -> Self:
        """Read the dataset that a verb's config names; errors as `load`."""
        assert config.dataset is not None
        return cls.load(config.dataset, config.cameras, config.action_key, config.state_key, config.dataset_episodes)

    @classmethod
    def check(cls, config: DatasetPart) -> None:
        """Look at the dataset that a config names, if there is one, before its contents are read; errors as `load`."""
        if config.dataset is not None and config.dataset.exists():
            cls.of(config)

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def num_episodes(self) -> int:
        return len(np.unique(self.episode_index))

    def draw(self, count: int, seed: int, held_out: bool = False) -> np.ndarray:
        """Numbers (count,) of random frames, ascending.

        Args:
            held_out: none of those that the same count and seed draw without this.

        Raises:
            UserError: there are not as many.
        """
        if count * (1 + held_out) > len(self):
            more = f" and {count} others" if held_out else ""
            raise UserError(f"{count} samples{more} asked for, but the dataset holds {len(self)} frames")
        if not held_out:
            return np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False))
        others = np.setdiff1d(np.arange(len(self)), self.draw(count, seed))
        return np.sort(np.random.default_rng(seed + 1).choice(others, count, replace=False))

    def seen_by(self, cameras: Sequence[str]) -> dict[str, Pictures]:
        """The pictures of a policy's cameras, by the policy's names of them; see `match_cameras`.

        Raises:
            UserError: the dataset lacks one of them, or it is open which one it is.
        """
        matched = match_cameras(cameras, list(self.pictures), self.cameras_named, self.path)
        return {name: self.pictures[key] for name, key in matched.items()}

    @cached_property
    def images(self) -> np.ndarray:
        """All pictures of the first camera, uint8 (T, H, W, 3), decoded when they are first asked for.

        Raises:
            UserError: a picture is missing or damaged.
        """
        pictures = next(iter(self.pictures.values()))
        images = np.zeros((len(self), *pictures.size, 3), np.uint8)
        missing = np.ones(len(self), bool)
        for row, picture in track(pictures.decode(range(len(self))), "reading demonstrations", len(self)):
            images[row] = picture
            missing[row] = False
        if missing.any():
            raise UserError(f"{self.path}: the picture of row {np.argmax(missing)} is missing")
        return images

    @cached_property
    def episode_ends(self) -> np.ndarray:
        """The number, for each frame, of the frame behind its episode's last one, int64 (T,)."""
        changes = np.flatnonzero(np.diff(self.episode_index)) + 1
        lengths = np.diff(np.concatenate([[0], changes, [len(self)]]))
        return np.repeat(np.append(changes, len(self)), lengths)

    @cached_property
    def sha256(self) -> str:
        """Hash of the dataset's folder, also where this is a part of it: what a checkpoint's lineage records."""
        return sha256_tree(self.path)

    def instruction(self, index: int) -> str:
        """Return the instruction of frame `index`."""
        return self.tasks[self.task_index[index]]

    def select(self, episodes: Sequence[int]) -> Self:
        """Return only the frames of these episodes, in the order of the dataset.

        Raises:
            UserError: one of them is not there.
        """
        present, episode = np.unique(self.episode_index, return_inverse=True)
        keep = choose_episodes(episodes, present, self.path)[episode]
        return replace(
            self,
            pictures={key: pictures.take(keep) for key, pictures in self.pictures.items()},
            state=None if self.state is None else self.state[keep],
            environment_state=None if self.environment_state is None else self.environment_state[keep],
            actions=self.actions[keep],
            task_index=self.task_index[keep],
            episode_index=self.episode_index[keep],
        )


def _open_pictures(root: Path, info: Info, key: str, rows: Rows) -> Pictures:
    """The pictures of one camera. The first is decoded to see that it is one; the others when they are asked for."""
    feature = info.features[key]
    size = feature.picture_size(f"{root / fmt.INFO_PATH}, feature '{key}'")
    pictures: Pictures
    if feature.dtype == "image":
        pictures = ImagePictures(root, key, size, rows)
    else:
        _require_rate(rows, info.fps, root / fmt.INFO_PATH)
        pictures = VideoPictures(key, size, rows, video_places(root, info, key, np.unique(rows.episode)), info.fps)
    for _ in pictures.decode([0]):
        pass
    return pictures


def _require_rate(rows: Rows, fps: float, where: Path) -> None:
    """Check that rows do not follow each other faster than the rate that is told: a frame of a video may be half a
    step from its row's time, and would then be another row's.

    Raises:
        UserError: they do.
    """
    steps = np.diff(rows.timestamp)[np.diff(rows.episode) == 0]
    step = float(np.median(steps)) if len(steps) else 1 / fps
    if step * fps <= 0.5:
        raise UserError(f"{where}: fps is {fps:g}, and the timestamps of rows lie {step:.3g} s apart")


def _tasks_of(tasks: dict[int, str], path: Path, rows: Rows, task_index: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The instructions in the order of their numbers, and each row's place in this list."""
    known = np.array(sorted(tasks), np.int64)
    place = np.searchsorted(known, task_index)
    unknown = ~np.isin(task_index, known)
    if unknown.any():
        row = int(np.argmax(unknown))
        raise UserError(
            f"{rows.files[rows.file[row]]}: column 'task_index', {rows.name(row)} holds {task_index[row]}, and "
            f"{path} has no task of that number"
        )
    return [tasks[int(number)] for number in known], place
