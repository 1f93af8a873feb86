"""A policy on disk: a plain Hugging Face repository that loads anywhere, and nothing pickled.

`config.json`, `model.safetensors` (or shards and an index), tokenizer and processor files, `compression.json` (the
lineage) and a model card. Published OpenVLA checkpoints have the same names and load by the same code, shard by shard,
read-only.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import rlrc
from rlrc.errors import UserError
from rlrc.files import atomic_path, read_json, require_space, sha256_file, write_json, write_text
from rlrc.models.card import model_card
from rlrc.models.config import OpenVLAConfig
from rlrc.models.linear import replace_linears
from rlrc.models.openvla import OpenVLAForActionPrediction
from rlrc.models.policy import Policy
from rlrc.models.processor import Processor

LINEAGE_FILE = "compression.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def load(
    path_or_hub_id: str | Path,
    unnorm_key: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Policy:
    """Load a policy from a folder or from the Hugging Face hub, ready to act (`eval` mode).

    Args:
        unnorm_key: which action statistics to use, where the checkpoint holds several.
        dtype: of the floating-point weights; None keeps what is stored.

    Raises:
        UserError: the checkpoint is missing, damaged, incomplete, of another kind, or does not know `unnorm_key`.
    """
    folder = _resolve(path_or_hub_id)
    config = read_config(folder)
    model = read_weights(folder, config, dtype).eval()
    model.to(torch.device(device))  # type: ignore[arg-type]
    lineage = read_json(folder / LINEAGE_FILE) if (folder / LINEAGE_FILE).is_file() else {"stages": []}
    policy = Policy(model, Processor.load(folder, config), unnorm_key, lineage)
    policy.source = folder
    return policy


def read_weights(folder: Path, config: OpenVLAConfig, dtype: torch.dtype | None) -> OpenVLAForActionPrediction:
    """Build the model without memory, then give each parameter its tensor as the shards are read."""
    with init_empty_weights(include_buffers=False):
        model = OpenVLAForActionPrediction(config)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        if quantization.get("quant_method") != "rlrc":
            method = quantization.get("quant_method")
            raise UserError(f"{folder}: quantized by '{method}', which rlrc does not read; start from the bf16 weights")
        replace_linears(model, quantization["modules"], quantization["bits"], quantization["group_size"])
    shards = weight_files(folder)
    if any(key.startswith("value_head.") for shard in shards for key in _keys(shard)):
        model.add_value_head()
    missing = set(model.state_dict())
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected]
    for name, tensor in _tensors(shards):
        if name in missing:
            _assign(model, name, tensor, dtype, folder)
            missing.discard(name)
        elif not any(pattern.match(name) for pattern in ignored):
            raise UserError(
                f"{folder}: unexpected tensor '{name}'; config.json describes another model than the weights"
            )
    if missing:
        raise UserError(f"{folder}: {len(missing)} tensors are missing from the weights, the first is '{min(missing)}'")
    return model


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


def save_policy(policy: Policy, path: Path, stage: dict[str, Any] | None, dtype: torch.dtype | None) -> None:
    """Write `policy` to the folder `path`, aside first and then renamed; `stage` is appended to its lineage.

    Args:
        dtype: of the floating-point weights on disk; None keeps the model's own.

    Raises:
        UserError: the disk is full.
    """
    lineage = {**policy.lineage, "rlrc_version": rlrc.__version__}
    if policy.source is not None:
        lineage["parent"] = {
            "path": str(policy.source),
            "sha256": {file.name: sha256_file(file) for file in weight_files(policy.source)},
        }
    if stage is not None:
        lineage["stages"] = [*lineage["stages"], stage]
    state = policy.model.state_dict()
    require_space(path, sum(tensor.nbytes for tensor in state.values()))
    with atomic_path(path) as aside:
        aside.mkdir()
        _write_config(policy.model.config, aside, dtype or policy.model.dtype)
        _write_weights(state, aside, dtype)
        policy.processor.save(aside)
        write_json(aside / LINEAGE_FILE, lineage)
        write_text(aside / "README.md", model_card(policy, lineage))


def _write_config(config: OpenVLAConfig, folder: Path, dtype: torch.dtype) -> None:
    values = config.to_dict()
    values["architectures"] = ["OpenVLAForActionPrediction"]
    values["dtype"] = values["text_config"]["dtype"] = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", values)


def _write_weights(state: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype | None) -> None:
    """Shard by shard, so that at most one shard is copied at a time."""

    split = split_torch_state_dict_into_shards(state, filename_pattern="model{suffix}.safetensors")
    for filename, names in split.filename_to_tensors.items():
        tensors = {name: _stored(state[name], dtype) for name in names}
        save_file(tensors, folder / filename, metadata={"format": "pt"})
        (folder / filename).chmod(0o644)  # safetensors makes files that only their owner reads
    if split.is_sharded:
        write_json(folder / INDEX_FILE, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def _stored(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    # Codes and zero points of packed layers are integers and stay as they are, and so do their bf16 scales.
    narrows = dtype is not None and tensor.is_floating_point() and tensor.element_size() > dtype.itemsize
    return (tensor.to(dtype) if narrows else tensor).contiguous()


def _resolve(path_or_hub_id: str | Path) -> Path:
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_hub_id)) is None or str(path_or_hub_id).startswith("."):
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
    statistics = folder / "dataset_statistics.json"
    if statistics.is_file():
        values["norm_stats"] = {**(values.get("norm_stats") or {}), **read_json(statistics)}
    return OpenVLAConfig.from_dict(values)


def _keys(shard: Path) -> list[str]:
    with _open(shard) as file:
        return list(file.keys())


def _tensors(shards: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    for shard in shards:
        with _open(shard) as file:
            for name in file.keys():  # noqa: SIM118  (a safetensors handle, not a dict)
                yield name, file.get_tensor(name)


def _open(shard: Path) -> Any:
    try:
        return safe_open(shard, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{shard}: damaged or cut off ({error}); copy or download it again") from error


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
