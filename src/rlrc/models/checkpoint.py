"""A policy on disk: a plain Hugging Face repository that loads anywhere, and nothing pickled.

`config.json`, `model.safetensors` (or shards and an index), tokenizer and processor files, `compression.json` (the
lineage) and a model card. Published OpenVLA checkpoints have the same names and load by the same code, tensor by
tensor, read-only; so does a LoRA adapter, merged onto its base. `saving.py` writes.

What acting never reads is neither loaded nor saved: of each vision tower the last block and the final norm, SigLIP's
pool, and of `lm_head` all but the rows of the 256 action ids, unless `full_head` asks for them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rlrc.errors import UserError
from rlrc.models.config import OpenVLAConfig
from rlrc.models.device import resolve_device
from rlrc.models.linear import replace_linears
from rlrc.models.locate import CONFIG_FILE, on_disk, refuse_side_files, require_openvla
from rlrc.models.lora import Adapter, is_adapter
from rlrc.models.openvla import OpenVLAForActionPrediction
from rlrc.models.policy import Policy
from rlrc.models.processor import PREPROCESSOR_FILE, ImageProcessor, Processor
from rlrc.models.saving import LINEAGE_FILE
from rlrc.models.schema import ConfigFields, LineageFields
from rlrc.models.tokenizer import TOKENIZER_FILE, load_tokenizer
from rlrc.models.vision import is_dead
from rlrc.models.warm_up import warm_up
from rlrc.models.weights import HEAD, Weights
from rlrc.reading import lies_there, read_object, require_finite, shorten, validate

STATISTICS_FILE = "dataset_statistics.json"
"""OpenVLA's own fine-tuning leaves the statistics of its dataset here."""


def load(
    path_or_hub_id: str | Path,
    unnorm_key: str | None = None,
    device: str | torch.device | None = "cpu",
    dtype: torch.dtype | None = None,
    full_head: bool = False,
) -> Policy:
    """Load a policy from a folder or from the Hugging Face hub, ready to act (`eval` mode).

    Args:
        unnorm_key: which action statistics to use, where the checkpoint holds several.
        device: where it computes; None is a GPU where there is one.
        dtype: of the floating-point weights; None keeps what is stored.
        full_head: keep every row of `lm_head`, so that `forward` gives the logits of text as well; acting reads the
            action rows alone.

    Raises:
        UserError: the checkpoint is missing, damaged, incomplete, of another kind, holds NaN or infinity, or does not
            know `unnorm_key`; there is no such device; or the full head is asked for and was left out before.
    """
    place = resolve_device(device)
    policy = _outline(path_or_hub_id, unnorm_key, full_head, dtype)
    assert policy.weights is not None
    fill(policy.model, policy.weights)
    policy.model.to(place)  # type: ignore[arg-type]
    warm_up(policy)
    return policy


def outline(path_or_hub_id: str | Path, unnorm_key: str | None = None, full_head: bool = False) -> Policy:
    """Load a policy as `load` does, but leave its weights on disk: every parameter has a shape and no memory ("meta").

    Raises:
        UserError: as `load`, except that the weights themselves are not read.
    """
    return _outline(path_or_hub_id, unnorm_key, full_head, None)


def _outline(path: str | Path, unnorm_key: str | None, full_head: bool, dtype: torch.dtype | None) -> Policy:
    folder = on_disk(path)
    base = Adapter(folder).base if is_adapter(folder) else None
    config = read_config(folder, base)
    weights = Weights(folder, config, dtype)
    _untie(config)
    if full_head:
        if config.action_head_only:
            raise UserError(f"{folder}: its head holds the action rows alone; start from the checkpoint before it")
        config.action_head_only = False
    elif config.action_head_only is None and HEAD in weights:
        config.action_head_only = True
    model = empty_model(config, folder).eval()
    if any(name.startswith("value_head.") for name in weights):
        model.add_value_head()
    for name, rows in _matched(model, weights):
        _assign(model, name, weights.outline(name, rows), folder)
    processor, lineage = _read_processor(folder, base, config), read_lineage(folder)
    try:
        policy = Policy(model, processor, unnorm_key, lineage)
    except UserError as error:
        homes = [home / name for name in (STATISTICS_FILE, CONFIG_FILE) for home in (folder, base) if home is not None]
        origin = next((path for path in homes if path.exists()), folder)
        raise UserError(f"{origin}: {error}") from error
    policy.weights = weights
    return policy


def empty_model(config: OpenVLAConfig, origin: Path) -> OpenVLAForActionPrediction:
    """The model of `config`, packed layers included, without memory; `origin` is named in errors.

    Raises:
        UserError: no such model can be built.
    """
    try:
        with torch.device("meta"):
            model = OpenVLAForActionPrediction(config)
        decoder = model.language_model.model
        decoder.rotary_emb = LlamaRotaryEmbedding(config.text_config)  # a table that is computed and never stored
        if not decoder.rotary_emb.inv_freq.isfinite().all():
            raise ValueError("its rotary embedding has frequencies that are not finite")
        quantization = getattr(config, "quantization_config", None)
        if quantization is not None:
            replace_linears(model, quantization["modules"], quantization["bits"], quantization["group_size"])
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    except Exception as error:  # transformers' and torch's own checks raise every kind
        raise UserError(f"{origin}: config.json describes no model that can be built ({_told(error)})") from error
    return model


