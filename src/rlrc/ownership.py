"""The rule of what rlrc may delete: only what it can prove that it made itself.

A folder is deleted where a record in it says that rlrc wrote it (a stage's `config.yaml`, a checkpoint's lineage), and
only file by file what its verb is known to write. Where anything else lies beside, or where a link stands in the way,
nothing at all is touched and the user is told.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from rlrc.errors import UserError, shorten
from rlrc.reading import FileModel, read_yaml, validate

RECORD, DONE, LOG, LOCK = "config.yaml", "done.json", "log.txt", ".lock"
"""Files of every stage: what it was asked, what it measured, its log, and who is writing into its folder now."""

LEFTOVER = re.compile(r"\.(.+)\.(\d{1,10})\.(?:tmp|old)")
"""Name of what a process writes aside before it is renamed: the final name and the number of the process."""


class Owned(NamedTuple):
    """A folder that rlrc writes as a whole."""

    files: tuple[str, ...]
    """Patterns of all files that it may hold; each * stands for a part of one name."""
    proof: str | None = None
    """A file that only rlrc writes. Without one, a stage's record in the folder above is the proof."""


CHECKPOINT = Owned(
    (
        *(f"{name}.json" for name in ("config", "generation_config", "preprocessor_config", "processor_config")),
        *(f"{name}.json" for name in ("tokenizer", "tokenizer_config", "special_tokens_map", "added_tokens")),
        *("compression.json", "dataset_statistics.json", "model.safetensors.index.json"),
        *("model.safetensors", "model-*-of-*.safetensors", "part-*.safetensors"),
        *("tokenizer.model", "chat_template.jinja", "README.md"),
    ),
    proof="compression.json",
)
LEROBOT_POLICY = Owned(
    (
        *("config.json", "model.safetensors", "compression.json", "README.md"),
        *("policy_preprocessor.json", "policy_postprocessor.json", "policy_*processor_step_*.safetensors"),
        *(f"vlm/{name}" for name in ("config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json")),
        *("vlm/chat_template*", "vlm/*processor_config.json"),
    ),
    proof="compression.json",
)
DATASET = Owned(
    (
        *("meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/episodes/chunk-*/file-*.parquet"),
        *("data/chunk-*/file-*.parquet", "videos/*/chunk-*/file-*.mp4"),
    )
)
_CHECKPOINT = tuple(f"checkpoint/{name}" for name in CHECKPOINT.files)
_DATASET = tuple(f"dataset/{name}" for name in DATASET.files)
_TRAINING = (*_CHECKPOINT, "metrics.jsonl", "tensorboard/events.out.tfevents.*", "state.safetensors")

WRITES: dict[str, tuple[str, ...]] = {
    "collect": (*_DATASET, "played/*.npz"),
    "convert-libero": _DATASET,
    "train": _TRAINING,
    "sft": (*_TRAINING, "saliency.safetensors"),
    "rl": _TRAINING,
    "prune": (*_CHECKPOINT, "measured.safetensors", "calibration/sums.safetensors"),
    "quantize": _CHECKPOINT,
    "export": tuple(f"lerobot/{name}" for name in LEROBOT_POLICY.files),
    "evaluate": ("episodes.parquet", "latency.json", "eval.json", "eval_info.json", "videos/*.mp4"),
    "bench": ("bench.json", "bench.png"),
    "sensitivity": ("sensitivity.json", "sensitivity.png"),
    "fit": ("fit.json", "fit.yaml", "measured.json", "*-*.safetensors", "calibration/sums.safetensors"),
    "report": ("report.html",),
}
"""Patterns of what each verb that can be a stage writes into its folder, beside the files of every stage."""


class Record(FileModel):
    """A stage's `config.yaml`."""

    verb: str = Field(max_length=100)
    fingerprint: str = Field(pattern=r"^[0-9a-f]{16}$")
    config: dict[str, Any]


def read_record(folder: Path) -> Record | None:
    """The record of the stage in `folder`, or None where it has none.

    Raises:
        UserError: the record is damaged.
    """
    path = folder / RECORD
    if not os.path.lexists(path):
        return None
    try:
        return validate(read_yaml(path), Record, str(path))
    except UserError as error:
        raise UserError(
            f"{error}; so rlrc cannot tell what {folder} holds: move it away or choose another folder"
        ) from error


def stage_files(verb: str) -> tuple[str, ...]:
    """Patterns of all files in the folder of a stage of this verb."""
    return (RECORD, DONE, LOG, LOCK, *WRITES.get(verb, ()))


def require_plain(path: Path) -> None:
    """Check that `path` is no link: what lies behind one is not rlrc's.

    Raises:
        UserError: it is one.
    """
    if path.is_symlink():
        raise UserError(f"{path}: this is a link, and rlrc neither writes nor deletes through links; name its target")


