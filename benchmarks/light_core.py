"""Measure what `pip install rlrc` gives without extras: a fresh environment that loads, acts, prunes and quantizes.

    .venv/bin/python benchmarks/light_core.py

It makes the environment in a temporary folder with the pinned packages, checks that nothing of the extras is in it,
runs the four on the built-in policy, and writes packages, bytes and seconds to `results/light_core.json`.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from rlrc.errors import EXTRAS
from rlrc.files import write_json
from rlrc.tables import human_bytes, print_table

ROOT = Path(__file__).parents[1]
POLICY = ROOT / "checkpoints" / "tabletop-base"
ACT = f"""
import numpy, rlrc
policy = rlrc.load({str(POLICY)!r})
actions = policy.act(numpy.zeros((1, 96, 96, 3), numpy.uint8), ["put carrot on plate"])
assert actions.shape == (1, 7) and numpy.isfinite(actions).all(), actions
"""
PACKAGES = "import importlib.metadata as m; print(*sorted({d.name for d in m.distributions()}), sep='\\n')"


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(Path(temporary))
    write_json(ROOT / "results" / "light_core.json", result)
    rows = [[name, f"{seconds:.1f} s"] for name, seconds in result["seconds"].items()]
    print_table(
        f"the core alone: {len(result['packages'])} packages, {human_bytes(result['bytes'])}, "
        f"of which {human_bytes(result['torch_bytes'])} torch",
        ["step", "seconds"],
        rows,
    )


def measure(folder: Path) -> dict[str, Any]:
    """Install into `folder`, run, and tell what is there."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-qq", "-c", ROOT / "constraints.txt"]
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    # A copy, because building leaves files beside the sources.
    source = shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(".git", ".venv", "runs", "results"))
    steps: dict[str, list[Any]] = {
        "install": [*pip, torch, source],
        "load and act": [python, "-c", ACT],
        "prune": [*rlrc(python, folder, "prune"), "--ratio", "0.5", "method:magnitude"],
        "quantize": [*rlrc(python, folder, "quantize"), "--bits", "4"],
    }
    seconds = {name: timed(command, folder) for name, command in steps.items()}
    packages = subprocess.run([python, "-c", PACKAGES], capture_output=True, text=True, check=True).stdout.split()
    if extra := [name for name in EXTRAS if name in packages and name != "jinja2"]:  # torch itself brings jinja2
        sys.exit(f"the core brings {', '.join(extra)}, which belong to extras")
    libraries = next((folder / "venv" / "lib").glob("python*/site-packages"))
    return {
        "packages": packages,
        "bytes": size(libraries),
        "torch_bytes": size(libraries / "torch"),
        "seconds": seconds,
    }


def rlrc(python: Path, folder: Path, verb: str) -> list[Any]:
    return [python, "-m", "rlrc", verb, "--policy", POLICY, "--out", folder / verb]


def timed(command: list[Any], folder: Path) -> float:
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{json.dumps(list(map(str, command)))} failed:\n{done.stderr}")
    return round(time.monotonic() - started, 1)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    main()
