"""A checkpoint's safetensors files, read and written tensor by tensor: any size passes through little memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rlrc.errors import UserError, shorten
from rlrc.files import write_json
from rlrc.policies.locate import SIDE_FILE
from rlrc.policies.schema import IndexFields
from rlrc.reading import read_model, require_file

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
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
"""Bytes of one file. Writing a file takes as much memory beside the tensors themselves."""

HELD_BYTES = 2**24
"""Bytes that are read from a file before it is closed. Opening it anew takes time that grows with the number of its
tensors, and what was read of an open file counts as memory of this process."""


def has_weights(folder: Path) -> bool:
    """Return whether the weights of a whole policy lie in `folder`."""
    return (folder / SINGLE_FILE).exists() or (folder / INDEX_FILE).exists()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises:
        UserError: there are none, or the index is damaged, or it names a file that is not there.
    """
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    if not (folder / INDEX_FILE).exists():
        files = (file.name for pattern in PICKLED for file in sorted(folder.glob(pattern)))
        found = next((name for name in files if not SIDE_FILE.fullmatch(name)), None)
        pickled = "" if found is None else f"; {shorten(found)} is pickled, convert it to safetensors"
        raise UserError(
            f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is there (pickled weights are never loaded{pickled})"
        )
    shards = [folder / name for name in sorted(set(_weight_map(folder).values()))]
    for shard in shards:
        if not shard.exists():
            raise UserError(f"{shard} is named by {INDEX_FILE} and does not exist; download the checkpoint again")
    return shards


def _weight_map(folder: Path) -> dict[str, str]:
    return read_model(folder / INDEX_FILE, IndexFields).weight_map


class TensorFiles:
    """The tensors of safetensors files by name; each is read when it is asked for.

    Args:
        folder: of the checkpoint.
        paths: the files; those that hold the checkpoint's weights where they are left out.

    Raises:
        UserError: a file is missing, damaged or cut off, holds numbers of a kind that rlrc does not read, or the index
            says something else than the files.
    """

    def __init__(self, folder: Path, paths: list[Path] | None = None) -> None:
        self.folder = folder
        self.paths = weight_files(folder) if paths is None else paths
        self._file: dict[str, Path] = {}
        self._outline: dict[str, torch.Tensor] = {}
        self._held: Any = None
        """The open file, of which `_held_bytes` were read; None where none is open."""
        self._held_path = folder
        self._held_bytes = 0
        for path in self.paths:
            with _open(path) as file:
                for name in file.keys():  # noqa: SIM118  (a safetensors handle, not a dict)
                    if name in self._file:
                        other = self._file[name].name
                        raise UserError(f"{path}: tensor '{shorten(name)}' is in {other} as well")
                    self._file[name] = path
                    self._outline[name] = _outline(file.get_slice(name), path, name)
        if paths is None and not (folder / SINGLE_FILE).exists():
            self._require_the_index(_weight_map(folder))

    def _require_the_index(self, weight_map: dict[str, str]) -> None:
        stored = {name: path.name for name, path in self._file.items()}
        for name in sorted(weight_map.keys() | stored.keys()):
            if weight_map.get(name) != stored.get(name):
                said = f"{INDEX_FILE} puts it into {weight_map[name]}" if name in weight_map else "the index omits it"
                found = f"it is in {stored[name]}" if name in stored else "it is not there"
                raise UserError(f"{self.folder}: tensor '{shorten(name)}': {said}, and {found}; download both again")

    def __iter__(self) -> Iterator[str]:
        """Yield the names, file by file."""
        return iter(self._file)

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def outline(self, name: str) -> torch.Tensor:
        """A tensor of the stored one's shape and dtype, without memory."""
        return self._outline[name]

    def path(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self._file[name]

    def read(self, name: str) -> torch.Tensor:
        """The tensor, in memory of its own.

        Not a view of the file's pages: those lie at odd addresses, where kernels are slower and round differently.
        """
        tensor: torch.Tensor = self._opened(self._file[name]).get_tensor(name).clone()
        self._held_bytes += tensor.nbytes
        if self._held_bytes > HELD_BYTES:
            self._held = None
        return tensor

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: all but the open file, which cannot be copied."""
        return vars(self) | {"_held": None}

    def _opened(self, path: Path) -> Any:
        """The file, which stays open until another one is read, or enough of it."""
        if self._held is None or path != self._held_path:
            self._held, self._held_path, self._held_bytes = _open(path), path, 0
        return self._held


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
        """Bytes of all tensors so far."""

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


def require_finite_tensor(name: str, tensor: torch.Tensor, where: Path | str) -> None:
    """Refuse NaN and infinity; `where` names the origin in the error.

    The least and the largest number tell it in one pass without a copy, since NaN is passed on: a twentieth of what
    `isfinite` takes.

    Raises:
        UserError: there is one.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return
    low, high = torch.aminmax(tensor.detach())
    if not (low.isfinite() and high.isfinite()):
        raise UserError(f"{where}: '{name}' holds NaN or infinity; the checkpoint is broken, copy or download it again")


def _outline(stored: Any, path: Path, name: str) -> torch.Tensor:
    dtype = stored.get_dtype()
    if dtype not in _DTYPES:
        raise UserError(f"{path}: tensor '{shorten(name)}' has dtype {dtype}, which rlrc does not read")
    return torch.empty(stored.get_shape(), dtype=_DTYPES[dtype], device="meta")


def _open(path: Path) -> Any:
    require_file(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or cut off ({shorten(str(error))}); copy or download it again") from error
