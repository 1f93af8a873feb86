"""Measure the speed and the memory of reading demonstrations for training, now and before frames had a cache.

    python benchmarks/reading.py --hd /work/shared/cases/datasets/hd          writes results/reading.json
    python benchmarks/reading.py --only memory                                one of memory, hd and synthetic

Three datasets: `memory` fits into memory (5000 pictures of 96 px, the tabletop's kind), `hd` is 5000 frames of 1080p in
video, `synthetic` is 400,000 frames of 224 px in video. They are read through `sft.Frames`, with the augmentation of
the tabletop's recipes; a mini policy then trains for some steps on `hd`. "before" is the code of another commit,
checked out into a temporary folder; a process that asks for more memory than the machine has fails, and the reason is
kept. "after" is measured in a fresh process, once the cache is made by another one (`cache_s`). What fits into memory
is measured in alternate rounds as well.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlrc.bench import machine
from rlrc.data import format as fmt
from rlrc.data.lerobot import CameraDtype, write_dataset
from rlrc.files import write_json
from rlrc.progress import say, track
from rlrc.reading import read_json
from rlrc.stats import FEWEST_FOR_MEDIAN, median_interval
from rlrc.tables import human_bytes, print_table

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("reading_worker.py")
SIDES = {"memory": 96, "hd": 224, "synthetic": 224}
BATCHES = {"memory": 200, "hd": 40, "synthetic": 40}
TRAIN_STEPS = {"memory": 0, "hd": 5, "synthetic": 0}
FPS = 10
EPISODE = 200
COPIES = 20
"""Files of the synthetic dataset, all with the pictures of the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "reading.json")
    parser.add_argument("--only", choices=SIDES, nargs="+", default=list(SIDES))
    parser.add_argument("--before", default="dde3295", help="commit to compare with")
    parser.add_argument("--hd", type=Path, default=ROOT.parent / "shared" / "cases" / "datasets" / "hd")
    parser.add_argument("--memory-frames", type=int, default=5000)
    parser.add_argument("--synthetic-frames", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=15, help="of old and new code in turn, on what fits into memory")
    parser.add_argument("--work", type=Path, help="keep datasets and caches here; a temporary folder unless given")
    options = parser.parse_args()
    if options.rounds < FEWEST_FOR_MEDIAN:
        parser.error(f"--rounds must be at least {FEWEST_FOR_MEDIAN}: the interval of a ratio needs as many")
    result = read_json(options.out) if options.out.exists() else {}  # the datasets that are not measured now stay in it
    kept = [row for row in result.get("rows", []) if row["dataset"] not in options.only]
    rows: list[dict[str, Any]] = []
    here = machine()
    with tempfile.TemporaryDirectory(dir=options.work) as scratch, checked_out(options.before) as old:
        work = options.work or Path(scratch)
        for name in options.only:
            dataset = dataset_of(name, work, options)
            codes = {"before": Code(old / "src", work), "after": Code(ROOT / "src", work)}
            for when, code in codes.items():
                measured = read(code, name, dataset, Path(scratch))
                rows.append({"dataset": name, "when": when, **measured, "commit": here["commit"]})
                say(json.dumps(rows[-1]))
            if name == "memory":
                result["alternate"] = take_turns(codes, name, dataset, Path(scratch), options.rounds)
    rows = sorted(kept + rows, key=lambda row: list(SIDES).index(row["dataset"]))
    write_json(options.out, result | {"machine": here, "before": options.before, "rows": rows})
    show(rows, result.get("alternate"))


class Code:
    """A version of rlrc, and how its processes are started."""

    def __init__(self, source: Path, work: Path) -> None:
        path = os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(work / "cache")}

    def start(self, name: str, dataset: Path, scratch: Path, batches: int, train_steps: int) -> subprocess.Popen[str]:
        arguments = [dataset, SIDES[name], batches, train_steps, tempfile.mkdtemp(dir=scratch)]
        command = [sys.executable, str(WORKER), *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=self._environment, text=True, **pipes)


def read(code: Code, name: str, dataset: Path, scratch: Path) -> dict[str, Any]:
    """A row of the results: a fresh process reads, after another one has made the cache, if there is one to make."""
    failed = {"frames": frames_of(dataset), "first_batch_s": None, "samples_per_s": None, "peak_bytes": None}
    process = code.start(name, dataset, scratch, 0, 0)
    answer, errors = process.communicate()
    if process.returncode:
        return failed | {"fails": errors.strip().splitlines()[-1]}
    first = {"cache_s": json.loads(answer)["first_batch_s"]} if "frames will take" in errors else {}
    process = code.start(name, dataset, scratch, BATCHES[name], TRAIN_STEPS[name])
    answer, errors = process.communicate()
    if process.returncode:
        return failed | {"fails": errors.strip().splitlines()[-1]}
    return json.loads(answer) | first


