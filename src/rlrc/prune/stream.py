"""The decoder one layer at a time: weights come from disk when their turn comes, and go when it is over.

Calibration samples are kept as what enters a layer, (samples, positions, hidden). A forward pass needs one layer's
weights; so does a backward pass, which reads them once more from the last layer to the first and computes each layer
anew from its inputs (gradient checkpointing at layer boundaries). 7.5 B parameters thus pass through a few gigabytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import overload

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from rlrc.errors import UserError
from rlrc.policies.parts.config import DecoderConfig
from rlrc.policies.parts.decoder import decoder_layer
from rlrc.policies.values import Tensors
from rlrc.prune.groups import matrix

TOKENS_AT_ONCE = 8192
"""Positions that pass a layer together, which bounds the memory of its activations."""


class StoredLayers(Sequence[LlamaDecoderLayer]):
    """The decoder layers of a checkpoint: `layers[i]` reads layer i to `device`, each time anew, and does not keep it.

    Raises:
        UserError: a weight holds NaN or infinity.
    """

    def __init__(self, files: Tensors, prefix: str, config: DecoderConfig, device: torch.device | None = None) -> None:
        self._files, self._prefix, self._config = files, prefix, config
        self._device = device or torch.device("cpu")

    def __len__(self) -> int:
        return self._config.num_hidden_layers

    @overload
    def __getitem__(self, index: int) -> LlamaDecoderLayer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LlamaDecoderLayer]: ...
    def __getitem__(self, index: int | slice) -> LlamaDecoderLayer | Sequence[LlamaDecoderLayer]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        with torch.device("meta"):
            layer = decoder_layer(self._config, index)
        for name, _ in list(layer.named_parameters()):
            tensor = self._files.read(f"{self._prefix}.{index}.{name}")
            owner, _, leaf = name.rpartition(".")
            setattr(layer.get_submodule(owner), leaf, nn.Parameter(tensor.to(self._device), requires_grad=False))
        return layer.eval()


@dataclass
class Calibration:
    """Samples as the decoder sees them, and what is expected of it."""

    embeddings: torch.Tensor
    """Inputs of the first layer, (N, T, hidden)."""
    mask: torch.Tensor
    """Bool (N, T): false where there is only padding."""
    positions: torch.Tensor
    """Position ids (N, T)."""
    causal: bool
    """True where a position sees itself and those before it alone; false where it sees all."""
    loss: Callable[[torch.Tensor, slice], torch.Tensor]
    """Loss of the last outputs (n, T, hidden) for the samples of a slice: their share in the mean loss of all N."""

    def __len__(self) -> int:
        return len(self.embeddings)


class Stream:
    """Calibration samples on their way through decoder layers.

    Args:
        rotary: gives (cos, sin) for (hidden, position_ids), as transformers' LlamaRotaryEmbedding.
    """

    def __init__(self, calibration: Calibration, rotary: nn.Module) -> None:
        self.calibration, self._rotary = calibration, rotary

    def __len__(self) -> int:
        return len(self.calibration)

    def batches(self, size: int | None = None) -> Iterator[slice]:
        """All samples, in slices of `size`, or of as many as fit into TOKENS_AT_ONCE."""
        size = size or max(1, TOKENS_AT_ONCE // self.calibration.mask.shape[1])
        for first in range(0, len(self), size):
            yield slice(first, min(first + size, len(self)))

    @torch.no_grad()
    def step(self, layer: LlamaDecoderLayer, hidden: torch.Tensor) -> torch.Tensor:
        """Return what leaves `layer` when `hidden` (N, T, hidden) enters it."""
        return torch.cat([self._call(layer, hidden[rows], rows) for rows in self.batches()])

    def loss_gradient(self, hidden: torch.Tensor) -> torch.Tensor:
        """Gradient of the mean loss with respect to the last layer's outputs (N, T, hidden).

        Raises:
            UserError: the loss is not finite.
        """
        gradients, total = [], 0.0
        for rows in self.batches():
            here = hidden[rows].detach().requires_grad_()
            with torch.enable_grad():
                loss = self.calibration.loss(here, rows)
            gradients.append(torch.autograd.grad(loss, here)[0])
            total += float(loss.detach())
        if not torch.isfinite(torch.tensor(total)):
            raise UserError("the calibration loss is NaN or infinite; the checkpoint or its data is broken")
        return torch.cat(gradients)

    def backward(
        self,
        layer: LlamaDecoderLayer,
        hidden: torch.Tensor,
        upstream: torch.Tensor,
        names: Sequence[str],
        see: Callable[[dict[str, torch.Tensor]], None],
        size: int | None = None,
    ) -> torch.Tensor:
        """The gradient with respect to `hidden`, the layer's inputs, given that of its outputs, `upstream`.

        `see` is called for each batch of `size` samples with its gradients of the matrices `names`, which sum up to
        those of the mean loss.
        """
        weights = {name: matrix(layer, name).weight for name in names}
        inputs = []
        for rows in self.batches(size):
            here = hidden[rows].detach().requires_grad_()
            with torch.enable_grad(), _requiring_grad(list(weights.values())):
                out = self._call(layer, here, rows)
                first, *others = torch.autograd.grad(out, [here, *weights.values()], upstream[rows])
            see(dict(zip(names, others, strict=True)))
            inputs.append(first)
        return torch.cat(inputs)

    def _call(self, layer: LlamaDecoderLayer, hidden: torch.Tensor, rows: slice) -> torch.Tensor:
        mask = self.calibration.mask[rows]
        positions = self.calibration.positions[rows]
        output: torch.Tensor = layer(
            hidden,
            attention_mask=_attention_mask(mask, self.calibration.causal, hidden.dtype),
            position_ids=positions,
            position_embeddings=self._rotary(hidden, position_ids=positions),
        )
        return output


@contextmanager
def inputs_of(layer: LlamaDecoderLayer, see: Mapping[str, Callable[[torch.Tensor], None]]) -> Iterator[None]:
    """Within the block, call `see[name]` with what enters the matrix of that name: (n, T, width)."""
    handles = [
        matrix(layer, name).register_forward_pre_hook(lambda _, args, look=look: look(args[0]))
        for name, look in see.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attention_mask(mask: torch.Tensor, causal: bool, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask (n, 1, T, T): a position sees no padding, and where `causal` nothing that comes after it."""
    length = mask.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=mask.device)
    seen = (seen.tril() if causal else seen) & mask[:, None, None, :]
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill_(~seen, torch.finfo(dtype).min)


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
