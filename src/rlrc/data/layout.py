"""The files that a dataset consists of, and its tasks and episodes, in version 3.0 and in 2.1."""

import re
import string
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from rlrc.data import format as fmt
from rlrc.data.info import Count, Info
from rlrc.data.tables import Episodes, integers, numbers, texts
from rlrc.errors import UserError, shorten
from rlrc.reading import FileModel, read_json_lines, read_parquet, require_file

MAX_TASK = 10_000
"""Characters of an instruction."""
_WIDTH = re.compile(r"(0?\d{1,2}d?)?", re.ASCII)


class PathPattern:
    """A path below the dataset in which numbers are left open, such as data/chunk-{chunk_index:03d}/..."""

    def __init__(self, template: str, fields: set[str], where: str) -> None:
        """
        Raises:
            UserError: it leads out of the dataset, is malformed, or has other fields than `fields`.
        """
        self._template, self._where = template, where
        try:
            self._parts = list(string.Formatter().parse(template))
            for _, field, width, conversion in self._parts:
                if field is not None and (field not in fields or conversion or not _WIDTH.fullmatch(width or "")):
                    raise ValueError(field)
        except ValueError as error:
            known = ", ".join(f"{{{field}}}" for field in sorted(fields))
            raise UserError(f"{where}: '{shorten(template)}' is not a path with the fields {known}") from error
        _require_inside(template, where)

    def fill(self, root: Path, **values: int | str) -> Path:
        """The path with its fields filled in.

        Raises:
            UserError: it leads out of the dataset.
        """
        try:
            name = self._template.format(**values)
        except ValueError as error:  # a width of numbers where a text stands
            raise UserError(f"{self._where}: '{shorten(self._template)}' cannot be filled in ({error})") from error
        _require_inside(name, self._where)
        return root / name

    def files(self, root: Path) -> list[Path]:
        """All files of this pattern, in the order of their numbers.

        Raises:
            UserError: there are none.
        """
        pattern = "".join(escape(literal) + ("" if field is None else "*") for literal, field, *_ in self._parts)
        try:
            found = sorted(root.glob(pattern), key=lambda path: _natural(path.relative_to(root).as_posix()))
        except (OSError, ValueError) as error:  # a name that is too long, or that no file can have
            raise UserError(f"{self._where}: '{shorten(pattern)}' is no path ({shorten(str(error))})") from error
        if not found:
            raise UserError(f"{root}: there is no file {pattern}, where {self._where.rpartition('/')[2]} has them")
        return found


@dataclass(frozen=True)
class VideoPlaces:
    """The places of the videos of E episodes."""

    episode: np.ndarray
    """int64 (E,), ascending"""
    files: tuple[Path, ...]
    file: np.ndarray
    """int64 (E,), into `files`"""
    start: np.ndarray
    """float64 (E,), seconds in the file at which the episode begins"""
    end: np.ndarray
    """float64 (E,), seconds in the file at which it ends; infinite where the file holds nothing else"""


class _Task(FileModel):
    task_index: Count
    task: Annotated[str, Field(max_length=MAX_TASK)]


class _Episode(FileModel):
    episode_index: Count
    length: Count


def read_episodes(root: Path, info: Info) -> Episodes:
    """The episodes that `meta/` lists.

    Raises:
        UserError: the list is missing, malformed or contradicts `info.json`.
    """
    if info.codebase_version == fmt.VERSION:
        files = _episode_tables().files(root)
        where = files[0].parents[1]
        tables = [(read_parquet(file, ["episode_index", "length"]), file) for file in files]
        number, length = (
            np.concatenate([integers(table, name, file) for table, file in tables])
            for name in ("episode_index", "length")
        )
    else:
        where = root / fmt.V2_EPISODES_PATH
        listed = read_json_lines(where, _Episode)
        number = np.array([episode.episode_index for episode in listed], np.int64)
        length = np.array([episode.length for episode in listed], np.int64)
    order = np.argsort(number, kind="stable")
    number, length = number[order], length[order]
    if len(twice := np.flatnonzero(np.diff(number) == 0)):
        raise UserError(f"{where}: episode {number[twice[0]]} is listed twice")
    for found, told, what in (
        (len(number), info.total_episodes, "episodes"),
        (length.sum(), info.total_frames, "frames"),
    ):
        if found != told:
            raise UserError(f"{where}: {found} {what} are listed, but info.json tells of {told}")
    if not info.total_frames:
        raise UserError(f"{where}: the dataset has no frames")
    return Episodes(where, number, length)


