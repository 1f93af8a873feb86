"""Teaches transformers' `from_pretrained` about `quant_method: "rlrc"`: packed layers are built before loading.

Importing this module registers it; `prismatic/model.py` does so, `import rlrc` alone does not.
"""

from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from rlrc.packed import cpu
from rlrc.packed.layers import replace_linears


@register_quantization_config("rlrc")
class PackedWeightsConfig(QuantizationConfigMixin):
    """The `quantization_config` of config.json: `bits` and `group_size` of the layers at the dotted names `modules`."""

    quant_method: Any = "rlrc"

    def __init__(self, bits: int, group_size: int, modules: list[str], quant_method: str = "rlrc") -> None:
        self.quant_method = quant_method
        self.bits, self.group_size, self.modules = bits, group_size, modules


@register_quantizer("rlrc")
class PackedWeightsQuantizer(HfQuantizer):
    """Loads policies that `rlrc quantize` has written; it does not quantize on the fly."""

    requires_calibration = True  # makes transformers refuse a checkpoint that is not quantized yet
    quantization_config: PackedWeightsConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        config = self.quantization_config
        replace_linears(model, config.modules, config.bits, config.group_size)
        cpu.missing()  # compiles them now and not in the first forward pass

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False
