"""The checkpoints that are compared, made once."""

import time
from pathlib import Path
from typing import Any

import numpy as np

import rlrc
from rlrc.bench import peak_resident
from rlrc.configs.make_random import MakeRandomConfig
from rlrc.configs.prune import Depth, PruneConfig, Random, Tokens
from rlrc.configs.quantize import QuantizeConfig
from rlrc.data.lerobot import write_dataset
from rlrc.files import write_json
from rlrc.jobs import in_fresh_process
from rlrc.policies.contract import Policy
from rlrc.policies.make_random import make_random
from rlrc.prune import prune
from rlrc.quantize import quantize
from rlrc.reading import read_json

PARTS = ("decoder", "expert", "vision", "projector")
"""Parts whose weights are packed."""
SAMPLES = 8
"""Frames on which importance is measured."""


def make_checkpoints(family: str, tiny: bool, device: str, folder: Path) -> dict[str, Any]:
    """Make what `folder` lacks: the dense policy, the pruned one, the balanced one, and all in 4 bits.

    Returns:
        What pruning took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dense, pruned, taken = folder / "dense", folder / "rlrc" / "checkpoint", folder / "pruning.json"
    if not dense.exists():
        make_random(MakeRandomConfig(preset=f"{family}-tiny" if tiny else family), dense)  # type: ignore[arg-type]
    if not taken.exists():
        frames = folder / "frames"
        if not frames.exists():
            write_noise(frames, rlrc.load(dense))
        write_json(taken, in_fresh_process(_prune, dense, frames, device, folder / "rlrc"))
    balanced = lightened(pruned, device, folder)
    for name, path in (("dense-4bit", dense), ("rlrc-4bit", pruned), ("balanced-4bit", balanced)):
        if not (folder / name / "checkpoint").exists():
            quantize(QuantizeConfig(policy=path, bits=4, parts=PARTS, device=device), folder / name)
    return dict(read_json(taken))


def lightened(policy: Path, device: str, folder: Path) -> Path:
    """Lighten the vision tower and the tokens of a policy as well, step by step; return the last checkpoint."""
    loaded = rlrc.load(policy)
    blocks, tokens = len(loaded.vision_stacks()[0].layers), loaded.num_patches // len(loaded.spec.cameras)
    steps: dict[str, dict[str, Any]] = {
        "depth": {"stacks": ("vision",), "method": Depth(keep=tuple(range(0, blocks, 2)))},
        "width": {"stacks": ("vision",), "method": Random(), "ratio": 0.67},
    }
    if tokens > 1:  # a tiny SmolVLA has one token a picture
        steps["tokens"] = {"method": Tokens(by="pool"), "ratio": 0.75}
    for name, options in steps.items():
        if not (folder / name / "checkpoint").exists():
            prune(PruneConfig(policy=policy, device=device, **options), folder / name)
        policy = folder / name / "checkpoint"
    return policy


def write_noise(path: Path, policy: Policy) -> None:
    """Two demonstrations of noise that fit a policy."""
    random, spec, side, length = np.random.default_rng(0), policy.spec, policy.image_size, 60
    with write_dataset(path, fps=5, robot_type="none") as writer:
        for task in ("pick up the red cup and put it on the plate", "open the left drawer"):
            columns: dict[str, Any] = {
                f"observation.images.{camera}": random.integers(0, 256, (length, side, side, 3), np.uint8)
                for camera in spec.cameras
            }
            columns["observation.state"] = random.normal(size=(length, len(spec.state))).astype(np.float32)
            columns["action"] = random.normal(size=(length, len(spec.action))).astype(np.float32)
            writer.append(task, columns)


def _prune(dense: Path, frames: Path, device: str, out: Path) -> dict[str, Any]:
    started = time.perf_counter()
    result = prune(PruneConfig(policy=dense, dataset=frames, ratio=0.9, samples=SAMPLES, device=device), out)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_bytes": peak_resident(), "samples": SAMPLES, **result["metrics"]}
