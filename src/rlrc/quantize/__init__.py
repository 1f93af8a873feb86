"""Quantize: store the weights of linear layers in 2, 3, 4 or 8 bits, in groups along their inputs; nothing is trained.

    rlrc quantize --policy runs/default/rl/checkpoint --bits 4
    rlrc quantize --policy runs/default/rl/checkpoint --bits 4 --rounding gptq --dataset runs/demos/dataset

Only weights are packed (see `packed/layout.py`). They are rounded to the nearest code, or, given
demonstrations, so that each layer's outputs change least (`gptq.py`). Bytes are counted, never estimated: those of the
saved tensors and those of the tensors in memory, scales and zero points included.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlrc.configs.quantize import QuantizeConfig
from rlrc.data import Demonstrations
from rlrc.data.statistics import adopt_statistics, policy_key
from rlrc.errors import Impossible, UserError
from rlrc.packed.layers import PACKABLE, empty_packed, get_linear, quantization_config, shrinks
from rlrc.policies.checkpoint import load
from rlrc.policies.contract import Policy
from rlrc.policies.folder import stored_bytes
from rlrc.policies.shards import require_finite_tensor
from rlrc.progress import say, track
from rlrc.quantize.gptq import Samples, quantize_compensating, second_moments
from rlrc.tables import human_bytes


@dataclass(frozen=True)
class PackedLayer:
    """Record of how packing changed one layer."""

    name: str
    bf16_bytes: int
    bytes: int
    sqnr_db: float | None
    """Signal-to-quantization-noise ratio of the weight; None where nothing was lost."""


check = Demonstrations.check


def quantize(config: QuantizeConfig, out: Path) -> dict[str, Any]:
    """Pack the layers and write `out/checkpoint`.

    Returns:
        Bytes of the packed layers against bf16 (`replaced`) and of all tensors before and after (`total`), both on disk
        and in memory; `left_dense`, each layer that was not packed with the reason; `per_layer`; and, given a dataset,
        `actions`: how much the best actions of held-out frames move (see `disagreement`).

    Raises:
        UserError: the policy is quantized already or has no such part, a layer to leave alone does not exist, a weight
            holds NaN or infinity, or no layer can be packed.
    """
    policy = load(config.policy, policy_key(config), config.device, spec=config.spec)
    if getattr(policy.model.config, "quantization_config", None) is not None:
        raise UserError(f"{config.policy} is quantized already; quantize the checkpoint it was made from")
    before = {
        "disk": sum(stored_bytes(policy.source or config.policy).values()),
        "memory": _bytes_in_memory(policy.model),
    }
    names, kept = _chosen(policy, config)
    demonstrations = held_out = before_actions = actions = None
    if config.dataset is not None:
        demonstrations = Demonstrations.of(config)
        adopt_statistics(policy, demonstrations, config)
        held_out = Samples.draw(policy, demonstrations, config.samples, config.seed, held_out=True)
        before_actions = held_out.best_actions(policy)
    packed, left = _pack(policy, names, config, demonstrations)
    left |= dict.fromkeys(kept, "named in modules_to_not_convert")
    if not packed:
        raise Impossible(
            f"{config.policy}: none of {len(names)} layers shrinks ({next(iter(left.values()), 'no layers')})"
        )
    policy.model.config.quantization_config = quantization_config(
        config.bits, config.group_size, [layer.name for layer in packed]
    )
    if held_out is not None and before_actions is not None:
        actions = disagreement(before_actions, held_out.best_actions(policy), policy.bin_width)
    bf16, memory = sum(layer.bf16_bytes for layer in packed), sum(layer.bytes for layer in packed)
    metrics = {"layers": len(packed), "bytes": memory, "bf16_bytes": bf16, "ratio": memory / bf16, "left_dense": left}
    stage = {"verb": "quantize", "config": config.model_dump(mode="json"), "metrics": metrics | {"actions": actions}}
    policy.save(out / "checkpoint", stage=stage)

    stored = stored_bytes(out / "checkpoint")
    disk = sum(stored[f"{layer.name}.{leaf}"] for layer in packed for leaf in ("codes", "scales", "zeros"))
    after = {"disk": sum(stored.values()), "memory": _bytes_in_memory(policy.model)}
    replaced = {
        "layers": len(packed),
        "bf16": bf16,
        "disk": disk,
        "disk_ratio": disk / bf16,
        "memory": memory,
        "memory_ratio": memory / bf16,
    }
    _tell(replaced, packed, left, actions)
    return {
        "replaced": replaced,
        "total": {"before": before, "after": after},
        "left_dense": left,
        "actions": actions,
        "per_layer": [asdict(layer) for layer in packed],
    }


def _chosen(policy: Policy, config: QuantizeConfig) -> tuple[list[str], list[str]]:
    """Names of the layers to pack, and of those that `modules_to_not_convert` leaves alone.

    Raises:
        UserError: the policy has no such part, or a layer to leave alone does not exist.
    """
    if lacking := [part for part in config.parts if part not in policy.parts]:
        raise UserError(f"parts: this policy has no {lacking[0]}; it has {', '.join(policy.parts)}")
    names = linear_names(policy, config.parts)
    for part in config.modules_to_not_convert:
        if not any(part in name for name in names):
            raise UserError(f"modules_to_not_convert: '{part}' is in the name of no layer of {', '.join(config.parts)}")
    kept = [name for name in names if any(part in name for part in config.modules_to_not_convert)]
    return [name for name in names if name not in kept], kept


def _tell(
    replaced: Mapping[str, Any], packed: Sequence[PackedLayer], left: Mapping[str, str], actions: dict | None
) -> None:
    """Print what was packed, what it did to weights and actions, and what was left dense."""
    for where, key in (("on disk", "disk"), ("in memory", "memory")):
        share, whole = replaced[f"{key}_ratio"], human_bytes(replaced["bf16"])
        say(f"{len(packed)} layers {where}: {replaced[key]:,} bytes, {share:.4f} of {whole} in bf16")
    worst = min(packed, key=lambda layer: math.inf if layer.sqnr_db is None else layer.sqnr_db)
    say(f"lowest signal-to-noise ratio: {worst.sqnr_db or math.inf:.1f} dB, {worst.name}")
    if actions is not None and "bins" in actions:
        changed, bins = actions["changed"], actions["bins"]
        say(f"{changed:.1%} of {actions['tokens']} action tokens change; their bins move by {bins:.2f} on average")
    elif actions is not None:
        say(f"{actions['numbers']} normalised actions change by {actions['l1_change']:.4f} on average")
    for name, reason in left.items():
        say(f"left dense: {name}: {reason}")


def disagreement(before: torch.Tensor, after: torch.Tensor, bin_width: float | None) -> dict[str, float]:
    """Measure by how much normalised actions (N, H, D) differ on average.

    Args:
        bin_width: of action tokens, for which also the share that changes is counted; None of continuous actions.
    """
    distance = (before - after).abs().float()
    if bin_width is None:
        return {"numbers": before.numel(), "l1_change": float(distance.mean())}
    changed, bins = distance > bin_width / 2, distance / bin_width
    return {"tokens": before.numel(), "changed": float(changed.float().mean()), "bins": float(bins.mean())}


def _pack(
    policy: Policy, names: Sequence[str], config: QuantizeConfig, demonstrations: Demonstrations | None
) -> tuple[list[PackedLayer], dict[str, str]]:
    if config.rounding == "nearest":
        return quantize_linears(policy.model, names, config.bits, config.group_size)
    assert demonstrations is not None
    samples = Samples.draw(policy, demonstrations, config.samples, config.seed)
    packed: list[PackedLayer] = []
    left: dict[str, str] = {}
    rest = list(names)
    for moments in second_moments(policy, samples, names):
        done = quantize_linears(policy.model, list(moments), config.bits, config.group_size, moments)
        packed += done[0]
        left |= done[1]
        rest = [name for name in rest if name not in moments]
    done = quantize_linears(policy.model, rest, config.bits, config.group_size)
    for layer in done[0]:
        say(f"rounded to nearest, since it is no linear layer that the samples pass: {layer.name}")
    return packed + done[0], left | done[1]


def linear_names(policy: Policy, parts: Sequence[str]) -> list[str]:
    """Dotted names of the linear layers, convolutions and embeddings of the policy's `parts`."""
    modules = policy.model.named_modules()
    return [name for name, module in modules if isinstance(module, PACKABLE) and policy.part_of(name) in parts]


