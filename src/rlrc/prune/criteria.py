"""Criteria: how much each head and each MLP channel matters, from weights and calibration gradients.

LLM-Pruner (Ma et al., arXiv 2305.11627, and its published code). With s the saliency of a weight matrix,

    first order   s = W g            `vectorize`: |sum of s| over a channel, `param_first`: sum of |s|
    second order  s = W F W          `param_second`: sum of |s|
    mixed         s = W g - W F W/2  `param_mix`: sum of |s|
    magnitude     s = |W|^p          `magnitude_l1`, `magnitude_l2`: sum of s

where g is the gradient of the mean loss over the calibration samples and F the mean over samples of the squared
gradient of each. The members of a group are combined channel by channel; a head's score is the sum over its channels.

Gradients are reduced to per-channel sums in a hook as soon as each is complete, and freed: the peak is the weights
plus one matrix, not the weights plus all gradients. (`param_mix` alone needs F weight by weight, so it holds one
float32 copy of the weights.)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from rlrc.config import Config
from rlrc.errors import UserError
from rlrc.progress import bar
from rlrc.prune.groups import Group, Member, linear

Loss = Callable[[Sequence[int]], torch.Tensor]
"""The mean loss, with its graph, over the calibration samples of the given numbers."""

Key = tuple[Group, Member]
Weights = dict[Key, torch.Tensor]
ChannelScores = dict[Key, torch.Tensor]

REDUCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": lambda members: members.sum(0),
    "mean": lambda members: members.mean(0),
    "max": lambda members: members.amax(0),
    "prod": lambda members: members.prod(0),
    "first": lambda members: members[0],
}


class LlmPruner(Config):
    """LLM-Pruner, block-wise."""

    kind: Literal["llm-pruner"] = "llm-pruner"
    importance: Literal["vectorize", "param_first", "param_second", "param_mix", "magnitude_l1", "magnitude_l2"] = (
        "param_first"
    )
    """Saliency of a weight, and how it is summed over a channel; all but the magnitudes need gradients."""
    reduction: Literal["sum", "mean", "max", "prod", "first"] = "sum"
    """How the matrices of a coupled group are combined."""
    scope: Literal["local", "global"] = "local"
    """Whether each layer keeps its own best, or all layers share one threshold."""

    @property
    def needs_calibration(self) -> bool:
        return not self.importance.startswith("magnitude")

    def scores(
        self, layers: Sequence[LlamaDecoderLayer], groups: Sequence[Group], loss: Loss | None, samples: int
    ) -> list[torch.Tensor]:
        """Importance of every unit: float32 (units,) for each group.

        Args:
            loss: called with all sample numbers 0..samples-1 at once, and one by one where second order needs it; the
                magnitudes do without.

        Raises:
            UserError: a score is NaN or infinite.
        """
        weights = {
            (group, member): linear(layers, group, member).weight for group in groups for member in group.members
        }
        channel_scores = self._channel_scores(weights, loss, samples)
        return [self._combine(group, channel_scores) for group in groups]

    def _channel_scores(self, weights: Weights, loss: Loss | None, samples: int) -> ChannelScores:
        """Sums of the saliency over each row or column that a member may lose."""
        scores: ChannelScores = {}
        if self.importance == "param_second":  # linear in F, so that each sample's squares can be summed and forgotten

            def add_sample(key: Key, weight: torch.Tensor, grad: torch.Tensor) -> None:
                scores[key] = scores.get(key, 0) + _sum_across(key[1], (weight * grad).square()) / samples

            _for_gradients(weights, loss, [[sample] for sample in range(samples)], add_sample)
        elif self.needs_calibration:
            curvature = self._curvature(weights, loss, samples) if self.importance == "param_mix" else {}

            def keep(key: Key, weight: torch.Tensor, grad: torch.Tensor) -> None:
                saliency = weight * grad
                if key in curvature:
                    saliency -= 0.5 * weight.square() * curvature.pop(key)
                if self.importance == "vectorize":
                    scores[key] = _sum_across(key[1], saliency).abs()
                else:
                    scores[key] = _sum_across(key[1], saliency.abs())

            _for_gradients(weights, loss, [range(samples)], keep)
        else:
            power = int(self.importance[-1])
            for key, weight in weights.items():
                scores[key] = _sum_across(key[1], weight.detach().float().abs().pow(power))
        return scores

    def _curvature(self, weights: Weights, loss: Loss | None, samples: int) -> ChannelScores:
        """F, the mean of squared per-sample gradients, for every weight."""
        mean_square = {key: torch.zeros_like(weight, dtype=torch.float32) for key, weight in weights.items()}

        def add(key: Key, _weight: torch.Tensor, grad: torch.Tensor) -> None:
            mean_square[key].addcmul_(grad, grad, value=1 / samples)

        _for_gradients(weights, loss, [[sample] for sample in range(samples)], add)
        return mean_square

    def _combine(self, group: Group, channel_scores: ChannelScores) -> torch.Tensor:
        """Query heads that share a key-value head are first summed to its channels, then members are combined."""
        shape = (group.units, -1, group.channels)
        members = torch.stack([channel_scores[group, member].view(shape).sum(1) for member in group.members])
        score = REDUCTIONS[self.reduction](members).sum(1)
        if not score.isfinite().all():
            raise UserError(f"{group}: importance is NaN or infinite; the checkpoint or its calibration loss is broken")
        return score


Criterion = LlmPruner
"""Told apart by `kind`."""


def _for_gradients(
    weights: Weights,
    loss: Loss | None,
    batches: Sequence[Sequence[int]],
    use: Callable[[Key, torch.Tensor, torch.Tensor], None],
) -> None:
    """Backpropagate the loss of each batch; `use(key, weight, gradient)` sees each pair once, in float32."""
    assert loss is not None
    with bar("importance", total=len(weights) * len(batches)) as progress:

        def hook(key: Key) -> Callable[[torch.Tensor], None]:
            def reduce(parameter: torch.Tensor) -> None:
                assert parameter.grad is not None
                use(key, parameter.detach().float(), parameter.grad.float())
                parameter.grad = None
                progress.advance()

            return reduce

        with torch.enable_grad(), _requiring_grad(weights.values()):
            handles = [weight.register_post_accumulate_grad_hook(hook(key)) for key, weight in weights.items()]
            try:
                for batch in batches:
                    loss(batch).backward()
            finally:
                for handle in handles:
                    handle.remove()


@contextmanager
def _requiring_grad(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    before = {parameter: parameter.requires_grad for parameter in parameters}
    for parameter in before:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def _sum_across(member: Member, saliency: torch.Tensor) -> torch.Tensor:
    """(out, in) -> one sum for each row (axis 0) or column (axis 1)."""
    return saliency.sum(1 - member.axis)
