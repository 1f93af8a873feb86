"""Signals, pipes and closed streams, on commands in processes of their own."""

import signal
from collections.abc import Iterator
from pathlib import Path

from case import Case, Expected, Signal
from valid import put, put_user_files

LONG = ("sft", "--policy", "policy", "--dataset", "data", "--out", "out", "--steps", "1000000", "--batch-size", "2")
RUN = ("run", "recipe.yaml", "--out", "out")


def cases() -> Iterator[Case]:
    yield from _signals()
    yield from _streams()


def _place(place: Path) -> None:
    put_user_files(place)
    put("policy", place / "policy")
    put("images", place / "data")
    stage = "{verb: sft, policy: base, dataset: data, steps: 1000000, batch_size: 2}"
    (place / "recipe.yaml").write_text(f"name: one\nbase: policy\nstages:\n  - {stage}\n")


def _signals() -> Iterator[Case]:
    numbers = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP}
    for name, number in numbers.items():
        for after in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0):
            if name == "INT" or after in (0.2, 1.0):
                yield Case(f"process/early-{name}-{after}", LONG, _place, "stopped", signal=Signal(number, after))
        for kind, arguments, file in (("sft", LONG, "out/config.yaml"), ("run", RUN, "out/sft/config.yaml")):
            for after in (0.5, 4.0):
                late = Signal(number, after, file)
                yield Case(f"process/late-{kind}-{name}-{after}", arguments, _place, "stopped", signal=late)
    write = ("make-random", "--preset", "openvla-7b", "big")
    for name, number in numbers.items():
        soon = Signal(number, 15.0)
        yield Case(f"process/writing-{name}", write, _place, "stopped", signal=soon)


def _streams() -> Iterator[Case]:
    """Readers that go away; the exit status is not the matter, but what is said."""
    lines: dict[str, tuple[str, Expected]] = {
        "help-true": ("rlrc --help | true", "works"),
        "verb-help-true": ("rlrc prune --help | true", "works"),
        "version-true": ("rlrc --version | true", "works"),
        "inspect-true": ("rlrc inspect policy | true", "works"),
        "inspect-json-true": ("rlrc inspect policy --json | true", "works"),
        "inspect-json-head": ("rlrc inspect policy --json | head -c 10 > /dev/null", "works"),
        "help-head": ("rlrc --help | head -1 > /dev/null", "works"),
        "stdout-closed": ("rlrc inspect policy --json >&-", "either"),
        "stderr-closed": ("rlrc inspect policy 2>&-", "works"),
        "stdin-closed": ("rlrc inspect policy <&-", "works"),
        "all-closed": ("rlrc inspect policy <&- >&- 2>&-", "works"),
        "stdout-full": ("rlrc inspect policy --json > /dev/full", "refused"),
        "help-full": ("rlrc --help > /dev/full", "refused"),
        "version-full": ("rlrc --version > /dev/full", "refused"),
        "stdout-is-file": ("rlrc inspect policy --json > /dev/null", "works"),
        "nohup": ('nohup "$BASH" -c true > /dev/null 2>&1; rlrc --version > /dev/null', "works"),
        "two-runs": ("rlrc inspect policy > /dev/null & rlrc inspect policy > /dev/null; wait", "works"),
    }
    for name, (line, expected) in lines.items():
        yield Case(f"process/stream-{name}", (), _place, expected, shell=line)
