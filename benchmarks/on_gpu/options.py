"""The options that the benchmarks of this folder share."""

import argparse
import sys
from pathlib import Path

from rlrc.policies.device import resolve_device

sys.path.append(str(Path(__file__).parents[1] / "latency_7b"))
"""The shapes of OpenVLA-7B are in the folder of the latency benchmark, so this module has to be imported first."""


def parse(description: str | None) -> argparse.Namespace:
    """Return `out`, a file; `device`, the name of one that is there; and `tiny`, which asks for tiny policies."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny policies in place of OpenVLA-7B's shapes")
    options = parser.parse_args()
    options.device = str(resolve_device(options.device))
    return options
