"""The tensors of a policy as rlrc computes with them, from files as people have them.

A LoRA adapter is merged, all floating-point tensors have one dtype, a tied output head is found, and NaN or infinity is
refused, in each tensor as it is read. Packed layers keep their bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from rlrc.errors import UserError, shorten
from rlrc.policies.lora import Adapter, is_adapter
from rlrc.policies.shards import TensorFiles, require_finite_tensor

COMPUTED = "rotary_emb.inv_freq"
"""The end of names that old checkpoints store and everybody computes."""


@dataclass(frozen=True)
class Naming:
    """The names of tensors in the checkpoints of a family."""

    is_dead: Callable[[str], bool]
    """Whether a stored tensor is one that acting never reads."""
    of_stored: Callable[[str], str] | None = None
    """The model's name for a stored one, where they differ."""
    tied: tuple[str, str] | None = None
    """The output head, and the embedding that stands for it where a config says that both are one."""


class Beside(Protocol):
    """Tensors in files beside a checkpoint's safetensors; they stand for all that these hold under the same names."""

    @property
    def paths(self) -> list[Path]: ...
    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, name: str) -> bool: ...
    def covers(self, name: str) -> bool:
        """Return whether the tensor belongs into one of these files, be it there or not."""
        ...

    def path(self, name: str) -> Path: ...
    def outline(self, name: str) -> torch.Tensor: ...
    def read(self, name: str) -> torch.Tensor: ...


class Renamed:
    """The tensors of safetensors files under the model's names.

    Raises:
        UserError: two tensors have the same name there.
    """

    def __init__(self, files: TensorFiles, of_stored: Callable[[str], str]) -> None:
        self._files, self.paths = files, files.paths
        self._stored: dict[str, str] = {}
        for stored in files:
            name = of_stored(stored)
            if name in self._stored:
                raise UserError(f"{files.path(stored)}: '{shorten(stored)}' and '{self._stored[name]}' are one tensor")
            self._stored[name] = stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def outline(self, name: str) -> torch.Tensor:
        return self._files.outline(self._stored[name])

    def read(self, name: str) -> torch.Tensor:
        return self._files.read(self._stored[name])


class Joined:
    """The tensors of safetensors files, and those that lie beside them."""

    def __init__(self, files: TensorFiles, beside: Beside) -> None:
        self._files, self._beside = files, beside
        self._names = [*(name for name in files if not beside.covers(name)), *beside]

    @property
    def paths(self) -> list[Path]:
        return [*self._files.paths, *self._beside.paths]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._source(name)

    def outline(self, name: str) -> torch.Tensor:
        return self._source(name).outline(name)

    def read(self, name: str) -> torch.Tensor:
        return self._source(name).read(name)

    def _source(self, name: str) -> "TensorFiles | Beside":
        return self._beside if self._beside.covers(name) else self._files


class Weights:
    """Tensors by name, each read, merged, cast and checked when it is asked for.

    Args:
        folder: of the checkpoint, or of a LoRA adapter.
        config: what its config.json says.
        naming: the names in the family's checkpoints.
        beside: tensors in other files of the checkpoint.
        dtype: of the floating-point tensors; None gives them the one that all are stored in. Where they are stored in
            several, it is config.json's, or else that of the first floating-point tensor, as in transformers.

    Raises:
        UserError: a file is missing or damaged, or an adapter does not fit its base.
    """

    def __init__(
        self,
        folder: Path,
        config: Any,
        naming: Naming,
        dtype: torch.dtype | None = None,
        beside: Beside | None = None,
    ) -> None:
        self.folder, self.naming = folder, naming
        self._adapter = Adapter(folder, naming.of_stored) if is_adapter(folder) else None
        self._beside = beside
        files = TensorFiles(folder if self._adapter is None else self._adapter.base)
        named = files if naming.of_stored is None else Renamed(files, naming.of_stored)
        self._files: Any = named if beside is None else Joined(files, beside)
        packed = (getattr(config, "quantization_config", None) or {}).get("modules", ())
        self._packed = {f"{name}.scales" for name in packed}
        ties = config.tie_word_embeddings or config.text_config.tie_word_embeddings
        self._tied = naming.tied if ties and naming.tied is not None and naming.tied[0] not in self._files else None
        self.dtype = dtype or self._one_dtype(config)
        if self._adapter is not None:
            self._require_fit(self._adapter)

    @property
    def paths(self) -> list[Path]:
        """The files that hold the tensors, those of an adapter's base included."""
        return [*self._files.paths, *([] if self._adapter is None else self._adapter.files.paths)]

    def origin(self, name: str) -> Path:
        """The file or folder that the tensor comes from, or should come from, for errors."""
        return self._beside.path(name) if self._beside is not None and self._beside.covers(name) else self.folder

    def __iter__(self) -> Iterator[str]:
        """Yield the names, file by file."""
        yield from (name for name in self._files if not name.endswith(COMPUTED))
        if self._tied is not None and self._tied[1] in self._files:
            yield self._tied[0]

    def __contains__(self, name: str) -> bool:
        return self._source(name) in self._files

    def outline(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """A tensor of the shape and dtype that `read` gives, without memory."""
        whole = self._cast(name, self._files.outline(self._source(name)))
        return whole[rows] if rows != slice(None) else whole

    def read(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """Some rows of the tensor, in memory of their own.

        Raises:
            UserError: the tensor holds NaN or infinity, in these rows or in others.
        """
        if rows != slice(None):
            return self.read(name)[rows].clone()
        tensor = self._files.read(self._source(name))
        if self._adapter is not None:
            tensor = self._adapter.merge(name, tensor)
        tensor = self._cast(name, tensor)
        require_finite_tensor(name, tensor, self.origin(name))
        return tensor

    def _source(self, name: str) -> str:
        return self._tied[1] if self._tied is not None and name == self._tied[0] else name

    def _cast(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() and name not in self._packed else tensor

    def _one_dtype(self, config: Any) -> torch.dtype:
        outlines = [self._files.outline(name) for name in self._files]
        stored = [
            outline.dtype
            for name, outline in zip(self._files, outlines, strict=True)
            if outline.is_floating_point() and name not in self._packed and not name.endswith(COMPUTED)
        ]
        if len(set(stored)) > 1 and isinstance(config.dtype, torch.dtype):
            return config.dtype
        return stored[0] if stored else torch.float32

    def _require_fit(self, adapter: Adapter) -> None:
        adapter.require_fit(self._files)
        for name in sorted(adapter.changed):
            if name not in self._files and not self.naming.is_dead(name):
                raise UserError(
                    f"{adapter.folder}: it changes '{shorten(name)}', which its base {adapter.base} does not have"
                )
        if self._tied is not None and adapter.changed & set(self._tied):
            raise UserError(
                f"{adapter.folder}: the adapter changes an embedding that is also the output head; "
                "merge it with peft's merge_and_unload()"
            )
