"""Training through packed weights: by the straight-through estimator (Bengio et al., arXiv 1308.3432).

While a quantized policy is trained, a dense layer stands in the place of each packed one. Its weight is computed anew
from a latent weight w, which is trained in float32, a scale s and a zero point z that stays as it is:

    (clamp(round(w / s + z), 0, 2^bits - 1) - z) * s

That is what the packed layer will hold, to the bit, since both are this formula. The gradient passes round as if it was
not there, and is zero for a w outside the range. s is trained as well, as in LSQ (Esser et al., arXiv 1902.08153), and
enters as the bfloat16 number that is stored. What kernels do to activations, which is rounding them to 8 bits, is not
part of it.
"""

from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from rlrc.configs.learner import Lora
from rlrc.packed.layers import Packable, QuantizedLinear
from rlrc.packed.layout import grouped, unpack

SCALE_RATE = 0.1
"""Distance by which a step of the optimizer may move the outermost number of a group by its scale, where 1 is the
distance by which it moves a latent weight."""

LEAST_SCALE = 2.0**-40
"""A scale that training makes smaller counts as this one, so that nothing is divided by zero."""


class _StraightThrough(torch.autograd.Function):
    """Another value in the place of a tensor, whose gradient reaches the tensor times a factor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0] * ctx.factor, None, None


class LowRank(nn.Module):
    """The update of LoRA (Hu et al., arXiv 2106.09685) of a weight (out, in): alpha / rank * B A, at first zero."""

    def __init__(self, in_features: int, out_features: int, lora: Lora) -> None:
        super().__init__()
        self.a = nn.Linear(in_features, lora.rank, bias=False)
        self.b = nn.Linear(lora.rank, out_features, bias=False)
        nn.init.zeros_(self.b.weight)
        self._scale = lora.alpha / lora.rank

    def forward(self) -> torch.Tensor:
        """The update (out, in), in float32 also under autocast, so that it is the same wherever it is computed."""
        with torch.autocast(self.a.weight.device.type, enabled=False):
            return self._scale * (self.b.weight @ self.a.weight)


class Rounding(nn.Module):
    """The way from a latent weight to the one that a packed layer of these bits and groups will hold."""

    zeros: torch.Tensor

    def __init__(self, packed: QuantizedLinear) -> None:
        super().__init__()
        self._group_size, self._top = packed.group_size, 2**packed.bits - 1
        self._factor = (min(packed.group_size, packed.in_features) * self._top) ** -0.5
        self.scales = nn.Parameter(packed.scales.float())
        self.register_buffer("zeros", unpack(packed.zeros, packed.bits, packed.scales.shape[1]))
        self.low_rank: LowRank | None = None

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """The weight of a latent one, in its shape, float32."""
        step = self.step[..., None]
        weight = (self._codes(latent, step) - self.zeros[..., None]) * step
        return weight.flatten(1)[:, : latent[0].numel()].view_as(latent)

    @torch.no_grad()
    def stored(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what `QuantizedLinear.store` takes: codes (out, in), scales and zero points (out, groups)."""
        codes = self._codes(latent, self.step[..., None]).flatten(1)[:, : latent[0].numel()]
        return codes.to(torch.uint8), self.step.bfloat16(), self.zeros

    @property
    def step(self) -> torch.Tensor:
        """The scales (out, groups) as they will be stored, float32; LSQ's factor keeps their gradients small."""
        return _StraightThrough.apply(self.scales, self.scales.clamp(min=LEAST_SCALE).bfloat16().float(), self._factor)

    def _codes(self, latent: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Codes (out, groups, group_size), float32."""
        weight = latent.flatten(1) if self.low_rank is None else latent.flatten(1) + self.low_rank()
        places = grouped(weight, self._group_size) / step + self.zeros[..., None]
        return _StraightThrough.apply(places, places.round(), 1.0).clamp(0, self._top)


class PackedLayers:
    """The packed layers of a model, and the dense ones that stand in their places until `restore`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._packed = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
        for name, packed in self._packed.items():
            dense = packed.dense()
            parametrize.register_parametrization(dense, "weight", Rounding(packed))
            model.set_submodule(name, dense)

    def __len__(self) -> int:
        return len(self._packed)

    def settle(self, dtype: torch.dtype) -> None:
        """Give the layers of which nothing is trained the weights that they will keep, in `dtype`."""
        for name, packed in self._packed.items():
            weight = cast(Any, self._model.get_submodule(name)).parametrizations.weight
            if not any(parameter.requires_grad for parameter in weight.parameters()):
                self._model.set_submodule(name, packed.dense(dtype).requires_grad_(False))

    def scale_rates(self, learning_rate: float) -> dict[str, float]:
        """The learning rates of the trained scales, by their names in the model."""
        return {
            f"{name}.parametrizations.weight.0.scales": SCALE_RATE * learning_rate / (2**packed.bits - 1)
            for name, packed in self._packed.items()
        }

    def restore(self) -> None:
        """Put the packed layers back, with what training has made of their weights."""
        for name, packed in self._packed.items():
            dense: Any = self._model.get_submodule(name)
            packed.to(dense.weight.device)
            if parametrize.is_parametrized(dense):
                latent = dense.parametrizations.weight
                packed.store(slice(None), *latent[0].stored(latent.original))
            self._model.set_submodule(name, packed)


def matrix_of(layer: Packable) -> torch.Tensor:
    """The weight of a layer that is trained: the latent one where a packed layer is."""
    return cast(Any, layer).parametrizations.weight.original if parametrize.is_parametrized(layer) else layer.weight


def adapt(layer: nn.Module, lora: Lora) -> None:
    """Let a layer that stands for a packed one learn an update of low rank, which lies within the rounding."""
    rounding = cast(Any, layer).parametrizations.weight[0]
    out_features, in_features = matrix_of(cast(Packable, layer)).flatten(1).shape
    rounding.low_rank = LowRank(in_features, out_features, lora)
