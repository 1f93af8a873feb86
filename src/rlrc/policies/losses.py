"""What a policy's loss is made of: demonstrated actions, padding that does not count, and a teacher's predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rlrc.policies.values import Generators


class Predicts(Protocol):
    """The methods of a policy that its loss needs; see `Policy`."""

    def predict_drawn(
        self, inputs: Any, actions: torch.Tensor, generator: Generators = None
    ) -> tuple[torch.Tensor, Any]: ...
    def errors(self, predicted: torch.Tensor, target: torch.Tensor, label_spread: float = 0.0) -> torch.Tensor: ...
    def distances(self, predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor: ...
    def vitals(
        self, predicted: torch.Tensor, target: torch.Tensor, actions: torch.Tensor
    ) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Teacher:
    """A policy that another one learns from."""

    policy: Predicts
    share: float
    """Share of its predictions in the loss."""


def losses_of(
    policy: Predicts,
    inputs: Any,
    actions: torch.Tensor,
    padded: torch.Tensor | None,
    label_spread: float,
    generator: Generators,
    teacher: Teacher | None,
    weights: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Scalars, of which training makes `loss` small; the arguments are those of `Policy.loss`."""
    noise = None if teacher is None else copies_of(generator)
    predicted, target = policy.predict_drawn(inputs, actions, generator)
    times = len(predicted) // len(actions)
    actions = actions.repeat_interleave(times, dim=0) if times > 1 else actions
    padded = padded.repeat_interleave(times, dim=0) if times > 1 and padded is not None else padded
    weights = weights.repeat_interleave(times) if times > 1 and weights is not None else weights
    losses = {"loss": mean_over_rows(policy.errors(predicted, target, label_spread), padded, weights)}
    if teacher is not None:
        with torch.no_grad():
            wanted, _ = teacher.policy.predict_drawn(inputs, actions[::times], noise)
        losses["teacher_loss"] = mean_over_rows(policy.distances(predicted, wanted), padded, weights)
        losses["loss"] = (1 - teacher.share) * losses["loss"] + teacher.share * losses["teacher_loss"]
    with torch.no_grad():
        losses |= {
            name: mean_over_rows(value, padded) for name, value in policy.vitals(predicted, target, actions).items()
        }
    return losses


def copies_of(generator: Generators) -> Generators:
    """Generators that will draw the same numbers.

    Raises:
        ValueError: there is none, so that torch's own would draw.
    """
    if generator is None:
        raise ValueError("a teacher needs a generator, whose numbers it sees as well")
    if isinstance(generator, Sequence):
        return [_copy(one) for one in generator]
    return _copy(generator)


def _copy(generator: torch.Generator) -> torch.Generator:
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


def mean_over_rows(
    values: torch.Tensor, padded: torch.Tensor | None, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean of (N, H, D) over what is not padded (N, H); each row counts the same, or by its weight (N,)."""
    if padded is None and weights is None:
        return values.mean()
    there = values.new_ones(values.shape[:2]) if padded is None else (~padded).to(values.dtype)
    rows = (values.mean(dim=2) * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
    return rows.mean() if weights is None else (rows * weights).mean()