def require_apart(path: Path, folders: Mapping[Path, str]) -> None:
    """Check that an input and folders that are written to, and may be emptied, do not lie in each other.

    Args:
        folders: what the error calls each of them, such as "the folder of stage 'sft'".

    Raises:
        UserError: the input lies in a folder or a folder in the input, directly or through links.
    """
    places = list(_places(path))
    for folder, what in folders.items():
        here = _real(folder)
        for there in places:
            if there == here or here in there.parents:
                raise UserError(f"{path} is read, and it lies in {what}, which is written to: copy it elsewhere first")
            if there in here.parents:
                raise UserError(f"{path} is read, and {what} lies in it; choose another folder to write to")


def is_empty(folder: Path) -> bool:
    """Return whether nothing but a lock lies in `folder`, or there is no such folder."""
    return not folder.exists() or all(child.name == LOCK for child in folder.iterdir())


def has_work(folder: Path) -> bool:
    """Return whether a stage's folder holds more than its record, its log and empty files."""
    for path, is_folder in _walk(folder):
        bookkeeping = path.parent == folder and path.name in (RECORD, LOG, LOCK)
        if not is_folder and not bookkeeping and not LEFTOVER.fullmatch(path.name) and path.lstat().st_size > 0:
            return True
    return False


def foreign(folder: Path, patterns: Sequence[str]) -> Path | None:
    """The first file, folder or link below `folder` that none of `patterns` names."""
    split = [pattern.split("/") for pattern in patterns]
    for path, is_folder in _walk(folder):
        parts = [_final_name(part) for part in path.relative_to(folder).parts]
        if path.is_symlink() or not (is_folder or path.is_file()) or not any(_fits(parts, p, is_folder) for p in split):
            return path
    return None


def require_own(folder: Path, patterns: Sequence[str]) -> None:
    """Check that `folder` may be emptied.

    Raises:
        UserError: it is a link, or something else lies in it.
    """
    require_plain(folder)
    if (other := foreign(folder, patterns)) is not None:
        raise UserError(
            f"{other}: rlrc did not write this, so it empties nothing in {folder}; move it away or name another folder"
        )


def is_proven(folder: Path, owned: Owned) -> bool:
    """Return whether a record says that rlrc wrote `folder`."""
    if owned.proof is not None and (folder / owned.proof).is_file():
        return True
    return read_record(folder.parent) is not None


def remove_contents(folder: Path, patterns: Sequence[str]) -> None:
    """Empty a folder of which a record was read: file by file what `patterns` name, its record last.

    Raises:
        UserError: it is a link or something else lies in it; nothing was deleted.
    """
    require_own(folder, patterns)
    found = [entry for entry in _walk(folder) if entry[0] != folder / LOCK]
    for path, is_folder in sorted(found, key=lambda entry: (entry[0] == folder / RECORD, -len(entry[0].parts))):
        path.rmdir() if is_folder else path.unlink()


def remove_folder(folder: Path, patterns: Sequence[str]) -> None:
    """Delete a folder, as `remove_contents` empties it."""
    remove_contents(folder, patterns)
    folder.rmdir()


def remove_stage(folder: Path) -> None:
    """Delete the folder of a stage, if there is one.

    Raises:
        UserError: no record says what it holds, or something lies beside what its verb writes; nothing was deleted.
    """
    require_plain(folder)
    if not folder.exists():
        return
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder} holds something else; choose another folder, or delete it first")
    with suppress(FileNotFoundError):
        (folder / LOCK).unlink()
    remove_folder(folder, stage_files(record.verb))


def remove_files(folder: Path, patterns: Sequence[str]) -> None:
    """Delete the files of `folder` that `patterns` name, and each folder that is empty then; leave all else."""
    if folder.is_symlink() or not folder.is_dir():
        return
    split = [pattern.split("/") for pattern in patterns]
    for path, is_folder in sorted(_walk(folder), key=lambda entry: -len(entry[0].parts)):
        parts = [_final_name(part) for part in path.relative_to(folder).parts]
        if path.is_symlink() or not any(_fits(parts, pattern, is_folder) for pattern in split):
            continue
        with suppress(OSError):
            path.rmdir() if is_folder else path.unlink()
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make `folder` and its parents; those that are empty when the block fails are removed again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Everything below `folder`, and whether it is a folder (a link is none)."""
    for root, folders, files in os.walk(folder, onerror=_refuse):
        for name in [*folders, *files]:
            path = Path(root, name)
            yield path, name in folders and not path.is_symlink()


def _refuse(error: OSError) -> None:
    raise error


def _final_name(part: str) -> str:
    """Return the name that something written aside is going to have; any other name stays."""
    leftover = LEFTOVER.fullmatch(part)
    return leftover[1] if leftover else part


def _fits(parts: Sequence[str], pattern: Sequence[str], is_folder: bool) -> bool:
    enough = len(parts) < len(pattern) if is_folder else len(parts) == len(pattern)
    return enough and all(fnmatchcase(part, wanted) for part, wanted in zip(parts, pattern, strict=False))


def _places(path: Path) -> Iterator[Path]:
    """Yield where `path` really is, and where the links below it lead."""
    yield _real(path)
    if path.is_dir():
        yield from (_real(below) for below, _ in _walk(path) if below.is_symlink())


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{shorten(str(path))}: this is no path that can be followed ({reason})") from error
