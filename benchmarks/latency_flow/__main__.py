"""One chunk of SmolVLA and of pi0 at their published sizes: dense, compressed, and by other people's code.

    python benchmarks/latency_flow                        writes results/latency_flow/cpu.json and cpu.md
    python benchmarks/latency_flow --device cuda          on a GPU; writes cuda.json and cuda.md
    python benchmarks/latency_flow --families smolvla     measures these anew, and keeps the rows of the others
    python benchmarks/latency_flow --tiny --out FOLDER    rehearses it with tiny policies, in a minute

Weights are random, which changes no time: three cameras, ten steps of denoising, chunks of fifty. The compressed
policies have lost 90 % of the heads and channels of the language model and the expert, by Taylor importance on frames
of noise; time and memory of that pruning are measured too. Packed ones have every linear layer in 4 bits. A balanced
one has also lost half of the blocks of its vision tower, two thirds of the heads and channels of the others, and three
quarters of the tokens of a picture (chosen at random or in turn, which changes no time). The policies of a family act
in turn in every round, so nothing else should run on the machine. It takes 24 GB of memory, 25 GB of disk (below
runs/latency_flow, where finished checkpoints are found again) and about 40 minutes on two cores.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from flow_checkpoints import make_checkpoints
from flow_page import page
from native_pi0 import Native, native_peak

import rlrc
from rlrc.bench import (
    STAGES,
    interleaved,
    machine,
    noise_observation,
    now,
    peak_memory,
    stage_timer,
    timed_action,
)
from rlrc.bfloat16 import library
from rlrc.files import write_json, write_text
from rlrc.inspect import describe
from rlrc.jobs import in_fresh_process
from rlrc.policies.contract import Policy
from rlrc.progress import say
from rlrc.reading import read_json
from rlrc.stats import median_interval

ROOT = Path(__file__).parents[2]
WARM_UP = 1
"""Rounds that do not count."""


@dataclass(frozen=True)
class Contender:
    """A policy in the rounds of its family."""

    name: str
    backend: str
    measure: Callable[[], float]
    """Acts once, and returns the seconds."""
    policy: Policy | None
    """The policy in rlrc; None where other code acts."""
    weight_bytes: int
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=("smolvla", "pi0"), default=["smolvla", "pi0"])
    parser.add_argument("--rounds", type=int, default=7, help="that count, six at least")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny policies")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "latency_flow")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "latency_flow")
    options = parser.parse_args()
    path = options.out / f"{options.device}.json"
    here: dict[str, Any] = {"machine": machine(), "device": options.device, "tiny": options.tiny}
    result = here | kept(path, here)
    for family in options.families:
        folder = options.work / (f"{family}-tiny" if options.tiny else family)
        pruning = make_checkpoints(family, options.tiny, options.device, folder)
        run = {"family": family, "commit": here["machine"]["commit"], "rounds": options.rounds, "pruning": pruning}
        rows = measured(family, list(contenders(family, options.device, folder)), options.rounds)
        result["runs"] = [*others(result["runs"], family), run]
        result["rows"] = [*others(result["rows"], family), *rows]
        write_json(path, result)
    write_text(path.with_suffix(".md"), page(result))
    say(page(result))


def kept(path: Path, here: dict[str, Any]) -> dict[str, Any]:
    """Rows and runs of an earlier result; none unless it comes from the same machine with the same libraries."""

    def conditions(result: dict[str, Any]) -> dict[str, Any]:
        machine_of = {name: value for name, value in result["machine"].items() if name != "commit"}
        return {"machine": machine_of, "device": result["device"], "tiny": result["tiny"]}

    if not path.exists():
        return {"rows": [], "runs": []}
    if conditions(earlier := read_json(path)) == conditions(here):
        return {"rows": earlier["rows"], "runs": earlier["runs"]}
    say(f"{path}: its rows come from another machine or other libraries, and are replaced")
    return {"rows": [], "runs": []}


def others(entries: list[dict[str, Any]], family: str) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["family"] != family]


def contenders(family: str, device: str, folder: Path) -> Iterator[Contender]:
    """All of a family, the baseline first."""
    dense = rlrc.load(folder / "dense", device=device)
    size, peak = describe(dense)["bytes"]["total"], peak_of(folder / "dense", device)
    if family == "pi0":
        native = Native(folder / "dense", dense, device)
        peak_there = in_fresh_process(native_peak, folder / "dense", device)
        yield Contender(family, "transformers", native.timed, None, native.nbytes, peak_there)
    else:
        yield Contender(family, "torch", plainly(dense), None, size, peak)
    yield Contender(family, "rlrc", timed_action(dense), dense, size, peak)
    for name in ("dense-4bit", "rlrc", "rlrc-4bit", "balanced-4bit"):
        path = folder / name / "checkpoint"
        policy = rlrc.load(path, device=device)
        peak, size = peak_of(path, device), describe(policy)["bytes"]["total"]
        yield Contender(f"{family}-{name}", "rlrc", timed_action(policy), policy, size, peak)


def peak_of(path: Path, device: str) -> int:
    """The most memory (bytes) that loading a policy and acting takes: of the process, or on a GPU of its tensors."""
    return peak_memory(path, device)["peak" if device == "cpu" else "allocated"]


def plainly(policy: Policy) -> Callable[[], float]:
    """Act by the same modules in PyTorch alone: the model's own forward passes, step by step, without our kernels."""
    observation, model = noise_observation(policy, 1), policy.model

    @torch.no_grad()
    @patch.object(library, "missing", lambda: "the baseline is PyTorch's")
    def act() -> float:
        started = now(policy.device)
        inputs = policy.prepare(observation)
        shape, steps = (1, model.config.horizon, model.config.padded_dim), model.config.num_steps
        prefix, x = model.read_prefix(inputs), torch.randn(shape, device=policy.device)
        for number in range(steps):
            times = torch.full((1,), 1 - number / steps, dtype=torch.float64, device=policy.device)
            x = x - model.velocity(prefix, x, times, inputs.state) / steps
        policy.to_physical(x[..., : len(policy.spec.action)].float().cpu().numpy())
        return now(policy.device) - started

    return act


def measured(family: str, policies: list[Contender], rounds: int) -> list[dict[str, Any]]:
    """The rows of a family, from rounds in which all act in turn."""
    seconds = interleaved([one.measure for one in policies], WARM_UP + rounds)[:, WARM_UP:]
    rows = []
    for one, taken in zip(policies, seconds, strict=True):
        ratios = seconds[0] / taken
        row = {
            "name": one.name,
            "family": family,
            "backend": one.backend,
            "p50_ms": 1000 * float(np.median(taken)),
            "speedup": float(np.median(ratios)),
            "speedup_95": median_interval(ratios.tolist()),
            "weight_bytes": one.weight_bytes,
            "peak_bytes": one.peak_bytes,
        }
        if one.policy is not None:
            timer = stage_timer(one.policy, noise_observation(one.policy, 1))
            stages = np.median([timer() for _ in range(3)], axis=0)
            row["stages_ms"] = {stage: 1000 * float(value) for stage, value in zip(STAGES, stages, strict=True)}
            row["actions_per_call"] = one.policy.spec.execute
        rows.append(row)
        say(f"{one.name} through {one.backend}: {row['p50_ms']:,.0f} ms, {row['speedup']:.2f}x")
    return rows


if __name__ == "__main__":
    main()
