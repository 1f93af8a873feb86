"""A policy as a plan leaves it, without weights: its shapes alone."""

from dataclasses import asdict

from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.prune.groups import Chain
from rlrc.prune.method import Plan
from rlrc.prune.structured import layer_shape


def shrunk(parent: Policy, chain: Chain, plan: Plan) -> Policy:
    """The policy that `plan` makes of the parent, as an outline.

    Args:
        chain: the parent's layers that the plan is about.

    Raises:
        UserError: no layer of a stack would stay, or the parent's pictures have fewer tokens already.
    """
    config = type(parent.model.config).from_dict(parent.model.config.to_dict())
    shapes: dict[str, list[dict[str, int]]] = {stack.name: [] for stack in chain.stacks}
    stacks, places = {stack.name: stack for stack in chain.stacks}, chain.places
    for old in plan.layers:
        for name, number in places[old].items():
            shape = layer_shape(stacks[name].layers[number], name)
            shapes[name].append(shape | plan.shapes.get((old, name), {}))
    if lost := [name for name, those in shapes.items() if not those]:
        raise UserError(f"keep names no layer of the stack '{lost[0]}', which needs at least one")
    parent.reshape(config, plan.layers, shapes)
    for stack in () if chain.is_vision else chain.stacks:  # those of vision have biases anyway
        part = stack.config_in(config)
        part.output_bias = part.output_bias or plan.output_bias
    if plan.tokens is not None:
        if config.visual_tokens is not None:
            raise UserError(f"{parent.source}: its pictures have fewer tokens already; start from before that")
        config.visual_tokens = asdict(plan.tokens)
    return parent.rebuilt(config)
