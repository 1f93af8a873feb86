"""The kernels for packed weights, for each set of instructions that this processor has: the very bits of the formula in
`packed.h`, which PyTorch computes here in float64."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fresh import fresh
from torch import nn

from rlrc.errors import UserError
from rlrc.native import build, processor
from rlrc.packed import cpu
from rlrc.packed.cpu.library import LIBRARY
from rlrc.packed.layers import QuantizedLinear
from rlrc.packed.layout import grouped, unpack

needs_kernels = pytest.mark.skipif(cpu.missing() is not None, reason=f"no kernels here: {cpu.missing()}")
SHAPES = [(64, 40), (100, 17), (36, 16), (1000, 33), (4304, 5), (33, 1), (1, 1)]
"""(in, out): multiples of every block, of none, and widths that end within a byte's pair."""
WHOLE_ROW = 2**20


@pytest.fixture(params=[level.name for level in processor.levels()] or ["none"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernels for one of this processor's sets of instructions are in use."""
    if cpu.missing():
        pytest.skip(f"no kernels here: {cpu.missing()}")
    monkeypatch.setenv(processor.INSTRUCTIONS, request.param)
    build._load.cache_clear()
    assert f"kernels-{request.param}-" in LIBRARY.loaded()._name
    yield request.param
    build._load.cache_clear()


def layer(in_features: int, out_features: int, bits: int, group_size: int) -> QuantizedLinear:
    torch.manual_seed(0)
    linear = nn.Linear(in_features, out_features)
    nn.init.normal_(linear.bias)
    return QuantizedLinear.from_linear(linear, bits, group_size).requires_grad_(False)


def formula(packed: QuantizedLinear, x: torch.Tensor) -> torch.Tensor:
    """What the kernels say that they compute: sums of blocks of 32 columns, added one by one in float32."""
    width = packed.in_features
    scale = x.float().abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    activations = (x.float() * (1 / scale)).round().double()
    codes = grouped(unpack(packed.codes, packed.bits, width), packed.group_size).double()
    zeros = unpack(packed.zeros, packed.bits, packed.scales.shape[1]).double()
    integers = (codes - zeros[..., None]).flatten(1)[:, :width]
    y = torch.zeros(len(x), packed.out_features)
    for start in range(0, width, cpu.BLOCK):
        block = slice(start, start + cpu.BLOCK)
        sums = activations[:, block] @ integers[:, block].T
        y = (y.double() + sums * packed.scales[:, start // packed.group_size].double()).float()
    return y * scale + packed.bias


def product(packed: QuantizedLinear, x: torch.Tensor) -> torch.Tensor:
    return cpu.linear(packed.packed_weight, x, packed.bias)


@pytest.mark.parametrize("group_size", [32, 64, 96, WHOLE_ROW])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_products_have_the_bits_of_the_formula(instructions: str, bits: int, group_size: int) -> None:
    for shape in SHAPES:
        packed = layer(*shape, bits, group_size)
        for rows in (1, 2, 3, 7, 15, 29):
            x = torch.randn(rows, shape[0])
            assert torch.equal(product(packed, x), formula(packed, x)), (shape, rows)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_extreme_codes_do_not_overflow(instructions: str, bits: int) -> None:
    """The largest codes times the largest activations, all of one sign."""
    packed = layer(4096, 16, bits, 32)
    packed.codes.fill_(255)
    packed.zeros.zero_()
    for rows in (1, 5):
        x = torch.full((rows, 4096), -3.0)
        assert torch.equal(product(packed, x), formula(packed, x))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_bfloat16_is_rounded_once(instructions: str, bits: int) -> None:
    packed = layer(100, 17, bits, 32)
    x = torch.randn(2, 9, 100).bfloat16()
    assert torch.equal(product(packed, x), product(packed, x.float()).bfloat16())


def test_rows_do_not_touch_each_other(instructions: str) -> None:
    """Zeros stay zeros, what is not finite spoils its own row alone, and a large row takes nothing from a small one."""
    packed = layer(64, 40, 4, 32)
    x = torch.randn(5, 64)
    x[1], x[2, 5], x[3], x[4, 0] = 0, torch.nan, 1e4, -torch.inf
    y = cpu.linear(packed.packed_weight, x, None)
    assert torch.equal(y[1], torch.zeros(40))
    assert y[2].isnan().all() and y[4].isnan().all()
    assert y[[0, 1, 3]].isfinite().all()
    assert torch.equal(y[:1], cpu.linear(packed.packed_weight, x[:1], None))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_neither_the_number_of_rows_nor_of_threads_changes_a_bit(instructions: str, bits: int) -> None:
    packed = layer(1000, 333, bits, 32)  # large enough for several threads
    x = torch.randn(30, 1000).bfloat16()
    expected = product(packed, x)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(product(packed, x.flip(0)), expected.flip(0))
            for rows in (1, 2, 5, 14, 23):
                assert torch.equal(product(packed, x[:rows]), expected[:rows])
    finally:
        torch.set_num_threads(before)


GUARDED = """
import ctypes, mmap
import torch
from rlrc.packed import cpu
from rlrc.packed.layers import QuantizedLinear

def guarded(tensor):
    pages = -(-tensor.nbytes // mmap.PAGESIZE)
    room = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(room)) + pages * mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(end), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    view = torch.frombuffer(room, dtype=torch.uint8)[pages * mmap.PAGESIZE - tensor.nbytes : pages * mmap.PAGESIZE]
    view.copy_(tensor.contiguous().view(torch.uint8).flatten())
    return view.view(tensor.dtype).view(tensor.shape)

torch.manual_seed(0)
for bits in (2, 3, 4, 8):
    for shape in ((64, 40), (100, 17), (36, 16), (1000, 33), (33, 1), (1, 1)):
        for rows in (1, 3, 14):
            packed = QuantizedLinear.from_linear(torch.nn.Linear(*shape), bits, 32).requires_grad_(False)
            x = torch.randn(rows, shape[0])
            expected = cpu.linear(packed.packed_weight, x, packed.bias)
            codes, scales, zeros = map(guarded, packed.packed_weight[:3])
            weight = packed.packed_weight._replace(codes=codes, scales=scales, zeros=zeros)
            assert torch.equal(cpu.linear(weight, guarded(x), guarded(packed.bias)), expected)
"""


def test_nothing_behind_a_tensor_is_read(instructions: str) -> None:
    """The tensors end where a page of memory that may not be read begins, so reading on would kill the process."""
    fresh(GUARDED)


@needs_kernels
def test_activations_of_8_bits_cost_little() -> None:
    """Rounding a normal row to 8 bits leaves a relative error near 1 / (127 * sqrt(12)) times its peak, 3 to 4."""
    packed = layer(1000, 33, 4, 32)
    x = torch.randn(29, 1000)
    exact = x @ packed.dequantize().T + packed.bias
    assert (packed(x) - exact).norm() < 0.012 * exact.norm()


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
    library.write_bytes(Path(LIBRARY.loaded()._name).read_bytes()[: -build.DIGEST_BYTES])
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
    return build._load.__wrapped__(LIBRARY)[1]


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
def test_processes_that_compile_at_once_do_not_disturb_each_other(
    cache: Path, compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(compiler))
    code = "import sys\nsys.stderr = sys.stdout\nfrom rlrc.packed import cpu\nprint(cpu.missing())"
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(fresh, [code] * 3)) == ["None\n"] * 3
    (kept,) = cache.iterdir()
    build._open(kept)


def test_the_name_in_the_cache_follows_the_instructions() -> None:
    assert len({LIBRARY.identity(level) for level in processor.LEVELS}) == len(processor.LEVELS)


@pytest.mark.parametrize(
    ("machine", "able", "expected"),
    [
        ("x86_64", "avx2 fma avx512f avx512bw avx512vl avx512_vnni", "avx512"),
        ("x86_64", "avx2 fma avx512f avx512bw avx512vl", "avx2"),
        ("x86_64", "avx2 fma avx_vnni", "avxvnni"),
        ("aarch64", "fp asimd asimddp i8mm", "i8mm"),
        ("aarch64", "fp asimd asimddp", "dotprod"),
        ("x86_64", "sse4_2", "the processor has none of avx512, avxvnni, avx2"),
        ("aarch64", "fp asimd", "the processor has none of i8mm, dotprod"),
        ("riscv64", "", "there are none for riscv64"),
    ],
)
def test_the_best_instructions_are_chosen(
    machine: str, able: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(processor.INSTRUCTIONS, raising=False)
    monkeypatch.setattr(processor, "machine", lambda: machine)
    monkeypatch.setattr(processor, "features", lambda: frozenset(able.split()))
    found = processor.level()
    assert (found if isinstance(found, str) else found.name) == expected


@pytest.mark.parametrize(
    ("machine", "able", "expected"),
    [
        ("x86_64", "avx2 fma avx512f avx512_vnni", False),
        ("x86_64", "avx2 fma avx512f avx512_vnni avx512_bf16", True),
        ("x86_64", "avx2 fma amx_bf16", True),
        ("aarch64", "asimddp i8mm", False),
        ("aarch64", "asimddp i8mm bf16", True),
        ("riscv64", "", True),
    ],
)
def test_bfloat16_is_left_to_processors_with_instructions_for_it(
    machine: str, able: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(processor.ONEDNN, raising=False)
    monkeypatch.setattr(processor, "machine", lambda: machine)
    monkeypatch.setattr(processor, "features", lambda: frozenset(able.split()))
    assert processor.multiplies_bfloat16() is expected


@pytest.mark.parametrize(
    ("held_to", "expected"),
    [("AVX2", False), ("avx512_core_vnni", False), ("AVX512_CORE_AMX", True), ("DEFAULT", True)],
)
def test_bfloat16_is_left_to_onednn_as_far_as_it_is_allowed(
    held_to: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(processor.ONEDNN, held_to)
    monkeypatch.setattr(processor, "machine", lambda: "x86_64")
    monkeypatch.setattr(processor, "features", lambda: frozenset({"avx512_bf16"}))
    assert processor.multiplies_bfloat16() is expected


def test_instructions_that_the_processor_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(processor.INSTRUCTIONS, "mmx")
    with pytest.raises(UserError, match="RLRC_INSTRUCTIONS=mmx is not a level of this processor"):
        processor.level()


@needs_kernels
def test_without_a_compiler_there_is_a_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "COMPILER", ["no-such-compiler"])
    assert "no C++ compiler ('no-such-compiler'" in (load_anew() or "")
    monkeypatch.setattr(build, "COMPILER", [sys.executable])  # it knows none of the flags
    assert f"'{sys.executable}' failed" in (load_anew() or "")
    assert not cache.exists()
