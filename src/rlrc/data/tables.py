"""Columns of a dataset's parquet files as checked arrays: every error names the file, the column and the frame."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlrc.data.format import INDEX_COLUMNS
from rlrc.errors import UserError, shorten
from rlrc.reading import read_parquet

REMEDY = "mend it, or leave its episode out with dataset_episodes"


@dataclass(frozen=True)
class Episodes:
    """Episodes as a dataset lists them."""

    source: Path
    """File or folder in which they are listed."""
    number: np.ndarray
    """int64 (E,), ascending"""
    length: np.ndarray
    """int64 (E,), frames"""

    def take(self, chosen: np.ndarray) -> Self:
        """Return only the episodes of this mask."""
        return replace(self, number=self.number[chosen], length=self.length[chosen])


@dataclass(frozen=True)
class Rows:
    """T rows of a dataset: which frames they are, and where they lie in the parquet files."""

    files: tuple[Path, ...]
    file: np.ndarray
    """int64 (T,), into `files`"""
    place: np.ndarray
    """int64 (T,), the row's number in its file"""
    episode: np.ndarray
    """int64 (T,), never falling"""
    frame: np.ndarray
    """int64 (T,), the frame's number in its episode, rising"""
    timestamp: np.ndarray
    """float64 (T,), seconds since the episode began, rising within it"""

    def __len__(self) -> int:
        return len(self.episode)

    def take(self, rows: np.ndarray | slice) -> Self:
        """Return only the rows of these numbers, of this mask or of this range."""
        names = ("file", "place", "episode", "frame", "timestamp")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def name(self, row: int) -> str:
        """Return the name of a row in messages."""
        file = self.files[self.file[row]].name
        return f"episode {self.episode[row]}, frame {self.frame[row]} (row {self.place[row]} of {file})"


def read_rows(
    files: Sequence[Path], vectors: Mapping[str, int], listed: Episodes, wanted: Episodes
) -> tuple[Rows, np.ndarray, dict[str, np.ndarray]]:
    """Read the tables of a dataset, in the order of `files`.

    Args:
        vectors: columns of vectors to read, and how many numbers `info.json` gives each.
        listed: the episodes of the dataset.
        wanted: those of them that are read.

    Returns:
        The rows of these episodes, their task index int64 (T,), and each column of vectors, float32 (T, D).

    Raises:
        UserError: a file is malformed or lacks a column, an episode has not as many rows as listed, or the episodes
            that are wanted hold what is not finite or in disorder.
    """
    tables = [read_parquet(file, [*INDEX_COLUMNS, *vectors]) for file in files]
    parts = [_index_columns(table, file) for table, file in zip(tables, files, strict=True)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in INDEX_COLUMNS}
    lengths = [len(table) for table in tables]
    rows = Rows(
        files=tuple(files),
        file=np.repeat(np.arange(len(files)), lengths),
        place=np.concatenate([np.arange(length) for length in lengths]),
        episode=columns["episode_index"],
        frame=columns["frame_index"],
        timestamp=columns["timestamp"],
    )
    _require_episodes_in_order(rows)
    _require_episodes_whole(rows, listed, wanted)
    keep = np.isin(rows.episode, wanted.number)
    kept = rows.take(keep)
    _require_time_to_pass(kept)
    numbers_of: dict[str, list[np.ndarray]] = {name: [] for name in vectors}
    bounds = np.searchsorted(kept.file, np.arange(len(files) + 1))
    for number, mask in enumerate(np.split(keep, np.cumsum(lengths)[:-1])):
        here = kept.take(slice(bounds[number], bounds[number + 1]))
        part = tables[number] if mask.all() else tables[number].filter(pa.array(mask))
        for name, size in vectors.items():
            numbers_of[name].append(_vectors(part[name], name, size, here))
    return kept, columns["task_index"][keep], {name: np.concatenate(part) for name, part in numbers_of.items()}


def integers(table: pa.Table, name: str, file: Path) -> np.ndarray:
    """A column of whole numbers of at least zero, int64 (T,).

    Raises:
        UserError: it holds something else, or a value is missing.
    """
    column = table[name]
    if not pa.types.is_integer(column.type):
        raise UserError(f"{file}: column '{name}' holds {_type_name(column)}, and whole numbers are needed")
    _require_values(column, name, file)
    try:
        values = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:  # an unsigned number beyond int64
        raise UserError(f"{file}: column '{name}' holds numbers that are too large ({shorten(str(error))})") from error
    if len(values) and values.min() < 0:
        row = int(np.argmax(values < 0))
        raise UserError(f"{file}: column '{name}' holds {values[row]} in row {row}, and it counts from 0")
    return values


def numbers(table: pa.Table, name: str, file: Path) -> np.ndarray:
    """A column of finite numbers, float64 (T,).

    Raises:
        UserError: it holds something else, or a value is missing.
    """
    column = table[name]
    if not _is_number(column.type):
        raise UserError(f"{file}: column '{name}' holds {_type_name(column)}, and numbers are needed")
    _require_values(column, name, file)
    values = column.to_numpy().astype(np.float64)
    if not (finite := np.isfinite(values)).all():
        row = int(np.argmin(finite))
        raise UserError(f"{file}: column '{name}' holds {values[row]} in row {row}, and finite numbers are needed")
    return values


