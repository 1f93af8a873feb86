"""Code of our own for the CPU: products with packed weights (`packed.cpp`), and decoding one token (`decode.cpp`).

It is compiled on first use, which takes two seconds, and kept in the user's cache folder. `missing()` says why it
cannot be had: another processor than x86 with AVX-512 VNNI, or no C++ compiler. Packed layers then unpack their weight
at every call, which is correct and slow.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlrc.files import atomic_path, cache_folder

SOURCES = tuple(Path(__file__).with_name(name) for name in ("packed.cpp", "decode.cpp"))
HEADER = Path(__file__).with_name("packed.h")
COMMAND = (os.environ.get("CXX", "g++"), "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"}
BLOCK = 32
"""Groups must be multiples of this many columns."""


class PackedWeight(NamedTuple):
    """A weight (out, in) as `models/linear.py` stores it."""

    codes: torch.Tensor
    """uint8 (out, in / 2), the even column in the low nibble, or (out, in) for 8 bits."""
    scales: torch.Tensor
    """bfloat16 (out, groups)."""
    zeros: torch.Tensor
    """uint8, packed as the codes are."""
    bits: int
    group_size: int
    out_features: int
    in_features: int


def missing() -> str | None:
    """Why the kernels cannot be used on this machine, or None if they can."""
    return _load()[1]


def product(weight: PackedWeight, x: torch.Tensor, bias: torch.Tensor | None, many: bool) -> torch.Tensor:
    """x (..., in) in bfloat16 or float32 times the weight, plus a float32 bias: (..., out) in x's dtype.

    Activations are rounded to 8 bits, each row with a scale of its own.

    Args:
        many: how; either way works for any number of rows, but one is made for few of them and the other for many.
    """
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], weight.out_features)
    rows = x.numel() // weight.in_features
    bf16 = int(x.dtype == torch.bfloat16)
    library().packed_product(*_weight(weight), int(many), bf16, address(x), rows, address(bias), address(y), threads())
    return y


def unpack(weight: PackedWeight) -> torch.Tensor:
    """The weight itself, bfloat16 (out, in): each value rounded once."""
    out = torch.empty(weight.out_features, weight.in_features, dtype=torch.bfloat16)
    library().packed_unpack(*_weight(weight), address(out), threads())
    return out


@lru_cache(maxsize=1)
def identity() -> str:
    """Changes with the code of the kernels, how it is compiled, and the processor."""
    text = "".join(path.read_text() for path in (HEADER, *SOURCES)) + " ".join(COMMAND) + processor()
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def processor() -> str:
    """The name of the processor."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The compiled library, or why there is none."""
    if not set(_cpuinfo().get("flags", "").split()) >= NEEDED:
        return None, "the processor has no AVX-512 VNNI"
    path = cache_folder() / f"kernels-{identity()}.so"
    if not path.exists():
        try:
            with atomic_path(path) as aside:
                subprocess.run([*COMMAND, *SOURCES, "-o", aside], capture_output=True, text=True, check=True)
        except FileNotFoundError:
            return None, f"there is no C++ compiler ('{COMMAND[0]}'; Debian and Ubuntu: apt-get install g++)"
        except subprocess.CalledProcessError as error:
            return None, f"'{COMMAND[0]}' failed: {(error.stderr.splitlines() or ['no message'])[0]}"
        except OSError as error:
            return None, f"{path.parent} cannot be written ({error.strerror})"
    return _declare(ctypes.CDLL(str(path))), None


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    weight: list[Any] = [pointer, pointer, pointer, size, size, size, size]
    library.packed_product.argtypes = [*weight, flag, flag, pointer, size, pointer, pointer, flag]
    library.packed_unpack.argtypes = [*weight, pointer, flag]
    library.decode_token.argtypes = [pointer, size, pointer, flag]
    library.packed_product.restype = library.packed_unpack.restype = library.decode_token.restype = None
    return library


def library() -> ctypes.CDLL:
    """The compiled code; only where `missing()` is None."""
    loaded, reason = _load()
    assert loaded is not None, reason
    return loaded


def _weight(weight: PackedWeight) -> tuple[int | None, ...]:
    tensors = (weight.codes, weight.scales, weight.zeros)
    return (*map(address, tensors), weight.bits, weight.group_size, weight.out_features, weight.in_features)


def address(tensor: torch.Tensor | None) -> int | None:
    """Where the numbers of a tensor on the CPU lie; the caller keeps it alive."""
    assert tensor is None or (tensor.is_contiguous() and tensor.device.type == "cpu")
    return None if tensor is None else tensor.data_ptr()


def threads() -> int:
    """How many of them the kernels use: as many as PyTorch."""
    return torch.get_num_threads()
