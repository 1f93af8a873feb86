"""Linear layers packed by other packages, each as its own documentation has it: bitsandbytes, PyTorch and torchao.

The projector and the head stay as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from names import BITSANDBYTES, DYNAMIC, TORCHAO, Run
from torch import nn


def pack(run: Run, parts: Sequence[nn.Module], others: Sequence[nn.Module]) -> str:
    """Pack the linear layers of `parts`, and return in words what they are stored and computed in.

    Args:
        others: the parts of the policy that are not packed.
    """
    packer: Callable[[nn.Module, int], None]
    packer, words = {
        (BITSANDBYTES, 8): (with_bitsandbytes, "W8A8 (LLM.int8)"),
        (BITSANDBYTES, 4): (with_bitsandbytes, "NF4: W4A16"),
        (DYNAMIC, 8): (with_torch, "W8A8, the rest in float32"),
        (TORCHAO, 8): (with_torchao, "W8A8 (int8 dynamic)"),
        (TORCHAO, 4): (with_torchao, "W4A16 (groups of 32, other widths in bf16)"),
    }[run.by, run.bits]
    for part in parts:
        packer(part, run.bits)
    if run.by == DYNAMIC:
        for part in others:
            part.float()
    return words


def with_bitsandbytes(part: nn.Module, bits: int) -> None:
    """Put bitsandbytes' layers in the place of all linear ones, as its integration in transformers does. The kernel
    that it can fetch from a hub is not used."""
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

    for name, linear in list(part.named_modules()):
        if not is_linear(linear):
            continue
        shape, bias = (linear.in_features, linear.out_features), linear.bias is not None
        weight = linear.weight.data.cpu()  # it packs while a weight leaves the host's memory, and only then
        if bits == 4:
            packed = Linear4bit(*shape, bias=bias, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta")
            packed.weight = Params4bit(weight, requires_grad=False, quant_type="nf4")
        else:
            packed = Linear8bitLt(*shape, bias=bias, has_fp16_weights=False, threshold=6.0, device="meta")
            packed.weight = Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        packed.bias = linear.bias
        part.set_submodule(name, packed.to(linear.weight.device))


def with_torch(part: nn.Module, _bits: int) -> None:
    """PyTorch's dynamic quantization: one scale an activation tensor. It takes float32 alone, so all that stays dense
    computes in that."""
    from torch.ao.quantization import quantize_dynamic

    # The other engine, FBGEMM, asks the processor itself what it can do.
    torch.backends.quantized.engine = "onednn"
    quantize_dynamic(part.float(), {nn.Linear}, dtype=torch.qint8, inplace=True)


def with_torchao(part: nn.Module, bits: int) -> None:
    """Let torchao's `quantize_` pack the layers."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    on_cpu = next(part.parameters()).device.type == "cpu"
    config = Int8DynamicActivationInt8WeightConfig() if bits == 8 else _torchao_int4(on_cpu)
    quantize_(part, config, filter_fn=lambda module, _name: is_linear(module))


def _torchao_int4(on_cpu: bool) -> Any:
    """torchao's 4-bit layers for processors, which are among its prototypes, or those for GPUs that need no further
    package."""
    if on_cpu:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=32)
    from torchao.quantization import Int4WeightOnlyConfig

    return Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d")


def is_linear(module: nn.Module) -> bool:
    """SigLIP's unused pooling has attention of PyTorch's own, which reads its weights itself: not linear here."""
    return type(module) is nn.Linear


def weight_bytes(part: nn.Module) -> int:
    """Bytes of all weights as they are stored, with their scales, whichever package did it."""
    dynamic = torch.ao.nn.quantized.dynamic.Linear
    packed = sum(
        stored.nbytes for module in part.modules() if isinstance(module, dynamic) for stored in _dynamic(module)
    )
    return packed + sum(_stored_bytes(parameter) for parameter in part.parameters())


def _dynamic(layer: nn.Module) -> Iterator[torch.Tensor]:
    """The tensors of one of PyTorch's dynamic layers."""
    weight, bias = layer.weight(), layer.bias()
    yield weight.int_repr()
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
        yield weight.q_per_channel_scales()
    if bias is not None:
        yield bias


def _stored_bytes(tensor: Any) -> int:
    """torchao's tensors say how many bytes they would take in bf16, so those that they are made of are counted;
    bitsandbytes' have their scales beside them."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_stored_bytes(getattr(tensor, name)) for name in names)
    state, scales = getattr(tensor, "quant_state", None), getattr(tensor, "SCB", None)
    beside = [] if state is None else list(state.as_dict(packed=True).values())
    beside += [] if scales is None else [scales]
    return tensor.nbytes + sum(scale.nbytes for scale in beside)
