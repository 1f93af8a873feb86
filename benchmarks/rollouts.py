"""Environment steps a second of each world, in one and in two worker processes, beside a plain loop in this process.

    python benchmarks/rollouts.py                 all worlds that are installed; writes results/rollouts.json
    python benchmarks/rollouts.py tabletop        one of them; rows of the others are kept

The plain loop steps one environment as its upstream project does, one picture a step at the same size. For our own
tabletop, which has no upstream, it steps a single world without workers, so that what the pool costs can be seen. All
loops of a world exist at once and take turns of two seconds each; figures are medians over the turns, and `speedup` is
the median of the ratios within a turn. Actions are random, and nobody resets.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from rlrc import envs
from rlrc.bench import machine
from rlrc.errors import UserError
from rlrc.files import write_json
from rlrc.reading import read_json

TURNS = 7
TURN_SECONDS = 2.0
WORKERS = (1, 2)
Loop = Iterator[None]
"""Each `next` steps every environment of the loop once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", help="names of worlds as in the rows; all unless named")
    parser.add_argument("--out", type=Path, default=Path("results/rollouts.json"))
    options = parser.parse_args()
    rows = read_json(options.out)["rows"] if options.out.exists() else []
    for case in CASES:
        if options.worlds and case.world not in options.worlds:
            continue
        try:
            measured = measure(case)
        except UserError as error:
            print(f"{case.world} is not measured: {error}", flush=True)
            continue
        rows = [row for row in rows if (row["world"], row["mode"]) != (case.world, case.mode)] + measured
        write_json(options.out, {"machine": machine(), "turns": TURNS, "rows": rows})


@dataclass(frozen=True)
class Case:
    """One comparison: a world, and a function that makes the plain loop."""

    world: str
    mode: str
    image_size: int
    envs_per_worker: int
    plain: Callable[[], Loop]


def measure(case: Case) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        loops = {workers: stack.enter_context(closing(pool(case, workers))) for workers in WORKERS}
        loops[0] = stack.enter_context(closing(case.plain()))
        taken: dict[int, list[float]] = {workers: [] for workers in loops}
        for loop in loops.values():
            next(loop)
        for _ in range(TURNS):
            for workers, loop in loops.items():
                taken[workers].append(seconds_a_step(loop) / environments(case, workers))
    rows = []
    for workers in WORKERS:
        speedup = median(slow / fast for slow, fast in zip(taken[0], taken[workers], strict=True))
        rows.append(
            {
                "world": case.world,
                "mode": case.mode,
                "workers": workers,
                "num_envs": environments(case, workers),
                "steps_per_s": round(1 / median(taken[workers]), 1),
                "upstream_steps_per_s": round(1 / median(taken[0]), 1),
                "speedup": round(speedup, 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def seconds_a_step(loop: Loop) -> float:
    """Mean over one turn."""
    steps, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < TURN_SECONDS:
        next(loop)
        steps += 1
    return elapsed / steps


def environments(case: Case, workers: int) -> int:
    return workers * case.envs_per_worker or 1


def pool(case: Case, workers: int) -> Loop:
    env = envs.make(case.world, environments(case, workers), workers, case.image_size)
    env.action_space.seed(0)
    with closing(env):
        env.reset()
        while True:
            env.step(env.action_space.sample())
            yield


def plain_tabletop() -> Loop:
    from rlrc.envs.tabletop import SPEC

    rng = np.random.default_rng(0)
    world = SPEC.factory(96)
    world.reset("ind", "main", 0)
    while True:
        world.step(rng.uniform(SPEC.action_low, SPEC.action_high).astype(np.float32))
        world.draw("front")
        yield


def plain_put_on_plate(width: int, height: int) -> Loop:
    """RL4VLA's task is not in a package of ManiSkill: ours, as RL4VLA and ManiSkill run theirs.

    All objects are in the scene, each is asked whether it is grasped, and pictures are copied by ManiSkill.
    """
    from rlrc.envs.maniskill.simulator import start
    from rlrc.envs.putonplate import SPEC

    backend = start()
    from rlrc.envs.putonplate.task import CAMERA, PutOnPlate

    class AsUpstream(PutOnPlate):
        def evaluate(self) -> dict[str, Any]:
            for thing in self._objects.values():
                self.agent.is_grasping(thing)
            return super().evaluate()

        def _rendered(self, name: str) -> Any:
            return self._sensors[CAMERA].camera.get_picture([name])[0]

    rng = np.random.default_rng(0)
    env = AsUpstream(width, height, whole_scene=True, sim_backend="physx_cpu", render_backend=backend)
    with closing(env):
        env.reset(seed=0)
        while True:
            env.step(rng.uniform(SPEC.action_low, SPEC.action_high))
            yield


def plain_libero(suite: str) -> Loop:
    """LIBERO's own environment, as OpenVLA's evaluation makes it, on the suite's first task."""
    from rlrc.envs.libero.tasks import tasks

    bddl = tasks(suite)[0].bddl
    from libero.libero.envs import OffScreenRenderEnv

    rng = np.random.default_rng(0)
    env = OffScreenRenderEnv(bddl_file_name=str(bddl), camera_heights=256, camera_widths=256)
    with closing(env):
        env.reset()
        while True:
            env.step(rng.uniform(-1, 1, 7))
            yield


CASES = (
    Case("tabletop", "96 px", 96, 16, plain_tabletop),
    Case("putonplate", "224 px", 224, 4, partial(plain_put_on_plate, 224, 224)),
    Case("putonplate:official", "640 x 480 px", 224, 4, partial(plain_put_on_plate, 640, 480)),
    Case("libero_spatial", "official", 256, 1, partial(plain_libero, "libero_spatial")),
    Case("libero_spatial:fast", "fast", 256, 1, partial(plain_libero, "libero_spatial")),
    Case("libero_10", "official", 256, 1, partial(plain_libero, "libero_10")),
    Case("libero_10:fast", "fast", 256, 1, partial(plain_libero, "libero_10")),
)


if __name__ == "__main__":
    main()
