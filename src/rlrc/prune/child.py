"""The policy that a plan makes of another one, as an outline: its config and shapes, without the weights."""

from collections.abc import Sequence
from dataclasses import asdict

import torch

from rlrc.errors import Impossible
from rlrc.policies.contract import Policy
from rlrc.prune.allocate import choose
from rlrc.prune.groups import Chain, chain_of, coupled_groups
from rlrc.prune.method import Plan, Target
from rlrc.prune.structured import layer_shape, plan_cut


def child_of(parent: Policy, chain: Chain, plan: Plan) -> Policy:
    """The policy that `plan` makes of the parent's layers in `chain`. Its parameters have shapes and no memory.

    Raises:
        UserError: a stack would have no layer left, or pictures with fewer tokens would lose tokens again.
    """
    if plan.tower is not None:
        return plan.tower.outline()
    config = type(parent.model.config).from_dict(parent.model.config.to_dict())
    shapes: dict[str, list[dict[str, int]]] = {stack.name: [] for stack in chain.stacks}
    stacks, places = {stack.name: stack for stack in chain.stacks}, chain.places
    for old in plan.layers:
        for name, number in places[old].items():
            shape = layer_shape(stacks[name].layers[number], name)
            shapes[name].append(shape | plan.shapes.get((old, name), {}))
    if lost := [name for name, those in shapes.items() if not those]:
        raise Impossible(f"keep names no layer of the stack '{lost[0]}', which needs at least one")
    parent.reshape(config, plan.layers, shapes)
    for stack in () if chain.is_vision else chain.stacks:  # those of vision have biases anyway
        part = stack.config_in(config)
        part.output_bias = part.output_bias or plan.output_bias
    if plan.tokens is not None:
        if config.visual_tokens is not None:
            raise Impossible(f"{parent.source}: its pictures have fewer tokens already; start from before that")
        if plan.tokens.kind == "shuffle" and f"{parent.feature_reader}.weight" not in parent.model.state_dict():
            raise Impossible("tokens: the projector is quantized, and is not widened then; prune first, quantize last")
        config.visual_tokens = asdict(plan.tokens)
    return parent.rebuilt(config)


def plan_by_count(policy: Policy, stacks: Sequence[str] | None, target: Target) -> Plan:
    """Plan to take as many heads and channels as the target says, no matter which: for the shapes alone.

    Args:
        stacks: those that lose them; None is the language model's and those that run with it.

    Raises:
        UserError: a layer would keep nothing, or the target is out of reach.
    """
    groups = coupled_groups(policy, stacks)
    scores = [torch.zeros(group.units) for group in groups]
    kept = choose(groups, scores, target.protected, "local", target.ratio, target.overall, target.rounding)
    return plan_cut(len(chain_of(policy, stacks)), groups, kept)
