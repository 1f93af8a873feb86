"""A LoRA adapter on disk, merged into the weights of its base while they are read: W + scale * B A, tensor by tensor.

Adapters are as peft saves them (`adapter_config.json`, `adapter_model.safetensors`); peft itself is not needed.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from rlrc.errors import UserError, shorten
from rlrc.policies.locate import CONFIG_FILE as MODEL_CONFIG
from rlrc.policies.locate import SIDE_FILE, on_disk
from rlrc.policies.schema import AdapterFields
from rlrc.policies.shards import TensorFiles, has_weights
from rlrc.reading import read_model

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTORS = {
    "lora_A.weight": "lora_B.weight",
    "lora_embedding_A": "lora_embedding_B",
}
"""Endings of the names of A, and those of its B."""

T = TypeVar("T", int, float)


class Outlines(Protocol):
    """Tensors of a base by name, of which an adapter looks at the shapes."""

    def __contains__(self, name: str) -> bool: ...
    def outline(self, name: str) -> torch.Tensor: ...


def is_adapter(folder: Path) -> bool:
    """Return whether `folder` holds a LoRA adapter instead of a policy's weights.

    Raises:
        UserError: it holds both.
    """
    if not (folder / CONFIG_FILE).exists():
        return False
    if has_weights(folder):
        raise UserError(
            f"{folder}: both whole weights and a LoRA adapter ({CONFIG_FILE}) lie here; "
            "move one of them to a folder of its own"
        )
    return True


def base_of(folder: Path) -> Path | None:
    """The folder of the policy that the adapter in `folder` changes; None where `folder` is no adapter."""
    return Adapter(folder).base if is_adapter(folder) else None


class Adapter:
    """The changes that an adapter makes to the tensors of its base.

    Args:
        of_stored: the model's name for a stored one, where they differ.

    Raises:
        UserError: a file is missing or damaged, the adapter is of a kind that cannot be merged so, or its base cannot
            be had.
    """

    def __init__(self, folder: Path, of_stored: Callable[[str], str] | None = None) -> None:
        self.folder = folder
        path = folder / CONFIG_FILE
        self.fields = read_model(path, AdapterFields)
        if folder.name == "lora_adapter" and any(SIDE_FILE.fullmatch(file.name) for file in folder.parent.iterdir()):
            raise UserError(f"{folder}: this adapter is merged into the weights of {folder.parent}; name that folder")
        if not (folder / WEIGHTS_FILE).exists():
            raise UserError(f"{folder}: {WEIGHTS_FILE} is not there (a pickled adapter_model.bin is never loaded)")
        self.files = TensorFiles(folder, [folder / WEIGHTS_FILE])
        self._factors: dict[str, tuple[str, str]] = {}
        self._instead: dict[str, str] = {}
        for name in self.files:
            self._sort(name, of_stored or str)
        self.base = self._find_base()

    @property
    def changed(self) -> set[str]:
        """Names of the base's tensors that the adapter changes."""
        return self._factors.keys() | self._instead.keys()

    def merge(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The base's tensor of this name with the adapter's change, in the base's dtype.

        Raises:
            UserError: the shapes disagree.
        """
        if name in self._instead:
            tensor = self.files.read(self._instead[name])
        if name not in self._factors:
            return tensor
        a, b = (self.files.read(key).float().flatten(1) for key in self._factors[name])
        delta = (b @ a).T if self._is_embedding(name) else b @ a
        return (tensor.float() + self._scale(name) * delta.view_as(tensor)).to(tensor.dtype)

    def require_fit(self, base: Outlines) -> None:
        """Check every change against the tensor that it changes.

        Raises:
            UserError: a shape, a rank or a kind of number does not fit.
        """
        for name, key in self._instead.items():
            instead = self.files.outline(key)
            if name in base:
                self._require(instead.shape == base.outline(name).shape and instead.is_floating_point(), name)
        for name, keys in self._factors.items():
            a, b = (self.files.outline(key) for key in keys)
            self._require(a.ndim >= 2 and b.ndim >= 2 and a.is_floating_point() and b.is_floating_point(), name)
            rank = self._pattern(self.fields.rank_pattern, name, self.fields.r)
            if a.shape[0] != rank or b.shape[1:].numel() != rank:
                raise UserError(
                    f"{self.folder}: '{shorten(name)}' has factors of shapes {tuple(a.shape)} and {tuple(b.shape)}, "
                    f"and {CONFIG_FILE} gives it rank {rank}"
                )
            if name in base:
                whole = base.outline(name)
                ends = (whole[0].numel(), len(whole)) if whole.ndim >= 2 and len(whole) else (0, 0)
                factors = (a.shape[1:].numel(), len(b))
                expected = ends[::-1] if self._is_embedding(name) else ends
                self._require(factors == expected and whole.is_floating_point(), name)

    def _require(self, fits: bool, name: str) -> None:
        if not fits:
            raise UserError(
                f"{self.folder}: the adapter's change of '{shorten(name)}' does not fit the base {self.base}"
            )

    def _sort(self, key: str, of_stored: Callable[[str], str]) -> None:
        """Find out which tensor of the base the adapter's tensor `key` belongs to."""
        name = key.removeprefix(PREFIX)
        for first, second in FACTORS.items():
            if name.endswith(f".{first}"):
                module = name.removesuffix(f".{first}")
                other = f"{PREFIX}{module}.{second}"
                if other not in self.files:
                    raise UserError(f"{self.files.path(key)}: '{shorten(key)}' is there without its '{second}'")
                self._factors[of_stored(f"{module}.weight")] = (key, other)
                return
            if name.endswith(f".{second}"):
                other = f"{PREFIX}{name.removesuffix(second)}{first}"
                if other not in self.files:
                    raise UserError(f"{self.files.path(key)}: '{shorten(key)}' is there without its '{first}'")
                return
        if not key.startswith(PREFIX) or ".lora_" in name:
            raise UserError(
                f"{self.files.path(key)}: tensor '{shorten(key)}' is none that rlrc can merge; "
                "merge with peft's merge_and_unload()"
            )
        self._instead[of_stored(name.replace(".modules_to_save.", ".").replace(".base_layer.", "."))] = key

    def _is_embedding(self, name: str) -> bool:
        return self._factors[name][0].endswith("lora_embedding_A")

    def _scale(self, name: str) -> float:
        rank = self._pattern(self.fields.rank_pattern, name, self.fields.r)
        alpha = self._pattern(self.fields.alpha_pattern, name, self.fields.lora_alpha)
        return alpha / (math.sqrt(rank) if self.fields.use_rslora else rank)

    def _pattern(self, patterns: Mapping[str, T] | None, name: str, otherwise: T) -> T:
        """The value of the first pattern that the layer's name ends with, as peft chooses it."""
        module = name.removesuffix(".weight")
        found = (value for end, value in (patterns or {}).items() if f".{module}".endswith(f".{end}"))
        return next(found, otherwise)

    def _find_base(self) -> Path:
        named = self.fields.base_model_name_or_path
        for folder in (self.folder / named, Path(named)):
            try:
                if (folder / MODEL_CONFIG).exists() and folder.resolve() != self.folder.resolve():
                    return self._whole(folder)
            except (OSError, ValueError):  # a name that no folder can have
                break
        try:
            return self._whole(on_disk(named))
        except UserError as error:
            raise UserError(
                f"{self.folder}: this is a LoRA adapter for the base '{shorten(named)}', which cannot be had "
                f"({shorten(str(error))}); put the base there, or merge both by peft's merge_and_unload()"
            ) from error

    def _whole(self, base: Path) -> Path:
        if is_adapter(base):
            raise UserError(f"{base} is an adapter itself")
        if not (base / MODEL_CONFIG).exists():
            raise UserError(f"there is no {MODEL_CONFIG} in it")
        return base
