"""Compare two commits of rlrc on the shipped OpenVLA policies: do episodes end the same way, and is any verb slower?

    python benchmarks/redesign.py                    writes results/redesign.json; about an hour on two quiet cores
    python benchmarks/redesign.py --only episodes    one of episodes and verbs
    python benchmarks/redesign.py --only verbs --verbs sft rl    some verbs; the others' rows stay

Both codes run the same command lines on the same machine. Episodes are those of the tabletop, and every flag of success
is compared. Verbs take turns, one process each; a ratio is seconds of the new code over those of the old one in the
same round, and the interval is that of the median.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from reading import checked_out

from rlrc.bench import machine
from rlrc.episodes import read_episodes
from rlrc.files import write_json
from rlrc.progress import say, track
from rlrc.reading import read_json
from rlrc.stats import median_interval
from rlrc.tables import print_table

ROOT = Path(__file__).resolve().parents[1]
POLICIES = ("tabletop-base", "tabletop-rlrc")
VERBS = {
    "collect": "collect --episodes 48 --num-workers 1",  # with two, the earlier code may wait for ever at its end
    "evaluate": "evaluate --policy {base} --episodes 64 --splits ind --num-envs 64 --num-workers 1 --videos 0",
    "prune": "prune --policy {base} --dataset {demos} --ratio 0.9",
    "sft": "sft --policy {base} --dataset {demos} --steps 40 --batch-size 64",
    "rl": "rl --policy {base} --iterations 1 --num-envs 32 --num-workers 1 --batch-size 160 --train decoder",
    "quantize": "quantize --policy {base} --bits 4",
    "bench": "bench --policies {base} --repeats 20",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "redesign.json")
    parser.add_argument("--only", choices=("episodes", "verbs"), nargs="+", default=["episodes", "verbs"])
    parser.add_argument("--verbs", choices=VERBS, nargs="+", default=list(VERBS))
    parser.add_argument("--before", default="eaa596e", help="commit to compare with")
    parser.add_argument("--episodes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7, help="for each verb")
    options = parser.parse_args()
    result = read_json(options.out) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch, checked_out(options.before) as old:
        codes = {"before": old / "src", "after": ROOT / "src"}
        if "episodes" in options.only:
            result["episodes"] = [compare(name, codes, options.episodes, Path(scratch)) for name in POLICIES]
        if "verbs" in options.only:
            kept = {row["verb"]: row for row in result.get("verbs", [])}
            kept |= {row["verb"]: row for row in take_turns(options.verbs, codes, options.rounds, Path(scratch))}
            result["verbs"] = [kept[verb] for verb in VERBS if verb in kept]
    write_json(options.out, result | {"machine": machine(), "before": options.before})
    show(result)


def run(source: Path, line: str, out: Path) -> float:
    """Run a command line of rlrc with the code in `source`, and return its seconds.

    Raises:
        SystemExit: the command failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, "-m", "rlrc", *line.split(), "--out", str(out)]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{line}: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - started


def compare(name: str, codes: dict[str, Path], episodes: int, scratch: Path) -> dict[str, Any]:
    """The episodes of a shipped policy by both codes: how many end the same way."""
    flags = {}
    for when, source in codes.items():
        out = scratch / f"{name}-{when}"
        line = f"evaluate --policy checkpoints/{name} --episodes {episodes} --num-envs 128 --num-workers 1 --videos 0"
        run(source, line, out)
        played = read_episodes(out / "episodes.parquet")
        flags[when] = [
            (*episode.key, episode.success_at_end, episode.success_once, episode.grasped) for episode in played
        ]
    same = sum(a == b for a, b in zip(flags["before"], flags["after"], strict=True))
    row = {"policy": name, "n": len(flags["after"]), "equal": same}
    say(f"{name}: {same} of {row['n']} episodes end the same way")
    return row


def take_turns(verbs: list[str], codes: dict[str, Path], rounds: int, scratch: Path) -> list[dict[str, Any]]:
    """Verbs by both codes in turn."""
    run(codes["after"], "collect --episodes 200", scratch / "demos")
    places = {"base": "checkpoints/tabletop-base", "demos": str(scratch / "demos" / "dataset")}
    rows = []
    for verb in verbs:
        seconds: dict[str, list[float]] = {when: [] for when in codes}
        for number in track(range(rounds + 1), verb):
            for when in sorted(codes, reverse=number % 2 == 1):
                taken = run(codes[when], VERBS[verb].format(**places), scratch / f"{verb}-{number}-{when}")
                if number:  # the first round warms up
                    seconds[when].append(taken)
        ratios = [after / before for before, after in zip(seconds["before"], seconds["after"], strict=True)]
        medians = {when: median(values) for when, values in seconds.items()}
        rows.append({"verb": verb, "rounds": rounds, "seconds": medians, "ratio": median(ratios)})
        rows[-1] |= {"ratio_95": median_interval(ratios), "commit": machine()["commit"]}
    return rows


def show(result: dict[str, Any]) -> None:
    rows = [[row["policy"], str(row["n"]), str(row["equal"])] for row in result.get("episodes", [])]
    print_table("Episodes by both codes", ["policy", "episodes", "end the same way"], rows)
    rows = []
    for row in result.get("verbs", []):
        seconds, (low, high) = row["seconds"], row["ratio_95"]
        taken = [f"{seconds[when]:.1f} s" for when in ("before", "after")]
        rows.append([row["verb"], *taken, f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})"])
    print_table("Seconds of a verb", ["verb", "before", "after", "after over before"], rows)


if __name__ == "__main__":
    main()
