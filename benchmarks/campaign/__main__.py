"""Hundreds of wrong checkpoints, datasets, recipes and command lines, each through the real command line.

    python benchmarks/campaign                             # all of them, with a table; writes results/campaign.json
    python benchmarks/campaign --only dataset --limit 50   # an evenly spaced sample of one area
    python benchmarks/campaign --only recipe/folder --names
    python benchmarks/campaign --again results/campaign.json   # what failed there, and adds how it went to the record

What is right for each is said beside it: one line that names what is wrong, exit status 2, nothing left behind and the
user's files as they were; or success. Everything else is a failure, and then the exit status is 1.

Cases run in processes forked from one that has imported everything, with 4 GB of memory and a time limit each. Those
about signals and pipes run as commands of their own.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # what the hub says is no matter of this campaign
AREAS = (
    "checkpoints",
    "weights",
    "folders",
    "tables",
    "datasets",
    "recipes",
    "runs",
    "options",
    "commands",
    "processes",
)
"""Modules beside this one that make cases."""


def main() -> int:
    options = _parse()
    import runner
    import valid

    runner.preload()
    work = Path(tempfile.mkdtemp(prefix="rlrc-campaign-", dir=options.work))
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    try:
        templates = work / "templates"
        templates.mkdir()
        runner.in_child(lambda: valid.make_all(templates), work / "templates.txt")
        valid.use(templates)
        cases = _chosen(options)
        if options.names:
            print("\n".join(f"{case.name}  [{case.expected}]" for case in cases))
            return 0
        results: list[Any] = []
        with contextlib.suppress(KeyboardInterrupt):  # then the record is that of the cases until here
            for number, result in enumerate(runner.run_all(cases, work, options.jobs, options.timeout), start=1):
                results.append(result)
                if options.verbose or result.outcome not in ("one_line", "worked"):
                    told = f"{number}/{len(cases)} {result.case.name}: {result.outcome}: {result.last_line[:300]}"
                    print(told, file=sys.stderr, flush=True)
        record = summarise(results)
        print_table(record)
        failed = bool(record["failures"])
        if options.again:
            record = json.loads(options.again.read_text()) | {"again": record}
        if target := options.again or options.json:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(record, indent=1, ensure_ascii=True) + "\n")
        return int(failed)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def all_cases() -> list[Any]:
    """Every case; the templates must be there."""
    from importlib import import_module

    cases = [case for module in AREAS for case in import_module(module).cases()]
    twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    assert not twice, f"cases with one name: {twice[:5]}"
    return cases


def summarise(results: list[Any]) -> dict[str, Any]:
    """Counts by outcome, in all and by area, and what failed."""
    from outcome import GOOD, OUTCOMES

    def count(chosen: list[Any]) -> dict[str, int]:
        found = Counter(result.outcome for result in chosen)
        return {"tried": len(chosen)} | {outcome: found[outcome] for outcome in OUTCOMES}

    areas = sorted({result.case.area for result in results})
    failures = [
        {"name": result.case.name, "outcome": result.outcome, "last_line": result.last_line[:300]}
        for result in sorted(results, key=lambda result: result.case.name)
        if result.outcome not in GOOD
    ]
    return {
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        **count(results),
        "by_area": {area: count([result for result in results if result.case.area == area]) for area in areas},
        "seconds": round(sum(result.seconds for result in results), 1),
        "failures": failures,
    }


def print_table(record: dict[str, Any]) -> None:
    from outcome import OUTCOMES

    areas = list(record["by_area"])
    print(f"{'':28}" + "".join(f"{area:>12}" for area in [*areas, "all"]))
    for key, words in {"tried": "tried", **OUTCOMES}.items():
        counts = [record["by_area"][area][key] for area in areas] + [record[key]]
        print(f"{words:28}" + "".join(f"{value:>12}" for value in counts))


def _chosen(options: argparse.Namespace) -> list[Any]:
    cases = all_cases()
    if options.only:
        cases = [case for case in cases if any(case.name.startswith(start) for start in options.only)]
    if options.again:
        failed = {failure["name"] for failure in json.loads(options.again.read_text())["failures"]}
        cases = [case for case in cases if case.name in failed]
    if options.small:
        names = (Path(__file__).parent / "small.txt").read_text().split("\n")
        wanted = {name for name in names if name}
        cases = [case for case in cases if case.name in wanted]
        assert len(cases) == len(wanted), f"unknown names: {sorted(wanted - {case.name for case in cases})}"
    if options.limit and options.limit < len(cases):
        cases = [cases[index * len(cases) // options.limit] for index in range(options.limit)]
    if not options.names:  # a campaign that is stopped early has then seen something of everything
        random.Random(0).shuffle(cases)
    return cases


def _commit() -> str:
    """Return the short hash of the commit of the rlrc that was tried, or "unknown" without one."""
    import rlrc

    command = ["git", "-C", str(Path(rlrc.__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="Run the cases whose names begin so, such as dataset/video.")
    parser.add_argument("--limit", type=int, help="Run so many of them, evenly spaced.")
    parser.add_argument("--small", action="store_true", help="Run the sample that the test suite runs.")
    parser.add_argument("--names", action="store_true", help="Print the names and run nothing.")
    parser.add_argument("--verbose", action="store_true", help="Print the outcome of every case.")
    parser.add_argument("--jobs", type=int, default=1, help="Run so many cases at once (default 1).")
    parser.add_argument("--timeout", type=float, default=30.0, help="Seconds for a case (default 30).")
    parser.add_argument("--json", type=Path, help="Write the record to this file, such as results/campaign.json.")
    parser.add_argument("--again", type=Path, help="Run what failed in this record, after it was mended.")
    parser.add_argument("--work", type=Path, help="Make the inputs below this folder (default: the system's).")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
