"""Ctrl-C, SIGTERM and SIGHUP at any time: one line, a status that says which, and nothing half-written left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from command import hear_signals

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}

SLOW_VERBS = Path(__file__).with_name("slow_verbs.py")
"""Not imported: it changes the table of verbs."""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Begin a slow verb in a process group of its own, and wait until it has begun what must be cleaned up."""
    (folder / "base").mkdir()
    (folder / "base" / "skill.txt").write_text("0.5")
    command = [sys.executable, str(SLOW_VERBS), *arguments]
    environment = os.environ | {"READY": str(folder / "ready")}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_signals,
    )
    deadline = time.monotonic() + 120
    while not (folder / "ready").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def shared_memory(pid: int) -> set[Path]:
    """The blocks that the process has mapped, where the system tells."""
    maps = Path(f"/proc/{pid}/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    return {Path(line.split()[-1]) for line in lines if "/dev/shm/psm_" in line}


@pytest.mark.parametrize("to_group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("number", STATUS)
def test_a_verb_ends_with_one_line_and_leaves_nothing(number: signal.Signals, to_group: bool, tmp_path: Path) -> None:
    """Its worlds' processes and shared memory are gone, and so is the half checkpoint with the folder made for it."""
    process = start(tmp_path, "sft", "--policy", "base", "--dataset", "base", "--out", "runs/x")
    children = psutil.Process(process.pid).children(recursive=True)
    blocks = shared_memory(process.pid)
    assert len(children) >= 2 and (blocks or sys.platform != "linux")
    os.killpg(process.pid, number) if to_group else process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == STATUS[number]
    assert printed.count("\n") == 1 and printed.startswith("rlrc: "), printed
    assert not psutil.wait_procs(children, timeout=20)[1]
    assert not any(block.exists() for block in blocks)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "ready"}


def test_stages_that_run_at_once_end_with_their_run(tmp_path: Path) -> None:
    stages = [{"verb": "sft", "name": name, "policy": "base"} for name in "ab"]
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({"base": "base", "stages": stages}))
    process = start(tmp_path, "run", "toy.yaml", "--jobs", "2")
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 143
    assert printed.splitlines()[-1].startswith("rlrc: ended by SIGTERM") and "Traceback" not in printed, printed
    assert not psutil.wait_procs(children, timeout=20)[1]
    assert not (tmp_path / "runs").exists()


INTERRUPTED_IMPORT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})

from rlrc.cli import main
assert not {{"pydantic", "tyro", "yaml", "numpy", "multiprocessing"}} & set(sys.modules)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["rlrc", "inspect", "x"]
main()
"""


@pytest.mark.parametrize("module", ["rlrc.verbs", "pydantic", "tyro", "torch"])
def test_an_interrupt_while_modules_are_imported_is_one_line(module: str) -> None:
    code = INTERRUPTED_IMPORT.format(module=module, number=int(signal.SIGINT))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, preexec_fn=hear_signals
    )
    assert (done.returncode, done.stderr) == (130, "rlrc: interrupted\n")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    code = (
        "import os, signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from rlrc.process import handle_signals\nhandle_signals()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\nprint('lives')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "lives\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_that_nobody_reads_is_quiet(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "rlrc", *arguments], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_closed_streams_take_no_file_in(tmp_path: Path) -> None:
    """Without its standard streams a process gives their numbers to the next files; messages would go there."""
    code = (
        "import os, sys\nfrom rlrc.process import fill_standard_streams\nfill_standard_streams()\n"
        "file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\nos.write(2, b'a message')\nos.write(file, b'data')\n"
    )
    command = ["sh", "-c", '"$0" -c "$1" "$2" <&- >&- 2>&-', sys.executable, code, str(tmp_path / "file")]
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "file").read_bytes() == b"data"