def texts(table: pa.Table, name: str, file: Path) -> list[str]:
    """A column of texts.

    Raises:
        UserError: it holds something else, or a value is missing.
    """
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise UserError(f"{file}: column '{name}' holds {_type_name(column)}, and texts are needed")
    _require_values(column, name, file)
    try:
        return column.to_pylist()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: column '{name}' holds what is not UTF-8 text") from error


def _index_columns(table: pa.Table, file: Path) -> dict[str, np.ndarray]:
    whole = {name: integers(table, name, file) for name in INDEX_COLUMNS if name != "timestamp"}
    return whole | {"timestamp": numbers(table, "timestamp", file)}


def _vectors(column: pa.ChunkedArray, name: str, size: int, rows: Rows) -> np.ndarray:
    """A column of vectors of equal length, or of single numbers, float32 (T, D); `rows` tells what its rows are."""
    if not len(column):
        return np.zeros((0, size), np.float32)
    file = rows.files[rows.file[0]]

    def problem(row: int, what: str) -> UserError:
        return UserError(f"{file}: column '{name}', {rows.name(row)} {what}")

    if isinstance(column.type, pa.ExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    if column.null_count:
        raise problem(_first_null(column), f"is empty; {REMEDY}")
    flat = column
    if _is_list(column.type):
        lengths = pc.list_value_length(column).to_numpy()
        if len(wrong := np.flatnonzero(lengths != size)):
            row = int(wrong[0])
            raise problem(row, f"has length {lengths[row]}, and info.json tells of {size}; {REMEDY}")
        flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    elif size != 1:
        raise UserError(f"{file}: column '{name}' holds {_type_name(column)}, and lists of {size} numbers are needed")
    if not _is_number(flat.type):
        raise UserError(f"{file}: column '{name}' holds {_type_name(column)}, and lists of numbers are needed")
    if flat.null_count:
        raise problem(_first_null(flat) // size, f"lacks a number; {REMEDY}")
    values = flat.to_numpy().reshape(len(column), size)
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not (finite := np.isfinite(single)).all():
        row, dimension = np.argwhere(~finite)[0].tolist()
        value = f"{values[row, dimension]:g} in dimension {dimension}"
        raise problem(row, f"holds {value}, and finite float32 numbers are needed; {REMEDY}")
    return single


def _require_episodes_in_order(rows: Rows) -> None:
    if len(wrong := np.flatnonzero(np.diff(rows.episode) < 0)):
        row = int(wrong[0]) + 1
        raise UserError(
            f"{rows.files[rows.file[row]]}: column 'episode_index' falls from {rows.episode[row - 1]} to "
            f"{rows.episode[row]} in row {rows.place[row]}; episodes must come one after the other"
        )


def _require_episodes_whole(rows: Rows, listed: Episodes, wanted: Episodes) -> None:
    """Check that every episode with rows is listed, and that both those and the wanted ones have as many rows as
    listed."""
    here, counts = np.unique(rows.episode, return_counts=True)
    if len(unknown := np.setdiff1d(here, listed.number)):
        file = rows.files[rows.file[np.argmax(rows.episode == unknown[0])]]
        raise UserError(f"{file}: column 'episode_index' holds {unknown[0]}, which {listed.source} does not list")
    found = np.zeros_like(listed.length)
    found[np.searchsorted(listed.number, here)] = counts
    expected = np.isin(listed.number, here) | np.isin(listed.number, wanted.number)
    if len(wrong := np.flatnonzero(expected & (found != listed.length))):
        first = int(wrong[0])
        raise UserError(
            f"{rows.files[0].parents[1]}: the tables hold {found[first]} frames of episode {listed.number[first]}, but "
            f"{listed.source} tells of {listed.length[first]}"
        )


def _require_time_to_pass(rows: Rows) -> None:
    inside = np.diff(rows.episode) == 0
    for name, values in (("frame_index", rows.frame), ("timestamp", rows.timestamp)):
        if len(wrong := np.flatnonzero(inside & (np.diff(values) <= 0))):
            row = int(wrong[0]) + 1
            raise UserError(
                f"{rows.files[rows.file[row]]}: column '{name}', {rows.name(row)} holds {values[row]:g} after "
                f"{values[row - 1]:g}; within an episode it must rise"
            )


def _require_values(column: pa.ChunkedArray, name: str, file: Path) -> None:
    if column.null_count:
        raise UserError(f"{file}: column '{name}' has no value in row {_first_null(column)}")


def _first_null(column: pa.ChunkedArray) -> int:
    return int(np.argmax(column.is_null().to_numpy()))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _type_name(column: pa.ChunkedArray) -> str:
    return shorten(f"values of type {column.type}", 80)
