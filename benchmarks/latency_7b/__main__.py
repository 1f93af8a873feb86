"""Measure how long OpenVLA-7B takes for one action on this processor: dense, pruned, quantized, and by transformers.

    python benchmarks/latency_7b.py        about 50 minutes on 2 cores and 24 GB; writes results/latency_7b/cpu.*

What results/latency_7b/cpu.json holds already is not measured again: with all of it there, tables and figures are
written anew and nothing else happens.

Shapes are the real ones and weights random (`shapes_7b.py`), which changes no time. One picture of 224 pixels, one
instruction, seven tokens, batch 1; OpenVLA-OFT has two pictures, a state, and eight actions a call. In each group the
policies act in turn, round by round, and every speed-up is the median over rounds of the ratio to what it is compared
with in the same round. The baseline is dense bf16 through transformers' own modules and `generate`. bitsandbytes (`pip
install bitsandbytes`) is measured on two of the 32 layers, against transformers with two layers: packed from bf16, the
whole does not fit beside the baseline. The kernel that it can fetch from a hub is not used.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import shapes_7b as shapes
from latency_7b_page import BASELINE, TWO_LAYERS, VLA_CACHE, by_name, publish, split_bits

from rlrc.bench import STAGES, machine, peak_resident, stage_timer
from rlrc.files import write_json
from rlrc.policies.contract import Policy
from rlrc.policies.openvla.vla_cache import VlaCache
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.values import Observation
from rlrc.process import keep_freed_memory
from rlrc.progress import say
from rlrc.reading import read_json
from rlrc.roofline import floors_ms, rates

LARGE = "dense-8bit"
"""Name of the policy that is too large to lie beside the baseline: its codes lie in the baseline's weights."""
CONFIGS: dict[str, Callable[[], PrismaticConfig]] = {
    "dense": shapes.published,
    VLA_CACHE: shapes.published,
    "rlrc": lambda: shapes.pruned(ratio=0.9),
    "rlrc-overall": lambda: shapes.pruned(overall=0.9),
    "llm-pruner-25": lambda: shapes.pruned(ratio=0.25, protected=frozenset({0, 1, 2, 3, 30, 31})),
    # FLAP ranks all layers together; on random weights that means nothing, so here each layer loses the same share.
    "flap-20": lambda: shapes.pruned(ratio=0.2, protected=frozenset(), output_bias=True),
    "depth-0-31": lambda: shapes.published(layers=2),
    "ratio-0.25": lambda: shapes.pruned(ratio=0.25),
    "ratio-0.5": lambda: shapes.pruned(ratio=0.5),
    "ratio-0.75": lambda: shapes.pruned(ratio=0.75),
    "oft": shapes.oft,
    "oft-rlrc": lambda: shapes.pruned(ratio=0.9, of=shapes.oft),
}
GROUPS = [
    [BASELINE, "rlrc", "rlrc-8bit", "rlrc-4bit"],
    [BASELINE, "rlrc-overall", "rlrc-overall-8bit", "rlrc-overall-4bit"],
    [BASELINE, "dense", VLA_CACHE, "dense-4bit"],
    [BASELINE, "dense", "dense-8bit"],
    [BASELINE, "llm-pruner-25", "flap-20", "depth-0-31"],
    *([f"ratio-{ratio}", f"ratio-{ratio}-8bit", f"ratio-{ratio}-4bit"] for ratio in ("0.25", "0.5", "0.75")),
    [TWO_LAYERS, f"{TWO_LAYERS}-8bit", f"{TWO_LAYERS}-4bit"],
    [BASELINE, "oft", "oft-rlrc", "oft-rlrc-4bit"],
]
"""Groups of policies that act in turn; a group holds as many as fit into memory together."""
SWEEP = {0.0: "dense", 0.25: "ratio-0.25", 0.5: "ratio-0.5", 0.75: "ratio-0.75", 0.9: "rlrc"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/latency_7b/cpu.json"))
    options = parser.parse_args()
    rows = by_name(read_json(options.out)) if options.out.exists() else {}
    here = machine()
    for group in GROUPS:
        if rows.keys() >= set(group):
            continue  # started again, it goes on after what is done
        say(" | ".join(group))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            machine_rates = fresh.submit(rates).result()
        measured = take_turns(group, options.rounds, machine_rates)
        for name, row in measured.items():
            if name not in rows:
                rows[name] = row | {"group": group, "rounds": options.rounds, "cpu": here["cpu"]}
                rows[name]["commit"] = here["commit"]
                say(f"  {name}: {row['p50_ms']:.0f} ms" + (f", {row['speedup']:.2f}x" if row["speedup"] else ""))
        rows = {name: rows[name] for name in dict.fromkeys(chain(*GROUPS)) if name in rows}
        for cpu in {row["cpu"] for row in rows.values()}:
            lower_floors([row for row in rows.values() if "roofline" in row and row["cpu"] == cpu])
        result = {
            "machine": here,
            "rows": [{**row, "name": name.replace(BASELINE, "dense")} for name, row in rows.items()],
            "sweep": sweep(rows),
        }
        write_json(options.out, result)
    publish(options.out)


def lower_floors(rows: list[dict[str, Any]]) -> None:
    """Bring the floors of all groups that one processor measured to their best rates: what it can do, whatever else
    its host was doing."""
    best = {key: max(row["roofline"]["rates"][key] for row in rows) for key in rows[0]["roofline"]["rates"]}
    for row in rows:
        roofline = row["roofline"]
        for stage, floor in roofline["floors_ms"].items():
            limit = "bytes_per_second" if stage == "decode" else "operations_per_second"
            lower = floor * roofline["rates"][limit] / best[limit]
            roofline["floors_ms"][stage] = round(lower, 1)
            roofline["over_floor"][stage] = round(row["stages_ms"][stage] / lower, 2)
        roofline["rates"] = best


def take_turns(group: list[str], rounds: int, machine_rates: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Measure the policies of a group in turn, each in a process of its own but for those that share weights."""
    alone = [name for name in group if BASELINE not in group or (name.endswith("bit") and name != LARGE)]
    hosts = {name: Host([name]) for name in alone}
    if BASELINE in group:
        shared = Host([name for name in group if name not in hosts])
        hosts |= {name: shared for name in group if name not in hosts}
    seconds: dict[str, list[float]] = {name: [] for name in group}
    for number in range(rounds + 1):
        for name in group:
            taken = hosts[name].ask(name, "act")
            if number:  # the first round warms up
                seconds[name].append(taken)
    facts = {name: hosts[name].ask(name, machine_rates) for name in group}
    for host in hosts.values():
        host.end()
    return {
        name: {
            "backend": backend(name),
            "p50_ms": _ms(np.percentile(seconds[name], 50)),
            "p90_ms": _ms(np.percentile(seconds[name], 90)),
            **compared(seconds, name),
            **facts[name],
            # The process of the baseline holds several policies; its peak belongs to none of them.
            "peak_bytes": facts[name]["peak_bytes"] if len(hosts[name].names) == 1 else peak_alone(name),
        }
        for name in group
    }


def compared(seconds: dict[str, list[float]], name: str) -> dict[str, float | None]:
    """The ratios to transformers and to the same policy in bf16, and what these took in the same rounds."""
    bf16 = split_bits(name)[0] if name.endswith("bit") else None
    return {
        "speedup": _ratio(seconds, BASELINE, name),
        "baseline_ms": _ms(np.percentile(seconds[BASELINE], 50)) if BASELINE in seconds else None,
        "speedup_over_bf16": None if bf16 is None else _ratio(seconds, bf16, name),
        "bf16_ms": None if bf16 is None else _ms(np.percentile(seconds[bf16], 50)),
    }


def backend(name: str) -> str:
    if name.startswith(TWO_LAYERS):
        return "transformers" if name == TWO_LAYERS else "bitsandbytes"
    return "transformers" if name == BASELINE else "rlrc"


def _ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float | None:
    if slow not in seconds:
        return None
    return round(median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)), 3)


def _ms(seconds: Any) -> float:
    return round(1000 * float(seconds), 1)


def peak_alone(name: str) -> int:
    host = Host([name])
    host.ask(name, "act")
    peak = host.ask(name, {})["peak_bytes"]
    host.end()
    return peak


class Host:
    """A process that holds policies and acts when asked."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._pipe, far = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=(names, far), daemon=True)
        self._process.start()
        far.close()

    def ask(self, name: str, what: Any) -> Any:
        self._pipe.send((name, what))
        return self._pipe.recv()

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def serve(names: list[str], pipe: Connection) -> None:
    keep_freed_memory()
    libraries = psutil.Process().memory_info().rss
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    actors: dict[str, Any] = {}
    memory = None
    for name in names:
        shape, bits = split_bits(name)
        if name == BASELINE:
            actors[name] = shapes.TransformersBaseline()
            memory = shapes.Memory(actors[name].llama)
        elif shape == TWO_LAYERS:
            actors[name] = shapes.TransformersBaseline(2, bits)
        else:
            policy = shapes.policy(CONFIGS[shape](), bits, memory)
            actors[name] = VlaCache(policy) if name == VLA_CACHE else policy
    while True:
        name, what = pipe.recv()
        actor = actors[name]
        policy = actor.policy if name == VLA_CACHE else actor
        cameras = policy.spec.cameras if backend(name) == "rlrc" else ("front",)
        state = np.zeros((1, len(policy.spec.state)), np.float32) if backend(name) == "rlrc" else None
        observation = Observation(dict.fromkeys(cameras, images), ["put the carrot on the plate"], state)
        started = time.perf_counter()
        if what == "act":
            actor.act(observation)
            pipe.send(time.perf_counter() - started)
        else:
            through_rlrc = backend(name) == "rlrc"
            # VLA-Cache has its own way through the decoder, which the clock of stages does not follow.
            timed = through_rlrc and name != VLA_CACHE and what
            facts = stages(actor, observation, what) if timed else {}
            weights = weight_bytes(policy) if through_rlrc else actor.weight_bytes
            facts |= {"weight_bytes": weights, "libraries_bytes": libraries, "peak_bytes": peak_resident()}
            pipe.send(facts | {"actions_per_call": policy.spec.horizon if through_rlrc else 1})


def weight_bytes(policy: Policy) -> int:
    return sum(tensor.nbytes for tensor in policy.model.state_dict().values())


def stages(policy: Policy, observation: Observation, machine_rates: dict[str, float]) -> dict[str, Any]:
    measure = stage_timer(policy, observation)
    seconds = np.median([measure() for _ in range(3)], axis=0)
    taken = {stage: _ms(value) for stage, value in zip(STAGES, seconds, strict=True)}
    floors = floors_ms(policy.stages(policy.prepare(observation)), machine_rates)
    return {
        "stages_ms": taken,
        "roofline": {
            "rates": machine_rates,
            "floors_ms": {stage: round(floor, 1) for stage, floor in floors.items()},
            "over_floor": {stage: round(taken[stage] / floor, 2) for stage, floor in floors.items()},
        },
    }


def sweep(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    points = []
    for ratio, shape in SWEEP.items():
        for bits in (16, 8, 4):
            row = rows.get(shape if bits == 16 else f"{shape}-{bits}bit")
            if row is not None:
                speedup = row["speedup_over_bf16"]
                points.append({"ratio": ratio, "bits": bits, "p50_ms": row["p50_ms"], "speedup_over_bf16": speedup})
    return points


if __name__ == "__main__":
    main()
