"""A checkpoint's safetensors files, read and written tensor by tensor: any size passes through little memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rlrc.errors import UserError
from rlrc.files import write_json
from rlrc.reading import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SHARD_BYTES = 2**30
"""Of one file. Writing a file takes as much memory beside the tensors themselves."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises:
        UserError: there are none, or the index names one that is not there.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if not (folder / INDEX_FILE).is_file():
        raise UserError(f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is there (pickled weights are never loaded)")
    shards = [folder / name for name in sorted(set(read_json(folder / INDEX_FILE)["weight_map"].values()))]
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"{shard}: named by {INDEX_FILE} but not there; download the checkpoint again")
    return shards


class TensorFiles:
    """The tensors of a checkpoint folder by name; each is read when it is asked for.

    Raises:
        UserError: a file is missing, damaged or cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = weight_files(folder)
        self._file: dict[str, Path] = {}
        self._outline: dict[str, torch.Tensor] = {}
        for path in self.paths:
            with _open(path) as file:
                for name in file.keys():  # noqa: SIM118  (a safetensors handle, not a dict)
                    self._file[name] = path
                    self._outline[name] = _outline(file.get_slice(name))

    def __iter__(self) -> Iterator[str]:
        """Names, file by file."""
        return iter(self._file)

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def outline(self, name: str) -> torch.Tensor:
        """A tensor of the stored one's shape and dtype, without memory."""
        return self._outline[name]

    def read(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """Some rows of the tensor, in memory of their own.

        Not a view of the file's pages: those lie at odd addresses, where kernels are slower and round differently.
        """
        with _open(self._file[name]) as file:
            tensor: torch.Tensor = file.get_slice(name)[rows] if rows != slice(None) else file.get_tensor(name)
            return tensor.clone()


class ShardWriter:
    """Writes tensors in the order they are given, to files of up to `shard_bytes`, of which it holds one in memory.

    `close` names the files as transformers does: one `model.safetensors`, or `model-00001-of-0000N.safetensors` and so
    on with their index.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._waiting: dict[str, torch.Tensor] = {}
        self._shards: list[list[str]] = []
        self.nbytes = 0
        """Of all tensors so far."""

    def add(self, name: str, tensor: torch.Tensor) -> None:
        waiting = sum(other.nbytes for other in self._waiting.values())
        if self._waiting and waiting + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._waiting[name] = tensor.detach().contiguous()
        self.nbytes += tensor.nbytes

    def close(self) -> None:
        self._flush()
        if len(self._shards) == 1:
            self._part(0).rename(self._folder / SINGLE_FILE)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            filename = f"model-{number + 1:05d}-of-{len(self._shards):05d}.safetensors"
            self._part(number).rename(self._folder / filename)
            weight_map |= dict.fromkeys(names, filename)
        index = {"metadata": {"total_size": self.nbytes}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(self._folder / INDEX_FILE, index)

    def _flush(self) -> None:
        path = self._part(len(self._shards))
        save_file(self._waiting, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes files that only their owner reads
        self._shards.append(list(self._waiting))
        self._waiting = {}

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"


def stored_bytes(folder: Path) -> dict[str, int]:
    """Bytes of each tensor of a checkpoint, read from the safetensors headers."""
    sizes = {}
    for path in weight_files(folder):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        offsets = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        sizes.update({name: end - start for name, (start, end) in offsets.items()})
    return sizes


def _outline(stored: Any) -> torch.Tensor:
    return torch.empty(stored.get_shape(), dtype=_DTYPES[stored.get_dtype()], device="meta")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or cut off ({error}); copy or download it again") from error
