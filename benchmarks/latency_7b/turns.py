"""Policies that act in turn, in an order that is drawn anew for every round, alone and beside a busy process."""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
from actor import milliseconds
from busy import busy_core
from names import BASELINE, LARGE, RLRC, TRANSFORMERS, bf16_of, is_optional, run_of, through_transformers
from processes import Failed, Host

from rlrc.stats import median_interval

Open = Callable[[Sequence[str]], Host]
"""Starts a process that holds the policies of these names."""
Seconds = dict[str, list[float]]
"""Seconds of each policy in each round."""
PEAKS = ("peak_bytes", "reserved_bytes")
"""Fields that tell of a whole process, the second one on a GPU alone."""


def take_turns(
    group: Sequence[str], wanted: Collection[str], rounds: int, busy: bool, roomy: bool, open_host: Open
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Measure the policies of a group in turn, each in a process of its own but for those that share weights.

    Args:
        wanted: those that rows are made for; the others act for comparison.
        busy: measure once more while another process keeps one core busy.
        roomy: there is memory for all of them at once, so none shares weights, and all are made at the same time.

    Returns:
        Rows by name, and why those of other people's packages that do not run here are missing.
    """
    hosts = {name: open_host([name]) for name in group} if roomy else start(group, open_host)
    try:
        missing = warm_up(hosts, roomy)
        names = [name for name in group if name not in missing]
        seconds = run_rounds(hosts, names, rounds)
        rows = {name: row_of(group[0], name, seconds) | facts_of(hosts[name], name) for name in names if name in wanted}
        if busy:
            with busy_core() as share:
                beside = run_rounds(hosts, names, rounds)
                stages = {name: hosts[name].ask(name, "stages") for name in rows}
                taken = round(share(), 2)
            for name, row in rows.items():
                row |= busy_fields(group[0], name, beside, stages[name]) | {"busy_share": taken}
    finally:
        for host in set(hosts.values()):
            host.end()
    for name, row in rows.items():
        # A process that holds several policies has a peak that belongs to none of them.
        if len(hosts[name].names) > 1:
            row |= memory_alone(name, open_host)
    return rows, missing


def start(group: Sequence[str], open_host: Open) -> dict[str, Host]:
    """The processes of a group, by the names of the policies that they hold."""
    shared = [name for name in group if BASELINE in group and (run_of(name).bits == 16 or name == LARGE)]
    hosts = {name: open_host([name]) for name in group if name not in shared}
    return hosts | dict.fromkeys(shared, open_host(shared)) if shared else hosts


def warm_up(hosts: dict[str, Host], roomy: bool) -> dict[str, str]:
    """Make the policies, and let each act until what has to be compiled is. Returns why optional ones cannot.

    Args:
        roomy: make all at the same time; else one after another, since to make them takes more memory than to hold
            them.

    Raises:
        Failed: one that is not optional cannot.
    """

    def failure(name: str) -> str | None:
        try:
            hosts[name].ask(name, "warm_up")
        except Failed as error:
            if not is_optional(name):
                raise
            return str(error)
        return None

    with ThreadPoolExecutor(len(hosts) if roomy else 1) as threads:
        return {name: why for name, why in zip(hosts, threads.map(failure, hosts), strict=True) if why is not None}


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


def facts_of(host: Host, name: str) -> dict[str, Any]:
    """What the policy says of itself, its stages where a clock follows them, and their work where it is known."""
    facts, stages, work = (host.ask(name, question) for question in ("facts", "stages", "work"))
    known = {"stages_ms": stages, "work": work}
    return facts | {key: value for key, value in known.items() if value is not None}


def row_of(first: str, name: str, seconds: Seconds) -> dict[str, Any]:
    """A row's own times, and its ratios to the group's baseline, to itself in bf16, and to its shape through
    transformers, with what these took in the same rounds. None where the group does not hold what to compare with.

    Args:
        first: the first of the group, which is its baseline if transformers runs it.
    """
    mine, run = seconds[name], run_of(name)
    row: dict[str, Any] = {"backend": run.by, "rounds": len(mine)}
    row |= {"p50_ms": milliseconds(median(mine)), "p90_ms": milliseconds(np.percentile(mine, 90))}
    row |= compared("speedup", "baseline_ms", baseline_of(first), name, seconds)
    row |= compared("speedup_over_bf16", "bf16_ms", bf16_of(name), name, seconds)
    if run.by == RLRC and run.bits == 16:
        between = through_transformers(name)
        row |= compared("engine_speedup", "through_transformers_ms", between, name, seconds)
        if between in seconds:
            row |= compared("compression_speedup", "baseline_ms", baseline_of(first), between, seconds)
    return row


def busy_fields(first: str, name: str, seconds: Seconds, stages: dict[str, float] | None) -> dict[str, Any]:
    """The fields of a row that were measured beside a busy process."""
    row: dict[str, Any] = {"busy_p50_ms": milliseconds(median(seconds[name]))}
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
    return {
        ratio: round(median(ratios), 3),
        f"{ratio}_95": [round(bound, 3) for bound in median_interval(ratios)],
        milliseconds_key: milliseconds(median(seconds[slow])),
    }


def memory_alone(name: str, open_host: Open) -> dict[str, int]:
    """The peaks of memory of a process that holds this policy alone and acts."""
    host = open_host([name])
    try:
        host.ask(name, "warm_up")
        return {key: value for key, value in host.ask(name, "facts").items() if key in PEAKS}
    finally:
        host.end()
