"""Policies that act in turn, in an order that is drawn anew for every round, alone and beside a busy process."""

import random
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np
from busy import busy_core
from host import Failed, Host, Make, make, milliseconds
from names import BASELINE, LARGE, RLRC, TRANSFORMERS, bf16_of, is_optional, run_of, through_transformers

from rlrc.stats import median_interval

Seconds = dict[str, list[float]]
"""Of each policy in each round."""


def take_turns(
    group: Sequence[str], rounds: int, rates: dict[str, float], busy: bool, make: Make = make
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Measure the policies of a group in turn, each in a process of its own but for those that share weights.

    Args:
        rates: of the machine, as `rlrc.roofline` has them.
        busy: measure once more while another process keeps one core busy.

    Returns:
        Rows by name, and why those of other people's packages that do not run here are missing.
    """
    hosts = start(group, make)
    try:
        missing = warm_up(hosts)
        names = [name for name in group if name not in missing]
        seconds = run_rounds(hosts, names, rounds)
        facts = {name: facts_of(hosts[name], name, rates) for name in names}
        rows = {name: row_of(group[0], name, seconds) | facts[name] for name in names}
        if busy:
            with busy_core() as share:
                beside = run_rounds(hosts, names, rounds)
                stages = {name: hosts[name].ask(name, "stages") for name in names}
                taken = round(share(), 2)
            for name, row in rows.items():
                row |= busy_fields(group[0], name, beside, stages[name]) | {"busy_share": taken}
    finally:
        for host in set(hosts.values()):
            host.end()
    for name, row in rows.items():
        # A process that holds several policies has a peak that belongs to none of them.
        if len(hosts[name].names) > 1:
            row["peak_bytes"] = peak_alone(name, make)
    return rows, missing


def start(group: Sequence[str], make: Make) -> dict[str, Host]:
    """The processes of a group, by the names of the policies that they hold."""
    shared = [name for name in group if BASELINE in group and (run_of(name).bits == 16 or name == LARGE)]
    hosts = {name: Host([name], make) for name in group if name not in shared}
    return hosts | dict.fromkeys(shared, Host(shared, make)) if shared else hosts


def warm_up(hosts: dict[str, Host]) -> dict[str, str]:
    """Let each policy act once, which also compiles what is compiled, and return why optional ones cannot.

    Raises:
        Failed: one that is not optional cannot.
    """
    missing = {}
    for name, host in hosts.items():
        try:
            host.ask(name, "act")
        except Failed as error:
            if not is_optional(name):
                raise
            missing[name] = str(error)
    return missing


def orders(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """The order of each round, drawn at random from a fixed seed."""
    generator = random.Random(0)
    for _ in range(rounds):
        yield generator.sample(list(names), len(names))


def run_rounds(hosts: dict[str, Host], names: Sequence[str], rounds: int) -> Seconds:
    """The seconds that each policy took in each round."""
    seconds: Seconds = {name: [] for name in names}
    for order in orders(names, rounds):
        for name in order:
            seconds[name].append(hosts[name].ask(name, "act"))
    return seconds


def facts_of(host: Host, name: str, rates: dict[str, float]) -> dict[str, Any]:
    """What the policy says of itself, and its stages beside their floors where a clock follows them."""
    facts = host.ask(name, "facts")
    stages = host.ask(name, "stages")
    if stages is None:
        return facts
    floors = host.ask(name, "floors", rates)
    over = {stage: round(stages[stage] / floor, 2) for stage, floor in floors.items()}
    return facts | {"stages_ms": stages, "roofline": {"rates": rates, "floors_ms": floors, "over_floor": over}}


def row_of(first: str, name: str, seconds: Seconds) -> dict[str, Any]:
    """A row's own times, and its ratios to the group's baseline, to itself in bf16, and to its shape through
    transformers, with what these took in the same rounds. None where the group does not hold what to compare with.

    Args:
        first: the first of the group, which is its baseline if transformers runs it.
    """
    mine = seconds[name]
    row: dict[str, Any] = {"backend": run_of(name).by, "rounds": len(mine)}
    row |= {"p50_ms": milliseconds(median(mine)), "p90_ms": milliseconds(np.percentile(mine, 90))}
    row |= compared("speedup", "baseline_ms", baseline_of(first), name, seconds)
    row |= compared("speedup_over_bf16", "bf16_ms", bf16_of(name), name, seconds)
    if run_of(name).by == RLRC and run_of(name).bits == 16:
        between = through_transformers(name)
        row |= compared("engine_speedup", "through_transformers_ms", between, name, seconds)
        if between in seconds:
            row |= compared("compression_speedup", "baseline_ms", baseline_of(first), between, seconds)
    return row


def busy_fields(first: str, name: str, seconds: Seconds, stages: dict[str, float] | None) -> dict[str, Any]:
    """The fields of a row that were measured beside a busy process."""
    row = {"busy_p50_ms": milliseconds(median(seconds[name]))}
    row |= compared("busy_speedup", "busy_baseline_ms", baseline_of(first), name, seconds)
    return row if stages is None else row | {"busy_stages_ms": stages}


def baseline_of(first: str) -> str | None:
    """The baseline of a group by its first policy."""
    return first if run_of(first).by == TRANSFORMERS else None


def compared(ratio: str, milliseconds_key: str, slow: str | None, fast: str, seconds: Seconds) -> dict[str, Any]:
    """Fields for the median over rounds of slow over fast within a round, its 95 % interval, and slow's time."""
    if slow not in seconds:
        return {ratio: None, f"{ratio}_95": None, milliseconds_key: None}
    ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    interval = [round(bound, 3) for bound in median_interval(ratios)]
    return {
        ratio: round(median(ratios), 3),
        f"{ratio}_95": interval,
        milliseconds_key: milliseconds(median(seconds[slow])),
    }


def peak_alone(name: str, make: Make) -> int:
    """The peak of memory of a process that holds this policy alone and acts once."""
    host = Host([name], make)
    try:
        host.ask(name, "act")
        return int(host.ask(name, "facts")["peak_bytes"])
    finally:
        host.end()
