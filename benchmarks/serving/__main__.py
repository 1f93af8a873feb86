"""Measure a server: its load, what it adds to an action, and what hostile clients do to it.

    python benchmarks/serving            writes results/serving.json and results/serving.md, about ten minutes

`load`: 1, 8 and 100 clients of openpi's protocol ask checkpoints/tabletop-base in float32 as fast as they can, from
another process; an answer is `wrong` if it differs by more than 1e-5 from what `policy.act` gives for that observation
alone, and `lost` if it does not come.
`plain` is the throughput of batched acting without a server. `overhead`: one client's time with
checkpoints/tabletop-rlrc beside that of `policy.act` in the client's own process, in turns. `hostile`: frames that are
damaged, too large or slow, while a good client goes on asking.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rlrc.process import prepare_for_torch

prepare_for_torch()  # as the server does it: threads that spin while they wait would make plain acting faster

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from attacks import ATTACKS, attack  # noqa: E402
from page import write_page  # noqa: E402

import rlrc  # noqa: E402
from rlrc.bench import machine  # noqa: E402
from rlrc.client import PolicyClient  # noqa: E402
from rlrc.files import write_json  # noqa: E402
from rlrc.policies.contract import Policy  # noqa: E402
from rlrc.progress import say, track  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "checkpoints" / "tabletop-base"
SMALL = ROOT / "checkpoints" / "tabletop-rlrc"
OBSERVATIONS = 64
PROMPTS = ("put carrot on plate", "put the red cube on the plate")
CLIENTS = (1, 8, 100)
MAX_BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "serving.json")
    parser.add_argument("--seconds", type=float, default=120, help="of each load")
    parser.add_argument("--frames", type=int, default=1000, help="hostile frames")
    parser.add_argument("--rounds", type=int, default=200, help="of the comparison with plain acting")
    options = parser.parse_args()
    policy = rlrc.load(POLICY, dtype=torch.float32)
    seen = observations()
    expected = [policy.act(one["images"]["front"][None], [one["prompt"]])[0] for one in seen]
    with serving(SMALL) as (_, port):
        overhead = measure_overhead(rlrc.load(SMALL), port, seen, options.rounds)
    with tempfile.TemporaryDirectory() as folder, serving(saved(policy, Path(folder))) as (process, port):
        load = [measure_load(port, seen, expected, clients, options.seconds) for clients in CLIENTS]
        hostile = endure(process, port, seen, expected, options.frames)
        load_end = end_under_load(process, port, seen)
    plain = measure_plain(policy, seen)
    result = {
        "machine": machine(),
        "policy": str(POLICY.relative_to(ROOT)),
        "max_batch": MAX_BATCH,
        "plain": plain,
        "load": load,
        "overhead_ms": overhead["overhead_ms"],
        "overhead": overhead,
        "hostile": hostile,
        "sigterm": load_end,
    }
    write_json(options.out, result)
    write_page(result, options.out)


def observations() -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (OBSERVATIONS, 96, 96, 3), np.uint8)
    return [
        {"images": {"front": picture}, "prompt": PROMPTS[number % len(PROMPTS)]}
        for number, picture in enumerate(pictures)
    ]


def saved(policy: Policy, folder: Path) -> Path:
    policy.save(folder / "policy")
    return folder / "policy"


@contextmanager
def serving(path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`rlrc serve` in a process of its own; what it prints goes to a thread that keeps its pipe empty."""
    command = [sys.executable, "-m", "rlrc", "serve", "--policy", str(path), "--port", "0"]
    command += ["--max-batch", str(MAX_BATCH), "--limits.upload-s", "5"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next((line for line in process.stderr if line.startswith("serving ")), None)
        if line is None:
            raise SystemExit("the server does not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield process, int(line.split("ws://127.0.0.1:")[1].split()[0])
        finally:
            process.terminate()


# -- what the server adds ----------------------------------------------------------------------------------------------


def measure_overhead(policy: Policy, port: int, seen: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Milliseconds of one action through the server and without it, in turns."""
    served, direct = [], []
    with PolicyClient(f"ws://127.0.0.1:{port}") as client:
        for number in track(range(rounds + 10), "overhead"):
            one = seen[number % len(seen)]
            started = time.perf_counter()
            client.infer(one)
            between = time.perf_counter()
            policy.act(one["images"]["front"][None], [one["prompt"]])
            if number >= 10:
                served.append(1000 * (between - started))
                direct.append(1000 * (time.perf_counter() - between))
    differences = [one - other for one, other in zip(served, direct, strict=True)]
    differences.sort()
    half = 0.98 * rounds**0.5  # a 95 % interval of the median, by ranks
    low, high = differences[int(rounds / 2 - half)], differences[int(rounds / 2 + half)]
    return {
        "rounds": rounds,
        "served_p50_ms": median(served),
        "direct_p50_ms": median(direct),
        "overhead_ms": median(served) - median(direct),
        "difference_ms": {"median": median(differences), "low": low, "high": high},
    }


def measure_plain(policy: Policy, seen: list[dict[str, Any]]) -> dict[str, float]:
    """Observations a second of `policy.act` in batches of one and of the server's largest, without a server."""
    rates = {}
    for rows in (1, MAX_BATCH):
        images = np.stack([one["images"]["front"] for one in seen[:rows]])
        texts = [one["prompt"] for one in seen[:rows]]
        policy.act(images, texts)
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < 10:
            policy.act(images, texts)
            count += rows
        rates[f"batch_{rows}_per_s"] = count / (time.perf_counter() - started)
    return rates


# -- load --------------------------------------------------------------------------------------------------------------


def measure_load(
    port: int, seen: list[dict[str, Any]], expected: list[np.ndarray], clients: int, seconds: float
) -> dict[str, Any]:
    say(f"{clients} clients for {seconds:g} s")
    milliseconds: list[float] = []
    counts: Counter[str] = Counter()
    ends = time.monotonic() + seconds

    def play(client: int) -> None:
        with PolicyClient(f"ws://127.0.0.1:{port}", timeout_s=60) as connection:
            number = client
            while time.monotonic() < ends:
                which = number % len(seen)
                started = time.perf_counter()
                try:
                    actions = connection.infer(seen[which])["actions"][0]
                except (ConnectionError, RuntimeError):
                    counts["lost"] += 1
                    continue
                milliseconds.append(1000 * (time.perf_counter() - started))
                counts["wrong"] += is_wrong(actions, expected[which])
                number += 1

    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(play, range(clients)))
    took = time.monotonic() - started
    p50, p90, p99 = np.percentile(milliseconds, [50, 90, 99])
    return {
        "clients": clients,
        "seconds": took,
        "requests": len(milliseconds),
        "per_s": len(milliseconds) / took,
        "wrong": counts["wrong"],
        "lost": counts["lost"],
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
    }


def is_wrong(actions: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(actions - expected).max() > 1e-5)


# -- hostile clients ---------------------------------------------------------------------------------------------------


def endure(
    process: subprocess.Popen[str], port: int, seen: list[dict[str, Any]], expected: list[np.ndarray], frames: int
) -> dict[str, Any]:
    """Attack the server while a good client goes on asking."""
    watched = psutil.Process(process.pid)
    verdicts: Counter[str] = Counter()
    ends = threading.Event()

    def good() -> None:
        number = 0
        with PolicyClient(f"ws://127.0.0.1:{port}", timeout_s=60) as client:
            while not ends.is_set():
                which = number % len(seen)
                try:
                    actions = client.infer(seen[which])["actions"][0]
                    verdicts["wrong" if is_wrong(actions, expected[which]) else "right"] += 1
                except (ConnectionError, RuntimeError):
                    verdicts["lost"] += 1
                number += 1

    kinds: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    names = list(ATTACKS)
    for number in range(len(names)):  # so that what is allocated once is there before memory is read
        attack(names[number], port, number)
    before = (watched.memory_info().rss, watched.num_fds(), watched.num_threads())
    friend = threading.Thread(target=good)
    friend.start()
    with ThreadPoolExecutor(8) as pool:
        jobs = [(names[number % len(names)], number) for number in range(frames)]
        for (name, _), answer in zip(
            jobs, track(pool.map(lambda job: attack(job[0], port, job[1]), jobs), "hostile", len(jobs)), strict=True
        ):
            kinds[name] += 1
            answers[answer] += 1
    ends.set()
    friend.join()
    time.sleep(6)  # longer than a slow request may take
    after = (watched.memory_info().rss, watched.num_fds(), watched.num_threads())
    return {
        "frames": frames,
        "crashes": int(process.poll() is not None),
        "kinds": dict(kinds),
        "answers": dict(answers),
        "good_client": dict(verdicts),
        "memory_bytes": {"before": before[0], "after": after[0]},
        "open_files": {"before": before[1], "after": after[1]},
        "threads": {"before": before[2], "after": after[2]},
    }


def end_under_load(process: subprocess.Popen[str], port: int, seen: list[dict[str, Any]]) -> dict[str, int]:
    """Send SIGTERM while eight clients ask: each request that was sent before is answered."""
    answered, unanswered = [0] * 8, [0] * 8

    def play(client: int) -> None:
        with PolicyClient(f"ws://127.0.0.1:{port}", timeout_s=30) as connection:
            while True:
                try:
                    connection.infer(seen[client])
                except (ConnectionError, RuntimeError) as error:
                    unanswered[client] += "going away" not in str(error) and "nobody answers" not in str(error)
                    return
                answered[client] += 1

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(play, client) for client in range(8)]
        time.sleep(3)
        os.kill(process.pid, signal.SIGTERM)
        for job in jobs:
            job.result()
    return {"status": process.wait(60), "answered": sum(answered), "unanswered": sum(unanswered)}


if __name__ == "__main__":
    main()
