"""GPTQ (Frantar et al., arXiv 2210.17323): each weight's rounding error is made up for by the weights after it.

A layer y = W x with the second moments H = E[x x^T] of its inputs loses (w - q)^2 / [H^-1]_jj when weight j is
rounded, if the weights that are still to be rounded then move by -(w - q) / [H^-1]_jj * [H^-1]_j,: . One Cholesky
factor of H^-1 holds all these rows. Each group of weights gets its scale and zero point when its turn comes, from what
it has moved to.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rlrc.data import Demonstrations
from rlrc.data.samples import chunks, observe
from rlrc.data.statistics import require_fit
from rlrc.packed.layout import quantize_groups
from rlrc.policies.contract import Policy

DAMPING = 0.01
"""Share of the mean second moment that is added to all of them, so that rare inputs do not ask for large moves."""
MOMENT_BYTES = 4 * 2**30
"""Second moments that are held at once; layers beyond that wait for another pass over the samples."""


@dataclass(frozen=True)
class Samples:
    """Demonstrated frames and the normalised actions (N, H, D) that belong to them."""

    batches: list[tuple[Any, torch.Tensor]]

    @classmethod
    def draw(
        cls,
        policy: Policy,
        demonstrations: Demonstrations,
        count: int,
        seed: int,
        held_out: bool = False,
        batch_size: int = 16,
    ) -> "Samples":
        """`count` random frames, as `Demonstrations.draw` has them.

        Raises:
            UserError: there are not as many.
        """
        require_fit(policy, demonstrations)
        batches = []
        for frames in np.split(demonstrations.draw(count, seed, held_out), range(batch_size, count, batch_size)):
            actions, _ = chunks(demonstrations, frames, policy)
            batches.append((policy.prepare(observe(demonstrations, frames, policy)), actions.to(policy.device)))
        return cls(batches)

    @torch.no_grad()
    def best_actions(self, policy: Policy) -> torch.Tensor:
        """Return the best actions, normalised (N, H, D), given what training shows the policy of the demonstrated ones.

        Noise in them is the same in every call.
        """
        best = []
        for number, (inputs, actions) in enumerate(self.batches):
            noise = torch.Generator(policy.device).manual_seed(number)
            best.append(policy.best_actions(policy.predict(inputs, actions, noise)[0]))
        return torch.cat(best)


def second_moments(policy: Policy, samples: Samples, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """E[x x^T] float32 (in, in) of the inputs of the linear layers `names`, in portions that fit into memory.

    A layer that no sample reaches is left out, and so are convolutions and embeddings.
    """
    portion: list[str] = []
    free = MOMENT_BYTES
    for name in names:
        layer = policy.model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            continue
        needed = 4 * layer.in_features**2
        if portion and needed > free:
            yield _moments(policy, samples, portion)
            portion, free = [], MOMENT_BYTES
        portion.append(name)
        free -= needed
    if portion:
        yield _moments(policy, samples, portion)


def _moments(policy: Policy, samples: Samples, names: Sequence[str]) -> dict[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}
    with _seeing_inputs(policy.model, names, sums):
        samples.best_actions(policy)
    return sums


@contextmanager
def _seeing_inputs(model: nn.Module, names: Sequence[str], sums: dict[str, torch.Tensor]) -> Iterator[None]:
    counts = dict.fromkeys(names, 0)

    def add(name: str, x: torch.Tensor) -> None:
        rows = x.detach().flatten(0, -2).float()
        moments = rows.T @ rows
        counts[name] += len(rows)
        sums[name] = moments if name not in sums else sums[name].add_(moments)

    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: add(name, args[0]))
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for name, total in sums.items():
        total.div_(counts[name])


def quantize_compensating(
    weight: torch.Tensor, moments: torch.Tensor, bits: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes uint8 (out, in), scales bfloat16 (out, groups) and zeros uint8 (out, groups) of a weight (out, in)."""
    left, top = weight.float().clone(), 2**bits - 1
    factor = _factor(moments)
    codes = torch.empty_like(left, dtype=torch.uint8)
    scales, zeros = [], []
    for start in range(0, left.shape[1], group_size):
        group = left[:, start : start + group_size]
        _, scale, zero = quantize_groups(group[:, None].contiguous(), bits)
        step, middle = scale[:, 0].float(), zero[:, 0].float()
        errors = torch.empty_like(group)
        for j in range(group.shape[1]):
            code = (group[:, j] / step + middle).round().clamp(0, top)
            row = factor[start + j, start : start + group.shape[1]]
            errors[:, j] = (group[:, j] - (code - middle) * step) / row[j]
            group[:, j + 1 :] -= errors[:, j, None] * row[j + 1 :]
            codes[:, start + j] = code.to(torch.uint8)
        end = start + group.shape[1]
        left[:, end:] -= errors @ factor[start:end, end:]
        scales.append(scale)
        zeros.append(zero)
    return codes, torch.cat(scales, dim=1), torch.cat(zeros, dim=1)


def _factor(moments: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of the damped moments."""
    diagonal = moments.diagonal()
    damped = moments + torch.diag_embed((DAMPING * diagonal.mean()).clamp(min=1e-8).expand(len(moments)))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
