"""The page of an experiment: one HTML file with its tables, charts and every trial."""

from collections.abc import Sequence

import matplotlib as mpl

from rlrc.report.charts import COLOURS, INK, STYLE, Chart, as_svg, new_figure
from rlrc.report.rendering import render
from rlrc.trial.results import Results, pair_table, policy_table

Interval = tuple[float, float, float]
"""A value with the ends of its interval."""


def page(name: str, results: Results) -> str:
    """The whole page of an experiment that is called `name`."""
    rates = {policy.name: policy.rate for policy in results.policies if policy.rate is not None}
    success = {policy: (rate.rate, rate.low, rate.high) for policy, rate in rates.items()}
    differences = {
        f"{pair.second} - {pair.first}": (pair.comparison.difference, pair.comparison.low, pair.comparison.high)
        for pair in results.pairs
    }
    plan = results.plan
    return render(
        "trial.html",
        "trial",
        name,
        "How policies did on a real robot",
        results=results,
        policies=policy_table(results),
        pairs=pair_table(results),
        success_chart=intervals("success, %", success, (0, 100)) if success else None,
        difference_chart=intervals("difference in success, points", differences, (-100, 100)),
        looked_after=", ".join(str(look.counted) for look in results.looks),
        told={policy: plan.greetings[policy].get("policy") for policy in plan.policies},
    )


def intervals(label: str, values: dict[str, Interval], limits: tuple[float, float]) -> Chart:
    """Values with 95 % intervals, one below the other, in hundredths."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(0.8 + 0.3 * len(values))
        for row, interval in enumerate(values.values()):
            value, low, high = (100 * number for number in interval)
            spread = [[value - low], [high - value]]
            axes.errorbar(value, row, xerr=spread, fmt="o", color=COLOURS[0], ecolor=INK, capsize=3)
        if limits[0] < 0:
            axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(values)), list(values))
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_xlim(*limits)
        axes.set_xlabel(f"{label}, with 95 % intervals")
        axes.grid(axis="y", visible=False)
        return Chart(as_svg(figure, f"Values with 95 % intervals: {label}. {_told(values)}"), label)


def _told(values: dict[str, Interval]) -> str:
    numbers: Sequence[str] = [
        f"{name}: {100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for name, (value, low, high) in values.items()
    ]
    return "; ".join(numbers)
