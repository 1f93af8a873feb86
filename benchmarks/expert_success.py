"""How often the scripted expert solves each variant of the tabletop world.

    .venv/bin/python benchmarks/expert_success.py [episodes, default 256]

Success is read at the end of the 40-step episode; intervals are Wilson's, 95 %. The last rows add noise to what is
executed, as the collection of demonstrations does. Writes benchmarks/results/expert.json and prints the table of
docs/tabletop.md.
"""

import os
import sys
from pathlib import Path

import numpy as np

import rlrc.envs
from rlrc.files import write_json
from rlrc.progress import track
from rlrc.stats import wilson

NUM_ENVS, IMAGE_SIZE = 32, 16
RESULTS = Path(__file__).parent / "results" / "expert.json"
Row = tuple[str, str, float]


def measure(env: rlrc.envs.WorkerVectorEnv, row: Row, episodes: int) -> dict[str, object]:
    """Run `episodes` episodes of a split's variant with execution noise of `noise` times the largest action."""
    split, variant, noise = row
    expert = rlrc.envs.expert("tabletop", NUM_ENVS)
    rng = np.random.default_rng(0)
    scale = noise * np.append(env.single_action_space.high[:6], 0.0)
    ends, firsts = [], []
    for first_id in range(0, episodes, NUM_ENVS):
        ids = np.arange(first_id, first_id + NUM_ENVS)
        _, info = env.reset(options={"split": split, "variant": variant, "episode_ids": ids})
        first = np.full(NUM_ENVS, np.inf)
        for step in range(1, env.max_episode_steps + 1):
            action = expert.act(info["environment_state"]) + scale * rng.normal(size=(NUM_ENVS, 7))
            _, _, _, _, info = env.step(action)
            first = np.where(info["success"], np.minimum(first, step), first)
        ends.append(info["success"])
        firsts.append(first)
    success, first = np.concatenate(ends), np.concatenate(firsts)
    low, high = wilson(int(success.sum()), len(success))
    return {
        "split": split,
        "variant": variant,
        "execution_noise": noise,
        "episodes": len(success),
        "success_at_end": float(success.mean()),
        "wilson_low": low,
        "wilson_high": high,
        "success_once": float(np.isfinite(first).mean()),
        "median_steps": float(np.median(first)) if np.isfinite(np.median(first)) else None,
    }


def main() -> None:
    episodes = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    challenges = [name for name in rlrc.envs.spec("tabletop").variants if name != "main"]
    rows: list[Row] = [("ind", "main", 0.0), ("ood", "main", 0.0), *(("ood", name, 0.0) for name in challenges)]
    rows += [("ind", "main", noise) for noise in (0.1, 0.2, 0.3)]
    env = rlrc.envs.make("tabletop", NUM_ENVS, num_workers=os.cpu_count() or 1, image_size=IMAGE_SIZE)
    results = [measure(env, row, episodes) for row in track(rows, "variants")]
    env.close()
    print(
        "| split | variant | noise | n | success at end | 95 % interval | median steps |\n|---|---|---|---|---|---|---|"
    )
    for r in results:
        interval = f"{100 * r['wilson_low']:.1f} to {100 * r['wilson_high']:.1f} %"  # type: ignore[operator]
        success = f"{100 * r['success_at_end']:.1f} %"  # type: ignore[operator]
        cells = [r["split"], r["variant"], r["execution_noise"], r["episodes"], success, interval, r["median_steps"]]
        print("| " + " | ".join(str(cell) for cell in cells) + " |")
    write_json(RESULTS, results)


if __name__ == "__main__":
    main()
