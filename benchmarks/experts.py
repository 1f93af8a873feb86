"""Measure how often the scripted experts solve their worlds.

    python benchmarks/experts.py tabletop --variants all --noise 0.1 0.2 0.3          about a minute
    python benchmarks/experts.py libero_spatial --by-task --episodes 160

Writes results/experts.json, a row for each condition of a world (`ind`, `ood`, `ood/<variant>`, with --by-task also
`ind/<instruction>`, with --noise also `ind/noise-<strength>`), and prints them as a table. `successes` counts episodes
in which the task is solved when time is up, `once` those that solved it at any step; the interval is Wilson's, 95 %, of
the former. Rows that the file already has with as many episodes are kept, so that a run that was cut off continues.

Nothing is drawn. Noise is added to what is executed, as the collection of demonstrations does: its standard deviation
is given as a fraction of the largest action.
"""

import argparse
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlrc import envs
from rlrc.bench import machine
from rlrc.errors import UserError
from rlrc.files import write_json
from rlrc.progress import bar
from rlrc.reading import read_json
from rlrc.stats import wilson
from rlrc.tables import markdown_table

Played = list[tuple[str, bool, int | None]]
"""Results of episodes: the instruction, whether it is solved at the end, and the step at which it first was, or
None."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="+")
    parser.add_argument("--variants", nargs="+", default=["main"], help="names, or all")
    parser.add_argument("--noise", nargs="+", type=float, default=[], help="strengths, for the first split of main")
    parser.add_argument("--by-task", action="store_true", help="also a row for each instruction")
    parser.add_argument("--episodes", type=int, default=256, help="for each condition")
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/experts.json"))
    options = parser.parse_args()
    try:
        for world in options.worlds:
            for row in measure(world, options, read_rows(options.out)):
                rows = read_rows(options.out)  # anew: others may be measuring other worlds
                kept = [old for old in rows if (old["world"], old["task"]) != (row["world"], row["task"])]
                write_json(options.out, {"machine": machine(), "rows": [*kept, row]})
    except UserError as error:
        parser.error(str(error))
    print(table([row for row in read_rows(options.out) if row["world"] in options.worlds]))


def read_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_json(path)["rows"] if path.exists() else []
    return rows


def measure(world: str, options: argparse.Namespace, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a world that `known` lacks, or has with fewer episodes."""
    enough = {row["task"] for row in known if row["world"] == world and row["n"] >= options.episodes}
    todo = [condition for condition in conditions(world, options) if condition[0] not in enough]
    env = envs.make(world, options.num_envs, options.num_workers, image_size=None)
    with closing(env), bar(f"expert in {world}", len(todo) * options.episodes) as progress:
        for task, split, variant, noise in todo:
            rng = np.random.default_rng(0)
            played: Played = []
            while len(played) < options.episodes:
                ids = len(played) + np.arange(options.num_envs)
                shape = (env.max_episode_steps, *env.action_space.shape)
                shove = noise * np.append(env.single_action_space.high[:6], 0.0) * rng.normal(size=shape)
                played += envs.repeat_if_lost(partial(play, env, split, variant, ids, shove))
                progress.advance(options.num_envs, task)
            played = played[: options.episodes]
            if options.by_task:
                for instruction in sorted({name for name, _, _ in played}):
                    yield row_of(world, f"{task}/{instruction}", [one for one in played if one[0] == instruction])
            yield row_of(world, task, played)  # last, since it says that the condition is done


def conditions(world: str, options: argparse.Namespace) -> list[tuple[str, str, str, float]]:
    """Return the name, split, variant and noise of each condition that is asked for."""
    spec = envs.spec(world)
    asked = list(spec.variants) if options.variants == ["all"] else options.variants
    if unknown := [variant for variant in asked if variant not in spec.variants]:
        raise UserError(f"unknown variant '{unknown[0]}': the world '{world}' has {', '.join(spec.variants)}")
    clean = [
        (split if variant == "main" else f"{split}/{variant}", split, variant, 0.0)
        for variant in asked
        for split in spec.splits_of(variant)
    ]
    first = spec.splits[0]
    return clean + [(f"{first}/noise-{noise:g}", first, "main", noise) for noise in options.noise]


def play(env: envs.WorkerVectorEnv, split: str, variant: str, ids: np.ndarray, shove: np.ndarray) -> Played:
    """Let the expert play the episodes `ids` (N,); `shove` (T, N, 7) is added to its actions."""
    expert = envs.expert(env.world_spec.name, env.num_envs)
    observation, info = env.reset(options={"split": split, "variant": variant, "episode_ids": ids})
    instructions = observation["instruction"]
    success = []
    for noise in shove:
        _, _, terminated, _, info = env.step(expert.act(info["environment_state"]) + noise)
        success.append(info["success"])
        if terminated.all():
            break
    by_episode = np.stack(success, axis=1)
    return [
        (instruction, bool(solved[-1]), int(solved.argmax()) + 1 if solved.any() else None)
        for instruction, solved in zip(instructions, by_episode, strict=True)
    ]


def row_of(world: str, task: str, played: Played) -> dict[str, Any]:
    successes, steps = sum(solved for _, solved, _ in played), [first for _, _, first in played if first is not None]
    low, high = wilson(successes, len(played))
    return {
        "world": world,
        "task": task,
        "n": len(played),
        "successes": successes,
        "low": low,
        "high": high,
        "once": len(steps),
        "median_steps": float(np.median(steps)) if steps else None,
    }


def table(rows: list[dict[str, Any]]) -> str:
    head = ["world", "task", "n", "success at end", "95 % interval", "success once", "median steps"]
    body = [
        [
            row["world"],
            row["task"],
            str(row["n"]),
            f"{100 * row['successes'] / row['n']:.1f} %",
            f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %",
            f"{100 * row['once'] / row['n']:.1f} %",
            "-" if row["median_steps"] is None else f"{row['median_steps']:g}",
        ]
        for row in rows
    ]
    return markdown_table(head, body)


if __name__ == "__main__":
    main()
