"""The kernels for ARM, compiled here and run by an emulator: products have the bits of this processor's kernels."""

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from rlrc.native import build, processor
from rlrc.packed import cpu
from rlrc.packed.cpu.decode import PRODUCTS, LayerWeights, LinearWeights, TokenDecoder
from rlrc.packed.cpu.library import HERE
from rlrc.packed.layers import QuantizedLinear
from rlrc.packed.layout import PackedWeight

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
EMULATED = {"dotprod": "cortex-a76", "i8mm": "max"}
"""The processor that the emulator plays, for each set of instructions. The first knows no i8mm."""
SHAPES = [(64, 40), (100, 17), (36, 16), (1000, 33), (4304, 5), (33, 1), (1, 1)]
PRODUCT, TOKEN = 0, 1

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
    subprocess.run([COMPILER, *flags, *level.flags, "-static", f"-I{HERE}", driver, "-o", program], check=True)
    return [EMULATOR, "-cpu", EMULATED[request.param], str(program)]


def run(emulated: list[str], cases: list[bytes]) -> bytes:
    given = struct.pack("q", len(cases)) + b"".join(cases)
    done = subprocess.run(emulated, input=given, capture_output=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr.decode())
    return done.stdout


def raw(tensor: torch.Tensor | None) -> bytes:
    return b"" if tensor is None else tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def sized(*tensors: torch.Tensor | None) -> bytes:
    return b"".join(struct.pack("q", len(found)) + found for found in map(raw, tensors))


def linear(weight: PackedWeight | torch.Tensor, bias: torch.Tensor | None) -> bytes:
    if isinstance(weight, PackedWeight):
        shape = (weight.bits, weight.group_size, weight.out_features, weight.in_features)
        return struct.pack("4q", *shape) + sized(weight.codes, weight.scales, weight.zeros, bias)
    return struct.pack("4q", 16, 0, *weight.shape) + sized(weight, None, None, bias)


def product(packed: QuantizedLinear, x: torch.Tensor, threads: int) -> bytes:
    numbers = struct.pack("3q", int(x.dtype == torch.bfloat16), len(x), threads)
    return struct.pack("q", PRODUCT) + linear(packed.packed_weight, packed.bias) + numbers + sized(x)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_products_have_the_bits_of_this_processor(emulated: list[str], bits: int) -> None:
    torch.manual_seed(0)
    cases, expected = [], b""
    for group_size in (32, 96, 2**20):
        for shape in SHAPES:
            packed = QuantizedLinear.from_linear(torch.nn.Linear(*shape), bits, group_size).requires_grad_(False)
            for number, rows in enumerate((1, 2, 3, 7, 14)):
                x = torch.randn(rows, shape[0]).to((torch.float32, torch.bfloat16)[number % 2])
                cases.append(product(packed, x, threads=1 + number % 2))
                expected += raw(cpu.linear(packed.packed_weight, x, packed.bias))
    found = run(emulated, cases)
    assert len(found) == len(expected) > 10_000
    assert found == expected


def test_extreme_codes_do_not_overflow(emulated: list[str]) -> None:
    for bits in (2, 3, 4, 8):
        packed = QuantizedLinear(4096, 16, bits)
        packed.codes.fill_(255)
        packed.scales.fill_(1)
        x = torch.full((5, 4096), -3.0)
        assert run(emulated, [product(packed, x, 1)]) == raw(cpu.linear(packed.packed_weight, x, None))


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_a_token_is_decoded_as_here(emulated: list[str], bits: int) -> None:
    """Within what the exponential functions of two C libraries differ."""
    torch.manual_seed(0)
    width, inner, heads, shared, dim, position = 88, 104, 4, 2, 22, 3
    outputs = {"q": heads * dim, "k": shared * dim, "v": shared * dim, "gate": inner, "up": inner}
    dense = {name: torch.nn.Linear(width, size) for name, size in outputs.items()}
    dense |= {"o": torch.nn.Linear(heads * dim, width), "down": torch.nn.Linear(inner, width)}
    weights = {
        name: layer.weight.detach().bfloat16() if bits == 16 else QuantizedLinear.from_linear(layer, bits).packed_weight
        for name, layer in dense.items()
    }
    products = {name: LinearWeights(weights[name], dense[name].bias.detach()) for name in PRODUCTS}
    norms = [torch.rand(width).bfloat16() + 0.5 for _ in range(2)]
    keys, values = (torch.randn(shared, 9, dim).bfloat16() for _ in range(2))
    hidden, cosine, sine = torch.randn(width), torch.randn(dim), torch.randn(dim)
    numbers = struct.pack("7q", TOKEN, heads, shared, dim, position, 9, 2)
    linears = b"".join(linear(weights[name], dense[name].bias) for name in PRODUCTS)
    given = numbers + sized(*norms) + linears + sized(keys, values, hidden, cosine, sine)
    found = np.frombuffer(run(emulated, [given]), np.float32)
    decoder = TokenDecoder([LayerWeights(*norms, products, dim)], [keys], [values], 1e-6)
    expected = decoder.advance(hidden, cosine, sine, position).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    assert np.abs(expected - hidden.numpy()).max() > 0.1
