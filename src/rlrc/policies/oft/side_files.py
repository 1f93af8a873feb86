"""The `.pt` files beside a published OpenVLA-OFT checkpoint: plain tensors by name, and nothing else.

A file is opened once, its tensors stay on disk until each is read. Names become those of our modules, and what LoRA
would add to a weight is added while it is read.
"""

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from rlrc.errors import UserError, shorten
from rlrc.policies.locate import SIDE_FILE
from rlrc.policies.shards import require_finite_tensor
from rlrc.reading import require_file

MAX_BYTES = 16 * 2**30
"""Largest size of a side file. The largest published one, a vision backbone with its LoRA, takes 2 GB."""
MAX_TENSORS = 10_000
LORA_ALPHA = 16
"""OpenVLA-OFT trains with alpha = min(rank, 16); no file says it."""
VISION = "vision_backbone."
HEADS = {"model.": "l1", "noise_predictor.mlp_resnet.": "diffusion"}
"""Beginning of the names in an action head's file -> kind of head."""


class SideFile:
    """The tensors of one file, by their names in our model.

    Raises:
        UserError: the file is missing, cut off, too large, or holds anything but tensors of numbers.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self._stored = {name.removeprefix("module."): tensor for name, tensor in _load(path).items()}
        self.prefixes = tuple(prefix for prefix in HEADS if any(name.startswith(prefix) for name in self._stored))
        self._source = {_our_name(kind, name): name for name in self._stored if ".lora_" not in name}

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __contains__(self, name: str) -> bool:
        return name in self._source

    def outline(self, name: str) -> torch.Tensor:
        """A tensor of the stored one's shape and dtype, without memory."""
        return self._stored[self._source[name]].to("meta")

    def read(self, name: str) -> torch.Tensor:
        """The tensor, LoRA merged, in memory of its own.

        Raises:
            UserError: it holds NaN or infinity, or LoRA's factors do not fit the weight.
        """
        source = self._source[name]
        tensor = self._stored[source].clone()
        factors = [self._stored.get(key) for key in _factors(source)]
        if ".base_layer." in source and source.endswith(".weight"):
            tensor = self._with_lora(source, tensor, *factors)
        require_finite_tensor(name, tensor, self.path)
        return tensor

    def _with_lora(
        self, source: str, weight: torch.Tensor, a: torch.Tensor | None, b: torch.Tensor | None
    ) -> torch.Tensor:
        if a is None or b is None:
            raise UserError(f"{self.path}: '{shorten(source)}' is there without its lora_A and lora_B")
        rank = len(a)
        if not rank or weight[0].numel() != a[0].numel() or b.shape[0] != len(weight) or b[0].numel() != rank:
            raise UserError(
                f"{self.path}: LoRA's factors of '{shorten(source)}' have shapes {tuple(a.shape)} and "
                f"{tuple(b.shape)}, which do not fit its {tuple(weight.shape)}"
            )
        change = b.float().flatten(1) @ a.float().flatten(1)
        return weight.float() + min(rank, LORA_ALPHA) / rank * change.view_as(weight)


class SideFiles:
    """The side files of a checkpoint, one of each kind at most.

    Raises:
        UserError: there are two of a kind, or one cannot be read.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.files = {kind: SideFile(path, kind) for kind, path in find(folders).items()}

    @property
    def paths(self) -> list[Path]:
        return [file.path for file in self.files.values()]

    def __iter__(self) -> Iterator[str]:
        for file in self.files.values():
            yield from file

    def covers(self, name: str) -> bool:
        """Return whether the tensor belongs into one of these files, be it there or not."""
        return self.kind_of(name) in self.files

    def kind_of(self, name: str) -> str:
        return name.partition(".")[0]

    def path(self, name: str) -> Path:
        """The file that the tensor belongs into."""
        return self.files[self.kind_of(name)].path

    def __contains__(self, name: str) -> bool:
        return self.covers(name) and name in self.files[self.kind_of(name)]

    def outline(self, name: str) -> torch.Tensor:
        """See `SideFile.outline`."""
        return self.files[self.kind_of(name)].outline(name)

    def read(self, name: str) -> torch.Tensor:
        """See `SideFile.read`."""
        return self.files[self.kind_of(name)].read(name)


def find(folders: Sequence[Path]) -> dict[str, Path]:
    """The side file of each kind in these folders.

    Raises:
        UserError: there are two of a kind.
    """
    found: dict[str, Path] = {}
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        match = SIDE_FILE.fullmatch(path.name)
        if match is None:
            continue
        kind = match[1]
        if kind in found:
            raise UserError(
                f"{path.parent}: both {shorten(found[kind].name)} and {shorten(path.name)} lie here; keep the one of "
                "the step that you want"
            )
        found[kind] = path
    return found


def _our_name(kind: str, name: str) -> str:
    """The name in our model of a tensor that a side file calls `name`."""
    if kind + "." == VISION:
        return re.sub(r"(\.blocks\.\d+)\.block\.", r"\1.", name).replace(".base_layer.", ".")
    prefix = next((prefix for prefix in HEADS if name.startswith(prefix)), "") if kind == "action_head" else ""
    return f"{kind}.{name.removeprefix(prefix)}"


def _factors(source: str) -> tuple[str, str]:
    """Names of LoRA's A and B of the weight that a file calls `source`."""
    module = source.removesuffix(".base_layer.weight")
    return f"{module}.lora_A.default.weight", f"{module}.lora_B.default.weight"


def _load(path: Path) -> Mapping[str, torch.Tensor]:
    require_file(path, MAX_BYTES)
    try:
        with zipfile.ZipFile(path) as archive:
            # torch stores tensors as they are; a compressed file could unpack to any size.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise UserError(f"{path}: the file is compressed, and torch.save writes none that are")
        stored: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: damaged or cut off, or no file of torch.save; copy or download it again") from error
    except UnpicklingError as error:
        raise UserError(f"{path}: it holds more than plain tensors, and is not loaded") from error
    except (RuntimeError, OSError, ValueError, KeyError, EOFError, AttributeError, TypeError, IndexError) as error:
        raise UserError(f"{path}: damaged or cut off ({shorten(str(error))}); copy or download it again") from error
    if not isinstance(stored, dict) or not 0 < len(stored) <= MAX_TENSORS:
        raise UserError(f"{path}: a dictionary of tensors is needed, not {type(stored).__name__}")
    for name, tensor in stored.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise UserError(f"{path}: '{shorten(str(name))}' is no plain tensor of floating-point numbers")
    return stored


def _is_plain(tensor: Any) -> bool:
    """Return whether it is a dense floating-point tensor whose numbers all lie in the file."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
        return False
    return tensor.is_contiguous() and not tensor.is_meta