def fill(
    model: OpenVLAForActionPrediction, weights: Weights, wanted: Callable[[str], bool] = lambda name: True
) -> None:
    """Give each parameter whose name is `wanted` its tensor, one by one.

    Raises:
        UserError: a tensor is missing, has another shape than config.json says, holds NaN or infinity, or belongs to no
            part of the model.
    """
    for name, rows in _matched(model, weights):
        if wanted(name):
            _assign(model, name, weights.read(name, rows), weights.folder)


def _matched(model: OpenVLAForActionPrediction, weights: Weights) -> Iterator[tuple[str, slice]]:
    """The names of the stored tensors that the model holds, and which of their rows it does.

    Raises:
        UserError: a tensor belongs to no part of the model, or one of the model's is not stored.
    """
    config, known = model.config, set(model.state_dict())
    for name in weights:
        if name in known:
            stored = weights.outline(name)
            rows = len(stored) if stored.ndim else 0
            whole = name != HEAD or not config.action_head_only or rows != config.text_config.vocab_size
            yield name, slice(None) if whole else config.action_ids
        elif not is_dead(name, config.towers):
            raise UserError(
                f"{weights.folder}: unexpected tensor '{shorten(name)}'; config.json describes another model than the "
                "weights"
            )
    missing = sorted(name for name in known if name not in weights)
    if missing:
        raise UserError(
            f"{weights.folder}: {len(missing)} tensors are missing from the weights, the first is '{missing[0]}'"
        )


def _assign(model: OpenVLAForActionPrediction, name: str, tensor: torch.Tensor, folder: Path) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    current = getattr(owner, leaf)
    if current.shape != tensor.shape:
        found, expected = tuple(tensor.shape), tuple(current.shape)
        raise UserError(f"{folder}: '{name}' has shape {found} in the weights and {expected} by config.json")
    is_parameter = isinstance(current, torch.nn.Parameter)
    if not tensor.is_floating_point() if is_parameter else tensor.dtype != current.dtype:
        expected_kind = "floating-point numbers" if is_parameter else _told(current.dtype)
        raise UserError(f"{folder}: '{name}' holds {_told(tensor.dtype)} where {expected_kind} are expected")
    setattr(owner, leaf, torch.nn.Parameter(tensor) if is_parameter else tensor)


def read_config(folder: Path, base: Path | None = None) -> OpenVLAConfig:
    """The config, with the statistics of `dataset_statistics.json` where OpenVLA's own fine-tuning left one.

    Args:
        base: of an adapter in `folder`, which may lack files of its own.

    Raises:
        UserError: the file is missing or damaged, a field is out of range, or it describes another kind of model.
    """
    path = _beside(folder, base, CONFIG_FILE) / CONFIG_FILE
    if not path.exists() and (folder / "checkpoint" / CONFIG_FILE).is_file():
        raise UserError(f"{path}: no such file; the policy lies in {folder / 'checkpoint'}")
    values = read_object(path)
    for home in (folder, base):
        if home is not None:
            refuse_side_files((file.name for file in home.iterdir()), home)
    require_openvla(values, path)
    _require_rlrc_packing(values, path)
    require_finite(values, str(path))
    values.pop("auto_map", None)  # it names code that is neither run nor written
    validate(values, ConfigFields, str(path))
    for home in (base, folder):
        if home is not None and lies_there(home / STATISTICS_FILE):
            statistics = read_object(home / STATISTICS_FILE)
            require_finite(statistics, str(home / STATISTICS_FILE))
            validate({"norm_stats": statistics}, ConfigFields, str(home / STATISTICS_FILE))
            values["norm_stats"] = {**(values.get("norm_stats") or {}), **statistics}
    for name in (*values, *(values.get("text_config") or {})):
        if callable(getattr(OpenVLAConfig, name, None)):
            raise UserError(f"{path}: '{shorten(name)}' is no field of a config")
    try:
        return OpenVLAConfig.from_dict(values)
    except Exception as error:  # transformers' own checks of the other fields raise every kind
        raise UserError(f"{path}: transformers refuses this config ({_told(error)})") from error


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


def _read_processor(folder: Path, base: Path | None, config: OpenVLAConfig) -> Processor:
    home = _beside(folder, base, PREPROCESSOR_FILE)
    images = ImageProcessor.load(home)
    images.require_sizes([tower.image_size for tower in config.towers], home)
    tokenizer = load_tokenizer(_beside(folder, base, TOKENIZER_FILE), config.text_config.vocab_size)
    return Processor(images, tokenizer, config)


def _beside(folder: Path, base: Path | None, name: str) -> Path:
    """The folder that holds the file `name`: the adapter's own where it does, else that of its base."""
    return folder if base is None or (folder / name).exists() else base


def _untie(config: OpenVLAConfig) -> None:
    """The output head is a tensor of its own here, also where it was tied to the embeddings."""
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False


def _require_rlrc_packing(values: dict[str, Any], path: Path) -> None:
    quantization = values.get("quantization_config")
    if isinstance(quantization, dict) and quantization.get("quant_method") != "rlrc":
        method = shorten(str(quantization.get("quant_method")))
        raise UserError(f"{path}: quantized by '{method}', which rlrc does not read; start from the bf16 weights")


def _told(what: object) -> str:
    """An error of a library, or a dtype, in a few words."""
    return shorten(f"{type(what).__name__}: {what}") if isinstance(what, Exception) else str(what).split(".")[-1]
