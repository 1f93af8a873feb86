"""One process of `reading.py`: reads a dataset as training does, with whatever rlrc is on the path, and measures.

    python benchmarks/reading_worker.py DATASET SIDE BATCHES TRAIN_STEPS SCRATCH

Prints a line of JSON: seconds to the first batch, samples a second over BATCHES batches, peaks of memory, and the
seconds of TRAIN_STEPS steps of training. Then it measures as many batches again for each number that stdin holds.
"""

import json
import re
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from rlrc.data.demonstrations import Demonstrations
from rlrc.data.statistics import norm_stats
from rlrc.process import keep_freed_memory
from rlrc.recover.loop import Learner
from rlrc.recover.sft import Frames, fit

try:
    from rlrc.configs.augmentation import Augmentation
    from rlrc.configs.sft import SftConfig
    from rlrc.configs.train import Shape
    from rlrc.policies.contract import Policy
    from rlrc.policies.openvla.tiny import new_policy
except ModuleNotFoundError:  # the code before
    from rlrc.models.policy import Policy  # type: ignore[import-not-found,no-redef]
    from rlrc.models.presets import Shape, new_policy  # type: ignore[import-not-found,no-redef]

    from rlrc.data.batches import Augmentation  # type: ignore[no-redef]
    from rlrc.recover.sft import SftConfig  # type: ignore[no-redef]

BATCH_SIZE = 64
TRAIN_BATCH_SIZE = 8
AUGMENT = Augmentation(crop_area=1.0)
"""Augmentation of the tabletop's recipes."""


def main() -> None:
    dataset, side, batches, train_steps, scratch = sys.argv[1:]
    total = psutil.virtual_memory().total
    resource.setrlimit(resource.RLIMIT_AS, (total, total))  # who asks for more fails at once and not the machine
    keep_freed_memory()
    memory = Memory()
    started = time.perf_counter()
    demonstrations = Demonstrations.load(Path(dataset))
    policy = policy_for(demonstrations, int(side))
    frames = frames_of(policy, demonstrations, Path(dataset), Path(scratch))
    frames.next()
    measured: dict[str, Any] = {"frames": len(demonstrations), "first_batch_s": time.perf_counter() - started}
    if int(batches):
        measured["samples_per_s"] = BATCH_SIZE * int(batches) / seconds_of(frames, int(batches))
    if int(train_steps):
        started = time.perf_counter()
        fit("sft", policy, config(Path(dataset), TRAIN_BATCH_SIZE, int(train_steps)), demonstrations, Path(scratch))
        measured |= {"train_steps": int(train_steps), "train_s": time.perf_counter() - started}
    print(json.dumps(measured | memory.peaks()), flush=True)
    for line in sys.stdin:
        print(json.dumps(BATCH_SIZE * int(line) / seconds_of(frames, int(line))), flush=True)


class Memory:
    """Watches what this process holds."""

    def __init__(self) -> None:
        self._anonymous = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def peaks(self) -> dict[str, int]:
        """Largest anonymous memory, which only a swap could take in, and all resident memory, mapped files included."""
        return {"peak_bytes": max(self._anonymous, status("RssAnon")), "peak_resident_bytes": status("VmHWM")}

    def _watch(self) -> None:
        while True:
            self._anonymous = max(self._anonymous, status("RssAnon"))
            time.sleep(0.05)


def status(name: str) -> int:
    """A size in /proc/self/status, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def policy_for(demonstrations: Demonstrations, side: int) -> Policy:
    """A mini policy with random weights that sees pictures of `side` pixels."""
    shape = Shape(image_size=side, patch_size=24 if side == 96 else 32)
    return new_policy(shape, demonstrations.tasks, norm_stats(demonstrations, "benchmark"))


def config(dataset: Path, batch_size: int, steps: int) -> SftConfig:
    return SftConfig(policy=Path(), dataset=dataset, batch_size=batch_size, steps=steps, augment=AUGMENT)


def frames_of(policy: Policy, demonstrations: Demonstrations, dataset: Path, scratch: Path) -> Frames:
    """The batches that training sees."""
    learner = Learner(policy, config(dataset, BATCH_SIZE, 1), scratch)
    return Frames(policy, demonstrations, BATCH_SIZE, learner, AUGMENT)


def seconds_of(frames: Frames, batches: int) -> float:
    started = time.perf_counter()
    for _ in range(batches):
        frames.next()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
