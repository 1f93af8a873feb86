"""Demonstrations in memory, read from a LeRobotDataset v3.0 folder, whoever wrote it."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rlrc.data import format as fmt
from rlrc.errors import UserError
from rlrc.files import sha256_tree
from rlrc.progress import bar, track
from rlrc.reading import read_json


@dataclass(frozen=True)
class Demonstrations:
    """T frames of all episodes, one after the other."""

    path: Path
    images: np.ndarray
    """uint8 (T, H, W, 3)"""
    state: np.ndarray
    """float32 (T, S), proprioception"""
    environment_state: np.ndarray | None
    """float32 (T, E), what only a simulator knows; None where it was not recorded"""
    actions: np.ndarray
    """float32 (T, 7), in physical units"""
    tasks: list[str]
    task_index: np.ndarray
    """int64 (T,), into `tasks`"""
    episode_index: np.ndarray
    """int64 (T,)"""
    fps: int

    @classmethod
    def load(cls, path: Path, image_key: str | None = None, episodes: int | None = None) -> Self:
        """Read a dataset.

        Args:
            image_key: the camera, such as "observation.images.front"; may be left out where there is only one.
            episodes: read only so many, the first ones.

        Raises:
            UserError: the dataset is missing, malformed, of another version, has no such camera or no 7-D actions.
        """
        try:
            return cls._read(path, image_key, episodes)
        except (KeyError, TypeError, ValueError, OSError, pa.ArrowException, av.FFmpegError) as error:
            raise UserError(f"{path}: not a readable LeRobotDataset {fmt.VERSION} ({error})") from error

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def num_episodes(self) -> int:
        return len(np.unique(self.episode_index))

    def draw(self, count: int, seed: int) -> np.ndarray:
        """Numbers (count,) of random frames, ascending.

        Raises:
            UserError: there are not as many.
        """
        if count > len(self):
            raise UserError(f"{count} samples asked for, but the dataset holds {len(self)} frames")
        return np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False))

    @cached_property
    def sha256(self) -> str:
        """Hash of the dataset's folder, also where this is a part of it: what a checkpoint's lineage records."""
        return sha256_tree(self.path)

    def instruction(self, index: int) -> str:
        """What was asked for in frame `index`."""
        return self.tasks[self.task_index[index]]

    def select(self, episodes: Sequence[int]) -> Self:
        """Only the frames of these episodes, in the order of the dataset.

        Raises:
            UserError: one of them is not there.
        """
        if missing := set(episodes) - set(self.episode_index.tolist()):
            raise UserError(f"{self.path} has no episode {min(missing)}")
        keep = np.isin(self.episode_index, list(episodes))
        return replace(
            self,
            images=self.images[keep],
            state=self.state[keep],
            environment_state=None if self.environment_state is None else self.environment_state[keep],
            actions=self.actions[keep],
            task_index=self.task_index[keep],
            episode_index=self.episode_index[keep],
        )

    @classmethod
    def _read(cls, path: Path, image_key: str | None, episodes: int | None) -> Self:
        info = read_json(path / fmt.INFO_PATH)
        if info["codebase_version"] != fmt.VERSION:
            raise UserError(f"{path}: LeRobotDataset {info['codebase_version']}, only {fmt.VERSION} can be read")
        image_key = _choose_camera(path, info["features"], image_key)
        table = _read_tables(path, image_key, episodes)
        if episodes is None and len(table["index"]) != info["total_frames"]:
            raise UserError(f"{path}: {len(table['index'])} frames, but info.json tells of {info['total_frames']}")
        stored_as_video = info["features"][image_key]["dtype"] == "video"
        images = _decode_videos(path, info, image_key, table) if stored_as_video else _decode_pngs(table[image_key])
        actions = _vectors(table[fmt.ACTION])
        if actions.shape[1] != 7:
            raise UserError(f"{path}: actions have {actions.shape[1]} dimensions, policies here have 7")
        return cls(
            path=path,
            images=images,
            state=_vectors(table[fmt.STATE]),
            environment_state=_vectors(table[fmt.ENVIRONMENT_STATE]) if fmt.ENVIRONMENT_STATE in table else None,
            actions=actions,
            tasks=_read_tasks(path),
            task_index=table["task_index"].to_numpy(),
            episode_index=table["episode_index"].to_numpy(),
            fps=info["fps"],
        )


def _choose_camera(path: Path, features: dict[str, Any], image_key: str | None) -> str:
    cameras = [key for key, feature in features.items() if feature["dtype"] in ("image", "video")]
    if image_key is None and len(cameras) == 1:
        return cameras[0]
    if image_key not in cameras:
        raise UserError(f"{path}: choose an image_key among {', '.join(cameras) or 'none: it has no camera'}")
    return image_key


def _read_tables(path: Path, image_key: str, episodes: int | None) -> dict[str, pa.ChunkedArray]:
    wanted = {*fmt.INDEX_COLUMNS, fmt.ACTION, fmt.STATE, fmt.ENVIRONMENT_STATE, image_key}
    files = sorted((path / "data").glob("*/*.parquet"))
    if not files:
        raise UserError(f"{path}: no parquet files in data/")
    columns = [name for name in pq.read_schema(files[0]).names if name in wanted]
    filters = None if episodes is None else [("episode_index", "<", episodes)]
    table = pa.concat_tables([pq.read_table(file, columns=columns, filters=filters) for file in files])
    return {name: table[name] for name in columns}


def _read_tasks(path: Path) -> list[str]:
    """The tasks by index. Their column has no name of its own in files that pandas wrote: it is the frame's index."""
    table = pq.read_table(path / fmt.TASKS_PATH)
    (text,) = set(table.column_names) - {"task_index"}
    tasks = dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))
    return [tasks[index] for index in range(len(tasks))]


