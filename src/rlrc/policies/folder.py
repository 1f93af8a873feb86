"""Reading a checkpoint's folder, whatever its family: options, files beside each other, the lineage."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlrc.policies.locate import LINEAGE_FILE, SIDE_FILE
from rlrc.policies.lora import Adapter, is_adapter
from rlrc.policies.schema import LineageFields
from rlrc.policies.shards import TensorFiles
from rlrc.reading import lies_there, read_object, require_finite, validate


@dataclass(frozen=True)
class Reading:
    """Options for reading a policy."""

    unnorm_key: str | None = None
    """Name of the action statistics to use, where the checkpoint holds several."""
    dtype: torch.dtype | None = None
    """Type of the floating-point weights; None keeps what is stored."""
    full_head: bool = False
    """True keeps every row of the language model's head."""
    spec: str | None = None
    """Facts that the files of a published policy do not say, in the words of its family."""


@dataclass(frozen=True)
class Published:
    """A checkpoint as its authors publish it, but for the numbers in its tensors."""

    shapes: dict[str, tuple[int, ...]]
    """Shape of every tensor, by name."""
    write_files: Callable[[Path], None]
    """Writes all files but weights, lineage and README to a folder."""
    readme: str
    """A text with places for {parameters}, {preset} and {seed}."""


def read_lineage(folder: Path) -> dict[str, Any]:
    """Read how the checkpoint was made, as `compression.json` says; no steps where there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / LINEAGE_FILE
    if not lies_there(path):
        return {"stages": []}
    values = read_object(path)
    require_finite(values, str(path))
    validate(values, LineageFields, str(path))
    return values


def beside(folder: Path, base: Path | None, name: str) -> Path:
    """The folder that holds the file `name`: an adapter's own where it does, else that of its base."""
    return folder if base is None or (folder / name).exists() else base


def stored_bytes(folder: Path) -> dict[str, int]:
    """Bytes of each tensor of a checkpoint, or of an adapter's base, as the safetensors headers have them.

    A file of tensors beside those (`locate.SIDE_FILE`) counts as a whole, under its own name.
    """
    home = Adapter(folder).base if is_adapter(folder) else folder
    files = TensorFiles(home)
    beside = {path.name: path.stat().st_size for path in sorted(home.iterdir()) if SIDE_FILE.fullmatch(path.name)}
    return {name: files.outline(name).nbytes for name in files} | beside
