"""Calibration samples for the layers of vision towers.

A frame's loss depends on the towers by what enters the language model in the pictures' places. Its gradient there is
found first, by one backward pass through the blocks of the language model, which pass by one at a time. Then the
towers' layers are calibrated with a loss that has the same gradient: the product of that gradient with what the
pictures become. So importance by gradients is that of the whole policy's loss, and never more of it is in memory than
the towers and a block.
"""

from collections.abc import Mapping

import torch

from rlrc.policies.contract import Policy
from rlrc.policies.groups import DECODER, Block
from rlrc.policies.values import States, VisionPass
from rlrc.prune.calibrate import Frames
from rlrc.prune.measured import Measured
from rlrc.prune.method import Source
from rlrc.prune.stream import Calibration


def vision_calibration(frames: Frames, language: Source) -> Calibration:
    """The frames' pictures as the vision towers see them, and a loss with the gradient of the frames' own.

    Args:
        language: the blocks of the language chain, and the same frames.
    """
    passing, gradient = _pictures(frames), _gradient(language)
    share = passing.share(gradient)

    def loss(states: States, rows: slice) -> torch.Tensor:
        return (passing.read(states).float() * share[rows].float()).sum()

    there = {
        stack: torch.ones(tensor.shape[:2], dtype=torch.bool, device=gradient.device)
        for stack, tensor in passing.states.items()
    }
    return Calibration(passing.states, there, passing.context, _run, loss)


def _run(block: Block, states: States, context: Mapping[str, torch.Tensor]) -> States:
    """A block holds the layer of one tower; what is on its way through another waits."""
    ((stack, layer),) = block.named_children()
    return States({**states, stack: layer(states[stack], *context.values())})


@torch.no_grad()
def _pictures(frames: Frames) -> VisionPass:
    policy: Policy = frames.policy
    return policy.vision_pass(policy.prepare(frames.observation).to(frames.actions.device))


def _gradient(language: Source) -> torch.Tensor:
    """The gradient of the loss with respect to what enters the language model, (N, positions, hidden)."""

    def visit(index: int, block: Block, states: States, upstream: States) -> tuple[Measured, States]:
        below = language.stream.backward(block, states, upstream)
        return {} if index else {DECODER: below[DECODER]}, below

    return language.backward("vision", visit)[DECODER]
