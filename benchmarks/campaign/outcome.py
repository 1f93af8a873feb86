"""The outcome of a case: the console's text, the exit status and the files, compared with what is right."""

import hashlib
import os
import re
import stat
from pathlib import Path

from case import Case

OUTCOMES = {
    "one_line": "one line",
    "worked": "worked, as it should",
    "unclear": "unclear line",
    "traceback": "traceback",
    "accepted": "wrongly accepted",
    "refused": "refused although right",
    "hung": "hung",
    "over_memory": "over memory",
    "changed_files": "changed the user's files",
    "left_files": "left files behind",
    "broken": "the case itself failed",
}
GOOD = ("one_line", "worked")
MAX_LINE = 600
OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "DefaultCPUAllocator", "Unable to allocate", "Cannot allocate memory")
PYTHON = ("Traceback (most recent call last)", "Exception ignored", "leaked shared_memory", "Segmentation fault")
RLRC_RUNS = "in main"
"""Part of a traceback from which on rlrc answers signals itself; Python's start and imports come before."""
RAW = re.compile(
    r"Error\(|Error:|<class '|object at 0x|\('[^']*'\)$|\(\d+\)$|\[Errno|NoneType|object has no attribute"
    r"|not subscriptable|unsupported operand|not supported between instances|unexpected keyword argument"
    r"|values to unpack"
)
"""Pattern of what a line for people must not contain: the text of Python's own exceptions."""
WHOLE_FILE = ("not valid json", "not valid yaml", "deep in each other")
"""Faults of a file as a whole, told before its fields are known."""
MAX_HASHED = 64 * 2**20


def snapshot(root: Path) -> dict[str, str]:
    """Return what lies below `root`, by relative path: hashes of files, targets of links, kinds of everything else."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder) / name
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                found[str(path.relative_to(root))] = f"link to {path.readlink()}"
            elif stat.S_ISREG(status.st_mode):
                small = status.st_size <= MAX_HASHED
                found[str(path.relative_to(root))] = (
                    hashlib.sha256(path.read_bytes()).hexdigest() if small else f"{status.st_size} bytes"
                )
            else:
                found[str(path.relative_to(root))] = f"mode {stat.S_IFMT(status.st_mode):o}"
    return found


def classify(
    case: Case, status: int | None, output: str, before: dict[str, str], after: dict[str, str]
) -> tuple[str, str]:
    """The outcome (a key of OUTCOMES) and what shows it.

    Args:
        status: the exit status, negative for a signal, None where the case had to be killed for its time.
        output: what went to stderr.
        before: the files before the run, and `after` it.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    gone = sorted(name for name in before if after.get(name) != before[name] and not _own(case, name))
    if gone:
        return "changed_files", f"{gone[0]}: {last}"
    if status is None:
        return "hung", last
    if any(word in output for word in OUT_OF_MEMORY) or status == -9:
        return "over_memory", last
    if case.expected == "stopped" and last == "KeyboardInterrupt" and RLRC_RUNS not in output:
        return "worked", "Python was interrupted before the first line of rlrc's command ran"
    if any(word in output for word in PYTHON):
        return "traceback", last
    new = sorted(set(after) - set(before))
    if case.expected == "stopped":
        return _classify_stopped(status, last, new)
    if status == 0:
        if case.expected == "refused":
            return "accepted", last
        return ("traceback", last) if last.startswith("rlrc: ") else ("worked", last)
    if status != 2:
        return "traceback", f"exit {status}: {last}"
    left = [name for name in new if not _own(case, name)]
    half = [name for name in new if name.endswith((".tmp", ".old"))]
    if case.expected == "works":
        return "refused", last
    if problem := _unclear(case, last):
        return "unclear", f"{problem}: {last}"
    if half or left:
        return "left_files", f"{(half or left)[0]}: {last}"
    return "one_line", last


def _own(case: Case, name: str) -> bool:
    """Return whether the path lies in one of the case's folders that are the run's own."""
    return any(Path(name).is_relative_to(folder) for folder in case.leaves)


def _unclear(case: Case, last: str) -> str | None:
    """Say what is wrong with the line; None if nothing is."""
    if not last.startswith("rlrc: "):
        return "a box" if last.startswith("╰") else "not the last line"
    if len(last) > MAX_LINE:
        return f"{len(last)} characters"
    if raw := RAW.search(last):
        return f"Python's text {raw[0]!r}"
    # Lower case, and _ for -: options have two spellings.
    said = last.lower().replace("-", "_")
    words = case.words
    if any(kind in said for kind in WHOLE_FILE):  # no field is known yet
        words = (".json|.yaml|.jsonl",)
    for word in words:
        if not any(choice.lower().replace("-", "_") in said for choice in word.split("|")):
            return f"no word of {word!r}"
    return None


def _classify_stopped(status: int, last: str, new: list[str]) -> tuple[str, str]:
    if half := [name for name in new if name.endswith((".tmp", ".old"))]:
        return "left_files", f"{half[0]}: {last}"
    if status == 0:
        return "accepted", last
    return ("one_line", last) if last.startswith("rlrc: ") or not last else ("unclear", last)
