"""A budget beside what was predicted and what has come of it."""

from collections.abc import Sequence

from rlrc.recipe import Budget
from rlrc.report.summary import Summary
from rlrc.tables import human_bytes

Table = tuple[list[str], list[list[str]]]


def budget_table(summary: Summary) -> Table | None:
    """Columns and rows, as text; None where the recipe has no budget."""
    budget = summary.recipe.budget
    if budget is None:
        return None
    cost = next((row.cost for row in summary.rows if row.policy == budget.policy and row.cost is not None), None)
    if cost is None:
        return _rows(budget, None, None)
    return _rows(budget, cost["latency_ms"]["p50"], cost["bytes"]["memory"])


def _rows(budget: Budget, ms: float | None, size: int | None) -> Table:
    asked = (budget.max_latency or "-", budget.max_memory or "-")
    predicted = (f"{budget.predicted_ms:.1f} ms", human_bytes(budget.predicted_bytes))
    measured = ("not measured" if ms is None else f"{ms:.1f} ms", "not measured" if size is None else human_bytes(size))
    off: Sequence[str] = (_off(ms, budget.predicted_ms), _off(size, budget.predicted_bytes))
    names = ("one call, median", "weights in memory")
    rows = [list(row) for row in zip(names, asked, predicted, measured, off, strict=True)]
    return [budget.policy, "budget", "predicted", "measured", "measured against predicted"], rows


def _off(measured: float | None, predicted: float) -> str:
    return "" if measured is None or not predicted else f"{measured / predicted - 1:+.1%}"
