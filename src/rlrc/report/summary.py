"""The table a run ends with: each policy's success and cost, against the first one evaluated."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from rlrc.configs.evaluate import EvaluateConfig
from rlrc.episodes import Comparison, Episode, Rate, by_condition, compare, read_episodes, success_rate
from rlrc.errors import UserError
from rlrc.finished import Finished, read_finished
from rlrc.progress import say
from rlrc.reading import FileModel, read_object, validate
from rlrc.recipe import RECIPE_FILE, Recipe, check_names, read_recipe, stage_name
from rlrc.tables import human_bytes, human_count, human_ratio, print_table

WAYS = (
    "world",
    "temperature",
    "denoising_steps",
    "center_crop",
    "execute",
    "realtime",
    "latency_ms",
    "vla_cache",
    "seed",
)
"""Options of `evaluate` that say how a policy acts and where."""


@dataclass
class PolicyRow:
    """One policy of the run, acting in one way; what was not measured is absent."""

    name: str
    """The policy's own, or that of the stage that evaluated it in another way than the stage before did."""
    policy: str
    """Name of the policy: the stage that made it, or "base"."""
    evaluations: list[Path] = field(default_factory=list)
    """Folders of the stages that evaluated it."""
    episodes: list[Episode] = field(default_factory=list)
    rates: dict[str, Rate] = field(default_factory=dict)
    """Rates by condition: 'ind', 'ood', 'ood/texture', ..."""
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    """Comparisons with the reference, by condition; absent for the reference itself, and where no episode is shared."""
    cost: dict[str, Any] | None = None
    """The policy's entry in bench.json."""


@dataclass(frozen=True)
class Summary:
    """A finished run, read from its folder."""

    recipe: Recipe
    stages: list[Finished]
    rows: list[PolicyRow]
    bench: dict[str, Any] | None

    @property
    def reference(self) -> PolicyRow:
        return self.rows[0]

    @property
    def conditions(self) -> list[str]:
        """The main conditions of all rows, in order of appearance; challenges are too many for a table's columns."""
        return list(dict.fromkeys(name for row in self.rows for name in row.rates if "/" not in name))


def summarise_run(folder: Path) -> Summary:
    """Read what the stages of a run left behind, and say which ones have not ended.

    Raises:
        UserError: `folder` is not a run's, or no evaluation or benchmark has ended in it yet.
    """
    if not (folder / RECIPE_FILE).exists():
        raise UserError(f"{folder}: not a run's folder (it has no recipe.yaml); start one with `rlrc run RECIPE`")
    recipe = read_recipe(folder / RECIPE_FILE)
    check_names(recipe)
    finished = {name: read_finished(folder / name) for name in map(stage_name, recipe.stages)}
    stages = [stage for stage in finished.values() if stage is not None]
    if absent := [name for name, stage in finished.items() if stage is None]:
        say(f"{folder}: not shown, since they have not ended: {', '.join(absent)}")
    rows: dict[str, PolicyRow] = {}

    ways: dict[str, dict[str, Any]] = {}

    def row(path: str, evaluation: Finished | None = None) -> PolicyRow:
        name = policy = _policy_name(path, folder, recipe)
        if evaluation is not None and ways.setdefault(policy, _way(evaluation)) != _way(evaluation):
            name = evaluation.name
        return rows.setdefault(name, PolicyRow(name, policy))

    for stage in stages:
        if stage.verb == "evaluate" and stage.config.get("dataset") is not None:
            say(f"{stage.folder}: not shown, since action errors are no success rates; see its eval.json")
        elif stage.verb == "evaluate":
            this = row(_policy_of(stage), stage)
            this.evaluations.append(stage.folder)
            this.episodes.extend(read_episodes(stage.folder / "episodes.parquet"))
    bench = next((_read_bench(stage.folder / "bench.json") for stage in stages if stage.verb == "bench"), None)
    for cost in bench["policies"] if bench else []:
        row(cost["policy"]).cost = cost
    if not rows:
        raise UserError(f"{folder}: there is nothing to show yet, because no evaluation or benchmark has ended")
    reference = by_condition(next(iter(rows.values())).episodes)
    for number, this in enumerate(rows.values()):
        for condition, episodes in by_condition(this.episodes).items():
            this.rates[condition] = success_rate(episodes)
            if number > 0 and {e.key for e in episodes} & {e.key for e in reference.get(condition, ())}:
                this.comparisons[condition] = compare(episodes, reference[condition])
    return Summary(recipe, stages, list(rows.values()), bench)


