"""One door for files from outside: everything that rlrc did not just write itself is read here.

A file must be regular (a named pipe would hang), of bounded size and UTF-8, and the fields that rlrc uses must have the
types and ranges that a pydantic model gives them. Every error is one line that names the file and the field. A git-lfs
pointer in the place of a file is told as what it is.
"""

import json
import math
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rlrc.errors import UserError, shorten

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_JSON_BYTES = 64 * 2**20
"""Largest size of a JSON file in bytes. The largest published tokenizer.json takes 33 MiB."""
MAX_YAML_BYTES = 2**20
MAX_DEPTH = 64
"""Largest depth to which objects and lists may lie in each other."""
MAX_YAML_NODES = 100_000
"""Nodes of a YAML document after its anchors and merge keys are written out."""
MAX_PARQUET_ROWS = 20_000_000
"""Rows of one parquet file: four such columns of numbers take less than a gigabyte."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

Model = TypeVar("Model", bound=BaseModel)
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class FileModel(BaseModel):
    """Base of the models of other people's files: known fields have types and ranges, unknown ones are kept."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def lies_there(path: Path) -> bool:
    """Return whether there is anything at `path`: also a link that leads nowhere, which reading then tells."""
    return path.is_symlink() or path.exists()


def require_file(path: Path, max_bytes: int | None = None) -> None:
    """Check that `path` is a file that can be read safely.

    Raises:
        UserError: it is missing, no regular file, larger than `max_bytes`, not readable, or a git-lfs pointer.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path}: this is a folder, and a file is needed")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: this is no regular file; pipes and devices are not read")
        if max_bytes is not None and status.st_size > max_bytes:
            raise UserError(f"{path}: the file has {status.st_size:,} bytes, and at most {max_bytes:,} are read")
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if start == LFS_POINTER:
        raise UserError(
            f"{path}: this is a git-lfs pointer and not the file itself; run `git lfs pull` in its repository"
        )


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a file.

    Raises:
        UserError: as `require_file`, or the file is not UTF-8.
    """
    require_file(path, max_bytes)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: as `read_text`, or the file is not JSON or too deep.
    """
    return parse_json(read_text(path, MAX_JSON_BYTES), str(path))


def parse_json(text: str, where: str) -> Any:
    """Parse JSON from outside; `where` names its origin in the error.

    Raises:
        UserError: it is not JSON, or too deep.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise UserError(f"{where}: objects lie more than {MAX_DEPTH} deep in each other") from error
    except ValueError as error:  # also a number of more digits than Python converts
        raise UserError(f"{where}: not valid JSON ({error})") from error
    _require_depth(value, where)
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that holds an object.

    Raises:
        UserError: as `read_json`, or it holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is needed, not {_kind(value)}")
    return value


def read_model(path: Path, model: type[Model]) -> Model:
    """Parse a JSON file into a pydantic model.

    Raises:
        UserError: as `read_object`, or a field is missing, of the wrong type or out of range.
    """
    return validate(read_object(path), model, str(path))


def validate(values: Any, model: type[Model], where: str) -> Model:
    """Make a pydantic model of what a file holds; `where` names its origin in the error.

    Raises:
        UserError: a field is missing, unknown, of the wrong type or out of range.
    """
    try:
        return model.model_validate(values)
    except RecursionError as error:
        raise UserError(f"{where}: objects lie more than {MAX_DEPTH} deep in each other") from error
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error, model)}") from error


