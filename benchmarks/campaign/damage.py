"""Ways to damage files: a text file as a whole, a field of a JSON file, a column of a parquet file."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Change = Callable[[Path], None]
"""Changes the file, or the folder, at a path."""

LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
VALUES = {
    "null": "null",
    "negative": "-1",
    "zero": "0",
    "fraction": "0.5",
    "nan": "NaN",
    "infinity": "Infinity",
    "minus-infinity": "-Infinity",
    "overflow": "1e999",
    "huge": "1e30",
    "huge-integer": "4611686018427387904",
    "text": '"abc"',
    "empty-text": '""',
    "empty-list": "[]",
    "object": "{}",
    "list-of-null": "[null]",
    "true": "true",
    "deep": "[" * 100_000 + "]" * 100_000,
    "5000-digits": "1" * 5000,
    "long-text": '"' + "x" * 1_000_000 + '"',
}
"""JSON values by name, as they are written."""
_PLACE = "@the-value@"


def set_field(keys: Iterable[str | int], raw: str | None) -> Change:
    """Give a field of a JSON file another value, written as `raw`; None removes it."""

    def change(path: Path) -> None:
        values = json.loads(path.read_text())
        *parents, last = keys
        owner: Any = values
        for key in parents:
            owner = owner[key]
        if raw is None:
            del owner[last]
        else:
            owner[last] = _PLACE
        path.write_text(json.dumps(values).replace(f'"{_PLACE}"', raw or ""))

    return change


def has_field(path: Path, keys: Iterable[str | int]) -> bool:
    value: Any = json.loads(path.read_text())
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def inside(name: str, change: Change) -> Change:
    """Return the change of a folder that applies `change` to its file `name`."""
    return lambda folder: change(folder / name)


def write(content: str | bytes) -> Change:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content) and None


def remove(path: Path) -> None:
    path.unlink()


def truncate(part: float) -> Change:
    return lambda path: os.truncate(path, int(path.stat().st_size * part))


def _replace_by(make: Change) -> Change:
    def change(path: Path) -> None:
        path.unlink(missing_ok=True)
        make(path)

    return change


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2 * 2**30)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


NO_FILE: dict[str, Change] = {
    "lfs-pointer": write(LFS_POINTER),
    "pipe": _replace_by(lambda path: os.mkfifo(path)),
    "folder": _replace_by(lambda path: path.mkdir()),
    "dev-zero": _replace_by(lambda path: path.symlink_to("/dev/zero")),
    "dev-null": _replace_by(lambda path: path.symlink_to("/dev/null")),
    "dangling-link": _replace_by(lambda path: path.symlink_to("nowhere")),
    "link-to-itself": _replace_by(_loop),
    "empty": write(""),
}
"""Changes, by name, that put something else in the place of a file; they suit any file."""

NO_TEXT: dict[str, Change] = {
    "not-utf-8": write(b'{"a": "\xff\xfe\x00"}'),
    "utf-16": lambda path: path.write_bytes(path.read_text().encode("utf-16")) and None,
    "zeros": write(b"\0" * 1000),
    "cut-off": truncate(0.5),
}
NO_OBJECT: dict[str, Change] = {
    "list": write("[1, 2]"),
    "number": write("5"),
    "text": write('"abc"'),
    "null": write("null"),
    "nan": write("NaN"),
    "no-json": write("hello: {"),
    "deep-lists": write("[" * 100_000),
    "deep-objects": write('{"a":' * 100_000 + "1" + "}" * 100_000),
    "5000-digits": write("1" * 5000),
    "html": write("<!DOCTYPE html><html>Access denied</html>"),
}
JSON_FILE = NO_FILE | {"2-GiB": _replace_by(_sparse)} | NO_TEXT | NO_OBJECT


def edit_table(edit: Callable[[Any], Any]) -> Change:
    """Change a parquet file by a function of its table."""

    def change(path: Path) -> None:
        import pyarrow.parquet as pq

        pq.write_table(edit(pq.ParquetFile(path).read()), path)

    return change


def edit_column(name: str, edit: Callable[[list[Any]], list[Any]], kind: Any = None) -> Change:
    """Change a column by a function of its list of values; `kind` is the arrow type of the new one."""

    def replaced(table: Any) -> Any:
        import pyarrow as pa

        column = table[name]
        wanted = kind() if callable(kind) else (kind or column.type)
        values = pa.array(edit(column.to_pylist()), wanted)
        return table.set_column(table.column_names.index(name), name, values)

    return edit_table(replaced)


def at(row: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    """Return an edit that gives one row another value."""
    return lambda values: [*values[:row], value, *values[row + 1 :]]
