"""Environment steps a second of the tabletop world, with one 96-px picture a step.

    .venv/bin/python benchmarks/tabletop_speed.py [--json]

Steps 32 environments under random actions, with one worker process and with two, six times each; the best is
reported, since whatever else runs on the machine can only slow it down. --json also writes
benchmarks/results/tabletop_speed.json.
"""

import json
import os
import platform
import sys
import time
from pathlib import Path

import gymnasium
import mujoco
import numpy as np

import rlrc.envs
from rlrc import kernels
from rlrc.files import write_json

NUM_ENVS, IMAGE_SIZE, STEPS, REPEATS = 32, 96, 40, 6
RESULTS = Path(__file__).parent / "results" / "tabletop_speed.json"


def measure(num_workers: int) -> dict[str, float]:
    """Steps a second, and what a reset costs in steps."""
    env = rlrc.envs.make("tabletop", NUM_ENVS, num_workers, IMAGE_SIZE)
    rng = np.random.default_rng(0)
    scale = env.single_action_space.high
    env.reset()
    rates, reset_seconds = [], []
    for repeat in range(REPEATS):
        start = time.perf_counter()
        env.reset(options={"episode_ids": np.arange(NUM_ENVS) + NUM_ENVS * repeat})
        reset_seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(STEPS):
            env.step(scale * rng.uniform(-1, 1, (NUM_ENVS, 7)))
        rates.append(STEPS * NUM_ENVS / (time.perf_counter() - start))
    env.close()
    return {
        "workers": num_workers,
        "env_steps_per_second": round(max(rates), 1),
        "reset_in_steps": round(min(reset_seconds) * max(rates) / NUM_ENVS, 2),
    }


def machine() -> dict[str, object]:
    return {
        "cpu": kernels.processor(),
        "cores": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "mujoco": mujoco.__version__,
        "gymnasium": gymnasium.__version__,
        "numpy": np.__version__,
    }


def main() -> None:
    result = {
        "machine": machine(),
        "num_envs": NUM_ENVS,
        "image_size": IMAGE_SIZE,
        "measured": [measure(num_workers) for num_workers in (1, 2)],
    }
    print(json.dumps(result, indent=2))
    if "--json" in sys.argv[1:]:
        write_json(RESULTS, result)


if __name__ == "__main__":
    main()