def table_files(root: Path, info: Info, episodes: Episodes) -> list[Path]:
    """The parquet files that hold these episodes, and in v3.0 perhaps others.

    Raises:
        UserError: there are none, or `info.json` names them wrongly.
    """
    where = f"{root / fmt.INFO_PATH}, data_path"
    if info.codebase_version == fmt.VERSION:
        return PathPattern(info.data_path, {"chunk_index", "file_index"}, where).files(root)
    pattern = PathPattern(info.data_path, {"episode_chunk", "episode_index"}, where)
    numbered = episodes.number.tolist()
    return [pattern.fill(root, episode_chunk=n // info.chunks_size, episode_index=n) for n in numbered]


def tasks_path(root: Path, info: Info) -> Path:
    """The file of the instructions."""
    return root / (fmt.TASKS_PATH if info.codebase_version == fmt.VERSION else fmt.V2_TASKS_PATH)


def read_tasks(root: Path, info: Info) -> dict[int, str]:
    """The instructions by their numbers.

    Raises:
        UserError: their file is missing or malformed.
    """
    path = tasks_path(root, info)
    if info.codebase_version != fmt.VERSION:
        pairs = [(task.task_index, task.task) for task in read_json_lines(path, _Task)]
    else:
        table = read_parquet(path)
        text = _text_column(table, path)
        pairs = list(zip(integers(table, "task_index", path).tolist(), texts(table, text, path), strict=True))
    tasks = dict(pairs)
    if len(tasks) < len(pairs):
        raise UserError(f"{path}: two tasks have the same task_index")
    if long := [index for index, task in pairs if len(task) > MAX_TASK]:
        raise UserError(f"{path}: task {long[0]} has more than {MAX_TASK:,} characters")
    return tasks


def video_places(root: Path, info: Info, key: str, episodes: np.ndarray) -> VideoPlaces:
    """Return where the videos of one camera lie, for `episodes`, numbers of listed ones, ascending int64 (E,).

    Raises:
        UserError: files are missing, or what tells their places is malformed or contradicts itself.
    """
    where = f"{root / fmt.INFO_PATH}, video_path"
    if info.video_path is None:
        raise UserError(f"{where}: it is missing, and '{key}' is stored as video")
    if info.codebase_version != fmt.VERSION:
        pattern = PathPattern(info.video_path, {"episode_chunk", "video_key", "episode_index"}, where)
        files = [
            pattern.fill(root, episode_chunk=number // info.chunks_size, video_key=key, episode_index=number)
            for number in episodes.tolist()
        ]
        whole = np.arange(len(files)), np.zeros(len(files)), np.full(len(files), np.inf)
        places = VideoPlaces(episodes, tuple(files), *whole)
    else:
        pattern = PathPattern(info.video_path, {"chunk_index", "video_key", "file_index"}, where)
        places = _shared_videos(root, pattern, key, episodes, 0.5 / info.fps)
    for file in places.files:
        if info.codebase_version == fmt.VERSION and not file.exists():
            raise UserError(f"{file}: no such file, and meta/episodes names it (its chunk_index and file_index)")
        require_file(file)
    return places


def _shared_videos(root: Path, pattern: PathPattern, key: str, episodes: np.ndarray, slack: float) -> VideoPlaces:
    """Places in files that hold several episodes; these may overlap by less than `slack` seconds."""
    listing = _episode_tables().files(root)
    columns = [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    tables = [(read_parquet(path, ["episode_index", *columns]), path) for path in listing]
    listed = np.concatenate([integers(table, "episode_index", path) for table, path in tables])
    order = np.argsort(listed, kind="stable")
    wanted = order[np.searchsorted(listed[order], episodes)]
    chunk, file = (np.concatenate([integers(t, name, p) for t, p in tables])[wanted] for name in columns[:2])
    start, end = (np.concatenate([numbers(t, name, p) for t, p in tables])[wanted] for name in columns[2:])
    if len(wrong := np.flatnonzero((end <= start) | (start < 0))):
        number = int(wrong[0])
        raise UserError(
            f"{listing[0].parents[1]}: episode {episodes[number]} of '{key}' lasts from {start[number]:g} s to "
            f"{end[number]:g} s of its file"
        )
    pairs, index = np.unique(np.stack([chunk, file], axis=1), axis=0, return_inverse=True)
    files = tuple(pattern.fill(root, video_key=key, chunk_index=c, file_index=f) for c, f in pairs.tolist())
    by_time = np.lexsort((start, index))
    same = np.diff(index[by_time]) == 0
    if len(wrong := np.flatnonzero(same & (start[by_time][1:] < end[by_time][:-1] - slack))):
        one, other = by_time[wrong[0]], by_time[wrong[0] + 1]
        raise UserError(
            f"{listing[0].parents[1]}: episodes {episodes[one]} and {episodes[other]} of '{key}' overlap in their file "
            f"(from_timestamp {start[one]:g} and {start[other]:g} s)"
        )
    return VideoPlaces(episodes, files, index, start, end)


def _episode_tables() -> PathPattern:
    return PathPattern(fmt.EPISODES_PATH, {"chunk_index", "file_index"}, "the layout of v3.0")


def _text_column(table: pa.Table, path: Path) -> str:
    """The column of instructions; in files that pandas wrote it has no name of its own, being the frame's index."""
    others = [name for name in table.column_names if name != "task_index"]
    if len(others) == len(table.column_names) or not others or (len(others) > 1 and "task" not in others):
        names = shorten(", ".join(table.column_names))
        raise UserError(f"{path}: columns 'task_index' and 'task' are needed (there are: {names})")
    return "task" if "task" in others else others[0]


def _require_inside(name: str, where: str) -> None:
    path = PurePosixPath(name)
    if not path.parts:
        raise UserError(f"{where}: it is empty, and a path is needed")
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise UserError(f"{where}: '{shorten(name)}' leads out of the dataset's folder")


def _natural(name: str) -> list[int | str]:
    """A key that sorts numbers in names by their value."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"([0-9]+)", name))]
