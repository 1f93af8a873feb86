"""Everything that a study measured, read from its run: the cells, their episodes, sizes and learning curves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from rlrc import envs
from rlrc.episodes import Comparison, Episode, Rate, by_condition, compare, success_rate
from rlrc.errors import UserError
from rlrc.finished import Finished
from rlrc.inspect import describe
from rlrc.policies.checkpoint import outline
from rlrc.progress import read_metrics
from rlrc.recipe import Recipe, StudyPlan
from rlrc.report.summary import PolicyRow, Summary, summarise_run


@dataclass
class Evidence:
    """The cells of a study by the names its tables give them; what has not been measured yet is absent."""

    plan: StudyPlan
    recipe: Recipe
    stages: dict[str, Finished]
    measured: dict[str, PolicyRow]
    """Results of every policy that was evaluated, by stage."""
    described: dict[str, dict[str, Any]]
    """Exact sizes (see `rlrc inspect`) of the policies in the tables."""
    machine: dict[str, Any]

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that the world has (ind, ood)."""
        return splits(self.recipe)

    @property
    def policies(self) -> dict[str, PolicyRow]:
        """The rows of the main table."""
        measured = {
            label: [self.measured[stage] for stage in stages if stage in self.measured]
            for label, stages in self.plan.of_policies.items()
        }
        return {label: pooled(rows) for label, rows in measured.items() if rows}

    @property
    def reference(self) -> str:
        return next(iter(self.policies))

    def missing(self) -> list[str]:
        """Stages that the plan names and that have not been evaluated."""
        return [stage for stage in self.plan.stages if stage not in self.measured]

    def rate(self, policy: str, condition: str) -> Rate | None:
        """Success of a policy of the main table; None if it was not measured."""
        row = self.policies.get(policy)
        return None if row is None else row.rates.get(condition)

    def compare(self, policy: str, reference: str, condition: str) -> Comparison | None:
        """`policy` minus `reference`, paired; None if either was not measured, or not over the same seeds."""
        if self.rate(policy, condition) is None or self.rate(reference, condition) is None:
            return None
        ours, theirs = (by_condition(self.policies[name].episodes)[condition] for name in (policy, reference))
        return compare(ours, theirs) if {e.seed for e in ours} == {e.seed for e in theirs} else None

    def by_class(self, policy: str) -> dict[str, list[Episode]]:
        """A policy's episodes of the challenges, pooled by class: vision, semantics, execution."""
        classes = envs.spec(self.recipe.world).variants
        groups: dict[str, list[Episode]] = {}
        for episode in self.policies[policy].episodes:
            if episode.variant != "main":
                groups.setdefault(classes[episode.variant], []).append(episode)
        return {name: groups[name] for name in dict.fromkeys(classes.values()) if name in groups}

    def seeds(self) -> dict[str, PolicyRow]:
        """The reinforcement-learning runs that differ by their seed, as far as they were evaluated."""
        return {stage: self.measured[stage] for stage in self.plan.seeds if stage in self.measured}

    def by_ratio(self) -> dict[float, dict[int, PolicyRow]]:
        """Return by pruning ratio what was measured right after pruning (0), after SFT (1) and after RL (2)."""
        return {
            ratio: {step: self.measured[stage] for step, stage in enumerate(stages) if stage in self.measured}
            for ratio, stages in sorted(self.plan.ratios.items())
        }

    def by_part(self) -> dict[str, dict[float, PolicyRow]]:
        """What was measured by the part that was made lighter, and by how much."""
        return {
            part: {degree: self.measured[stage] for degree, stage in sorted(degrees.items()) if stage in self.measured}
            for part, degrees in self.plan.parts.items()
        }

    def rl_curves(self) -> dict[str, list[tuple[float, ...]]]:
        """Return by seed the points (iteration, success in each of `splits`) over the learning curve's own episodes."""
        names = [f"eval_{split}_success" for split in self.splits]
        curves: dict[str, list[tuple[float, ...]]] = {}
        for stage in self.plan.seeds:
            if stage in self.stages:
                rows = read_metrics(self.stages[stage].folder / "metrics.jsonl")
                points = [(r["step"], *(r[k] for k in names)) for r in rows if all(r.get(k) is not None for k in names)]
                curves |= {stage: points} if points else {}
        return curves

    def summary(self) -> dict[str, Any]:
        """Summary for machines: every cell of policies and of parts, every pair of policies, bytes and parameters.

        `points` is the rate of b minus that of a in percentage points over n shared episodes, with Tango's 95 %
        interval and McNemar's exact p; `lower_bound` is one-sided.
        """
        rows = [
            {"policy": label, "split": cell[0].split, "variant": cell[0].variant, "n": len(cell)}
            | {"successes": success_rate(cell).successes}
            for label, row in (self.policies | self.seeds()).items()
            for cell in by_condition(row.episodes).values()
        ]
        rows += [
            {"policy": row.name, "part": part, "degree": degree, "split": split, "variant": "main"}
            | {"n": row.rates[split].n, "successes": row.rates[split].successes}
            for part, degrees in self.by_part().items()
            for degree, row in degrees.items()
            for split in self.splits
        ]
        parts = {label: described["parameters"] for label, described in self.described.items()}
        return {
            "rows": rows,
            "paired": list(self._pairs()),
            "bytes": {label: described["bytes"]["total"] for label, described in self.described.items()},
            "parameters": {label: counts["total"] for label, counts in parts.items()},
            "decoder_parameters": {label: counts["decoder"] for label, counts in parts.items()},
            "latency": {label: latency(row.cost) for label, row in self.policies.items() if row.cost},
        }

    def _pairs(self) -> Iterator[dict[str, Any]]:
        for (a, b), split in ((pair, split) for pair in combinations(self.policies, 2) for split in self.splits):
            comparison = self.compare(b, a, split)
            if comparison is not None:
                points = {"points": comparison.difference, "low": comparison.low, "high": comparison.high}
                points |= {"lower_bound": comparison.lower_bound}
                scaled = {name: round(100 * value, 3) for name, value in points.items()}
                yield {"a": a, "b": b, "split": split, "n": comparison.n, **scaled, "p": comparison.p}

    def all_episodes(self) -> list[Episode]:
        """Every episode of every evaluated policy, named by its stage."""
        return [replace(e, policy=stage) for stage, row in self.measured.items() for e in row.episodes]


