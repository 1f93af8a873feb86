"""Write a policy as a Hugging Face repository: aside first and then renamed, and nothing pickled."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from rlrc.files import atomic_path, require_space, sha256_file, write_json, write_text
from rlrc.ownership import CHECKPOINT
from rlrc.packed.layers import count_parameters
from rlrc.policies.card import model_card
from rlrc.policies.locate import LINEAGE_FILE
from rlrc.policies.shards import ShardWriter
from rlrc.policies.values import PolicySpec
from rlrc.version import __version__


class Savable(Protocol):
    """Files beside the weights: the tokenizer's and the picture processor's."""

    def save(self, folder: Path) -> None: ...


def write_policy(
    path: Path,
    model: Any,
    processor: Savable,
    spec: PolicySpec,
    lineage: dict[str, Any],
    dtype: torch.dtype | None = None,
    tensors: Iterable[tuple[str, torch.Tensor]] | None = None,
) -> None:
    """Write a policy to the folder `path`, where nothing may lie but an earlier checkpoint.

    Args:
        lineage: what `compression.json` says.
        dtype: of the floating-point weights on disk; None keeps the model's own.
        tensors: the weights by name, where the model is an outline: they are written as they come.

    Raises:
        UserError: something else lies at `path`, or the disk is full.
    """
    state = model.state_dict()
    shapes = {name: tensor.shape for name, tensor in state.items()}
    require_space(path, sum(tensor.nbytes for tensor in state.values()))
    with atomic_path(path, CHECKPOINT) as aside:
        aside.mkdir()
        writer, size = ShardWriter(aside), 0
        for name, tensor in tensors or state.items():
            assert shapes.pop(name) == tensor.shape, f"{name}: config.json gives it another shape"
            stored = _stored(tensor, dtype)
            writer.add(name, stored)
            size += stored.nbytes
        assert not shapes, f"{next(iter(shapes))} was not written"
        writer.close()
        _write_config(model, aside, dtype or model.dtype)
        processor.save(aside)
        write_json(aside / LINEAGE_FILE, lineage)
        write_text(aside / "README.md", model_card(spec, count_parameters(model), lineage, size))


def extend_lineage(
    lineage: dict[str, Any], source: Path | None, files: Sequence[Path], stage: dict[str, Any] | None
) -> dict[str, Any]:
    """The lineage of a policy that was read from `source`, whose weights lie in `files`, after `stage`."""
    extended = {**lineage, "rlrc_version": __version__}
    if source is not None:
        extended["parent"] = {"path": str(source), "sha256": {file.name: sha256_file(file) for file in files}}
    if stage is not None:
        extended["stages"] = [*lineage["stages"], stage]
    return extended


def _write_config(model: Any, folder: Path, dtype: torch.dtype) -> None:
    values = model.config.to_dict()
    values["architectures"] = [type(model).__name__]
    values["dtype"] = values["text_config"]["dtype"] = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", values)


def _stored(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    # Codes and zero points of packed layers are integers and stay as they are, and so do their bf16 scales.
    narrows = dtype is not None and tensor.is_floating_point() and tensor.element_size() > dtype.itemsize
    return (tensor.to(dtype) if narrows else tensor).contiguous()
