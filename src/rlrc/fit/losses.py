"""How much the loss on demonstrations rises when one part alone becomes lighter, without any fine-tuning.

Frames pass the layers block by block (`prune/stream.py`), all versions beside each other, so that a policy of 7.5 B
parameters needs the memory of a block and of what stands around the layers. `sensitivity` measures the same, and how
actions change, with the whole policy in memory.
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import nn

from rlrc.configs.fit import FitConfig
from rlrc.configs.quantize import GROUP_SIZE
from rlrc.data import Demonstrations
from rlrc.errors import UserError
from rlrc.fit.versions import SEEING, Versions
from rlrc.packed.layers import PACKABLE
from rlrc.policies.contract import Policy
from rlrc.policies.device import resolve_device
from rlrc.policies.groups import VISION, Block
from rlrc.policies.parts.towers import OneTower
from rlrc.policies.values import States
from rlrc.progress import bar, quietly
from rlrc.prune.calibrate import Frames
from rlrc.prune.child import child_of
from rlrc.prune.groups import Chain, chain_of
from rlrc.prune.method import Plan
from rlrc.prune.stream import Calibration, StoredBlocks, Stream
from rlrc.quantize import linear_names, quantize_linears
from rlrc.sensitivity.variants import LAYERS, TOKENS, Variant


@dataclass
class Passing:
    """A version on its way through the layers of language."""

    calibration: Calibration
    states: States
    edit: Callable[[int, Block], bool]
    """Changes a block of a number in place; false where the block is left out."""


def loss_rises(
    versions: Versions, config: FitConfig, demonstrations: Demonstrations
) -> tuple[float, dict[Variant, float]]:
    """The policy's own mean loss, and by how much it rises for each version.

    Raises:
        UserError: there are too few frames, they do not fit the policy, or a loss is not finite.
    """
    with (device := resolve_device(config.device)), torch.no_grad():  # where new tensors are made
        own = _around(versions.parent, config, demonstrations)
        passing: dict[Variant | None, Passing] = {None: _passing(own)}
        for variant in _variants(versions):
            passing[variant] = _lighter(variant, versions, config, demonstrations, own)
        chain, files = chain_of(versions.parent), versions.parent.weights
        assert files is not None
        blocks = StoredBlocks(files, chain, device)
        with bar("losses", len(blocks)) as progress:
            for index in range(len(blocks)):
                block = blocks[index]
                for version in passing.values():
                    mine = deepcopy(block)
                    if version.edit(index, mine):
                        version.states = Stream(version.calibration).step(mine, version.states)
                progress.advance()
        losses = {variant: _loss(version) for variant, version in passing.items()}
    mean = losses.pop(None)
    if not math.isfinite(mean):
        raise UserError(f"{config.policy}: its loss on demonstrations is NaN or infinite; it or its data is broken")
    if broken := [variant for variant, loss in losses.items() if not math.isfinite(loss)]:
        raise UserError(f"{broken[0]}: the loss is NaN or infinite with it; leave it out of what `fit` may choose")
    return mean, {variant: loss - mean for variant, loss in losses.items() if variant is not None}


def _variants(versions: Versions) -> list[Variant]:
    sides = [LAYERS, *([VISION] if set(SEEING) & set(versions.packable) else [])]
    return [*versions.plans, *(Variant(side, "bits", number) for side in sides for number in versions.bits)]


def _lighter(
    variant: Variant, versions: Versions, config: FitConfig, demonstrations: Demonstrations, own: Frames
) -> Passing:
    """A version before its first layer of language; `own` are the frames as the policy itself sees them."""
    plan = versions.plans.get(variant)
    if variant.part == TOKENS:
        assert plan is not None
        parent = versions.parent
        return _passing(_around(child_of(parent, chain_of(parent), plan), config, demonstrations))
    if variant.kind != "bits" and variant.part == LAYERS:
        assert plan is not None
        return _passing(own, _pruned(plan))
    around = _around(versions.parent, config, demonstrations)
    if variant.kind == "bits":
        sides = [part for part in versions.packable if (part in SEEING) == (variant.part == VISION)]
        _pack_around(around.policy, sides, int(variant.degree))
        in_blocks = variant.part == LAYERS
        return _passing(around, _packing(versions.parent, sides, int(variant.degree)) if in_blocks else _unchanged)
    assert plan is not None
    if plan.tower is not None:
        return _passing(replace(around, policy=_with_one_tower(around.policy, plan.tower)))
    _prune_in_place(chain_of(around.policy, (VISION,)), plan)
    return _passing(around)


def _around(policy: Policy, config: FitConfig, demonstrations: Demonstrations) -> Frames:
    """The frames, and a policy of this shape whose weights around the layers of language are there."""
    fresh = policy.rebuilt(policy.model.config)
    if policy.unnorm_key is not None:
        fresh.adopt((policy.norm_stats or {})[policy.unnorm_key], policy.unnorm_key)
    return Frames.draw(fresh, demonstrations, config.samples, config.seed, held_out=True)


def _unchanged(index: int, block: Block) -> bool:
    return True


def _pruned(plan: Plan) -> Callable[[int, Block], bool]:
    def edit(index: int, block: Block) -> bool:
        if index not in plan.layers:
            return False
        plan.edit(index, block)
        return True

    return edit


def _packing(parent: Policy, parts: Sequence[str], bits: int) -> Callable[[int, Block], bool]:
    """Pack the layers of those stacks that are among the parts."""

    def edit(index: int, block: Block) -> bool:
        for name, layer in block.named_children():
            if name in parts:
                _pack(layer, [leaf for leaf, module in layer.named_modules() if isinstance(module, PACKABLE)], bits)
        return True

    return edit


def _pack_around(policy: Policy, parts: Sequence[str], bits: int) -> None:
    """Pack what is in memory of the parts, which is all but the layers of language."""
    layers = tuple(f"{stack.prefix}." for stack in policy.stacks())
    _pack(policy.model, [name for name in linear_names(policy, parts) if not name.startswith(layers)], bits)


def _pack(module: nn.Module, names: Sequence[str], bits: int) -> None:
    with quietly():
        quantize_linears(module, names, bits, GROUP_SIZE)


def _prune_in_place(chain: Chain, plan: Plan) -> None:
    """Let the layers that a model holds become what the plan says."""
    places, blocks = chain.places, chain.blocks
    for index in plan.layers:
        plan.edit(index, blocks[index])
    layers = {stack.name: stack.layers for stack in chain.stacks}
    for index in sorted(set(range(len(chain))) - set(plan.layers), reverse=True):
        ((stack, number),) = places[index].items()
        del layers[stack][number]  # type: ignore[attr-defined]


def _with_one_tower(policy: Policy, tower: OneTower) -> Policy:
    """The policy with one vision tower alone; of its weights those around the layers of language are there."""
    child, there = tower.outline(), policy.model.state_dict()
    names = [name for name, tensor in there.items() if not tensor.is_meta]
    for name, tensor in tower.tensors(names, there.__getitem__):
        owner, _, leaf = name.rpartition(".")
        setattr(child.model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    return child  # type: ignore[no-any-return]


def _passing(frames: Frames, edit: Callable[[int, Block], bool] = _unchanged) -> Passing:
    with quietly():
        calibration = frames.calibration()
        frames.let_vision_go()
    return Passing(calibration, calibration.states, edit)


def _loss(version: Passing) -> float:
    stream = Stream(version.calibration)
    return sum(float(version.calibration.loss(version.states.rows(rows), rows)) for rows in stream.batches())
