"""The kernels for packed weights against the same integers in float64, and against the weight they stand for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rlrc import kernels
from rlrc.kernels import build
from rlrc.policies.parts.linear import QuantizedLinear, unpack

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
        few = kernels.product(packed.packed_weight, x, packed.bias, matrix=False)
        torch.testing.assert_close(few.double(), by_groups(packed, x), rtol=1e-4, atol=1e-4)
        # A weight that lies half-way between two steps can go either way.
        many = kernels.product(packed.packed_weight, x, packed.bias, matrix=True)
        assert (many.double() - by_rows(packed, x)).norm() < 2e-3 * many.double().norm()


@needs_kernels
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("matrix", [False, True], ids=["vector", "matrix"])
def test_bfloat16_is_rounded_once(bits: int, matrix: bool) -> None:
    packed = layer(100, 17, bits, 32)
    x = torch.randn(2, 9, 100).bfloat16()
    exact = kernels.product(packed.packed_weight, x.float(), packed.bias, matrix)
    assert torch.equal(kernels.product(packed.packed_weight, x, packed.bias, matrix), exact.bfloat16())


@needs_kernels
@pytest.mark.parametrize("matrix", [False, True], ids=["vector", "matrix"])
def test_rows_do_not_touch_each_other(matrix: bool) -> None:
    """Zeros stay zeros, a NaN spoils its own row alone, and a large row takes nothing from a small one."""
    packed = layer(64, 40, 4, 32)
    x = torch.randn(4, 64)
    x[1], x[2, 5], x[3] = 0, torch.nan, 1e4
    y = kernels.product(packed.packed_weight, x, None, matrix)
    assert torch.equal(y[1], torch.zeros(40))
    assert y[2].isnan().all()
    assert torch.equal(y[:1], kernels.product(packed.packed_weight, x[:1], None, matrix))


@needs_kernels
def test_activations_of_8_bits_cost_little() -> None:
    """Rounding a normal row to 8 bits leaves a relative error near 1 / (127 * sqrt(12)) times its peak, 3 to 4."""
    packed = layer(1000, 33, 4, 32)
    x = torch.randn(29, 1000)
    exact = x @ packed.dequantize().T + packed.bias
    assert (packed(x) - exact).norm() < 0.012 * exact.norm()


@needs_kernels
@pytest.mark.parametrize("bits", [4, 8])
def test_the_number_of_rows_chooses_the_kernel(bits: int) -> None:
    packed = layer(1000, 33, bits, 32)
    x = torch.randn(kernels.MATRIX_ROWS, 1000)
    vector, matrix = (kernels.product(packed.packed_weight, x, packed.bias, matrix) for matrix in (False, True))
    assert not torch.equal(vector, matrix)
    assert torch.equal(packed(x), matrix)
    assert torch.equal(packed(x[:-1]), vector[:-1])
    assert torch.equal(packed(x.unflatten(0, (2, -1))), matrix.unflatten(0, (2, -1)))


@needs_kernels
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("matrix", [False, True], ids=["vector", "matrix"])
def test_neither_other_rows_nor_threads_change_a_bit(matrix: bool, bits: int) -> None:
    packed = layer(1000, 333, bits, 32)  # large enough for several threads
    x = torch.randn(30, 1000).bfloat16()

    def product(x: torch.Tensor) -> torch.Tensor:
        return kernels.product(packed.packed_weight, x, packed.bias, matrix)

    expected = product(x)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(product(x.flip(0)), expected.flip(0))
            for rows in (1, 5, 14):
                assert torch.equal(product(x[:rows]), expected[:rows])
    finally:
        torch.set_num_threads(before)


# -- how they are compiled ---------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own, still absent."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rlrc"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A quick compiler: it gives the library that this process has loaded, and writes a line to the log beside it."""
    library = tmp_path / "library.so"
    library.write_bytes(Path(build.library()._name).read_bytes()[: -build.DIGEST_BYTES])
    script = tmp_path / "compiler"
    script.write_text(f'#!/bin/bash\necho compiled >> "{script}.log"\nsleep 0.2\ncp "{library}" "${{@: -1}}"\n')
    script.chmod(0o755)
    monkeypatch.setattr(build, "COMPILER", [str(script)])
    return script


def times_compiled(compiler: Path) -> int:
    log = compiler.with_name("compiler.log")
    return len(log.read_text().splitlines()) if log.exists() else 0


def load_anew() -> str | None:
    """What a process does that needs the kernels first; why there are none."""
    return build._load.__wrapped__()[1]


@needs_kernels
def test_they_are_compiled_once_and_a_damaged_library_again(cache: Path, compiler: Path) -> None:
    assert load_anew() is None and load_anew() is None
    assert times_compiled(compiler) == 1
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    damages = whole[: len(whole) // 2], b"", whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    for number, damaged in enumerate(damages):
        kept.unlink()  # this process has the file mapped
        kept.write_bytes(damaged)
        assert load_anew() is None
        assert times_compiled(compiler) == 2 + number
        assert list(cache.iterdir()) == [kept] and kept.read_bytes() == whole


@needs_kernels
@pytest.mark.parametrize("home", [True, False], ids=["a file is in the way", "the user has no home"])
def test_without_a_cache_folder_they_are_compiled_and_the_reason_is_told(
    home: bool, cache: Path, compiler: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if home:
        cache.parent.write_text("a file is in the way")
    else:

        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(build, "cache_folder", no_home)
    assert load_anew() is None
    told = capsys.readouterr().err
    assert "cannot be kept" in told and ("Not a directory" if home else "home directory") in told
    assert len(told.splitlines()) == 1 and times_compiled(compiler) == 1


@needs_kernels
def test_processes_that_compile_at_once_do_not_disturb_each_other(cache: Path, compiler: Path) -> None:
    code = (  # the file alone: the package would import torch
        "import sys, importlib.util as util\n"
        "spec = util.spec_from_file_location('build', sys.argv[1])\n"
        "build = util.module_from_spec(spec)\nspec.loader.exec_module(build)\nprint(build.missing())"
    )
    command = [sys.executable, "-c", code, build.__file__]
    environment = {**os.environ, "CXX": str(compiler)}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    assert [process.communicate() for process in processes] == [("None\n", "")] * 3
    (kept,) = cache.iterdir()
    build._open(kept)


def test_the_name_in_the_cache_follows_what_the_processor_can_do() -> None:
    """AMD gives several generations one name, and ARM none at all."""
    epyc = {"model name": "AMD EPYC", "flags": "avx2 avx512f"}
    arm = {"CPU part": "0xd0b", "Features": "fp asimd"}
    different = [epyc, {**epyc, "flags": "avx2"}, arm, {**arm, "Features": "fp asimd i8mm"}, {**arm, "CPU part": "1"}]
    assert len({build.identity(cpuinfo) for cpuinfo in different}) == len(different)
    same = {"flags": "avx512f avx2", "model name": "AMD EPYC", "cpu MHz": "2500.1", "processor": "7"}
    assert build.identity(same) == build.identity(epyc)


@needs_kernels
def test_without_a_compiler_there_is_a_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "COMPILER", ["no-such-compiler"])
    assert "no C++ compiler ('no-such-compiler'" in (load_anew() or "")
    monkeypatch.setattr(build, "COMPILER", [sys.executable])  # it knows none of the flags
    assert f"'{sys.executable}' failed" in (load_anew() or "")
    assert not cache.exists()