def pooled(rows: Sequence[PolicyRow]) -> PolicyRow:
    """One row with the episodes of several, which differ by their seed, and the size of the first."""
    if len(rows) == 1:
        return rows[0]
    episodes = [episode for row in rows for episode in row.episodes]
    rates = {condition: success_rate(cell) for condition, cell in by_condition(episodes).items()}
    return replace(rows[0], episodes=episodes, rates=rates)


def latency(cost: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a call and of one of its actions, and how many times faster than the first policy's an action is,
    from what bench measured."""
    call, actions = cost["latency_ms"]["p50"], cost.get("actions_per_call", 1)
    taken = {"call_ms": call, "actions_per_call": actions, "action_ms": call / actions}
    return taken | {"speedup": cost["speedup"], "speedup_95": cost.get("speedup_95")}


def motion(episodes: Sequence[Episode], reference: Sequence[Episode]) -> dict[str, float] | None:
    """Measure how a policy moves where it and the reference succeed: its means, and their ratio to the reference's.
    What was not measured in an episode, such as jerk while the world did not wait, is left out.

    Success alone hides what compression costs, and rates among a policy's own successes would favour one that only
    solves what is easy.
    """
    theirs = {episode.key: episode for episode in reference if episode.success_at_end}
    pairs = [(e, theirs[e.key]) for e in episodes if e.success_at_end and e.key in theirs]
    if not pairs:
        return None
    measured: dict[str, float] = {"n": len(pairs)}
    for name in ("steps", "path_length", "jerk"):
        ours, others = ([getattr(pair[side], name) for pair in pairs] for side in (0, 1))
        if None in ours or None in others:
            continue
        measured[name] = float(np.mean(ours))
        measured[f"{name}_ratio"] = float(np.mean(ours) / np.mean(others))
    return measured


def gather(folder: Path) -> Evidence:
    """Read the finished stages of a run.

    Raises:
        UserError: no policy of the study has been evaluated yet.
    """
    summary = summarise_run(folder)
    plan = summary.recipe.study
    if plan is None:
        raise UserError(f"{folder}: its recipe has no `study`")
    measured = {row.name: row for row in summary.rows if set(splits(summary.recipe)) <= row.rates.keys()}
    evidence = Evidence(plan, summary.recipe, {s.name: s for s in summary.stages}, measured, {}, _machine(summary))
    if not evidence.policies:
        raise UserError(f"{folder}: none of the study's policies has been evaluated yet")
    for label, row in evidence.policies.items():
        evidence.described[label] = describe(outline(_checkpoint(row.policy, folder, summary.recipe)))
    return evidence


def _checkpoint(stage: str, folder: Path, recipe: Recipe) -> Path:
    if stage == "base" and recipe.base is not None:
        return recipe.base
    return folder / stage / "checkpoint"


def _machine(summary: Summary) -> dict[str, Any]:
    machine: dict[str, Any] = summary.bench["machine"] if summary.bench else {}
    return machine


def splits(recipe: Recipe) -> tuple[str, ...]:
    """Splits of the recipe's world."""
    return envs.spec(recipe.world).splits
