"""Measure whether two environments that take turns with a policy beat one of twice the size (rlrc.act.rollouts).

    python benchmarks/turns.py --out results/turns.json                    (about 5 minutes on 2 cores)
    python benchmarks/turns.py --world putonplate --num-workers 16 --out results/turns-gpu.json         (with a GPU)

Each way plays the same episodes, round by round, every environment with as many worker processes. The policies of the
repository think on the GPU where there is one, and otherwise on the processor, where they compete with the workers for
its cores. `elsewhere` stands in for a policy on a device of its own: it takes a millisecond a picture, in which it
leaves the processor alone.
`speedup` is the median over rounds of the time in one environment to that in turns within a round.
"""

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from rlrc.process import keep_freed_memory, prepare_for_torch

prepare_for_torch()

import numpy as np  # noqa: E402
import torch  # noqa: E402

import rlrc  # noqa: E402
from rlrc import envs  # noqa: E402
from rlrc.act.actor import Chunked, Plain  # noqa: E402
from rlrc.act.rollouts import Conditions, rollout_in_turns  # noqa: E402
from rlrc.bench import machine  # noqa: E402
from rlrc.files import write_json  # noqa: E402
from rlrc.policies.dim import Dim  # noqa: E402
from rlrc.policies.values import Observation, PolicySpec  # noqa: E402

POLICIES = {
    "tabletop": ("checkpoints/tabletop-base", "checkpoints/tabletop-rlrc", "elsewhere"),
    "putonplate": ("checkpoints/putonplate-base",),
}
NUM_ENVS, EPISODES = 32, 128


class Elsewhere:
    """A stand-in with what `Chunked` asks of a policy, and of what acts for it; its actions are zero."""

    device = torch.device("cpu")
    spec = PolicySpec("elsewhere", ("front",), (), tuple(Dim(str(n)) for n in range(7)), horizon=1, execute=1)

    def reset(self) -> None:
        """Do nothing, since nothing is kept."""

    def act(self, observation: Observation, *_: Any) -> np.ndarray:
        time.sleep(0.001 * len(observation))
        return np.zeros((len(observation), 1, 7), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=list(POLICIES), default="tabletop")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    keep_freed_memory()
    rows = [measure(options.world, name, options.num_workers, options.rounds) for name in POLICIES[options.world]]
    write_json(options.out, {"machine": machine(), "rounds": options.rounds, "rows": rows})


def measure(world: str, name: str, num_workers: int, rounds: int) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy: Any = Elsewhere() if name == "elsewhere" else rlrc.load(name, device=device)
    size = 96 if name == "elsewhere" else policy.image_size
    seconds: dict[int, list[float]] = {1: [], 2: []}
    outcomes: dict[int, list[bool]] = {}
    with ExitStack() as stack:
        actors: dict[int, list[tuple[Chunked, envs.WorkerVectorEnv]]] = {}
        for count in seconds:
            made = [envs.make(world, NUM_ENVS // count, num_workers, size) for _ in range(count)]
            for env in made:
                stack.callback(env.close)
            thinker = policy if name == "elsewhere" else Plain(policy)
            actors[count] = [(Chunked(thinker), env) for env in made]
            rollout_in_turns(actors[count], range(NUM_ENVS), Conditions("ind"))  # starts the workers
        for _ in range(rounds):
            for count, mine in actors.items():
                started = time.perf_counter()
                episodes = rollout_in_turns(mine, range(EPISODES), Conditions("ind"))
                seconds[count].append(time.perf_counter() - started)
                outcomes[count] = [episode.success_at_end for episode in episodes]
    row = {
        "world": world,
        "policy": name,
        "num_workers": num_workers,
        "episodes": EPISODES,
        "seconds": round(median(seconds[1]), 2),
        "seconds_in_turns": round(median(seconds[2]), 2),
        "speedup": round(median(one / two for one, two in zip(seconds[1], seconds[2], strict=True)), 3),
        "successes": sum(outcomes[1]),
        "successes_in_turns": sum(outcomes[2]),
        "same_outcome": sum(a == b for a, b in zip(outcomes[1], outcomes[2], strict=True)),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
