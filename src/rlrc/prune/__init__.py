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
from rlrc.config import Config
from rlrc.data import Demonstrations
from rlrc.errors import UserError
from rlrc.models.linear import count_parameters
from rlrc.models.policy import Policy
from rlrc.progress import say
from rlrc.prune.allocate import Rounding, choose
from rlrc.prune.calibrate import ActionLoss
from rlrc.prune.criteria import Criterion, LlmPruner
from rlrc.prune.groups import Group, coupled_groups, describe, span
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
        `layers`: how many heads (key-value heads, where queries share them) and channels stay in each. Which ones is
        written to the lineage.

    Raises:
        UserError: a layer would keep nothing, the target is out of reach, `protect` names a layer that is not there or
            all of them, the policy is quantized, or the dataset holds too few frames.
    """
    policy = rlrc.load(config.policy)
    layers = list(policy.model.language_model.model.layers)
    groups = coupled_groups(layers)
    protected = _protected(config.protect, len(layers))
    _choose(config, groups, protected, [torch.zeros(group.units) for group in groups])  # a bad target fails early
    say(describe(groups))

    demonstrations = None if config.dataset is None else Demonstrations.load(config.dataset)
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
            "dataset_sha256": None if demonstrations is None else demonstrations.sha256,
            **result,
            "kept": _kept(groups, kept),
        }
        policy.save(out / "checkpoint", stage=stage)
    return result


def _protected(indices: Sequence[int], layers: int) -> frozenset[int]:
    for index in indices:
        if not -layers <= index < layers:
            raise UserError(f"protect: there is no decoder layer {index}, they are numbered 0 to {layers - 1}")
    protected = frozenset(index % layers for index in indices)
    if len(protected) == layers:
        raise UserError(f"protect names all {layers} decoder layers: nothing is left to prune")
    return protected


def _choose(
    config: PruneConfig, groups: Sequence[Group], protected: frozenset[int], scores: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    rounding = Rounding(config.round_to, config.round_direction)
    return choose(groups, scores, protected, config.criterion.scope, config.ratio, config.overall, rounding)


def _result(policy: Policy, groups: Sequence[Group], kept: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Exact counts before and after, JSON-able."""
    everything = count_parameters(policy.model)
    linear = sum(group.units * group.unit_parameters for group in groups)
    linear_left = sum(len(units) * group.unit_parameters for group, units in zip(groups, kept, strict=True))
    metrics = {
        "parameters_before": everything,
        "parameters": everything - linear + linear_left,
        "linear_parameters_before": linear,
        "linear_parameters": linear_left,
        "removed": 1 - linear_left / linear,
    }
    layers: dict[int, dict[str, int]] = {}
    for group, units in zip(groups, kept, strict=True):
        layers.setdefault(group.layer, {"layer": group.layer})[group.kind] = len(units)
    return {"metrics": metrics, "layers": list(layers.values())}


def _kept(groups: Sequence[Group], kept: Sequence[torch.Tensor]) -> dict[str, dict[int, list[int]]]:
    """Kept indices by kind and layer, for the lineage; groups that stay whole are left out."""
    indices: dict[str, dict[int, list[int]]] = {"heads": {}, "channels": {}}
    for group, units in zip(groups, kept, strict=True):
        if len(units) < group.units:
            indices[group.kind][group.layer] = units.tolist()
    return indices


def _tell(groups: Sequence[Group], kept: Sequence[torch.Tensor], metrics: dict[str, Any]) -> None:
    changes: dict[int, list[str]] = {}
    for group, units in zip(groups, kept, strict=True):
        changes.setdefault(group.layer, []).append(f"{group.noun} {group.units} -> {len(units)}")
    for change, run in groupby(changes.items(), key=lambda item: item[1]):
        say(f"{span([layer for layer, _ in run])}: {', '.join(change)}")
    for part, name in (("policy", "parameters"), ("decoder's linear layers", "linear_parameters")):
        say(f"{part}: {metrics[f'{name}_before']:,} -> {metrics[name]:,} parameters")
