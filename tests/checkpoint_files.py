"""Changes to a checkpoint's files, as accidents and strangers make them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
REMOVED = object()
"""In the place of a value: the field is taken away."""


def set_field(folder: Path, name: str, field: str, value: Any) -> None:
    """Give the dotted `field` of a JSON file another value."""
    root = json.loads((folder / name).read_text())
    *parents, last = field.split(".")
    owner = root
    for key in parents:
        owner = owner[int(key)] if isinstance(owner, list) else owner.setdefault(key, {})
    if value is REMOVED:
        del owner[last]
    else:
        owner[int(last) if isinstance(owner, list) else last] = value
    (folder / name).write_text(json.dumps(root))


def change_tensors(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    """Give each tensor another value, or take it away where there is None."""
    changed = {name: change(name, tensor) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, folder / WEIGHTS)


def add_tensor(folder: Path, name: str, tensor: torch.Tensor) -> None:
    save_file(load_file(folder / WEIGHTS) | {name: tensor}, folder / WEIGHTS)
