"""Makes transformers' Auto classes know our models, without importing either until someone asks for it.

transformers keeps its own models as names that are looked up in lazily imported modules. We add our names to those
tables as soon as they exist, and stand in for the module they are looked up in. Importing our model at that point
instead would fail whenever transformers itself is only half imported.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import wrapt

from rlrc.policies.families import FAMILIES, Family


class _LazyModule(ModuleType):
    """Resolves names in a family's module `model`, importing it at the first one."""

    def __init__(self, name: str, family: Family) -> None:
        super().__init__(name)
        self._family = family

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module(f"{self._family.package}.model"), name)


def register() -> None:
    """Hook into transformers, whether it is imported already or will be."""
    wrapt.register_post_import_hook(_add_configs, "transformers.models.auto.configuration_auto")
    wrapt.register_post_import_hook(_add_models, "transformers.models.auto.modeling_auto")


def _is_too_old() -> bool:
    """Whether this transformers cannot hold our models: the client may stand beside one of LeRobot's choice."""
    return int(sys.modules["transformers"].__version__.partition(".")[0]) < 5


def _add_configs(configuration_auto: Any) -> None:
    if _is_too_old():
        return
    for family in FAMILIES.values():
        configuration_auto.CONFIG_MAPPING_NAMES[family.model_type] = family.config_class
        name = f"transformers.models.{family.model_type}"
        sys.modules[name] = _LazyModule(name, family)


def _add_models(modeling_auto: Any) -> None:
    if _is_too_old():
        return
    names, mapping = (
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )
    for family in FAMILIES.values():
        names[family.model_type] = family.model_class
        # Filled when the table was made, which is before us where transformers was imported first.
        mapping._reverse_config_mapping[family.config_class] = family.model_type