class _Total(FileModel):
    total: int


class _Memory(FileModel):
    memory: int


class _Median(FileModel):
    p50: float


class _Cost(FileModel):
    policy: str
    parameters: _Total
    bytes: _Memory
    latency_ms: _Median
    speedup: float
    speedup_95: tuple[float, float] | None = None
    """Absent from older files, and where the rounds were too few for an interval."""


class _Bench(FileModel):
    machine: dict[str, Any] = Field(default={})
    policies: list[_Cost]


def _read_bench(path: Path) -> dict[str, Any]:
    """
    Raises:
        UserError: the file is damaged.
    """
    values = read_object(path)
    validate(values, _Bench, str(path))
    return {"machine": {}, **values}


def _policy_of(evaluation: Finished) -> str:
    """
    Raises:
        UserError: the stage's record does not say whom it evaluated.
    """
    policy = evaluation.config.get("policy")
    if not isinstance(policy, str):
        raise UserError(f"{evaluation.folder}/config.yaml: 'config.policy': a text is needed")
    return policy


def _way(evaluation: Finished) -> dict[str, Any]:
    fields = EvaluateConfig.model_fields
    return {option: evaluation.config.get(option, fields[option].default) for option in WAYS}


def headline_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, as text, for the console and the page."""
    columns = ["policy"]
    for condition in summary.conditions:
        columns += [f"{condition.upper()} success", f"difference to {summary.reference.name}"]
    columns += ["parameters", "weights", "speed"]
    return columns, [_cells(row, summary) for row in summary.rows]


def print_summary(summary: Summary) -> None:
    """Print the table. Cells are broken into lines, so that it fits into 80 columns."""
    columns, rows = headline_table(summary)
    rows = [[re.sub(r" (?=\[|n=|p[=<])", "\n", cell) for cell in row] for row in rows]
    print_table(f"{summary.recipe.name}: success at the end of the episode, 95 % intervals", columns, rows)


def format_comparison(comparison: Comparison) -> str:
    """'-3.1 [-8.0, +1.9] p=0.29', in percentage points."""
    low, high = 100 * comparison.low, 100 * comparison.high
    p = "p<0.001" if comparison.p < 0.001 else f"p={comparison.p:.3f}"
    return f"{100 * comparison.difference:+.1f} [{low:+.0f}, {high:+.0f}] {p}"


def _cells(row: PolicyRow, summary: Summary) -> list[str]:
    cells = [row.name]
    for condition in summary.conditions:
        rate, comparison = row.rates.get(condition), row.comparisons.get(condition)
        cells += [
            "" if rate is None else f"{rate} n={rate.n}",
            "" if comparison is None else format_comparison(comparison),
        ]
    if row.cost is None:
        return [*cells, "", "", ""]
    return [
        *cells,
        human_count(row.cost["parameters"]["total"]),
        human_bytes(row.cost["bytes"]["memory"]),
        human_ratio(row.cost["speedup"], row.cost.get("speedup_95")),
    ]


def _policy_name(policy: str, folder: Path, recipe: Recipe) -> str:
    """A policy is called by the stage that made it, 'base', or else its folder's name."""
    path = Path(policy)
    if path.name == "checkpoint" and path.parent.parent == folder:
        return path.parent.name
    return "base" if path == recipe.base else path.name


def as_json(rows: Sequence[PolicyRow]) -> list[dict[str, Any]]:
    """The rows without their episodes, for machines."""
    return [
        {
            "policy": row.name,
            "rates": {condition: vars(rate) for condition, rate in row.rates.items()},
            "comparisons": {condition: vars(comparison) for condition, comparison in row.comparisons.items()},
            "cost": row.cost,
        }
        for row in rows
    ]
