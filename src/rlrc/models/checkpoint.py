"""A policy on disk: a plain Hugging Face repository that loads anywhere, and nothing pickled.

`config.json`, `model.safetensors` (or shards and an index), tokenizer and processor files, `compression.json` (the
lineage) and a model card. Published OpenVLA checkpoints have the same names and load by the same code, tensor by
tensor, read-only.

What acting never reads is neither loaded nor saved: of each vision tower the last block and the final norm, SigLIP's
pool, and of `lm_head` all but the rows of the 256 action ids, unless `full_head` asks for them.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

import rlrc
from rlrc.errors import UserError
from rlrc.files import atomic_path, require_space, sha256_file, write_json, write_text
from rlrc.models.card import model_card
from rlrc.models.config import OpenVLAConfig
from rlrc.models.linear import replace_linears
from rlrc.models.openvla import OpenVLAForActionPrediction
from rlrc.models.policy import Policy
from rlrc.models.processor import Processor
from rlrc.models.shards import ShardWriter, TensorFiles, weight_files
from rlrc.models.vision import is_dead
from rlrc.models.warm_up import warm_up
from rlrc.ownership import CHECKPOINT
from rlrc.reading import read_json

LINEAGE_FILE = "compression.json"
HEAD = "language_model.lm_head.weight"


def load(
    path_or_hub_id: str | Path,
    unnorm_key: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    full_head: bool = False,
) -> Policy:
    """Load a policy from a folder or from the Hugging Face hub, ready to act (`eval` mode).

    Args:
        unnorm_key: which action statistics to use, where the checkpoint holds several.
        dtype: of the floating-point weights; None keeps what is stored.
        full_head: keep every row of `lm_head`, so that `forward` gives the logits of text as well; acting reads the
            action rows alone.

    Raises:
        UserError: the checkpoint is missing, damaged, incomplete, of another kind, or does not know `unnorm_key`; or
            the full head is asked for and was left out before.
    """
    policy = outline(path_or_hub_id, unnorm_key, full_head)
    assert policy.source is not None
    fill(policy.model, TensorFiles(policy.source), dtype=dtype)
    policy.model.to(torch.device(device))  # type: ignore[arg-type]
    warm_up(policy)
    return policy


def outline(path_or_hub_id: str | Path, unnorm_key: str | None = None, full_head: bool = False) -> Policy:
    """What `load` gives, but the weights are still on disk: every parameter has its shape and no memory ("meta").

    Raises:
        UserError: as `load`.
    """
    folder = on_disk(path_or_hub_id)
    config = read_config(folder)
    files = TensorFiles(folder)
    if full_head:
        if config.action_head_only:
            raise UserError(f"{folder}: its head holds the action rows alone; start from the checkpoint before it")
        config.action_head_only = False
    elif config.action_head_only is None and HEAD in files:
        config.action_head_only = True
    model = empty_model(config, folder).eval()
    if any(name.startswith("value_head.") for name in files):
        model.add_value_head()
    for name, rows in _matched(model, files):
        _assign(model, name, files.outline(name)[rows], None, folder)
    lineage = read_json(folder / LINEAGE_FILE) if (folder / LINEAGE_FILE).is_file() else {"stages": []}
    policy = Policy(model, Processor.load(folder, config), unnorm_key, lineage)
    policy.source = folder
    return policy


def empty_model(config: OpenVLAConfig, origin: Path) -> OpenVLAForActionPrediction:
    """The model of `config`, packed layers included, without memory; `origin` is named in errors."""
    with init_empty_weights(include_buffers=False):
        model = OpenVLAForActionPrediction(config)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        if quantization.get("quant_method") != "rlrc":
            method = quantization.get("quant_method")
            raise UserError(f"{origin}: quantized by '{method}', which rlrc does not read; start from the bf16 weights")
        replace_linears(model, quantization["modules"], quantization["bits"], quantization["group_size"])
    return model


def read_weights(folder: Path, config: OpenVLAConfig, dtype: torch.dtype | None) -> OpenVLAForActionPrediction:
    """The model of `config` with the weights of `folder`."""
    model = empty_model(config, folder)
    fill(model, TensorFiles(folder), dtype=dtype)
    return model


def fill(
    model: OpenVLAForActionPrediction,
    files: TensorFiles,
    wanted: Callable[[str], bool] = lambda name: True,
    dtype: torch.dtype | None = None,
) -> None:
    """Give each parameter whose name is `wanted` its tensor, one by one.

    Raises:
        UserError: a tensor is missing, has another shape than config.json says, or belongs to no part of the model.
    """
    for name, rows in _matched(model, files):
        if wanted(name):
            _assign(model, name, files.read(name, rows), dtype, files.folder)


def save_policy(
    policy: Policy,
    path: Path,
    stage: dict[str, Any] | None,
    dtype: torch.dtype | None = None,
    tensors: Iterable[tuple[str, torch.Tensor]] | None = None,
) -> None:
    """Write `policy` to the folder `path`, aside first and then renamed; `stage` is appended to its lineage.

    Args:
        dtype: of the floating-point weights on disk; None keeps the model's own.
        tensors: the weights by name, where the policy is an outline: they are written as they come.

    Raises:
        UserError: the disk is full, or another folder than a checkpoint that rlrc wrote lies there.
    """
    lineage = {**policy.lineage, "rlrc_version": rlrc.__version__}
    if policy.source is not None:
        lineage["parent"] = {
            "path": str(policy.source),
            "sha256": {file.name: sha256_file(file) for file in weight_files(policy.source)},
        }
    if stage is not None:
        lineage["stages"] = [*lineage["stages"], stage]
    shapes = {name: tensor.shape for name, tensor in policy.model.state_dict().items()}
    require_space(path, sum(tensor.nbytes for tensor in policy.model.state_dict().values()))
    with atomic_path(path, CHECKPOINT) as aside:
        aside.mkdir()
        writer, size = ShardWriter(aside), 0
        for name, tensor in tensors or policy.model.state_dict().items():
            assert shapes.pop(name) == tensor.shape, f"{name}: config.json gives it another shape"
            stored = _stored(tensor, dtype)
            writer.add(name, stored)
            size += stored.nbytes
        assert not shapes, f"{next(iter(shapes))} was not written"
        writer.close()
        _write_config(policy.model.config, aside, dtype or policy.model.dtype)
        policy.processor.save(aside)
        write_json(aside / LINEAGE_FILE, lineage)
        write_text(aside / "README.md", model_card(policy, lineage, size))


def _matched(model: OpenVLAForActionPrediction, files: TensorFiles) -> Iterator[tuple[str, slice]]:
    """The names of the stored tensors that the model holds, and which of their rows it does.

    Raises:
        UserError: a tensor belongs to no part of the model, or one of the model's is not stored.
    """
    config, known = model.config, set(model.state_dict())
    for name in files:
        if name in known:
            whole = name != HEAD or not config.action_head_only or len(files.outline(name)) == config.n_action_bins
            yield name, slice(None) if whole else config.action_ids
        elif not is_dead(name, config.towers):
            raise UserError(
                f"{files.folder}: unexpected tensor '{name}'; config.json describes another model than the weights"
            )
    missing = sorted(name for name in known if name not in files)
    if missing:
        raise UserError(
            f"{files.folder}: {len(missing)} tensors are missing from the weights, the first is '{missing[0]}'"
        )


def _write_config(config: OpenVLAConfig, folder: Path, dtype: torch.dtype) -> None:
    values = config.to_dict()
    values["architectures"] = ["OpenVLAForActionPrediction"]
    values["dtype"] = values["text_config"]["dtype"] = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", values)


def _stored(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    # Codes and zero points of packed layers are integers and stay as they are, and so do their bf16 scales.
    narrows = dtype is not None and tensor.is_floating_point() and tensor.element_size() > dtype.itemsize
    return (tensor.to(dtype) if narrows else tensor).contiguous()


def on_disk(path_or_hub_id: str | Path) -> Path:
    """The folder of a checkpoint; one that is named by its hub id is downloaded, unless it was before.

    Raises:
        UserError: there is no such folder, and the hub has no such repository or cannot be reached.
    """
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(path_or_hub_id)) is None:
        raise UserError(f"{path_or_hub_id}: no such checkpoint folder")
    try:
        return Path(
            snapshot_download(str(path_or_hub_id), allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{path_or_hub_id}: not a folder here, and the Hugging Face hub did not give it ({type(error).__name__})"
        ) from error


def read_config(folder: Path) -> OpenVLAConfig:
    """The config, with the statistics of `dataset_statistics.json` where OpenVLA's own fine-tuning left one.

    Raises:
        UserError: the file is missing, or describes another kind of model.
    """
    values = read_json(folder / "config.json")
    if values.get("model_type") != "openvla":
        raise UserError(f"{folder}/config.json: model_type is {values.get('model_type')!r}, rlrc reads 'openvla'")
    decoder = (values.get("text_config") or {}).get("model_type", "llama")
    if decoder != "llama":
        raise UserError(f"{folder}/config.json: the language model is a {decoder!r}, rlrc reads 'llama'")
    statistics = folder / "dataset_statistics.json"
    if statistics.is_file():
        values["norm_stats"] = {**(values.get("norm_stats") or {}), **read_json(statistics)}
    return OpenVLAConfig.from_dict(values)


def _assign(
    model: OpenVLAForActionPrediction, name: str, tensor: torch.Tensor, dtype: torch.dtype | None, folder: Path
) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    current = getattr(owner, leaf)
    if current.shape != tensor.shape:
        found, expected = tuple(tensor.shape), tuple(current.shape)
        raise UserError(f"{folder}: '{name}' has shape {found} in the weights and {expected} by config.json")
    if isinstance(current, torch.nn.Parameter):
        setattr(owner, leaf, torch.nn.Parameter(tensor.to(dtype or tensor.dtype)))
    else:
        setattr(owner, leaf, tensor)
