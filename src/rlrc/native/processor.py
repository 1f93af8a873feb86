"""Says what this machine's processor is called and what it can do."""

import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import psutil

from rlrc.errors import UserError

INSTRUCTIONS = "RLRC_INSTRUCTIONS"
"""The environment variable that holds this package to a level, as though the processor could do no more."""
ONEDNN = "ONEDNN_MAX_CPU_ISA"
"""The one that holds oneDNN, which multiplies bfloat16 for PyTorch."""
ONEDNN_BFLOAT16 = ("BF16", "FP16", "AMX", "AVX10", "DEFAULT")
"""Parts of the names of oneDNN's levels that multiply bfloat16."""


class Level(NamedTuple):
    """A set of instructions for which there are kernels."""

    name: str
    machine: str
    """As `platform.machine()` has it."""
    needed: frozenset[str]
    """The processor must offer these; the words are Linux'."""
    flags: tuple[str, ...]
    """These options let the compiler use it."""


def _level(name: str, machine: str, needed: str, flags: str) -> Level:
    return Level(name, machine, frozenset(needed.split()), tuple(flags.split()))


AVX2 = "-mavx2 -mfma"
LEVELS = (
    _level(
        "avx512",
        "x86_64",
        "avx512f avx512bw avx512vl avx512_vnni avx2 fma",
        f"{AVX2} -mavx512f -mavx512bw -mavx512vl -mavx512vnni",
    ),
    _level("avxvnni", "x86_64", "avx_vnni avx2 fma", f"{AVX2} -mavxvnni"),
    _level("avx2", "x86_64", "avx2 fma", AVX2),
    _level("i8mm", "aarch64", "asimddp i8mm", "-march=armv8.2-a+dotprod+i8mm"),
    _level("dotprod", "aarch64", "asimddp", "-march=armv8.2-a+dotprod"),
)
"""The best comes first."""


def levels() -> list[Level]:
    """Return what this processor has, the best first."""
    return [level for level in LEVELS if level.machine == machine() and features() >= level.needed]


def level() -> Level | str:
    """Return the best level that this processor has, or why there is none.

    Raises:
        UserError: the environment variable names a level that there is not, or that this processor lacks.
    """
    mine = levels()
    held_to = os.environ.get(INSTRUCTIONS)
    if held_to:
        chosen = [level for level in mine if level.name == held_to]
        if not chosen:
            names = ", ".join(level.name for level in mine) or "none"
            raise UserError(f"{INSTRUCTIONS}={held_to} is not a level of this processor (it has: {names})")
        return chosen[0]
    if mine:
        return mine[0]
    wanted = [level.name for level in LEVELS if level.machine == machine()]
    return f"the processor has none of {', '.join(wanted)}" if wanted else f"there are none for {machine()}"


def instructions() -> str | None:
    """Return the name of the best level that this processor has, if it has any."""
    best = level()
    return best.name if isinstance(best, Level) else None


def multiplies_bfloat16() -> bool:
    """Return whether this processor has instructions for products in bfloat16; others are faster in float32.

    PyTorch's products ask this, not the kernels of this package, so `RLRC_INSTRUCTIONS` changes nothing about it, but
    `ONEDNN_MAX_CPU_ISA` does. Processors that are neither x86 nor ARM are not known here, and their bfloat16 is left to
    PyTorch.
    """
    instructions = {"x86_64": {"avx512_bf16", "amx_bf16"}, "aarch64": {"bf16"}}
    kind, held_to = machine(), os.environ.get(ONEDNN, "DEFAULT").upper()
    if kind == "x86_64" and not any(part in held_to for part in ONEDNN_BFLOAT16):
        return False
    return kind not in instructions or not instructions[kind].isdisjoint(features())


@lru_cache(maxsize=1)
def name() -> str:
    """The name of the processor, on x86 with its family and model, since clouds give very different ones one name."""
    info = _cpuinfo()
    told = info.get("model name") or platform.processor() or platform.machine()
    return f"{told} (family {info['cpu family']}, model {info['model']})" if "cpu family" in info else told


def described() -> str:
    """The name of the processor and how many cores this machine has of it."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count()
    return f"{name()}, {cores} core{'s' if cores != 1 else ''}"


def machine() -> str:
    """The kind of processor: "x86_64", "aarch64", or what else there is."""
    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())


@lru_cache(maxsize=1)
def features() -> frozenset[str]:
    """Return what the processor can do, in the words of Linux' /proc/cpuinfo."""
    if platform.system() == "Darwin":
        return _features_of_macos()
    info = _cpuinfo()
    return frozenset(info.get("flags", info.get("Features", "")).split())


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _features_of_macos() -> frozenset[str]:
    """Apple's names of ARM's extensions, in Linux' words."""
    words = {"FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16"}
    listed = subprocess.run(["sysctl", "hw.optional.arm"], capture_output=True, text=True, check=False).stdout
    lines = (line.partition(": ") for line in listed.splitlines())
    present = {key.rpartition(".")[2] for key, _, value in lines if value.strip() == "1"}
    return frozenset(word for feature, word in words.items() if feature in present)
