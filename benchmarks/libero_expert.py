"""How often LIBERO's scripted expert solves each task, from official initial states and without drawing a picture.

    python benchmarks/libero_expert.py libero_spatial --trials 16
    python benchmarks/libero_expert.py libero_10 --trials 16 --tasks 9 5

A trial counts when the goal holds and still holds 15 steps later. One line a task: successes, Wilson's interval, steps
until success, and which trials failed.
"""

import argparse
import time

import numpy as np

from rlrc import envs
from rlrc.envs.libero import SUITES, Libero
from rlrc.stats import wilson

LASTS = 15


def play(world: Libero, suite: str, task: int, trial: int) -> tuple[bool, int]:
    """Whether one trial succeeded, and after how many steps."""
    expert = envs.expert(suite, 1)
    reading = world.reset("ind", f"task-{task}", trial)
    steps = 0
    while steps < SUITES[suite].max_episode_steps and not reading.success:
        reading = world.step(expert.act(reading.environment_state[None])[0])
        steps += 1
    for _ in range(LASTS):
        reading = world.step(expert.act(reading.environment_state[None])[0])
    return reading.success, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("libero_spatial", "libero_10"))
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--tasks", type=int, nargs="*", default=range(10))
    arguments = parser.parse_args()
    world = Libero(arguments.suite, fast=False, image_size=64)
    successes = trials = 0
    for task in arguments.tasks:
        started = time.monotonic()
        solved, steps = zip(
            *(play(world, arguments.suite, task, trial) for trial in range(arguments.trials)), strict=True
        )
        report(f"task {task}", sum(solved), arguments.trials)
        failed = [trial for trial, success in enumerate(solved) if not success]
        seconds = (time.monotonic() - started) / arguments.trials
        print(
            f"    steps {min(steps)} to {max(steps)}, mean {np.mean(steps):.0f}; {seconds:.1f} s each; failed {failed}"
        )
        successes, trials = successes + sum(solved), trials + arguments.trials
    report(arguments.suite, successes, trials)


def report(name: str, successes: int, trials: int) -> None:
    low, high = wilson(successes, trials)
    print(
        f"{name}: {successes}/{trials} = {100 * successes / trials:.1f} % [{100 * low:.1f}, {100 * high:.1f}]",
        flush=True,
    )


if __name__ == "__main__":
    main()
