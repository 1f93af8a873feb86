"""Makes transformers' Auto classes know our model, without importing either until someone asks for it.

transformers keeps its own models as names that are looked up in lazily imported modules. We add our names to those
tables as soon as they exist, and stand in for the module they are looked up in. Importing our model at that point
instead would fail whenever transformers itself is only half imported.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import wrapt

MODEL_TYPE = "openvla"


class _LazyModule(ModuleType):
    """Resolves names in `rlrc.models.openvla`, importing it at the first one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module("rlrc.models.openvla"), name)


def register() -> None:
    """Hook into transformers, whether it is imported already or will be."""
    wrapt.register_post_import_hook(_add_config, "transformers.models.auto.configuration_auto")
    wrapt.register_post_import_hook(_add_model, "transformers.models.auto.modeling_auto")


def _add_config(configuration_auto: Any) -> None:
    configuration_auto.CONFIG_MAPPING_NAMES[MODEL_TYPE] = "OpenVLAConfig"
    sys.modules[f"transformers.models.{MODEL_TYPE}"] = _LazyModule(f"transformers.models.{MODEL_TYPE}")


def _add_model(modeling_auto: Any) -> None:
    names, mapping = (
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )
    names[MODEL_TYPE] = "OpenVLAForActionPrediction"
    # Filled when the table was made, which is before us where transformers was imported first.
    mapping._reverse_config_mapping["OpenVLAConfig"] = MODEL_TYPE
