"""Files of what a method has measured: whole, to try another ratio on it, or as sums over the layers done so far, from
which a run that was cut off goes on."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rlrc.errors import UserError, shorten
from rlrc.files import atomic_path
from rlrc.ownership import remove_files
from rlrc.reading import parse_json, require_file

Measured = dict[str, torch.Tensor]
"""Tensors by name; only the method itself knows what they mean."""

SAVE_EVERY = 20.0
"""Seconds between two writings."""


class SavedSums:
    """One safetensors file in `folder`, valid for one `key`, which is all that the sums depend on. Without a folder
    nothing is saved."""

    def __init__(self, folder: Path | None, key: dict[str, Any]) -> None:
        self._folder = folder
        self._key = json.dumps(key, sort_keys=True)
        self._saved_at = time.monotonic()

    def load(self) -> tuple[int, Measured]:
        """Return how many layers were done, and the tensors that `save` was given then; (0, {}) where none were."""
        if self._folder is None or not self._path.exists():
            return 0, {}
        try:
            metadata, tensors = _read(self._path)
            done, key = int(metadata["done"]), metadata["key"]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{self._path} is damaged; delete it, and the same command measures anew") from error
        tensors = {name: tensor.to(torch.get_default_device()) for name, tensor in tensors.items()}
        return (done, tensors) if key == self._key else (0, {})

    def save(self, done: int, tensors: Measured) -> None:
        """Keep what is needed to go on after `done` layers, unless that was done a moment ago."""
        if self._folder is not None and time.monotonic() - self._saved_at >= SAVE_EVERY:
            _write(self._path, tensors, {"key": self._key, "done": str(done)})
            self._saved_at = time.monotonic()

    def forget(self) -> None:
        if self._folder is not None:
            remove_files(self._folder, (self._path.name,))

    @property
    def _path(self) -> Path:
        assert self._folder is not None
        return self._folder / "sums.safetensors"


def write_measured(path: Path, measured: Measured, key: dict[str, Any]) -> None:
    """Keep all that was measured, and what it depends on."""
    _write(path, measured, {"key": json.dumps(key, sort_keys=True), "checksum": _checksum(measured)})


def read_measured(path: Path, key: dict[str, Any]) -> Measured:
    """
    Raises:
        UserError: the file is missing or damaged, or was measured by another method or on something else.
    """
    require_file(path)
    try:
        metadata, measured = _read(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no file of measurements that can be read ({shorten(str(error))})") from error
    theirs = parse_json(metadata.get("key", "{}"), str(path))
    if not isinstance(theirs, dict):
        raise UserError(f"{path} is no file of measurements: its key is no JSON object")
    differing = [name for name, value in json.loads(json.dumps(key)).items() if theirs.get(name) != value]
    if differing:
        raise UserError(f"{path} was measured with another {' and '.join(differing)}; leave `measured` out")
    if metadata.get("checksum") != _checksum(measured):
        raise UserError(
            f"{path} was changed after it was measured, or an earlier release wrote it; leave `measured` out"
        )
    return measured


def _checksum(measured: Measured) -> str:
    """Return a hash of every name, type, shape and number."""
    digest = hashlib.sha256()
    for name, tensor in sorted(measured.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, tensors: Measured, metadata: dict[str, str]) -> None:
    with atomic_path(path) as aside:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, metadata=metadata)


def _read(path: Path) -> tuple[dict[str, str], Measured]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
