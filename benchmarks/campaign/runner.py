"""Runs cases, each in a process forked from one that has imported everything: half a second a case instead of ten."""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from case import Case
from outcome import classify, snapshot

MEMORY = 4 * 2**30
"""Bytes of address space that a case may take beside what its parent has."""
POLL_S = 0.02
MAX_OUTPUT = 2**20
STATUS_BROKEN = 99


@dataclass(frozen=True)
class Result:
    """The result of a case."""

    case: Case
    outcome: str
    last_line: str
    seconds: float
    peak_bytes: int


@dataclass
class _Running:
    case: Case
    folder: Path
    started: float
    signalled: bool = False

    @property
    def place(self) -> Path:
        return self.folder / "place"


def preload() -> None:
    """Import what any verb needs, with one thread: a forked child of a process with threads would hang."""
    import av  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch

    torch.set_num_threads(1)
    from rlrc.command_line import commands

    import_module("rlrc.cli")
    for command in commands().values():
        command.config_class()
        import_module(command.module)
    for module in ("rlrc.policies.checkpoint", "rlrc.data.lerobot", "rlrc.data.demonstrations", "rlrc.pipeline"):
        import_module(module)


def run_all(cases: Sequence[Case], work: Path, jobs: int, timeout_s: float) -> Iterator[Result]:
    """Run the cases, `jobs` at once, and give the results as they come."""
    waiting, running = list(reversed(cases)), dict[int, _Running]()
    number = 0
    while waiting or running:
        while waiting and len(running) < jobs:
            number += 1
            folder = work / f"case-{number}"
            (folder / "place").mkdir(parents=True)
            case = waiting.pop()
            running[_start(case, folder)] = _Running(case, folder, time.monotonic())
        ended = False
        for pid, entry in list(running.items()):
            # Processes of their own import torch themselves, on machines that do other things as well.
            limit = timeout_s * (4 if entry.case.alone else entry.case.patience)
            seconds = time.monotonic() - entry.started
            _signal_if_due(pid, entry)
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if not found and seconds < limit:
                continue
            late = not found
            _end_group(pid)
            if late:
                _, status, usage = os.wait4(pid, 0)
            del running[pid]
            ended = True
            code = None if late else os.waitstatus_to_exitcode(status)
            yield _judge(entry, code, seconds, usage.ru_maxrss * 1024)
            shutil.rmtree(entry.folder, ignore_errors=True)
        if not ended:
            time.sleep(POLL_S)


def in_child(work: Callable[[], None], log: Path) -> None:
    """Do something in a forked process, since threads that it starts would harm later forks of this one."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _redirect(log, 1, 2)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(f"the campaign's valid inputs could not be made: {log.read_text()}")


def _redirect(path: Path, *streams: int) -> None:
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in streams:
        os.dup2(handle, stream)
    os.close(handle)


def _start(case: Case, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = STATUS_BROKEN
    try:
        os.setsid()
        _die_with_parent()
        status = _child(case, folder)
    except BaseException:
        (folder / "broken").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def _child(case: Case, folder: Path) -> int:
    """Make the input and run the command; returns its exit status."""
    place = folder / "place"
    os.chdir(place)
    home = folder / "home"
    home.mkdir()
    os.environ["HOME"] = str(home)
    case.build(place)
    (folder / "before").write_text("\0".join(part for entry in snapshot(place).items() for part in entry))
    os.environ.update({name: value.format(home=home, place=place) for name, value in case.environment.items()})
    _redirect(folder / "stdout", 1)
    _redirect(folder / "stderr", 2)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    (folder / "started").touch()
    if case.alone:
        # Some are ignored where the campaign runs in the background, and would be so here.
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        line = case.shell or 'exec rlrc "$@"'
        command = f'rlrc() {{ command "{sys.executable}" -m rlrc "$@"; }}\n'
        line = line.replace("exec rlrc", f'exec "{sys.executable}" -m rlrc')
        os.execv("/bin/bash", ["bash", "-c", command + line, "bash", *case.arguments])
    if case.beside:
        _run_beside(case, folder)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    return _call(case.arguments)


def _call(arguments: Sequence[str]) -> int:
    from rlrc.cli import main

    sys.argv = ["rlrc", *arguments]
    try:
        main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _run_beside(case: Case, folder: Path) -> None:
    """Start another run and wait until it is under way; what it writes belongs to the files before the case."""
    if os.fork() == 0:
        _redirect(folder / "beside", 2)
        os._exit(_call(case.beside))
    deadline = time.monotonic() + 20
    while not (folder / "place" / case.beside_file).exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the other run wrote no {case.beside_file}: {(folder / 'beside').read_text()[-300:]}")
        time.sleep(0.05)


def _signal_if_due(pid: int, entry: _Running) -> None:
    wanted = entry.case.signal
    if wanted is None or entry.signalled:
        return
    trigger = entry.folder / "started" if wanted.file is None else entry.place / wanted.file
    if trigger.exists() and time.time() >= trigger.stat().st_mtime + wanted.after_s:
        os.kill(pid, wanted.number)
        entry.signalled = True


def _judge(entry: _Running, code: int | None, seconds: float, peak: int) -> Result:
    broken = entry.folder / "broken"
    if broken.exists() or not (entry.folder / "before").exists():
        text = broken.read_text() if broken.exists() else "killed while its input was made"
        return Result(entry.case, "broken", text.strip().splitlines()[-1], seconds, peak)
    parts = (entry.folder / "before").read_text().split("\0")
    before = dict(zip(parts[::2], parts[1::2], strict=True)) if len(parts) > 1 else {}
    after = snapshot(entry.place)
    if entry.case.beside:  # the other run goes on writing
        ours = Path(entry.case.beside_file).parts[0]
        before, after = ({k: v for k, v in files.items() if Path(k).parts[0] != ours} for files in (before, after))
    error = entry.folder / "stderr"
    output = error.read_text(errors="replace")[-MAX_OUTPUT:] if error.exists() else ""
    outcome, last_line = classify(entry.case, code, output, before, after)
    if outcome == "worked" and (broken_weights := _not_finite(entry.place)):
        outcome, last_line = "accepted", f"{broken_weights} holds numbers that are not finite"
    return Result(entry.case, outcome, last_line, seconds, peak)


def _not_finite(place: Path) -> str | None:
    """A tensor with NaN or infinity among the weights that a run has written."""
    import torch
    from safetensors import safe_open

    for path in place.glob("out/checkpoint/*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (a safetensors handle, not a dict)
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    return name
    return None


def _end_group(pid: int) -> None:
    """Kill the case's process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _die_with_parent() -> None:
    """A campaign that is killed takes its cases with it (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
