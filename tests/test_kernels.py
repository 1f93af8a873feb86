"""The kernels for packed weights against the same integers in float64, and against the weight they stand for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rlrc import kernels
from rlrc.kernels import choice
from rlrc.models.linear import QuantizedLinear, unpack

needs_kernels = pytest.mark.skipif(kernels.missing() is not None, reason=f"no kernels here: {kernels.missing()}")
SHAPES = [(64, 40), (100, 17), (36, 16), (1000, 33), (4304, 5)]
"""(in, out): multiples of every block, of none, and widths that end within a byte's pair."""


def layer(in_features: int, out_features: int, bits: int, group_size: int) -> QuantizedLinear:
    torch.manual_seed(0)
    linear = nn.Linear(in_features, out_features)
    nn.init.normal_(linear.bias)
    return QuantizedLinear.from_linear(linear, bits, group_size).requires_grad_(False)


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations (rows, in) as int8 codes, float64, and their scales (rows, 1)."""
    scale = x.float().abs().amax(-1, keepdim=True) / 127
    return (x.float() * (1 / scale)).round().double(), scale.double()


def by_groups(packed: QuantizedLinear, x: torch.Tensor) -> torch.Tensor:
    codes, scale = rounded(x)
    return codes @ packed.dequantize().double().T * scale + packed.bias.double()


def by_rows(packed: QuantizedLinear, x: torch.Tensor) -> torch.Tensor:
    """The weight's rows first become 8 bits, the largest value that the codes of a row can stand for being 127."""
    top = 2**packed.bits - 1
    zeros = unpack(packed.zeros, packed.bits, packed.scales.shape[1]).float()
    unit = (packed.scales.float() * torch.maximum(zeros, top - zeros)).amax(-1, keepdim=True) / 127
    weight = (packed.dequantize() / unit).round().double()
    codes, scale = rounded(x)
    return codes @ weight.T * unit.double().T * scale + packed.bias.double()


@needs_kernels
@pytest.mark.parametrize("group_size", [32, 64, 96])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_same_integers(shape: tuple[int, int], bits: int, group_size: int) -> None:
    packed = layer(*shape, bits, group_size)
    for rows in (1, 4, 6, 15, 29):
        x = torch.randn(rows, shape[0])
        few = kernels.product(packed.packed_weight, x, packed.bias, many=False)
        torch.testing.assert_close(few.double(), by_groups(packed, x), rtol=1e-4, atol=1e-4)
        # A weight that lies half-way between two steps can go either way.
        many = kernels.product(packed.packed_weight, x, packed.bias, many=True)
        assert (many.double() - by_rows(packed, x)).norm() < 2e-3 * many.double().norm()


@needs_kernels
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
def test_bfloat16_is_rounded_once(bits: int, many: bool) -> None:
    packed = layer(100, 17, bits, 32)
    x = torch.randn(2, 9, 100).bfloat16()
    exact = kernels.product(packed.packed_weight, x.float(), packed.bias, many)
    assert torch.equal(kernels.product(packed.packed_weight, x, packed.bias, many), exact.bfloat16())


@needs_kernels
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_weight_comes_back(shape: tuple[int, int], bits: int) -> None:
    packed = layer(*shape, bits, 32)
    assert torch.equal(kernels.unpack(packed.packed_weight), packed.dequantize().bfloat16())


@needs_kernels
@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
def test_rows_do_not_touch_each_other(many: bool) -> None:
    """Zeros stay zeros, a NaN spoils its own row alone, and a large row takes nothing from a small one."""
    packed = layer(64, 40, 4, 32)
    x = torch.randn(4, 64)
    x[1], x[2, 5], x[3] = 0, torch.nan, 1e4
    y = kernels.product(packed.packed_weight, x, None, many)
    assert torch.equal(y[1], torch.zeros(40))
    assert y[2].isnan().all()
    assert torch.equal(y[:1], kernels.product(packed.packed_weight, x[:1], None, many))


@needs_kernels
def test_activations_of_8_bits_cost_little() -> None:
    """Rounding a normal row to 8 bits leaves a relative error near 1 / (127 * sqrt(12)) times its peak, 3 to 4."""
    packed = layer(1000, 33, 4, 32)
    x = torch.randn(29, 1000)
    exact = x @ packed.dequantize().T + packed.bias
    assert (packed(x) - exact).norm() < 0.012 * exact.norm()


@needs_kernels
def test_the_fastest_is_measured_once(tmp_path: Path) -> None:
    """A fresh machine measures and keeps the table; the next process reads it, and choices follow it."""
    code = "from rlrc.kernels import choice; import json; print(json.dumps(choice.table(1)))"
    run = [sys.executable, "-c", code]
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    first, second = (
        json.loads(subprocess.run(run, env=environment, capture_output=True, check=True).stdout) for _ in range(2)
    )
    assert first == second
    assert set(first) == {f"{bits}-bit, {width} x {width}" for bits in (4, 8) for width in choice.WIDTHS}
    weight = layer(64, 40, 4, 32).packed_weight
    times = choice.table(torch.get_num_threads())[f"4-bit, {choice.WIDTHS[0]} x {choice.WIDTHS[0]}"]
    for column, rows in enumerate(choice.ROWS):
        assert choice.choose(weight, rows) == min(times, key=lambda kernel: times[kernel][column])


def test_without_a_compiler_there_is_a_reason(tmp_path: Path) -> None:
    code = "from rlrc import kernels; print(kernels.missing())"
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "CXX": "no-such-compiler"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if kernels.missing() is None:
        assert "no C++ compiler ('no-such-compiler'" in done.stdout, done.stderr
    else:
        assert done.stdout.strip() != "None"
