"""What the file of results holds, and which of its rows need not be measured again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from names import BASELINE, BUSY, GROUPS, NAMES, NOT_INSTALLED, SWEEP, TRANSFORMERS, refusal

from rlrc.reading import read_json
from rlrc.roofline import floors_ms

Rows = dict[str, dict[str, Any]]
NEEDED = {
    *("rounds", "dtype", "multipliers", "speedup_95", "speedup_over_bf16_95", "baseline_ms", "bf16_ms"),
    *("weight_bytes", "peak_bytes", "libraries_bytes"),
}
"""Fields without which a row counts as not measured."""


class Stored(NamedTuple):
    """This is what the file of results holds."""

    rows: Rows
    """Rows that need not be measured again."""
    earlier: Rows
    """Rows that lack something which is measured today; they are kept until they are measured again."""
    missing: dict[str, str]
    """Why rows cannot be measured."""


def stored(out: Path, device: str, instructions: str | None, groups: Iterable[str] = GROUPS) -> Stored:
    """What the file of results holds, and what this machine cannot measure of the groups."""
    before = read_json(out) if out.exists() else {"rows": []}
    found = by_name(before)
    rows = {name: row for name, row in found.items() if is_complete(name, row)}
    earlier = {name: row | {"earlier": True} for name, row in found.items() if name not in rows}
    asked = {name for group in groups for name in GROUPS[group]}
    told = before.get("missing", {}).items()
    missing = {name: why for name, why in told if NOT_INSTALLED not in why or name not in asked}
    refusals = {name: refusal(name, device, instructions) for name in NAMES if name in asked - rows.keys()}
    return Stored(rows, earlier, missing | {name: why for name, why in refusals.items() if why is not None})


def by_name(result: dict[str, Any]) -> Rows:
    """The rows of a stored result, by their names in GROUPS."""
    found = {}
    for row in result["rows"]:
        name = BASELINE if (row["name"], row["backend"]) == ("dense", TRANSFORMERS) else row["name"]
        found[name] = {key: value for key, value in row.items() if key != "name"}
    return found


def stored_name(name: str) -> str:
    """The name under which a row is stored: "dense" is both transformers' row and rlrc's, told apart by `backend`."""
    return "dense" if name == BASELINE else name


def is_complete(name: str, row: dict[str, Any]) -> bool:
    """Whether a stored row has all that is measured today; others are measured anew."""
    busy = {"busy_p50_ms"} if name in GROUPS[BUSY] and name != BASELINE else set()
    return row.keys() >= NEEDED | busy


def result(head: dict[str, Any], rows: Rows, missing: dict[str, str], earlier: Rows) -> dict[str, Any]:
    """What the file of results is to hold.

    Args:
        head: what comes before the rows, such as a description of the machine.
    """
    compare_with_floors(rows.values())
    all_rows = earlier | rows
    ordered = [{**all_rows[name], "name": stored_name(name)} for name in NAMES if name in all_rows]
    return head | {"rows": ordered, "missing": missing, "sweep": sweep(rows)}


def compare_with_floors(rows: Iterable[dict[str, Any]]) -> None:
    """Give the rows whose work is known their floors, from the best rates that their processor showed in any group:
    what it can do, whatever else its host was doing. Where no clock follows the stages, the action has their sum."""
    measured = [row for row in rows if "work" in row]
    for processor in {processor_of(row) for row in measured}:
        mine = [row for row in measured if processor_of(row) == processor]
        best = {key: max(row["rates"][key] for row in mine) for key in mine[0]["rates"]}
        for row in mine:
            floors = floors_ms(row["work"], best)
            taken = row.get("stages_ms", {"action": row["p50_ms"]})
            bounds = floors if "stages_ms" in row else {"action": sum(floors.values())}
            over = {stage: round(taken[stage] / least, 2) for stage, least in bounds.items()}
            row["roofline"] = {
                "rates": best,
                "floors_ms": {stage: round(least, 3) for stage, least in floors.items()},
                "over_floor": over,
            }


def processor_of(row: dict[str, Any]) -> str:
    """The name of the processor that computed a row: the GPU, or else the CPU."""
    return row.get("gpu") or row["cpu"]


def sweep(rows: Rows) -> list[dict[str, Any]]:
    """The points of the paper's figure: seconds by the share that is pruned and the bits of the weights."""
    points = []
    for ratio, shape in SWEEP.items():
        for bits in (16, 8, 4):
            row = rows.get(shape if bits == 16 else f"{shape}-{bits}bit")
            if row is not None:
                speedup = row["speedup_over_bf16"]
                points.append({"ratio": ratio, "bits": bits, "p50_ms": row["p50_ms"], "speedup_over_bf16": speedup})
    return points