def take_turns(codes: dict[str, Code], name: str, dataset: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """Let old and new code read in turn, each in a process that has read the dataset; measure samples a second, new
    over old."""
    processes = {when: code.start(name, dataset, scratch, BATCHES[name], 0) for when, code in codes.items()}
    for process in processes.values():
        answer_of(process)
    speeds: dict[str, list[float]] = {when: [] for when in codes}
    for number in track(range(rounds + 1), "taking turns"):
        for when in sorted(codes, reverse=number % 2 == 1):
            time.sleep(0.5)  # for the batch that the other one prepares ahead
            stdin = processes[when].stdin
            assert stdin is not None
            stdin.write(f"{BATCHES[name]}\n")
            stdin.flush()
            speed = answer_of(processes[when])
            if number:  # the first round warms up
                speeds[when].append(speed)
    for process in processes.values():
        process.communicate()
    ratios = [after / before for before, after in zip(speeds["before"], speeds["after"], strict=True)]
    return {
        "dataset": name,
        "rounds": rounds,
        "samples_per_s": {when: median(values) for when, values in speeds.items()},
        "ratio": median(ratios),
        "ratio_95": median_interval(ratios),
    }


def answer_of(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"the measured process failed: {process.communicate()[1].strip().splitlines()[-1]}")
    return json.loads(line)


def show(rows: list[dict[str, Any]], alternate: dict[str, Any] | None) -> None:
    def seconds(row: dict[str, Any], key: str) -> str:
        return "" if row.get(key) is None else f"{row[key]:.1f} s"

    lines = []
    for row in rows:
        name = f"{row['dataset']} ({row['frames']:,} frames), {row['when']}"
        if "fails" in row:
            lines.append([f"{name}: {row['fails']}", "", "", "", ""])
            continue
        peak = human_bytes(row["peak_bytes"])
        speed = f"{row['samples_per_s']:.0f}"
        lines.append([name, seconds(row, "cache_s"), seconds(row, "first_batch_s"), speed, peak])
    head = ["dataset", "making the cache", "first batch", "samples a second", "anonymous memory"]
    print_table("Reading demonstrations", head, lines)
    if alternate is not None:
        low, high = alternate["ratio_95"]
        say(f"in turn, new over old: {alternate['ratio']:.3f} ({low:.3f} to {high:.3f}) of the samples a second")


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The repository at another commit, in a folder of its own."""
    folder = Path(tempfile.mkdtemp())
    git = ["git", "-C", str(ROOT), "worktree"]
    try:
        subprocess.run([*git, "add", "--detach", str(folder), commit], check=True, capture_output=True)
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def frames_of(dataset: Path) -> int:
    return int(read_json(dataset / fmt.INFO_PATH)["total_frames"])


def dataset_of(name: str, work: Path, options: argparse.Namespace) -> Path:
    """The folder of a dataset, made where it is not there yet."""
    if name == "hd":
        return options.hd
    count = options.memory_frames if name == "memory" else options.synthetic_frames
    path = work / f"{name}-{count}"
    if path.exists():
        return path
    if name == "memory":
        write(path, count, SIDES[name], "image")
    else:
        aside = work / f"{name}-{count}-part"
        shutil.rmtree(aside, ignore_errors=True)
        write(aside, count // COPIES, SIDES[name], "video")
        multiply(aside)
        aside.rename(path)
    return path


def write(path: Path, count: int, side: int, camera: CameraDtype) -> None:
    """`count` frames: a slope of colours that moves, with a square that is somewhere else in each."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    with write_dataset(path, FPS, "benchmark", camera) as dataset:
        for start in track(range(0, count, EPISODE), f"writing {path.name}"):
            length = min(EPISODE, count - start)
            images = np.empty((length, side, side, 3), np.uint8)
            for step, image in enumerate(images):
                for channel in range(3):
                    image[..., channel] = (rows * (channel + 1) + columns + 2 * step + start) // 4 % 256
                top, left = rng.integers(0, side - 16, 2)
                image[top : top + 16, left : left + 16] = rng.integers(0, 256, 3)
            actions = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
            state = rng.uniform(-1, 1, (length, 8)).astype(np.float32)
            dataset.append("put carrot on plate", {fmt.FRONT_IMAGE: images, fmt.STATE: state, fmt.ACTION: actions})


def multiply(path: Path) -> None:
    """Make a dataset `COPIES` times as long: each file again under the next numbers, as its own episodes."""
    info = read_json(path / fmt.INFO_PATH)
    episodes_path = path / fmt.EPISODES_PATH.format(chunk_index=0, file_index=0)
    place = {"chunk_index": 0, "file_index": 0}
    data, video = path / fmt.DATA_PATH.format(**place), path / fmt.VIDEO_PATH.format(**place, video_key=fmt.FRONT_IMAGE)
    rows, episodes = pq.read_table(data), pq.read_table(episodes_path)
    parts = [episodes]
    for copy in track(range(1, COPIES), "multiplying"):
        frames, more = copy * info["total_frames"], copy * info["total_episodes"]
        shutil.copyfile(video, video.with_name(f"file-{copy:03d}.mp4"))
        pq.write_table(
            raised(rows, {"index": frames, "episode_index": more}), data.with_name(f"file-{copy:03d}.parquet")
        )
        numbers = {"episode_index": more, "dataset_from_index": frames, "dataset_to_index": frames}
        numbers |= {"data/file_index": copy, f"videos/{fmt.FRONT_IMAGE}/file_index": copy}
        parts.append(raised(episodes, numbers))
    pq.write_table(pa.concat_tables(parts), episodes_path)
    totals = {name: COPIES * info[name] for name in ("total_episodes", "total_frames")}
    write_json(path / fmt.INFO_PATH, info | totals | {"splits": {"train": f"0:{totals['total_episodes']}"}})


def raised(table: pa.Table, by: dict[str, int]) -> pa.Table:
    """The table with a number added to some columns."""
    for name, number in by.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pc.add(table[name], number))
    return table


if __name__ == "__main__":
    main()
