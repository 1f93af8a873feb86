"""The kernels for ARM, compiled here and run by an emulator: the very bits that this processor's kernels give."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from rlrc.packed import cpu
from rlrc.packed.cpu import build, processor
from rlrc.packed.layers import QuantizedLinear

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
EMULATED = {"dotprod": "cortex-a76", "i8mm": "max"}
"""The processor that the emulator plays, for each set of instructions. The first knows no i8mm."""
SHAPES = [(64, 40), (100, 17), (36, 16), (1000, 33), (4304, 5), (33, 1), (1, 1)]

INSTALL = "apt-get install g++-aarch64-linux-gnu qemu-user"
absent = [program for program in (COMPILER, EMULATOR) if shutil.which(program) is None]
pytestmark = [
    pytest.mark.skipif(bool(absent), reason=f"missing: {', '.join(absent)} ({INSTALL})"),
    pytest.mark.skipif(cpu.missing() is not None, reason=f"no kernels here to compare with: {cpu.missing()}"),
]


@pytest.fixture(scope="module", params=EMULATED)
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the kernels for a set of ARM's instructions."""
    program = tmp_path_factory.mktemp(request.param) / "driver"
    (level,) = (level for level in processor.LEVELS if level.name == request.param)
    driver = Path(__file__).parent / "arm" / "driver.cpp"
    flags = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC")]
    subprocess.run([COMPILER, *flags, *level.flags, "-static", *build.SOURCES, driver, "-o", program], check=True)
    return [EMULATOR, "-cpu", EMULATED[request.param], str(program)]


def run(emulated: list[str], cases: list[bytes]) -> bytes:
    done = subprocess.run(
        emulated, input=struct.pack("q", len(cases)) + b"".join(cases), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def raw(tensor: torch.Tensor | None) -> bytes:
    return b"" if tensor is None else tensor.contiguous().view(torch.uint8).numpy().tobytes()


def case(packed: QuantizedLinear, x: torch.Tensor, threads: int) -> bytes:
    """A product as the driver reads it."""
    size = len(x) * packed.out_features * x.itemsize
    bf16 = int(x.dtype == torch.bfloat16)
    shape = (packed.bits, packed.group_size, packed.out_features, packed.in_features, bf16, len(x), size, threads)
    tensors = (packed.codes, packed.scales, packed.zeros, x, packed.bias)
    return struct.pack("8q", *shape) + b"".join(struct.pack("q", len(b)) + b for b in map(raw, tensors))


@pytest.mark.parametrize("bits", [4, 8])
def test_products_have_the_bits_of_this_processor(emulated: list[str], bits: int) -> None:
    torch.manual_seed(0)
    cases, expected = [], b""
    for group_size in (32, 96, 2**20):
        for shape in SHAPES:
            packed = QuantizedLinear.from_linear(torch.nn.Linear(*shape), bits, group_size).requires_grad_(False)
            for number, rows in enumerate((1, 2, 3, 7, 14)):
                x = torch.randn(rows, shape[0]).to((torch.float32, torch.bfloat16)[number % 2])
                cases.append(case(packed, x, threads=1 + number % 2))
                expected += raw(cpu.linear(packed.packed_weight, x, packed.bias))
    found = run(emulated, cases)
    assert len(found) == len(expected) > 10_000
    assert found == expected


def test_extreme_codes_do_not_overflow(emulated: list[str]) -> None:
    for bits in (4, 8):
        packed = QuantizedLinear(4096, 16, bits)
        packed.codes.fill_(255)
        packed.scales.fill_(1)
        x = torch.full((5, 4096), -3.0)
        assert run(emulated, [case(packed, x, 1)]) == raw(cpu.linear(packed.packed_weight, x, None))
