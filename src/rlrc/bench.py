"""Measure what a policy costs: parameters, exact weight bytes, peak memory, latency by stage, throughput.

    rlrc bench --policies checkpoints/tabletop-base runs/default/quantize/checkpoint --out runs/bench

Policies take turns, round by round, and are compared within each round, so that their ratios hold on a machine that is
busy with other things; absolute times there do not.
"""

import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
import transformers

from rlrc.configs.bench import BenchConfig
from rlrc.errors import UserError
from rlrc.files import write_json
from rlrc.inspect import describe
from rlrc.jobs import in_fresh_process
from rlrc.native import processor
from rlrc.policies.checkpoint import load
from rlrc.policies.contract import Policy
from rlrc.policies.device import resolve_device
from rlrc.policies.folder import stored_bytes
from rlrc.policies.locate import LINEAGE_FILE, on_disk
from rlrc.policies.values import GREEDY, Observation
from rlrc.progress import bar
from rlrc.roofline import floors_ms, rates, work
from rlrc.stage_chart import Bar, draw_stages
from rlrc.stats import FEWEST_FOR_MEDIAN, median_interval
from rlrc.tables import human_bytes, human_count, human_ratio, print_table
from rlrc.version import __version__

STAGES = ("preprocess", "vision", "projector", "prefill", "decode", "other")
"""Stages: picture and prompt to tensors, the towers, the projector, the decoder over the prompt with the first token
(or over all of a prefix), the decoder over the other tokens (or an expert in all steps of denoising), and what is left
(embedding, choosing tokens, un-normalising)."""

INSTRUCTION = "put carrot on plate"


def bench(config: BenchConfig, out: Path) -> dict[str, Any]:
    """Measure, print a table, and write `bench.json` and its picture `bench.png`.

    `spec` is for those policies that rlrc has not written; the others say themselves what they read.
    """
    device = str(resolve_device(config.device))
    places = [on_disk(path) for path in config.policies]
    specs = [None if (place / LINEAGE_FILE).exists() else config.spec for place in places]
    if config.spec is not None and not any(specs):
        raise UserError("these policies say themselves what they read; leave spec out")
    asked = list(zip(config.policies, specs, strict=True))
    memory = [peak_memory(path, device, config.unnorm_key, spec) for path, spec in asked]
    policies = [load(path, config.unnorm_key, device, spec=spec) for path, spec in asked]
    rounds = config.warmup + config.repeats
    with bar("bench", rounds * (2 + len(config.batch_sizes))) as progress:
        latency = interleaved([timed_action(policy) for policy in policies], rounds, progress.advance)
        stages = interleaved(
            [stage_timer(policy, noise_observation(policy, 1)) for policy in policies], rounds, progress.advance
        )
        batches = {
            size: interleaved([timed_action(policy, size) for policy in policies], rounds, progress.advance)
            for size in config.batch_sizes
        }
    warm = slice(config.warmup, None)
    latency = latency[:, warm]
    machine_rates = rates(device)
    entries = []
    # Of one action, in rounds that the policies share.
    speedups = latency[0] / latency * [[policy.spec.execute / policies[0].spec.execute] for policy in policies]
    for i, (path, place, policy) in enumerate(zip(config.policies, places, policies, strict=True)):
        described = describe(policy)
        total_bytes = described["bytes"].pop("total")
        entries.append(
            {
                "policy": str(path),
                "dtype": described["dtype"],
                "quantization": described["quantization"],
                "multipliers": described["multipliers"],
                "cuda_graph": policy.records,
                "parameters": described["parameters"],
                "bytes": {
                    "memory": total_bytes,
                    "disk": sum(stored_bytes(place).values()),
                    "parts": described["bytes"],
                },
                "peak_memory": memory[i],
                "latency_ms": _percentiles(1000 * latency[i]),
                "stages_ms": {stage: _percentiles(1000 * stages[i, warm, k]) for k, stage in enumerate(STAGES)},
                "floors_ms": floors_ms(
                    work(policy.stages(policy.prepare(noise_observation(policy, 1)))), machine_rates
                ),
                "actions_per_call": policy.spec.execute,
                "actions_per_second": {
                    str(size): size * policy.spec.execute / float(np.median(t[i, warm])) for size, t in batches.items()
                },
                "speedup": float(np.median(speedups[i])),
                "speedup_95": median_interval(speedups[i].tolist()) if config.repeats >= FEWEST_FOR_MEDIAN else None,
            }
        )
    result = {
        "machine": machine() | machine_rates,
        "device": device,
        "repeats": config.repeats,
        "policies": entries,
    }
    write_json(out / "bench.json", result)
    draw_stages(out / "bench.png", [_bar(entry) for entry in entries])
    _print(entries)
    return result


def _bar(entry: dict[str, Any]) -> Bar:
    return Bar(
        entry["policy"], {stage: taken["p50"] for stage, taken in entry["stages_ms"].items()}, entry["floors_ms"]
    )


