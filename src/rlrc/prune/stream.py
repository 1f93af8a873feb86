"""The layers one block at a time: weights come from disk when their turn comes, and go when it is over.

A block is a layer of the language model, and with it the layer of the same number of an action expert where there is
one. Calibration samples are kept as what enters a block, (samples, positions, width). A forward pass needs one block's
weights; so does a backward pass, which reads them once more from the last layer to the first and computes each layer
anew from its inputs (gradient checkpointing at layer boundaries). 7.5 B parameters thus pass through a few gigabytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import nn

from rlrc.errors import UserError
from rlrc.policies.groups import Block, Member
from rlrc.policies.values import Stack, States, Tensors
from rlrc.policies.wide import widen_where_slow
from rlrc.prune.groups import Chain

TOKENS_AT_ONCE = 8192
"""Positions that pass a layer together, which bounds the memory of its activations."""


class StoredBlocks(Sequence[Block]):
    """The layers of a checkpoint: `blocks[i]` reads those of number i to `device`, each time anew, and keeps none.

    Raises:
        UserError: a weight holds NaN or infinity.
    """

    def __init__(self, files: Tensors, chain: Chain, device: torch.device | None = None) -> None:
        self._files, self._places = files, chain.places
        self._stacks = {stack.name: stack for stack in chain.stacks}
        self._device = device or torch.device("cpu")

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | Sequence[Block]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        block = Block({name: self._read(self._stacks[name], at) for name, at in self._places[index].items()}).eval()
        widen_where_slow(block, self._device)
        return block

    def _read(self, stack: Stack, index: int) -> nn.Module:
        with torch.device("meta"):
            layer = stack.new_layer(index)
        for name, _ in list(layer.named_parameters()):
            tensor = self._files.read(f"{stack.prefix}.{index}.{name}")
            owner, _, leaf = name.rpartition(".")
            setattr(layer.get_submodule(owner), leaf, nn.Parameter(tensor.to(self._device), requires_grad=False))
        return layer


Run = Callable[[Block, States, Mapping[str, torch.Tensor]], States]
"""What leaves a block when states enter it, given what all blocks need to know of the rows."""


@dataclass
class Calibration:
    """Samples as the layers see them, and what is expected of these."""

    states: States
    """Inputs of the first block."""
    there: dict[str, torch.Tensor]
    """Bool (N, T) by stack: false where there is only padding."""
    context: dict[str, torch.Tensor]
    """Tensors that all blocks need to know of the samples, each (N, ...)."""
    run: Run
    loss: Callable[[States, slice], torch.Tensor]
    """Loss of the last outputs for the samples of a slice: their share in the mean loss of all N."""

    def __len__(self) -> int:
        return self.states.count

    def repeated(self, times: int) -> "Calibration":
        """The same samples several times, one after the other."""

        def again(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: torch.cat([tensor] * times) for name, tensor in tensors.items()}

        return replace(self, states=States(again(self.states)), there=again(self.there), context=again(self.context))


class Stream:
    """Calibration samples on their way through the blocks."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration

    def __len__(self) -> int:
        return len(self.calibration)

    def batches(self, size: int | None = None) -> Iterator[slice]:
        """All samples, in slices of `size`, or of as many as fit into TOKENS_AT_ONCE."""
        positions = sum(there.shape[1] for there in self.calibration.there.values())
        size = size or max(1, TOKENS_AT_ONCE // positions)
        for first in range(0, len(self), size):
            yield slice(first, min(first + size, len(self)))

    @torch.no_grad()
    def step(self, block: Block, states: States) -> States:
        """Return what leaves `block` when `states` enter it."""
        return States.cat([self._call(block, states.rows(rows), rows) for rows in self.batches()])

    def loss_gradient(self, states: States) -> States:
        """Gradient of the mean loss with respect to the last block's outputs.

        Raises:
            UserError: the loss is not finite.
        """
        gradients, total = [], 0.0
        for rows in self.batches():
            here = _leaves(states.rows(rows))
            with torch.enable_grad():
                loss = self.calibration.loss(here, rows)
            gradients.append(States(zip(here, _gradients([loss], list(here.values())), strict=True)))
            total += float(loss.detach())
        if not torch.isfinite(torch.tensor(total)):
            raise UserError("the calibration loss is NaN or infinite; the checkpoint or its data is broken")
        return States.cat(gradients)

    def backward(
        self,
        block: Block,
        states: States,
        upstream: States,
        members: Sequence[Member] = (),
        see: Callable[[dict[str, torch.Tensor]], None] = lambda _: None,
        size: int | None = None,
    ) -> States:
        """The gradient with respect to `states`, the block's inputs, given that of its outputs, `upstream`.

        `see` is called for each batch of `size` samples with its gradients of the members' matrices, by place, which
        sum up to those of the mean loss.
        """
        weights = {member.place: member.matrix(block).weight for member in members}
        inputs = []
        for rows in self.batches(size):
            here = _leaves(states.rows(rows))
            with torch.enable_grad(), _requiring_grad(list(weights.values())):
                out = {stack: left for stack, left in self._call(block, here, rows).items() if left.requires_grad}
                found = _gradients(
                    list(out.values()),
                    [*here.values(), *weights.values()],
                    [upstream[stack][rows] for stack in out],
                )
            inputs.append(States(zip(here, found[: len(here)], strict=True)))
            see(dict(zip(weights, found[len(here) :], strict=True)))
        return States.cat(inputs)

    def _call(self, block: Block, states: States, rows: slice) -> States:
        context = {name: tensor[rows] for name, tensor in self.calibration.context.items()}
        return self.calibration.run(block, states, context)


def _leaves(states: States) -> States:
    return States({stack: tensor.detach().requires_grad_() for stack, tensor in states.items()})


def _gradients(
    outputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], upstream: Sequence[torch.Tensor] | None = None
) -> list[torch.Tensor]:
    """Gradients of outputs with respect to the wanted tensors; zeros for one that they do not depend on, as a language
    model's states behind the last layer, which an expert does not read."""
    found = torch.autograd.grad(outputs, wanted, upstream, allow_unused=True)
    pairs = zip(wanted, found, strict=True)
    return [torch.zeros_like(tensor) if gradient is None else gradient for tensor, gradient in pairs]


@contextmanager
def inputs_of(block: Block, see: Mapping[Member, Callable[[torch.Tensor], None]]) -> Iterator[None]:
    """Within the block of code, call `see[member]` with what enters its matrix: (n, T, width)."""
    handles = [
        member.matrix(block).register_forward_pre_hook(lambda _, args, look=look: look(args[0]))
        for member, look in see.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _requiring_grad(parameters: Sequence[torch.Tensor]) -> Iterator[None]:
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
