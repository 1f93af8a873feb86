"""Compress OpenVLA-7B at its real size on this machine: exact parameters and bytes, seconds and peak memory a method.

    python benchmarks/compress_7b.py       about an hour on 2 cores and 30 GB of disk; writes results/compress_7b.json
    python benchmarks/compress_7b.py --preset openvla-tiny --out /tmp/tiny.json

Weights are random (`rlrc make-random`), which changes neither sizes nor times. Calibration: frames of the tabletop
world's expert at 224 pixels. Every row is a process of its own, from loading to the checkpoint on disk; the peak is its
largest resident size. Started again, it goes on after the rows that are done.

`parameters` counts as papers do, with what is never read; `stored_parameters` and `weight_bytes` are what is on disk.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import rlrc
from rlrc.bench import machine
from rlrc.data.collect import CollectConfig, collect
from rlrc.files import write_json, write_text
from rlrc.inspect import describe
from rlrc.ownership import remove_stage
from rlrc.policies.checkpoint import outline
from rlrc.policies.folder import stored_bytes
from rlrc.policies.make_random import MakeRandomConfig, make_random
from rlrc.reading import read_json
from rlrc.tables import human_bytes, markdown_table

SAMPLES = 16
TAYLOR = "rlrc-0.9"  # measured anew; what else ranks by the same importance starts from its measurements


def rows(layers: int) -> dict[str, list[str]]:
    """Command-line arguments of `rlrc prune`, by row; a small preset cannot lose 90 % without its ends."""
    overall = "0.9" if layers > 20 else "0.4"
    calibrated = ["--samples", str(SAMPLES)]
    ends = ["--protect", "0", "-1"]
    first_and_last_few = [str(index) for index in (*range(min(4, layers // 4)), *range(layers - 2, layers))]
    return {
        TAYLOR: [*calibrated, "--ratio", "0.9", *ends],
        "rlrc-0.9-overall": [*calibrated, "--overall", overall, *ends],
        "llm-pruner-0.25": [*calibrated, "--ratio", "0.25", "--protect", *first_and_last_few],
        "llm-pruner-0.9": [*calibrated, "--ratio", "0.9"],
        "flap-0.2": [*calibrated, "--ratio", "0.2", "method:flap"],
        "depth-0-31": ["method:depth", "--method.keep", "0", "-1"],
        "wanda-0.5": [*calibrated, "--ratio", "0.5", "method:wanda"],
        "magnitude-0.5": ["--ratio", "0.5", "method:magnitude"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="openvla-7b", choices=["openvla-7b", "openvla-tiny"])
    parser.add_argument("--work", type=Path, default=Path("runs/compress_7b"), help="where checkpoints are made")
    parser.add_argument("--policy", type=Path, help="a checkpoint to start from, in place of a random one")
    parser.add_argument("--out", type=Path, default=Path("results/compress_7b.json"))
    parser.add_argument("--act", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act is not None:
        print(json.dumps(act(options.act)))
        return
    policy = options.policy or options.work / options.preset
    if not policy.exists():
        make_random(MakeRandomConfig(preset=options.preset, out_folder=policy), policy)
    dataset = options.work / "demos" / "dataset"
    if not dataset.exists():
        collect(CollectConfig(episodes=4, image_size=224), dataset.parent)
    done = read_json(options.out)["rows"] if options.out.exists() else []
    for name, arguments in rows(len(describe(outline(policy))["layers"])).items():
        if name not in [row["name"] for row in done]:
            done.append(prune_row(name, arguments, policy, dataset, options.work))
            write_json(options.out, {"machine": machine(), "policy": options.preset, "rows": done})
            print(json.dumps(done[-1]), flush=True)
    actions = {"dense": policy, TAYLOR: options.work / TAYLOR / "checkpoint"}
    write_text(options.out.with_suffix(".md"), page(done))
    acted = {name: run(["--act", str(folder)], sys.argv[0])[0] for name, folder in actions.items()}
    write_json(options.out, {"machine": machine(), "policy": options.preset, "rows": done, "actions": acted})
    print(json.dumps(acted))


def page(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown, for people."""
    head = ["method", "parameters", "weights", "removed", "zeros", "seconds", "peak memory"]
    body = [
        [
            row["name"],
            f"{row['parameters']:,}",
            human_bytes(row["weight_bytes"]),
            f"{row['removed']:.1%}",
            f"{row['zeros']:.1%}",
            f"{row['seconds']:.0f}" + ("" if row["measured_by"] == row["name"] else f" (measured by {TAYLOR})"),
            human_bytes(row["peak_bytes"]),
        ]
        for row in rows
    ]
    machine_line = ", ".join(f"{key} {value}" for key, value in machine().items())
    return f"Written by `benchmarks/compress_7b.py`; do not edit.\n\n{markdown_table(head, body)}\n\n{machine_line}\n"