def machine() -> dict[str, Any]:
    """Describe the machine and the releases that figures were measured with."""
    info = {
        "system": platform.platform(),
        "cpu": processor.name(),
        "instructions": processor.instructions(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rlrc": __version__,
    }
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    described = subprocess.run(git, capture_output=True, text=True, check=False)
    return info | {"commit": described.stdout.strip() or None}


def peak_memory(path: Path, device: str, unnorm_key: str | None = None, spec: str | None = None) -> dict[str, int]:
    """Bytes of memory that a fresh process takes to load the policy and act three times.

    `baseline` is that process with its libraries imported and nothing loaded, `peak` its largest resident size; on a
    GPU also the largest `allocated` and `reserved`.
    """
    return in_fresh_process(_load_and_act, path, device, unnorm_key, spec)


def _load_and_act(path: Path, device: str, unnorm_key: str | None, spec: str | None) -> dict[str, int]:
    baseline = psutil.Process().memory_info().rss
    policy = load(path, unnorm_key, device, spec=spec)
    for _ in range(3):
        policy.act(noise_observation(policy, 1))
    measured = {"baseline": baseline, "peak": peak_resident()}
    if device.startswith("cuda"):
        measured |= {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return measured


def peak_resident() -> int:
    """The largest resident size (bytes) that this process has had."""
    # Linux hands ru_maxrss down to child processes; VmHWM is this process's own.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def interleaved(
    measures: Sequence[Callable[[], Any]], rounds: int, after_round: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Call all `measures` in every round, each round beginning with another one: (measures, rounds, ...)."""
    results: list[list[Any]] = [[] for _ in measures]
    for number in range(rounds):
        for i in range(len(measures)):
            which = (i + number) % len(measures)
            results[which].append(measures[which]())
        after_round()
    return np.asarray(results)


def timed_action(policy: Policy, batch_size: int = 1) -> Callable[[], float]:
    """A function that acts once on noise and returns the seconds."""
    observation = noise_observation(policy, batch_size)

    def measure() -> float:
        started = now(policy.device)
        policy.act(observation)
        return now(policy.device) - started

    return measure


def stage_timer(policy: Policy, observation: Observation) -> Callable[[], list[float]]:
    """A function that acts once on an observation and returns the seconds of each of STAGES."""

    def measure() -> list[float]:
        started = now(policy.device)
        inputs = policy.prepare(observation)
        prepared = now(policy.device)
        with stage_clock(policy) as seconds:
            policy.to_physical(policy.sample(inputs, GREEDY).actions.cpu().numpy())
        seconds = {"preprocess": prepared - started, **seconds}
        seconds["other"] = now(policy.device) - started - sum(seconds.values())
        return [seconds[stage] for stage in STAGES]

    return measure


@contextmanager
def stage_clock(policy: Policy) -> Iterator[dict[str, float]]:
    """Collect, within the block, the seconds spent in the parts that make up one action.

    On a GPU the parts are launched one by one for this, while an action otherwise is one CUDA graph and takes less.
    """
    seconds = {"vision": 0.0, "projector": 0.0, "prefill": 0.0, "decode": 0.0}

    def timed(owner: Any, method: str, stage: Callable[..., str]) -> AbstractContextManager[Any]:
        original = getattr(owner, method)

        def call(*args: Any) -> Any:
            started = now(policy.device)
            result = original(*args)
            seconds[stage(*args)] += now(policy.device) - started
            return result

        return patch.object(owner, method, call)

    with ExitStack() as stack:
        stack.enter_context(patch.object(policy, "eager", True))
        for call in policy.stage_calls():
            stack.enter_context(timed(call.owner, call.method, call.stage))
        yield seconds


def noise_observation(policy: Policy, batch_size: int) -> Observation:
    """Make an observation of noise for pictures, an instruction, and a state in the middle of what is usual."""
    random, side = np.random.default_rng(0), policy.image_size
    images = {camera: random.integers(0, 256, (batch_size, side, side, 3), np.uint8) for camera in policy.spec.cameras}
    state = np.zeros((batch_size, len(policy.spec.state)), np.float32) if policy.spec.state else None
    return Observation(images, [INSTRUCTION] * batch_size, state)


def now(device: torch.device) -> float:
    """The clock's seconds, once the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 90, 99)}


def _print(entries: Sequence[dict[str, Any]]) -> None:
    sizes = list(entries[0]["actions_per_second"])
    columns = ["policy", "params", "in memory", "on disk", "peak", "actions a call", "p50 ms", "p90 ms", "p99 ms"]
    columns += [f"act/s at {size}" for size in sizes] + ["speed [95 %]"]
    rows = [
        [
            entry["policy"],
            human_count(entry["parameters"]["total"]),
            human_bytes(entry["bytes"]["memory"]),
            human_bytes(entry["bytes"]["disk"]),
            human_bytes(entry["peak_memory"]["peak"]),
            str(entry["actions_per_call"]),
            *(f"{milliseconds:.1f}" for milliseconds in entry["latency_ms"].values()),
            *(f"{entry['actions_per_second'][size]:.1f}" for size in sizes),
            human_ratio(entry["speedup"], entry["speedup_95"]),
        ]
        for entry in entries
    ]
    print_table("cost of a policy", columns, rows)
