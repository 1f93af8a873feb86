"""Prune: remove whole attention heads and MLP channels from the decoder, chosen by a criterion on calibration data.

    rlrc prune --policy checkpoints/tabletop-base --dataset runs/demos/dataset --ratio 0.9

The four steps are the room's four modules: `groups` says what must leave together, `criteria` what each unit is worth,
`allocate` which units stay, and `structured` cuts. A pruned policy has smaller matrices, not zeros, and needs recovery.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

import rlrc
from rlrc import data
from rlrc.config import Config
from rlrc.errors import UserError
from rlrc.files import sha256_tree
from rlrc.models.policy import Policy
from rlrc.progress import say
from rlrc.prune.allocate import Rounding, choose
from rlrc.prune.calibrate import ActionLoss
from rlrc.prune.criteria import Criterion, LlmPruner
from rlrc.prune.groups import KINDS, Group, coupled_groups, describe
from rlrc.prune.structured import cut


class PruneConfig(Config):
    """Remove attention heads and MLP channels."""

    policy: Path
    """The checkpoint."""
    dataset: Path | None = None
    """Demonstrations to calibrate on; only the magnitudes do without."""
    criterion: Criterion = LlmPruner()
    """What makes a head or a channel important."""
    ratio: float | None = Field(default=None, ge=0, le=1)
    """Share of the heads and channels to remove: of each layer, or of all together where the criterion is global."""
    overall: float | None = Field(default=None, ge=0, le=1)
    """Instead of `ratio`: share of the parameters of the decoder's linear layers, protected layers included."""
    protect: tuple[int, ...] = ()
    """Decoder layers that stay whole; -1 is the last."""
    round_to: int = Field(default=1, ge=1)
    """Kept MLP channels become a multiple of this; 32 suits 4-bit groups, 128 most matrix kernels."""
    round_direction: Literal["up", "down", "nearest"] = "up"
    """Towards which multiple."""
    samples: int = Field(default=64, ge=1)
    """Calibration frames, drawn at random."""
    seed: int = 0
    """Of that draw."""
    dry_run: bool = False
    """Print the coupled groups and what would be kept, and cut nothing."""

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.ratio is None) == (self.overall is None):
            raise ValueError("give either ratio or overall, and not both")
        if self.dataset is None and self.criterion.needs_calibration:
            raise ValueError("the criterion needs a dataset of demonstrations to calibrate on")
        return self


def prune(config: PruneConfig, out: Path) -> dict[str, Any]:
    """Score, choose, cut, and write `out/checkpoint`.

    Returns:
        `metrics`: exact parameter counts before and after, of the whole policy and of the decoder's linear layers;
        `kept`: the indices of each layer's heads (key-value heads, where queries share them) and channels that stay.

    Raises:
        UserError: a layer would keep nothing, the target is out of reach, a protected layer does not exist, the policy
            is quantized, or the dataset holds too few frames.
    """
    policy = rlrc.load(config.policy)
    layers = list(policy.model.language_model.model.layers)
    groups = coupled_groups(layers)
    protected = _protected(config.protect, len(layers))
    _choose(config, groups, protected, [torch.zeros(group.units) for group in groups])  # a bad target fails early
    say(describe(groups))

    demonstrations = None if config.dataset is None else data.Demonstrations.load(config.dataset)
    loss = None if demonstrations is None else ActionLoss(policy, demonstrations, config.samples, config.seed)
    scores = config.criterion.scores(layers, groups, loss, config.samples)
    kept = _choose(config, groups, protected, scores)
    result = _result(policy, groups, kept)
    _tell(groups, kept, result["metrics"])
    if not config.dry_run:
        cut(layers, policy.model.config.text_config, groups, kept)
        stage = {
            "verb": "prune",
            "config": config.model_dump(mode="json"),
            "dataset_sha256": None if config.dataset is None else sha256_tree(config.dataset),
            **result,
        }
        policy.save(out / "checkpoint", stage=stage)
    return result


def _protected(indices: Sequence[int], layers: int) -> frozenset[int]:
    for index in indices:
        if not -layers <= index < layers:
            raise UserError(f"protect: there is no decoder layer {index}, they are numbered 0 to {layers - 1}")
    return frozenset(index % layers for index in indices)


def _choose(
    config: PruneConfig, groups: Sequence[Group], protected: frozenset[int], scores: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    rounding = Rounding(config.round_to, config.round_direction)
    return choose(groups, scores, protected, config.criterion.scope, config.ratio, config.overall, rounding)


def _result(policy: Policy, groups: Sequence[Group], kept: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Exact counts before and after, and what stays, JSON-able."""
    everything = sum(parameter.numel() for parameter in policy.model.parameters())
    linear = sum(group.units * group.unit_parameters for group in groups)
    linear_left = sum(len(units) * group.unit_parameters for group, units in zip(groups, kept, strict=True))
    layers: dict[int, dict[str, Any]] = {}
    for group, units in zip(groups, kept, strict=True):
        layers.setdefault(group.layer, {"layer": group.layer})[group.kind] = units.tolist()
    metrics = {
        "parameters_before": everything,
        "parameters": everything - linear + linear_left,
        "linear_parameters_before": linear,
        "linear_parameters": linear_left,
        "removed": 1 - linear_left / linear,
    }
    return {"metrics": metrics, "kept": list(layers.values())}


def _tell(groups: Sequence[Group], kept: Sequence[torch.Tensor], metrics: dict[str, Any]) -> None:
    changes: dict[int, str] = {}
    for group, units in zip(groups, kept, strict=True):
        change = f"{KINDS[group.kind]} {group.units} -> {len(units)}"
        changes[group.layer] = ", ".join(filter(None, (changes.get(group.layer), change)))
    for change, run in groupby(changes.items(), key=lambda item: item[1]):
        alike = [layer for layer, _ in run]
        say(f"decoder layers {alike[0]}-{alike[-1]}: {change}")
    for part, name in (("policy", "parameters"), ("decoder's linear layers", "linear_parameters")):
        say(f"{part}: {metrics[f'{name}_before']:,} -> {metrics[name]:,} parameters")
