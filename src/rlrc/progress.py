"""Progress of long runs: console lines and bars with an ETA (stderr), and its metrics on disk.

Bars redraw in place on a terminal. Elsewhere (a log file, CI) they become an occasional plain line, so that logs stay
short.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlrc.errors import UserError
from rlrc.files import write_text
from rlrc.reading import parse_json, read_text

T = TypeVar("T")

PLAIN_INTERVAL = 20.0  # seconds between two lines of one bar when stderr is not a terminal

_console = Console(stderr=True)


def say(text: str) -> None:
    """Print a line to stderr, above any bar that is running."""
    _console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def quietly() -> Iterator[None]:
    """Say nothing within the block, where a verb calls others again and again."""
    before, _console.quiet = _console.quiet, True
    try:
        yield
    finally:
        _console.quiet = before


class Bar:
    """One bar on the console; made by `bar()`."""

    def __init__(self, progress: Progress, description: str, total: int | None, start: int) -> None:
        self._progress = progress
        progress.add_task(description, total=total, completed=start, note="")
        self._task = progress.tasks[-1]
        self._last_line = self._progress.get_time()

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Move by `steps`; `note` (a loss, a success rate) replaces the text at the end of the bar."""
        self._progress.advance(self._task.id, steps)
        if note is not None:
            self._progress.update(self._task.id, note=note)
        if self._progress.disable and self._progress.get_time() - self._last_line >= PLAIN_INTERVAL:
            self._last_line = self._progress.get_time()
            left = self._task.time_remaining
            self._line("ETA unknown" if left is None else f"ETA {_clock(left)}")

    def finish(self) -> None:
        if self._progress.disable:
            self._line(f"took {_clock(self._task.elapsed or 0.0)}")

    def _line(self, when: str) -> None:
        total = "" if self._task.total is None else f"/{self._task.total:.0f}"
        note = self._task.fields["note"]
        say(f"{self._task.description}: {self._task.completed:.0f}{total}, {when}{', ' * bool(note)}{note}")


@contextmanager
def bar(description: str, total: int | None = None, start: int = 0) -> Iterator[Bar]:
    """A bar of `total` steps (None: unknown) that starts at `start`, where a resumed run had got to."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    disable = not _console.is_terminal
    with Progress(*columns, console=_console, disable=disable, speed_estimate_period=600.0) as progress:
        this = Bar(progress, description, total, start)
        yield this
        this.finish()


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a bar; `total` defaults to the length of `iterable` where it has one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with bar(description, total) as this:
        for item in iterable:
            yield item
            this.advance()


MAX_METRICS_BYTES = 2**30
DIGITS = 7
"""Significant digits of a number in a log: those that float32 has."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, without the torn line that a killed run may have left at the end.

    Raises:
        UserError: the file is damaged.
    """
    rows = []
    for number, line in enumerate(read_text(path, MAX_METRICS_BYTES).splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        row = parse_json(line, f"{path}: line {number}")
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise UserError(
                f"{path}: line {number}: this is no row of metrics; delete the stage's folder and run it again"
            )
        rows.append(row)
    return rows


class MetricsLog:
    """A run's metrics in `folder`: `metrics.jsonl`, one flat object a line, and TensorBoard scalars (`tensorboard/`).

    Opening an existing log appends to it. A run that resumes from a checkpoint calls `truncate_after` first. Numbers
    that JSON cannot hold (nan, inf) are written as null, and others with as many digits as float32 has.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self._board_folder = folder / "tensorboard"
        self._board: Any = None
        self._purge_step: int | None = None
        self._keep_rows(math.inf)
        self._file = self.path.open("a")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def log(self, step: int, **values: Any) -> None:
        """Append one row; `values` are numbers (also of numpy and torch, zero-dimensional), booleans or strings."""
        row = {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in row.items():
            if isinstance(value, int | float):
                self._writer().add_scalar(name, value, step)

    def truncate_after(self, step: int) -> None:
        """Forget rows later than `step`, the step of the checkpoint that the run resumes from."""
        self._file.close()
        self._keep_rows(step)
        self._file = self.path.open("a")
        self._purge_step = step + 1

    def _keep_rows(self, last_step: float) -> None:
        """Drop rows after `last_step`, and the torn line that a killed run may have left at the end."""
        if not self.path.exists():
            return
        rows = read_metrics(self.path)
        lines = read_text(self.path, MAX_METRICS_BYTES).splitlines(keepends=True)
        kept = [line for line, row in zip(lines, rows, strict=False) if row["step"] <= last_step]
        write_text(self.path, "".join(kept))

    def _writer(self) -> Any:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter  # seconds to import, so only once something is logged

            self._board = SummaryWriter(str(self._board_folder), purge_step=self._purge_step)
        return self._board


def _plain(value: Any) -> int | float | bool | str | None:
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
