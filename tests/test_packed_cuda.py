"""The GPU kernels, mostly without a GPU: their numbers under Triton's interpreter, and what they compile to.

They run in processes of their own: whether Triton interprets or compiles is settled when it is imported.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlrc.packed import cuda
from rlrc.packed.layers import QuantizedLinear

TESTS = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

REGISTERS = {
    "vector 4 bits, 1 row": 80,
    "vector 8 bits, 1 row": 80,
    "vector 4 bits, 2 rows": 128,
    "vector 4 bits, 4 rows": 128,
    "vector 4 bits, 1 row, three weights": 80,
    "matrix 4 bits, 16 rows": 128,
    "matrix 4 bits, 16 rows, float32": 128,
    "look up 4 bits": 80,
    "norm": 64,
    "add and norm": 64,
    "gated": 64,
    "rotary": 64,
}
"""Most registers of a thread. A multiprocessor has 65,536: with 80, six programs of four warps are on it at once; with
128, four."""

EVERYWHERE = "vector 4 bits, 1 row$|matrix 4 bits, 16 rows$"
"""Cases that are compiled for every GPU; one GPU gets them all."""


def check_numbers(interpret: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", TESTS / "packed_cuda_checks.py"]
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.timeout(900)
def test_numbers_under_the_interpreter() -> None:
    check_numbers(interpret="1")


@needs_triton
@pytest.mark.timeout(900)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_numbers_on_this_gpu() -> None:
    check_numbers(interpret="0")


@needs_triton
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("capabilities", "cases"),
    [(("90",), "|".join(f"{case}$" for case in REGISTERS)), (("80", "87", "89", "100"), EVERYWHERE)],
    ids=["all kernels for one GPU", "the products for all GPUs"],
)
def test_compiled_kernels_keep_to_their_registers(capabilities: tuple[str, ...], cases: str, tmp_path: Path) -> None:
    """Nothing is spilled to memory, tensor cores multiply where they should, and enough programs fit at once."""
    command = [sys.executable, TESTS / "packed_cuda_compile.py", cases, *capabilities]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)} | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    compiled: dict[str, dict[str, dict[str, Any]]] = json.loads(done.stdout)
    assert compiled.keys() == set(capabilities)
    if capabilities == ("90",):
        assert compiled["90"].keys() == REGISTERS.keys()
    for capability, cases_there in compiled.items():
        assert cases_there
        for case, code in cases_there.items():
            where = f"{case} for {capability}: {code}"
            assert code["spills"] == code["stack"] == 0, where
            assert code["registers"] <= REGISTERS[case], where
            assert (code["tensor cores"] > 0) == (case.startswith("matrix") and "float32" not in case), where


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(group_size: int = 32, dtype: torch.dtype = torch.bfloat16, device: str = "cuda") -> str:
        packed = QuantizedLinear.from_linear(nn.Linear(100, 4), 4, group_size)
        return cuda.refuses(packed.packed_weight, torch.device(device), dtype) or ""

    cuda.missing.cache_clear()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "not torch.float64" in refused(dtype=torch.float64)
    assert "a multiple of 16 weights, not of 24" in refused(24)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refused() == "Triton is not installed"
    cuda.missing.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert refused(device="cpu") == "they are for NVIDIA GPUs"
    for capability, reason in (((7, 5), "this GPU has 7.5"), ((8, 0), ""), ((12, 0), "")):
        cuda.missing.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert reason in refused() and bool(refused()) == bool(reason)
        assert bool(refused(100)) == bool(reason), "a row may be one group of any size"
    cuda.missing.cache_clear()
