"""A policy of the Prismatic trunk, from a folder: its config, an empty model, and tensors one by one.

What acting never reads is neither loaded nor saved: of each vision tower the last block and the final norm, SigLIP's
pool, and of `lm_head` all but the rows of the 256 action ids, unless `full_head` asks for them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rlrc.errors import UserError, shorten
from rlrc.packed.layers import replace_linears
from rlrc.policies.folder import Reading, beside, read_lineage
from rlrc.policies.locate import CONFIG_FILE
from rlrc.policies.lora import base_of
from rlrc.policies.parts.tokenizer import TOKENIZER_FILE, load_tokenizer
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.prismatic.model import Prismatic
from rlrc.policies.prismatic.processor import PREPROCESSOR_FILE, ImageProcessor, Processor
from rlrc.policies.prismatic.schema import ConfigFields
from rlrc.policies.prismatic.vision import is_dead
from rlrc.policies.prismatic.weights import HEAD, Beside, Weights
from rlrc.policies.values import Tensors
from rlrc.reading import lies_there, read_object, require_finite, validate

STATISTICS_FILE = "dataset_statistics.json"
"""OpenVLA's own fine-tuning leaves the statistics of its dataset here."""

Model = TypeVar("Model", bound=Prismatic)
Config = TypeVar("Config", bound=PrismaticConfig)


@dataclass(frozen=True)
class Supplement:
    """The parts of a published checkpoint beside its config.json and safetensors files."""

    config: dict[str, Any]
    """Fields of our config, in place of those that config.json has."""
    tensors: Beside


@dataclass(frozen=True)
class Outline:
    """The contents of a folder, its weights still on disk."""

    model: Any
    """Every parameter has its shape and no memory ("meta")."""
    weights: Weights
    processor: Processor
    lineage: dict[str, Any]
    statistics_origin: Path
    """The file that the action statistics come from."""


def read_outline(
    model_class: type[Model], folder: Path, reading: Reading, supplement: Supplement | None = None
) -> Outline:
    """Read what the folder of a checkpoint holds, or of an adapter.

    Raises:
        UserError: a file is missing or damaged, a tensor does not fit, or the full head is asked for and not there.
    """
    base = base_of(folder)
    config = read_config(model_class.config_class, folder, base, supplement.config if supplement else {})
    weights = Weights(folder, config, reading.dtype, supplement.tensors if supplement else None)
    _untie(config)
    if reading.full_head:
        if config.action_head_only:
            raise UserError(f"{folder}: its head holds the action rows alone; start from the checkpoint before it")
        config.action_head_only = False
    elif config.action_head_only is None and HEAD in weights:
        config.action_head_only = True
    model = empty_model(model_class, config, folder).eval()
    for name, rows in _matched(model, weights):
        _assign(model, name, weights.outline(name, rows), weights.origin(name))
    homes = [home / name for name in (STATISTICS_FILE, CONFIG_FILE) for home in (folder, base) if home is not None]
    origin = next((path for path in homes if path.exists()), folder)
    return Outline(model, weights, _read_processor(folder, base, config), read_lineage(folder), origin)


def empty_model(model_class: type[Model], config: PrismaticConfig, origin: Path) -> Model:
    """The model of `config`, packed layers included, without memory; `origin` is named in errors.

    Raises:
        UserError: no such model can be built.
    """
    try:
        with torch.device("meta"):
            model = model_class(config)
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


