"""A flow-matching policy from a folder: one that rlrc wrote, one that LeRobot wrote, or an adapter of either."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from rlrc.errors import UserError
from rlrc.policies.filling import empty_model, told
from rlrc.policies.filling import outline as give_shapes
from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.model import FlowModel
from rlrc.policies.flow.published import PREFIX, Published, read_published, tokenizer_folder
from rlrc.policies.folder import Reading, beside, read_lineage
from rlrc.policies.locate import CONFIG_FILE
from rlrc.policies.lora import base_of
from rlrc.policies.parts.tokenizer import TOKENIZER_FILE, load_tokenizer
from rlrc.policies.shards import TensorFiles
from rlrc.policies.weights import Naming, Weights
from rlrc.reading import read_object, require_finite, validate


class Layout(Protocol):
    """Knowledge of a family about its published folders."""

    def config(self, published: Published) -> dict[str, Any]:
        """Fields of our config beside those of the robot.

        Raises:
            UserError: neither the folder nor the spec says them.
        """
        ...

    def named_tokenizer(self, published: Published) -> str | None:
        """The folder or hub id of the tokenizer, as the spec says it."""
        ...

    def dead(self, config: FlowConfig) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that are published and never read, by the model's names."""
        ...

    def alias(self, name: str, known: set[str]) -> str:
        """The model's name for a tensor that some files name otherwise."""
        ...

    needs_bos: bool


@dataclass(frozen=True)
class Outline:
    """The contents of a folder, its weights still on disk."""

    model: Any
    weights: Weights
    tokenizer: PreTrainedTokenizerBase | None
    lineage: dict[str, Any]
    home: Path
    """The folder that holds config.json."""


def read_outline(model_class: type[FlowModel], layout: Layout, folder: Path, reading: Reading) -> Outline:
    """Read what the folder of a checkpoint holds, or of an adapter.

    Raises:
        UserError: a file is missing or damaged, a tensor does not fit, or the spec and the folder do not fit.
    """
    if reading.full_head:
        raise UserError(f"{folder}: a flow-matching policy gives no tokens, so there is no head that could be full")
    base = base_of(folder)
    home = beside(folder, base, CONFIG_FILE)
    files = TensorFiles(base or folder)
    known = {stored.removeprefix(PREFIX) for stored in files}

    def name_of(stored: str) -> str:
        return layout.alias(stored.removeprefix(PREFIX), known)

    values = read_object(home / CONFIG_FILE)
    if values.get("model_type") == model_class.config_class.model_type:
        if reading.spec is not None:
            raise UserError(f"{folder}: this checkpoint says itself what it reads; leave spec out")
        tokens_in: Path | None = beside(folder, base, TOKENIZER_FILE)
    else:
        shapes = {name_of(stored): tuple(files.outline(stored).shape) for stored in files}
        published = read_published(home, shapes, reading.spec)
        values = published.robot() | layout.config(published) | {"model_type": model_class.config_class.model_type}
        named = layout.named_tokenizer(published)
        beside_it = named is None and (home / TOKENIZER_FILE).exists()
        tokens_in = home if beside_it else tokenizer_folder(published, named)
    config = config_of(model_class, values, home / CONFIG_FILE)
    naming = Naming(partial(_is_in, layout.dead(config)), name_of)
    weights = Weights(folder, config, naming, reading.dtype)
    model = empty_model(model_class, config, folder).eval()
    give_shapes(model, weights)
    tokenizer = None
    if tokens_in is not None:
        tokenizer = load_tokenizer(tokens_in, config.text_config.vocab_size, layout.needs_bos)
    return Outline(model, weights, tokenizer, read_lineage(folder), home)


def config_of(model_class: type[FlowModel], values: dict[str, Any], path: Path) -> FlowConfig:
    """The config of fields that config.json holds, or that were made of a published folder.

    Raises:
        UserError: a field is missing or out of range.
    """
    require_finite(values, str(path))
    values.pop("auto_map", None)  # it names code that is neither run nor written
    config_class = model_class.config_class
    validate(values, config_class.fields(), str(path))
    for name in values:
        if callable(getattr(config_class, name, None)):
            raise UserError(f"{path}: '{name}' is no field of a config")
    try:
        return config_class.from_dict(values)
    except Exception as error:  # transformers' own checks of the other fields raise every kind
        raise UserError(f"{path}: transformers refuses this config ({told(error)})") from error


def published_tensors(model_class: type[FlowModel], layout: Layout, config: FlowConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors that a published checkpoint of this config holds; packed layers count as dense."""
    plain = type(config).from_dict(config.to_dict() | {"quantization_config": None})
    model = empty_model(model_class, plain, Path(CONFIG_FILE))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} | layout.dead(config)


def _is_in(names: dict[str, Any], name: str) -> bool:
    return name in names