def prune_row(name: str, arguments: list[str], policy: Path, dataset: Path, work: Path) -> dict[str, Any]:
    """Prune in a process of its own; the checkpoint is kept only where others need it."""
    out = work / name
    remove_stage(out)
    general, method = (arguments, []) if "method:" not in " ".join(arguments) else split_at_method(arguments)
    general = ["prune", "--policy", str(policy), "--out", str(out), "--json", *general]
    general += ["--dataset", str(dataset)] if "--samples" in arguments else []
    reused = not method and name != TAYLOR
    general += ["--measured", str(work / TAYLOR / "measured.safetensors")] if reused else []
    result, seconds, peak = run([*general, *method])
    described = describe(outline(out / "checkpoint"))
    row = {
        "name": name,
        "parameters": described["published_parameters"],
        "stored_parameters": described["parameters"]["total"],
        "weight_bytes": sum(stored_bytes(out / "checkpoint").values()),
        "removed": result["metrics"]["removed"],
        "zeros": result["metrics"]["zeros"],
        "seconds": round(seconds, 1),
        "peak_bytes": peak,
        "measured_by": TAYLOR if reused else name,
        "command": "rlrc " + " ".join([*general, *method]),
    }
    if name != TAYLOR:
        remove_stage(out)
    return row


def split_at_method(arguments: list[str]) -> tuple[list[str], list[str]]:
    first = next(i for i, argument in enumerate(arguments) if argument.startswith("method:"))
    return arguments[:first], arguments[first:]


def run(arguments: list[str], script: str | None = None) -> tuple[dict[str, Any], float, int]:
    """Run a process; return what it printed as JSON, how long it took (s), and its largest resident size (bytes)."""
    command = [sys.executable, *([script] if script else ["-m", "rlrc"]), *arguments]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return json.loads(printed), time.monotonic() - started, 1024 * usage.ru_maxrss


def act(folder: Path) -> dict[str, Any]:
    """Load a policy and act on two pictures with two instructions; the first action warms up."""
    started = time.monotonic()
    policy = rlrc.load(folder)
    loaded = time.monotonic()
    images = np.random.default_rng(0).integers(0, 256, (2, 1, policy.image_size, policy.image_size, 3), dtype=np.uint8)
    cases = [(0, "pick up the spoon"), (0, "pick up the spoon"), (1, "pick up the spoon"), (0, "close the drawer")]
    actions, seconds = [], []
    for picture, instruction in cases:
        begun = time.monotonic()
        actions.append(policy.act(images[picture], [instruction])[0].tolist())
        seconds.append(round(time.monotonic() - begun, 2))
    return {
        "load_seconds": round(loaded - started, 1),
        "act_seconds": seconds[1:],
        "actions": actions[1:],
        "picture_matters": actions[1] != actions[2],
        "instruction_matters": actions[1] != actions[3],
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


if __name__ == "__main__":
    main()