def fill(model: Prismatic, weights: Weights, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Give each parameter whose name is `wanted` its tensor, one by one.

    Raises:
        UserError: a tensor is missing, has another shape than config.json says, holds NaN or infinity, or belongs to no
            part of the model.
    """
    for name, rows in _matched(model, weights):
        if wanted(name):
            _assign(model, name, weights.read(name, rows), weights.origin(name))


def rows_of(name: str, weights: Tensors, config: PrismaticConfig) -> slice:
    """The rows of a stored tensor that the model holds: of a full head those of the action ids, if it has no others."""
    if name != HEAD or not config.action_head_only:
        return slice(None)
    is_full = weights.outline(name).shape[:1] == (config.text_config.vocab_size,)
    return config.action_ids if is_full else slice(None)


def _matched(model: Prismatic, weights: Weights) -> Iterator[tuple[str, slice]]:
    """The names of the stored tensors that the model holds, and which of their rows it does.

    Raises:
        UserError: a tensor belongs to no part of the model, or one of the model's is not stored.
    """
    config, known = model.config, set(model.state_dict())
    for name in weights:
        if name in known:
            yield name, rows_of(name, weights, config)
        elif not is_dead(name, config.towers):
            told = f"unexpected tensor '{shorten(name)}'; config.json describes another model than the weights"
            raise UserError(f"{weights.origin(name)}: {told}")
    missing = sorted(name for name in known if name not in weights)
    if missing:
        first = missing[0]
        raise UserError(
            f"{weights.origin(first)}: {len(missing)} tensors are missing from the weights, the first is '{first}'"
        )


def _assign(model: Prismatic, name: str, tensor: torch.Tensor, origin: Path) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    current = getattr(owner, leaf)
    if current.shape != tensor.shape:
        found, expected = tuple(tensor.shape), tuple(current.shape)
        raise UserError(f"{origin}: '{name}' has shape {found} in the weights and {expected} by config.json")
    is_parameter = isinstance(current, torch.nn.Parameter)
    if not tensor.is_floating_point() if is_parameter else tensor.dtype != current.dtype:
        expected_kind = "floating-point numbers" if is_parameter else _told(current.dtype)
        raise UserError(f"{origin}: '{name}' holds {_told(tensor.dtype)} where {expected_kind} are expected")
    setattr(owner, leaf, torch.nn.Parameter(tensor) if is_parameter else tensor)


def read_config(
    config_class: type[Config], folder: Path, base: Path | None = None, instead: dict[str, Any] | None = None
) -> Config:
    """The config, with the statistics of `dataset_statistics.json` where OpenVLA's own fine-tuning left one.

    Args:
        base: of an adapter in `folder`, which may lack files of its own.
        instead: fields that take the place of those in the files.

    Raises:
        UserError: the file is missing or damaged, a field is out of range, or it describes another kind of model.
    """
    path = beside(folder, base, CONFIG_FILE) / CONFIG_FILE
    if not path.exists() and (folder / "checkpoint" / CONFIG_FILE).is_file():
        raise UserError(f"{path}: no such file; the policy lies in {folder / 'checkpoint'}")
    values = read_object(path)
    _require_llama(values, path)
    _require_rlrc_packing(values, path)
    require_finite(values, str(path))
    values.pop("auto_map", None)  # it names code that is neither run nor written
    values |= instead or {}
    validate(values, config_class.fields(), str(path))
    for home in (base, folder):
        if "norm_stats" not in (instead or {}) and home is not None and lies_there(home / STATISTICS_FILE):
            values["norm_stats"] = {**(values.get("norm_stats") or {}), **read_statistics(home / STATISTICS_FILE)}
    for name in (*values, *(values.get("text_config") or {})):
        if callable(getattr(config_class, name, None)):
            raise UserError(f"{path}: '{shorten(name)}' is no field of a config")
    try:
        return config_class.from_dict(values)
    except Exception as error:  # transformers' own checks of the other fields raise every kind
        raise UserError(f"{path}: transformers refuses this config ({_told(error)})") from error


def read_statistics(path: Path) -> dict[str, Any]:
    """The sets of statistics in a `dataset_statistics.json`, by name.

    Raises:
        UserError: the file is missing or damaged.
    """
    statistics = read_object(path)
    require_finite(statistics, str(path))
    validate({"norm_stats": statistics}, ConfigFields, str(path))
    return statistics


def _read_processor(folder: Path, base: Path | None, config: PrismaticConfig) -> Processor:
    home = beside(folder, base, PREPROCESSOR_FILE)
    images = ImageProcessor.load(home)
    images.require_sizes([tower.image_size for tower in config.towers], home)
    tokenizer = load_tokenizer(beside(folder, base, TOKENIZER_FILE), config.text_config.vocab_size)
    return Processor(images, tokenizer, config)


def _untie(config: PrismaticConfig) -> None:
    """The output head is a tensor of its own here, also where it was tied to the embeddings."""
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False


def _require_llama(values: dict[str, Any], path: Path) -> None:
    text = values.get("text_config")
    decoder = text.get("model_type", "llama") if isinstance(text, dict) else "llama"
    if decoder != "llama":
        raise UserError(f"{path}: the language model is a {shorten(repr(decoder))}, rlrc reads 'llama'")


def _require_rlrc_packing(values: dict[str, Any], path: Path) -> None:
    quantization = values.get("quantization_config")
    if isinstance(quantization, dict) and quantization.get("quant_method") != "rlrc":
        method = shorten(str(quantization.get("quant_method")))
        raise UserError(f"{path}: quantized by '{method}', which rlrc does not read; start from the bf16 weights")


def _told(what: object) -> str:
    """An error of a library, or a dtype, in a few words."""
    return shorten(f"{type(what).__name__}: {what}") if isinstance(what, Exception) else str(what).split(".")[-1]
