"""Hold every library to a set of instructions, and see which one each of them uses.

The variables are read when a process imports the libraries, so they must be set before it starts.
"""

import os
import subprocess
import sys

VARIABLES = {
    "avx2": {
        "RLRC_INSTRUCTIONS": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels, and the width of vectors in torch.compile's
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "TORCHINDUCTOR_CPP_MARCH": "haswell",  # torch.compile's compiler; with "native" it would use AVX-512
    }
}
"""Environment variables by level."""
WORDS = {"avx2": ("avx2", "advanced vector extensions 2", "intel(r) architecture processors")}
"""Libraries name a level by one of these words, in small letters. The last is what MKL says on an AMD processor: it
names no instructions there, whatever it is held to, and the page of results shows what it said."""
HIGHER = ("512", "amx", "vnni", "native", "deep learning")
"""Parts of the names of higher levels, in small letters."""
LIBRARIES = ("rlrc", "torch", "torch.compile", "oneDNN", "MKL")
LOOK = """
import torch
from rlrc.native import processor
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch._inductor import config
print("rlrc:", processor.instructions())
print("torch:", torch.backends.cpu.get_cpu_capability())
print("torch.compile:", config.cpp.march or "native", pick_vec_isa(), flush=True)
if torch.backends.mkldnn.is_available():
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        torch.nn.functional.conv2d(torch.ones(8, 32, 64, 64), torch.ones(32, 32, 3, 3))
if torch.backends.mkl.is_available():
    with torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):
        torch.ones(64, 64) @ torch.ones(64, 64)
"""
MARKS = {
    "onednn_verbose,v1,info,cpu,isa:": "oneDNN",
    "MKL_VERBOSE oneMKL": "MKL",
}
"""How the lines begin in which libraries say of themselves what they use."""


def hold_to(level: str) -> None:
    """Hold the libraries of all processes that start from now on.

    Raises:
        SystemExit: a library uses other instructions nevertheless, or does not say what it uses.
    """
    os.environ.update(VARIABLES[level])
    used = used_instructions()
    wrong = {library: used.get(library) for library in LIBRARIES if not is_held(used.get(library, ""), level)}
    if wrong:
        raise SystemExit(f"not held to {level}: {wrong}")


def is_held(answer: str, level: str) -> bool:
    """Whether a library's answer names this level and no higher one."""
    said = answer.lower()
    return any(word in said for word in WORDS[level]) and not any(word in said for word in HIGHER)


def used_instructions() -> dict[str, str]:
    """Return what each library says of itself in a fresh process, by its name."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the libraries cannot be asked: {done.stderr.strip().splitlines()[-1]}")
    found = {}
    for line in done.stdout.splitlines():
        mark = next((mark for mark in MARKS if line.startswith(mark)), None)
        if mark is not None:
            found[MARKS[mark]] = line.removeprefix(mark).split(", Lnx")[0].strip()
        elif ": " in line and "_VERBOSE" not in line and "verbose" not in line:
            library, _, answer = line.partition(": ")
            found[library] = answer
    return found
