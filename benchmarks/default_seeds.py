"""Does reinforcement learning help in `make run`? The default recipe from start to end, once for each of five seeds.

    python benchmarks/default_seeds.py          about two hours on 2 cores; writes results/default-seeds.json

Every stage that has a seed gets the run's, except for evaluations, which play the same episodes for all. What was cut
off goes on with the same command. Pairs are the same episode of the same seed before and after reinforcement learning,
pooled over the seeds.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rlrc.bench import machine
from rlrc.episodes import Episode, by_condition, compare, success_rate
from rlrc.files import write_json, write_text
from rlrc.reading import read_yaml
from rlrc.report.summary import Summary, summarise_run

RECIPE = Path("recipes/default.yaml")
SEEDED = ("collect", "prune", "sft", "rl")
PAIRS = (("sft", "rl"), ("base", "rl"), ("rl", "quantize"))
"""Policies that are compared: the second one minus the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("results/default-seeds.json"))
    options = parser.parse_args()
    runs = {seed: run(seed) for seed in options.seeds}
    rows = [row for seed, summary in runs.items() for row in rows_of(seed, summary)]
    write_json(options.out, {"machine": machine(), "recipe": str(RECIPE), "rows": rows, "paired": list(pairs(runs))})


def run(seed: int) -> Summary:
    """Run the recipe with a seed, or what is left of it."""
    values = read_yaml(RECIPE)
    values["name"] = f"default-seed{seed}"
    for stage in values["stages"]:
        if stage["verb"] in SEEDED:
            stage["seed"] = seed
    recipe = Path("runs") / f"{values['name']}.yaml"
    recipe.parent.mkdir(exist_ok=True)
    write_text(recipe, yaml.safe_dump(values, sort_keys=False))
    subprocess.run([sys.executable, "-m", "rlrc", "run", str(recipe)], check=True)
    return summarise_run(Path("runs") / values["name"])


def rows_of(seed: int, summary: Summary) -> list[dict[str, Any]]:
    """Successes of every policy in every split, and the minutes that the whole run took."""
    minutes = sum(stage.seconds for stage in summary.stages) / 60
    return [
        {"seed": seed, "minutes": round(minutes, 1), "policy": row.name, "split": split, "n": len(cell)}
        | {"successes": success_rate(cell).successes}
        for row in summary.rows
        for split, cell in by_condition(row.episodes).items()
    ]


def pairs(runs: dict[int, Summary]) -> list[dict[str, Any]]:
    """Differences in percentage points over the pooled pairs, with Tango's interval and McNemar's exact p."""
    found = []
    for a, b in PAIRS:
        for split in ("ind", "ood"):
            difference = compare(pooled(runs, b, split), pooled(runs, a, split))
            points = {name: round(100 * getattr(difference, name), 3) for name in ("low", "high")}
            found.append(
                {"a": a, "b": b, "split": split, "n": difference.n}
                | {"points": round(100 * difference.difference, 3), **points, "p": difference.p}
            )
    return found


def pooled(runs: dict[int, Summary], policy: str, split: str) -> Sequence[Episode]:
    """The episodes of a policy in all runs; those of different runs are told apart by their seed."""
    return [
        replace(episode, seed=seed)
        for seed, summary in runs.items()
        for row in summary.rows
        if row.name == policy
        for episode in row.episodes
        if episode.condition == split
    ]


if __name__ == "__main__":
    main()
