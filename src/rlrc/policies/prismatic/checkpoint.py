"""A policy of the Prismatic trunk, from a folder: its config, an empty model, and tensors one by one.

What acting never reads is neither loaded nor saved: of each vision tower the last block and the final norm, SigLIP's
pool, and of `lm_head` all but the rows of the 256 action ids, unless `full_head` asks for them.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rlrc.errors import UserError, shorten
from rlrc.policies.filling import empty_model, told
from rlrc.policies.filling import outline as give_shapes
from rlrc.policies.folder import Reading, beside, read_lineage
from rlrc.policies.locate import CONFIG_FILE
from rlrc.policies.lora import base_of
from rlrc.policies.parts.tokenizer import TOKENIZER_FILE, load_tokenizer
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.prismatic.model import Prismatic
from rlrc.policies.prismatic.processor import PREPROCESSOR_FILE, ImageProcessor, Processor
from rlrc.policies.prismatic.schema import ConfigFields
from rlrc.policies.prismatic.vision import is_dead
from rlrc.policies.values import Tensors
from rlrc.policies.weights import Beside, Naming, Weights
from rlrc.reading import lies_there, read_object, require_finite, validate

HEAD = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"
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
    naming = Naming(partial(is_dead, towers=config.towers), tied=(HEAD, EMBEDDING))
    weights = Weights(folder, config, naming, reading.dtype, supplement.tensors if supplement else None)
    _untie(config)
    if reading.full_head:
        if config.action_head_only:
            raise UserError(f"{folder}: its head holds the action rows alone; start from the checkpoint before it")
        config.action_head_only = False
    elif config.action_head_only is None and HEAD in weights:
        config.action_head_only = True
    model = empty_model(model_class, config, folder).eval()
    give_shapes(model, weights, partial(rows_of, weights=weights, config=config))
    homes = [home / name for name in (STATISTICS_FILE, CONFIG_FILE) for home in (folder, base) if home is not None]
    origin = next((path for path in homes if path.exists()), folder)
    return Outline(model, weights, _read_processor(folder, base, config), read_lineage(folder), origin)


def rows_of(name: str, weights: Tensors, config: PrismaticConfig) -> slice:
    """The rows of a stored tensor that the model holds: of a full head those of the action ids, if it has no others."""
    if name != HEAD or not config.action_head_only:
        return slice(None)
    is_full = weights.outline(name).shape[:1] == (config.text_config.vocab_size,)
    return config.action_ids if is_full else slice(None)


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
        raise UserError(f"{path}: transformers refuses this config ({told(error)})") from error


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