def require_finite(value: Any, where: str) -> None:
    """Refuse NaN and infinity anywhere in what a JSON file holds; `where` names its origin in the error.

    Raises:
        UserError: there is one.
    """
    waiting = [(value, "")]
    while waiting:
        item, key = waiting.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(f"{where}: '{shorten(key)}' is {item}, and a finite number is needed")
        pairs = list(item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ())
        waiting += [(child, f"{key}.{name}" if key else str(name)) for name, child in reversed(pairs)]


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        UserError: as `read_text`, or the file is not YAML, too deep, has a key twice, or grows too large through its
            anchors.
    """
    text = read_text(path, MAX_YAML_BYTES)
    try:
        _require_shallow_yaml(text, path)
        node = yaml.compose(text, Loader=Loader)
        if node is None:
            return None
        _count_nodes(node, path, {})
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {shorten(' '.join(str(error).split()))}") from error
    except (ValueError, OverflowError, RecursionError, TypeError) as error:
        # A date that does not exist, a number of more digits than Python converts, a key that cannot be one.
        raise UserError(f"{path}: not valid YAML: {shorten(str(error))}") from error


def read_json_lines(path: Path, model: type[Model]) -> list[Model]:
    """Parse a file with a JSON object on each line (JSONL) into pydantic models.

    Raises:
        UserError: as `read_model`; the line is named.
    """
    models = []
    for number, line in enumerate(read_text(path, MAX_JSON_BYTES).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            models.append(validate(parse_json(line, where), model, where))
    return models


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> "pa.Table":
    """Read a parquet file, or some of its columns.

    Raises:
        UserError: as `open_parquet`, or the file lacks a column.
    """
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        if missing := [name for name in columns or () if name not in names]:
            raise UserError(f"{path}: there is no column '{missing[0]}' (there are: {shorten(', '.join(names))})")
        return file.read(columns=None if columns is None else list(columns))


@contextmanager
def open_parquet(path: Path) -> Iterator["pq.ParquetFile"]:
    """Open a parquet file to read it in parts; what fails inside the block is told as an error of the file.

    Raises:
        UserError: as `require_file`, or the file is not parquet, has two columns of one name or too many rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_file(path)
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                raise UserError(f"{path}: two columns are called '{shorten(twice[0])}'")
            if file.metadata.num_rows > MAX_PARQUET_ROWS:
                rows = file.metadata.num_rows
                raise UserError(f"{path}: the file has {rows:,} rows, and at most {MAX_PARQUET_ROWS:,} are read")
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a parquet file that can be read ({shorten(str(error))})") from error


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """Return what pydantic found first, in one line that names the field."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _model_at(first["loc"][:-1], model)
        return f"unknown key '{shorten(key)}'" + (f" (known: {', '.join(known.model_fields)})" if known else "")
    if first["type"] == "missing":
        return f"missing key '{key}'"
    if first["type"] == "path_type":
        return f"'{shorten(key)}': a path is needed"
    message = first["msg"].removeprefix("Value error, ")
    return f"'{shorten(key)}': {message}" if key else message


def _model_at(place: Sequence[int | str], model: type[BaseModel]) -> type[BaseModel] | None:
    """The model of what lies at a place of pydantic's, whose parts are fields, numbers of items, and the tags that
    choose a model of several; None where it cannot be told."""
    models = [model]
    for part in place:
        field = models[0].model_fields.get(str(part)) if len(models) == 1 else None
        if field is not None:
            models = _models_in(field.annotation)
        elif isinstance(part, str):
            models = [m for m in models if any(field.default == part for field in m.model_fields.values())]
    return models[0] if len(models) == 1 else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _require_depth(value: Any, where: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise UserError(f"{where}: objects lie more than {MAX_DEPTH} deep in each other")


def _require_shallow_yaml(text: str, path: Path) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise UserError(f"{path}: lists and mappings lie more than {MAX_DEPTH} deep in each other")


def _count_nodes(node: yaml.Node, path: Path, known: dict[int, int | None]) -> int:
    """Nodes below `node` with every anchor written out; None in `known` marks one that is being counted."""
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise UserError(f"{path}: an anchor contains itself")
        return count
    known[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, count in keys.items() if count > 1]:
            line = node.start_mark.line + 1
            raise UserError(f"{path}: key '{shorten(twice[0])}' stands twice in the mapping at line {line}")
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    count = 1 + sum(_count_nodes(child, path, known) for child in children)
    if count > MAX_YAML_NODES:
        raise UserError(f"{path}: more than {MAX_YAML_NODES:,} values, with its anchors written out")
    known[id(node)] = count
    return count


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