def _vectors(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists of equal length as float32 (T, D)."""
    flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
    return flat.reshape(len(column), -1).astype(np.float32)


def _decode_pngs(column: pa.ChunkedArray) -> np.ndarray:
    files = [data.as_buffer() for chunk in column.chunks for data in chunk.field("bytes")]
    images = np.empty((len(files), *_decode_png(files[0]).shape), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets go of the GIL while it decompresses
        for index, image in enumerate(track(pool.map(_decode_png, files), "reading demonstrations", len(files))):
            images[index] = image
    return images


def _decode_png(data: pa.Buffer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _decode_videos(path: Path, info: dict[str, Any], key: str, table: dict[str, pa.ChunkedArray]) -> np.ndarray:
    """The frames of one camera: each row's is the one shown at its episode's start plus the row's timestamp."""
    rows = _rows_by_video(path, info, key, table)
    first = next(iter(rows))
    with av.open(first) as container:
        stream = container.streams.video[0]
        images = np.empty((len(table["index"]), stream.height, stream.width, 3), np.uint8)
    with bar("reading demonstrations", len(images)) as progress:
        for video, row_of in rows.items():
            with av.open(video) as container:
                for frame in container.decode(video=0):
                    row = row_of.pop(round(frame.time * info["fps"]), None)
                    if row is not None:
                        images[row] = frame.to_ndarray(format="rgb24")
                        progress.advance()
            if row_of:
                raise UserError(f"{video}: {len(row_of)} frames are missing")
    return images


def _rows_by_video(
    path: Path, info: dict[str, Any], key: str, table: dict[str, pa.ChunkedArray]
) -> dict[Path, dict[int, int]]:
    """For each video file, which of its frames belongs to which row."""
    names = [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    episodes = pa.concat_tables([pq.read_table(file, columns=["episode_index", *names]) for file in files])
    place = {episode: rest for episode, *rest in zip(*(column.to_pylist() for column in episodes), strict=True)}
    rows: dict[Path, dict[int, int]] = {}
    pairs = zip(table["episode_index"].to_pylist(), table["timestamp"].to_pylist(), strict=True)
    for row, (episode, seconds) in enumerate(pairs):
        chunk, file, start = place[episode]
        video = path / info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
        rows.setdefault(video, {})[round((start + seconds) * info["fps"])] = row
    return rows
