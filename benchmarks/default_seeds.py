"""Does reinforcement learning help in `make run`? The default recipe from start to end, once for each of five seeds.

    python benchmarks/default_seeds.py             2.5 hours on 2 cores; writes results/default-seeds.json and the
                                                   episodes beside it
    python benchmarks/default_seeds.py --jobs 2    two seeds at a time, each on half of the cores, which is sooner done

Every stage that has a seed gets the run's, except for evaluations, which play the same episodes for all. What was cut
off goes on with the same command. The files of results are written after every seed, and the seeds that they hold are
not run again, so that another machine can go on from them. Pairs are the same episode of the same seed before and
after reinforcement learning, pooled over the seeds.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rlrc.bench import machine
from rlrc.episodes import Episode, by_condition, compare, read_episodes, success_rate, write_episodes
from rlrc.files import sha256_file, write_json, write_text
from rlrc.reading import read_json, read_yaml
from rlrc.report.summary import Summary, summarise_run

RECIPE = Path("recipes/default.yaml")
SEEDED = ("collect", "prune", "sft", "rl")
PAIRS = (("sft", "rl"), ("base", "rl"), ("rl", "quantize"))
"""Policies that are compared: the second one minus the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("results/default-seeds.json"))
    parser.add_argument("--jobs", type=int, default=1, help="number of seeds at a time")
    options = parser.parse_args()
    table = options.out.with_suffix(".parquet")
    recipe = {"recipe": str(RECIPE), "sha256": sha256_file(RECIPE)}
    runs, episodes = measured(options.out, table, recipe)
    seeds = sorted(set(options.seeds) - {run["seed"] for run in runs})
    with ThreadPoolExecutor(options.jobs) as pool:
        begun = {pool.submit(run_recipe, seed, options.jobs): seed for seed in seeds}
        for ended in as_completed(begun):
            seed, summary = begun[ended], ended.result()
            minutes = sum(stage.seconds for stage in summary.stages) / 60
            runs.append({"seed": seed, "minutes": round(minutes, 1), "jobs": options.jobs, "machine": machine()})
            episodes += [
                replace(episode, policy=row.name, seed=seed) for row in summary.rows for episode in row.episodes
            ]
            write_episodes(table, episodes)
            write_json(options.out, {**recipe, "runs": runs, "rows": rows(runs, episodes), "paired": pairs(episodes)})


def measured(out: Path, table: Path, recipe: dict[str, str]) -> tuple[list[dict[str, Any]], list[Episode]]:
    """Return the runs that the files of results hold, and their episodes."""
    if not out.exists():
        return [], []
    found = read_json(out)
    if {name: found.get(name) for name in recipe} != recipe:
        raise SystemExit(f"{out}: its runs are of another {RECIPE}; delete it, or name another file with --out")
    seeds = [run["seed"] for run in found["runs"]]
    return found["runs"], [episode for episode in read_episodes(table) if episode.seed in seeds]


def run_recipe(seed: int, jobs: int) -> Summary:
    """Run the recipe with a seed, or what is left of it, on its share of the cores."""
    values = read_yaml(RECIPE)
    values["name"] = f"default-seed{seed}"
    for stage in values["stages"]:
        if stage["verb"] in SEEDED:
            stage["seed"] = seed
    recipe = Path("runs") / f"{values['name']}.yaml"
    recipe.parent.mkdir(exist_ok=True)
    write_text(recipe, yaml.safe_dump(values, sort_keys=False))
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    command = [sys.executable, "-m", "rlrc", "run", str(recipe)]
    subprocess.run(command, check=True, env={"OMP_NUM_THREADS": threads, **os.environ})
    return summarise_run(Path("runs") / values["name"])


def rows(runs: list[dict[str, Any]], episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Successes of every seed's policies in every split, and the minutes that the seed's whole run took."""
    return [
        {"seed": run["seed"], "minutes": run["minutes"], "policy": policy, "split": split, "n": len(cell)}
        | {"successes": success_rate(cell).successes}
        for run in runs
        for policy in dict.fromkeys(episode.policy for episode in episodes)
        for split, cell in by_condition([e for e in episodes if (e.policy, e.seed) == (policy, run["seed"])]).items()
    ]


def pairs(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Differences in percentage points over the pairs of all seeds, with Tango's interval and McNemar's exact p."""
    found = []
    for a, b in PAIRS:
        for split in ("ind", "ood"):
            before, after = ([e for e in episodes if (e.policy, e.condition) == (name, split)] for name in (a, b))
            difference = compare(after, before)
            points = {name: round(100 * getattr(difference, name), 3) for name in ("low", "high")}
            found.append(
                {"a": a, "b": b, "split": split, "n": difference.n}
                | {"points": round(100 * difference.difference, 3), **points, "p": difference.p}
            )
    return found


if __name__ == "__main__":
    main()
