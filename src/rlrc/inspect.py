"""Describe a policy: parameters and bytes by part, the shape of each layer, quantization and lineage.

Read from the headers of its files: the weights themselves are never loaded.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from rlrc.configs.inspect import InspectConfig
from rlrc.packed.layers import QuantizedLinear, who_multiplies
from rlrc.policies.checkpoint import outline
from rlrc.policies.contract import Policy
from rlrc.policies.groups import DECODER
from rlrc.progress import say
from rlrc.tables import human_bytes, human_count, print_table


def inspect(config: InspectConfig, out: Path) -> dict[str, Any]:
    """Print a policy's parts, layers and lineage; nothing is written."""
    policy = outline(config.policy, spec=config.spec)
    described = describe(policy)
    parameters, sizes = described["parameters"], described["bytes"]
    rows = [[part, human_count(parameters[part]), human_bytes(sizes[part])] for part in parameters]
    print_table(str(config.policy), ["part", "parameters", "bytes"], rows)
    say(f"papers count this as: {described['published_parameters']:,} parameters")
    spec = policy.spec
    say(
        f"{spec.family}: cameras {', '.join(spec.cameras)}; a state of {len(spec.state)} numbers; "
        f"{spec.horizon} actions of {len(spec.action)} numbers a call"
    )
    for stack in policy.stacks():
        layers = [layer for layer in described["layers"] if layer.get("stack", DECODER) == stack.name]
        keys = ("heads", "kv_heads", "channels")
        rows = [[str(i), *(str(layer.get(key, "")) for key in keys)] for i, layer in enumerate(layers)]
        print_table(stack.name, ["layer", "heads", "key-value heads", "MLP channels"], rows)
    if described["quantization"] is not None:
        packed = described["quantization"]
        say(f"{packed['layers']} layers in {packed['bits']} bits, groups of {packed['group_size']}")
    for kind in described["multipliers"]:
        reasons = "; ".join(f"not {name}: {reason}" for name, reason in kind["refused"].items())
        what = f"{kind['layers']} {kind['kind']} layers in {kind['bits']} bits"
        say(f"{what}: multiplied here by {kind['backend']}" + (f" ({reasons})" if reasons else ""))
    for stage in described["lineage"]["stages"]:
        say(f"made by: {stage['verb']} {stage.get('config', {})}")
    return described


def describe(policy: Policy) -> dict[str, Any]:
    """Exact counts of a policy or its outline, JSON-able.

    `parameters` by part and in total, where a packed weight counts as the weights it stands for; `bytes` of all tensors
    in memory likewise; `published_parameters`, with the parts of published checkpoints that inference never reads and
    the whole output head, as papers count; `layers` of the decoder, and of an expert where there is one; `quantization`
    (None if there is none); `multipliers`, what multiplies each kind of packed layer where the policy lies, or on this
    processor if it is an outline; `lineage`.
    """
    device = torch.device("cpu") if policy.device.type == "meta" else policy.device
    packed = {name: module for name, module in policy.model.named_modules() if isinstance(module, QuantizedLinear)}
    parameters, sizes = Counter[str](), Counter[str]()

    def part(name: str) -> str:
        return policy.part_of(name) or "embeddings"

    for name, layer in packed.items():
        parameters[part(name)] += layer.in_features * layer.out_features
    for name, parameter in policy.model.named_parameters():
        parameters[part(name)] += parameter.numel()
        sizes[part(name)] += parameter.nbytes
    for name, buffer in policy.model.named_buffers():
        sizes[part(name)] += buffer.nbytes
    quantization = policy.model.config.quantization_config if packed else None
    return {
        "parameters": dict(parameters) | {"total": parameters.total()},
        "published_parameters": policy.published_parameters,
        "bytes": dict(sizes) | {"total": sizes.total()},
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "layers": [_layer_shape(stack.name, layer) for stack in policy.stacks() for layer in stack.layers],
        "quantization": quantization and {"layers": len(packed)} | {k: quantization[k] for k in ("bits", "group_size")},
        "multipliers": who_multiplies(policy.model, device, policy.model.dtype),
        "lineage": policy.lineage,
    }


def _layer_shape(stack: str, layer: Any) -> dict[str, Any]:
    attention, mlp = layer.self_attn, getattr(layer, "mlp", None)
    shape: dict[str, Any] = {} if stack == DECODER else {"stack": stack}
    if hasattr(
        attention, "q_proj"
    ):  # the last layer of a language model that an expert reads has keys and values alone
        shape["heads"] = attention.q_proj.out_features // attention.head_dim
    shape["kv_heads"] = attention.k_proj.out_features // attention.head_dim
    if mlp is not None:
        shape["channels"] = mlp.gate_proj.out_features
    return shape
