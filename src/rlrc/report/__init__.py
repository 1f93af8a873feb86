"""A finished run as one HTML file that needs nothing else: tables, charts, curves, films, and how to get them again.

rlrc report runs/default --out runs/default/report
"""

from pathlib import Path
from typing import Any, get_args

import yaml

from rlrc.configs.report import ReportConfig
from rlrc.episodes import Outcome, by_condition, success_rate
from rlrc.errors import UserError
from rlrc.files import write_text
from rlrc.finished import Finished
from rlrc.ownership import require_plain
from rlrc.progress import read_metrics, say
from rlrc.report.budget import budget_table
from rlrc.report.charts import Chart, curve, sensitivity_map, stage_bars, success_bars
from rlrc.report.films import side_by_side
from rlrc.report.rendering import render
from rlrc.report.summary import PolicyRow, Summary, format_comparison, headline_table, summarise_run
from rlrc.sensitivity_map import table
from rlrc.tables import human_bytes, human_count, human_ratio

MARKS_OF_A_PAGE = (
    '<meta name="generator" content="rlrc report">',
    '<meta name="description" content="What compressing a vision-language-action policy kept and saved:',
)
"""Marks of a page that a report wrote; the second one is found in pages from before there was the first."""

CURVES: dict[str, list[tuple[str, list[str], bool]]] = {
    "supervised": [
        ("loss", ["loss"], False),
        ("token accuracy", ["token_accuracy"], True),
    ],
    "rl": [
        ("success while acting", ["success_at_end", "success_once", "grasped"], True),
        ("success on held-out episodes", ["eval_ind_success", "eval_ood_success"], True),
        ("episode return", ["episode_return"], False),
        ("explained variance of the critic", ["explained_variance"], False),
        ("approximate KL of an update", ["approx_kl"], False),
        ("clipped share of ratios", ["clipfrac"], True),
        ("entropy", ["entropy"], False),
        ("value loss", ["value_loss"], False),
    ],
}
"""Charts of each kind of training: title, metrics, whether they are shares."""


def report(config: ReportConfig, out: Path) -> dict[str, Any]:
    """Write `report.html`.

    Raises:
        UserError: the folder is not a run's, nothing has been measured in it yet, or another page lies in `out`.
    """
    path = out / "report.html"
    _require_own_page(path)
    summary = summarise_run(config.run)
    first, last = summary.reference, summary.rows[-1]
    page = render(
        "page.html",
        "report",
        summary.recipe.name,
        "What compressing a vision-language-action policy kept and saved",
        cards=_cards(first, last),
        table=headline_table(summary),
        reference=first.name,
        bars=success_bars(summary.rows, summary.conditions) if summary.conditions else None,
        films=side_by_side(first, last) if first is not last else [],
        training=[(stage.name, charts) for stage in summary.stages if (charts := _training_charts(stage))],
        budget=budget_table(summary),
        costs=_costs(summary),
        maps=[(stage.name, _map(stage)) for stage in summary.stages if stage.verb == "sensitivity"],
        outcomes=_outcomes(summary),
        stages=[(stage, yaml.safe_dump(stage.config, sort_keys=False)) for stage in summary.stages],
        machine=summary.bench["machine"] if summary.bench else {},
        recipe=summary.recipe.to_yaml(),
    )
    write_text(path, page)
    say(f"{path}: {human_bytes(path.stat().st_size)}")
    return {"page": str(path), "policies": [row.name for row in summary.rows]}


def _require_own_page(path: Path) -> None:
    """
    Raises:
        UserError: a page that no report wrote is there.
    """
    require_plain(path.parent)
    require_plain(path)
    if path.is_file():
        text = path.read_bytes()[:10_000].decode(errors="replace")
        if not any(mark in text for mark in MARKS_OF_A_PAGE):
            raise UserError(f"{path}: rlrc did not write this page, so it does not replace it; choose another --out")


def _cards(first: PolicyRow, last: PolicyRow) -> list[tuple[str, str, str, str]]:
    """Return what changed from the first policy to the last: a title, the two values, and their ratio or difference."""
    cards = []
    for condition, comparison in last.comparisons.items():
        before, after = (f"{100 * row.rates[condition].rate:.1f} %" for row in (first, last))
        cards.append((f"{condition.upper()} success", before, after, format_comparison(comparison)))
    if first.cost and last.cost:
        count, left = first.cost["parameters"]["total"], last.cost["parameters"]["total"]
        cards.append(("Parameters", human_count(count), human_count(left), f"{count / left:.1f} times fewer"))
        size, left = first.cost["bytes"]["memory"], last.cost["bytes"]["memory"]
        cards.append(("Weights in memory", human_bytes(size), human_bytes(left), f"{size / left:.1f} times smaller"))
        slow, fast = (f"{cost['latency_ms']['p50']:.1f} ms" for cost in (first.cost, last.cost))
        speed = human_ratio(last.cost["speedup"], last.cost.get("speedup_95"))
        cards.append(("Time of one call", slow, fast, f"{speed} as fast"))
    return cards


def _training_charts(stage: Finished) -> list[Chart]:
    path = stage.folder / "metrics.jsonl"
    if not path.exists():
        return []
    rows = read_metrics(path)
    kind, step_name = ("rl", "iteration") if stage.verb == "rl" else ("supervised", "step")
    charts = (curve(rows, keys, title, step_name, percent) for title, keys, percent in CURVES[kind])
    return [chart for chart in charts if chart is not None]


def _costs(summary: Summary) -> dict[str, Any] | None:
    """Return what bench measured, as a table and a chart."""
    rows = [row for row in summary.rows if row.cost is not None]
    if not rows:
        return None
    entries = [row.cost for row in rows if row.cost is not None]
    sizes = list(entries[0]["actions_per_second"])
    head = [
        "policy",
        "weights in memory",
        "on disk",
        "peak memory",
        "of it libraries",
        "one call, median",
        "one call, 90 % below",
    ]
    body = [
        [
            row.name,
            human_bytes(cost["bytes"]["memory"]),
            human_bytes(cost["bytes"]["disk"]),
            human_bytes(cost["peak_memory"]["peak"]),
            human_bytes(cost["peak_memory"]["baseline"]),
            f"{cost['latency_ms']['p50']:.1f} ms",
            f"{cost['latency_ms']['p90']:.1f} ms",
            *(f"{cost['actions_per_second'][size]:.1f}" for size in sizes),
        ]
        for row, cost in zip(rows, entries, strict=True)
    ]
    return {
        "table": (head + [f"actions/s at {size}" for size in sizes], body),
        "chart": stage_bars([row.name for row in rows], entries),
    }


def _map(stage: Finished) -> dict[str, Any]:
    """Return what each part of a policy can bear, as a table and a chart."""
    rows, size = stage.result["rows"], stage.result["own"]["bytes"]
    return {"table": table(rows, size), "chart": sensitivity_map(rows, size)}


def _outcomes(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """All outcomes of all policies in all conditions."""
    body = []
    for row in summary.rows:
        for condition, episodes in by_condition(row.episodes).items():
            rates = [str(success_rate(episodes, outcome)) for outcome in get_args(Outcome)]
            body.append([row.name, condition.upper(), str(len(episodes)), *rates])
    return ["policy", "condition", "episodes", "success at end", "success once", "grasped"], body
