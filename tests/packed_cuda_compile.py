"""Compile the GPU kernels for GPUs that are not here; test_packed_cuda.py runs this in a process of its own.

python packed_cuda_compile.py CASES CAPABILITY...     such as "norm|gated" 80 90: a regular expression and GPUs

It prints JSON: {capability: {case: {registers, ...}}}.

The functions that launch kernels are called as usual, on tensors of the CPU; what would be launched is compiled with
the same arguments in its place. Triton compiles for a GPU that it does not have if it is told which one, and the
programs that it brings along tell the registers and instructions of the machine code.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rlrc.packed import cuda
from rlrc.packed.cuda import fused, products, unpacking
from rlrc.packed.layers import QuantizedLinear

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"} | {
    getattr(torch, f"int{bits}"): f"i{bits}" for bits in (16, 32, 64)
}


class Recorded:
    """Stands in a kernel's place and keeps what it would have been launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.arguments, self.options = kernel, (), {}

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self.arguments, self.options = arguments, options

        return launch

    def compiled(self, capability: int) -> dict[str, Any]:
        """The machine code of the recorded launch, described."""
        options = dict(self.options)
        constants = {name: options.pop(name) for name in self.kernel.arg_names if name in options}
        names = self.kernel.arg_names
        values = dict(zip(names, self.arguments, strict=False)) | constants
        signature, attributes, fixed = {}, {}, {}
        for index, name in enumerate(names):
            specialize = name not in (self.kernel.do_not_specialize or ())
            signature[name] = described(values[name], (index,), name in constants, specialize, attributes, fixed)
        source = ASTSource(self.kernel, signature, fixed, attributes)
        return measured(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options))


def described(value: Any, path: tuple, constant: bool, specialize: bool, attributes: dict, fixed: dict) -> Any:
    """An argument's type, as Triton's launcher finds it out; notes what is constant and what 16 divides."""
    if isinstance(value, tuple):
        return tuple(described(v, (*path, i), constant, specialize, attributes, fixed) for i, v in enumerate(value))
    if constant or value is None or (specialize and type(value) is int and value == 1):
        fixed[path] = value
        return "constexpr"
    if isinstance(value, torch.Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return "*" + ("u8" if value.dtype == torch.uint8 else TYPES[value.dtype])
    if isinstance(value, float):
        return "fp32"
    if specialize and value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32"


def measured(kernel: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = run(TOOLS / "cuobjdump", "--dump-resource-usage", file.name)
        code = run(TOOLS / "nvdisasm", "-c", file.name)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    instructions = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?\s*([A-Z]\w*)", code, re.MULTILINE)
    return {
        "registers": int(registers),
        "stack": int(stack),
        "spills": sum(name in ("LDL", "STL") for name in instructions),
        "shared": kernel.metadata.shared,
        "instructions": len(instructions),
        "tensor cores": sum(name in ("HMMA", "HGMMA", "UTCHMMA") for name in instructions),
    }


def run(*command: Any) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def packed(bits: int, in_features: int = 1024, outputs: int = 4096) -> QuantizedLinear:
    """A layer that is large enough for the sizes of large layers; its numbers do not matter."""
    return QuantizedLinear(in_features, outputs, bits, 32)


def launches() -> dict[str, tuple[Any, str, Callable[[], Any]]]:
    """What is compiled: where the kernel stands, its name, and a call that launches it."""

    def multiply(bits: int, rows: int, dtype: torch.dtype, weights: int = 1, **sizes: int) -> Callable[[], Any]:
        layers = tuple(packed(bits, **sizes).packed_weight for _ in range(weights))
        x = torch.zeros(rows, layers[0].in_features, dtype=dtype)
        biases = tuple(torch.zeros(layer.out_features) for layer in layers) if rows == 1 else None
        return lambda: cuda.joined(layers, x, biases)

    half, single = torch.bfloat16, torch.float32
    vector, matrix = (products, "vector_kernel"), (products, "matrix_kernel")
    heads, cache = torch.zeros(1, 1, 4096, dtype=half), torch.zeros(1, 32, 300, 128, dtype=half)
    angles, position = torch.zeros(500, 128, dtype=half), torch.zeros(1, 1, dtype=torch.int64)
    weight = packed(4).packed_weight
    return {
        "vector 4 bits, 1 row": (*vector, multiply(4, 1, half)),
        "vector 8 bits, 1 row": (*vector, multiply(8, 1, half)),
        "vector 4 bits, 2 rows": (*vector, multiply(4, 2, half)),
        "vector 4 bits, 4 rows": (*vector, multiply(4, 4, half)),
        "vector 4 bits, 4 rows, float32": (*vector, multiply(4, 4, single)),
        "vector 4 bits, 1 row, bytes": (*vector, multiply(4, 1, half, in_features=1002)),
        "vector 4 bits, 1 row, three weights": (*vector, multiply(4, 1, half, weights=3)),
        "matrix 4 bits, 16 rows": (*matrix, multiply(4, 16, half)),
        "matrix 8 bits, 16 rows": (*matrix, multiply(8, 16, half)),
        "matrix 4 bits, 16 rows, float16": (*matrix, multiply(4, 16, torch.float16)),
        "matrix 4 bits, 16 rows, float32": (*matrix, multiply(4, 16, single)),
        "unpack 4 bits": (unpacking, "unpack_kernel", lambda: cuda.unpack(weight, half)),
        "look up 4 bits": (unpacking, "unpack_kernel", lambda: cuda.unpack(weight, half, position)),
        "add and norm": (
            fused,
            "norm_kernel",
            lambda: fused.add_and_norm(heads, heads, torch.zeros(4096, dtype=half), 1e-6),
        ),
        "norm": (fused, "norm_kernel", lambda: fused.rms_norm(heads, torch.zeros(4096, dtype=half), 1e-6)),
        "gated": (fused, "gated_kernel", lambda: fused.gated_unit(heads, heads)),
        "rotary": (
            fused,
            "rotary_kernel",
            lambda: fused.rotate_and_store(heads, heads, heads, angles, angles, position, cache, cache, position),
        ),
    }


def main(capabilities: list[int], wanted: str) -> None:
    """Compile the cases whose names match `wanted`, a regular expression."""
    results: dict[int, dict[str, Any]] = {capability: {} for capability in capabilities}
    for case, (module, name, launch) in launches().items():
        if not re.search(wanted, case):
            continue
        recorded = Recorded(getattr(module, name))
        setattr(module, name, recorded)
        launch()
        setattr(module, name, recorded.kernel)
        for capability in capabilities:
            results[capability][case] = recorded.compiled(capability)
    print(json.dumps(results))


if __name__ == "__main__":
    main([int(word) for word in sys.argv[2:]], sys.argv[1])
