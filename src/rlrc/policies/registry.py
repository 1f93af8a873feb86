"""Finds the code of a family: by its name, or from what a folder holds."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlrc.errors import UserError, shorten
from rlrc.policies.contract import Policy
from rlrc.policies.families import FAMILIES, PRESETS
from rlrc.policies.folder import Published, beside
from rlrc.policies.locate import CONFIG_FILE
from rlrc.policies.lora import base_of
from rlrc.reading import read_object

if TYPE_CHECKING:
    from rlrc.configs.train import Shape  # whose module takes a tenth of a second, and nobody who loads needs

LEROBOT_FAMILIES = ("pi0_fast", "act", "diffusion", "vqbet", "tdmpc", "groot", "xvla")


def family(name: str) -> type[Policy]:
    """The policies of one family."""
    found: type[Policy] = import_module(f"{FAMILIES[name].package}.policy").FAMILY
    return found


def new_policy(
    name: str, shape: "Shape", instructions: Sequence[str], statistics: dict[str, Any], seed: int, options: Any = None
) -> Policy:
    """A policy of a family with random weights, whose tokenizer is trained on `instructions`.

    Args:
        statistics: sets of statistics by name, as `data.statistics.norm_stats` makes them.
        options: the family's own (see `TrainConfig.of_family`).
    """
    module = import_module(f"{FAMILIES[name].package}.tiny")
    policy: Policy = module.new_policy(shape, instructions, statistics, seed, options)
    return policy


def publish(preset: str) -> Published:
    """The layout of a published checkpoint, or of a small one of the same kind."""
    published: Published = import_module(f"{FAMILIES[PRESETS[preset]].package}.layout").publish(preset)
    return published


def recognise(folder: Path, spec: str | None = None) -> type[Policy]:
    """The family of what lies in a folder, from its config.json and the files beside it.

    Args:
        spec: what a user says of it (see `folder.Reading`).

    Raises:
        UserError: config.json is missing or damaged, or describes a policy that rlrc does not read.
    """
    base = base_of(folder)
    path = beside(folder, base, CONFIG_FILE) / CONFIG_FILE
    if not path.exists() and (folder / "checkpoint" / CONFIG_FILE).is_file():
        raise UserError(f"{path}: no such file; the policy lies in {folder / 'checkpoint'}")
    values = read_object(path)
    files = sorted(file.name for home in (folder, base) if home is not None for file in home.iterdir())
    for name in FAMILIES:
        if family(name).recognises(values, files, spec):
            return family(name)
    raise UserError(f"{path}: {_what(values)}; rlrc reads {', '.join(FAMILIES)}")


def _what(values: dict[str, Any]) -> str:
    """Describe a config.json that no family knows."""
    kind = values.get("type")
    if "model_type" not in values and isinstance(kind, str):
        known = "a LeRobot policy" if kind in LEROBOT_FAMILIES else "a policy"
        return f"this is {known} of type '{shorten(kind)}'"
    return f"model_type is {shorten(repr(values.get('model_type')))}"