def quantize_linears(
    model: nn.Module,
    names: Sequence[str],
    bits: int,
    group_size: int,
    moments: Mapping[str, torch.Tensor] | None = None,
) -> tuple[list[PackedLayer], dict[str, str]]:
    """Put a packed layer in the place of each named one, one at a time, so that memory only shrinks.

    Args:
        moments: of the inputs of each, where errors are to make up for each other.

    Returns:
        What was packed, and the reason for each layer that was left dense.

    Raises:
        UserError: a weight holds NaN or infinity.
    """
    packed, left = [], {}
    for name in track(names, "quantize"):
        linear = get_linear(model, name)
        weight = linear.weight.detach()
        require_finite_tensor(f"{name}.weight", weight, "quantize")
        if not shrinks(linear, bits, group_size):
            left[name] = f"{bits}-bit codes and scales of shape {tuple(weight.shape)} take more bytes than bf16"
            continue
        quantized = empty_packed(linear, bits, group_size)
        if moments is None:
            quantized.fill(linear)
        else:
            quantized.store(slice(None), *quantize_compensating(weight, moments[name], bits, group_size))
            quantized.take_bias(linear)
        model.set_submodule(name, quantized)
        packed.append(
            PackedLayer(name, 2 * weight.numel(), quantized.nbytes, sqnr_db(weight.flatten(1), quantized.dequantize()))
        )
    return packed, left


def sqnr_db(weight: torch.Tensor, approximation: torch.Tensor) -> float | None:
    """10 log10 of the energy of `weight` over that of the error; None where there is no error."""
    signal, noise = weight.float().square().sum(), (weight.float() - approximation.float()).square().sum()
    return 10 * math.log10(signal / noise) if noise > 0 else None


def _bytes_in_memory(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())
