"""Packed weights: exact codes, bounded error, bytes that are really saved, and equal logits after loading anywhere."""

import ast
import inspect
import json
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fresh import fresh
from safetensors.torch import load_file, save_file
from torch import nn

import rlrc
from rlrc.configs.quantize import Part
from rlrc.configs.train import Shape
from rlrc.errors import UserError
from rlrc.packed.layers import QuantizedLinear, count_parameters, empty_packed, replace_linears
from rlrc.packed.layout import pack, packed_width, quantize_groups, unpack
from rlrc.policies.contract import Policy
from rlrc.policies.folder import stored_bytes
from rlrc.policies.openvla.tiny import new_policy
from rlrc.quantize import QuantizeConfig, linear_names, quantize, quantize_linears, sqnr_db

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
INSTRUCTIONS = ["put carrot on plate", "put red cube on plate"]

FRESH = """
import json, sys, numpy as np, torch, rlrc
images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
policy = rlrc.load(sys.argv[1])
inputs = policy.prepare(policy.observation(images, ["put carrot on plate", "put red cube on plate"]))
tokens = policy.sample(inputs).latent["tokens"][:, 0]
from transformers import AutoModelForImageTextToText
auto = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype="auto").eval()
with torch.no_grad():
    print(json.dumps([model.action_logits(inputs, tokens)[0].tolist() for model in (policy.model, auto)]))
"""


def linear(in_features: int, out_features: int, bias: bool = False) -> nn.Linear:
    torch.manual_seed(in_features)
    return nn.Linear(in_features, out_features, bias=bias)


# -- the layer ---------------------------------------------------------------------------------------------------------


BITS = [2, 3, 4, 8]


def code_at(row: torch.Tensor, index: int, bits: int) -> int:
    """The code of a column, read from the row's bytes as one long integer."""
    return int.from_bytes(bytes(row.tolist()), "little") >> index * bits & (2**bits - 1)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("width", [1, 2, 5, 7, 8, 11, 64])
def test_packing_matches_one_long_integer(width: int, bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, width), dtype=torch.uint8)
    packed = pack(codes, bits)
    for row in range(3):
        number = sum(int(code) << bits * column for column, code in enumerate(codes[row]))
        assert bytes(packed[row].tolist()) == number.to_bytes((width * bits + 7) // 8, "little")
    assert packed.shape[1] == packed_width(width, bits) and packed.is_contiguous()
    assert torch.equal(unpack(packed, bits, width), codes)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("in_features", "group_size"), [(64, 32), (70, 32), (51, 16), (10, 128)])
def test_dequantize_matches_the_formula_written_out(bits: int, in_features: int, group_size: int) -> None:
    layer = QuantizedLinear.from_linear(linear(in_features, 5), bits, group_size)
    weight = layer.dequantize()
    for row in range(5):
        for column in range(in_features):
            group = column // group_size
            code, zero = code_at(layer.codes[row], column, bits), code_at(layer.zeros[row], group, bits)
            expected = (code - zero) * float(layer.scales[row, group])
            assert float(weight[row, column]) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("bits", BITS)
def test_error_is_half_a_step_where_nothing_is_clipped(bits: int) -> None:
    weight = torch.randn(50, 3, 32, generator=torch.Generator().manual_seed(0))
    codes, scales, zeros = quantize_groups(weight, bits)
    scale, zero = scales.float()[..., None], zeros[..., None].float()
    inside = (codes > 0) & (codes < 2**bits - 1)
    error = ((codes.float() - zero) * scale - weight).abs()
    assert inside.float().mean() > {2: 0.4, 3: 0.6, 4: 0.7, 8: 0.7}[bits]
    assert (error <= scale / 2 * (1 + 1e-5))[inside].all()


def test_the_search_over_ranges_beats_the_plain_range() -> None:
    weight = torch.randn(200, 2, 32, generator=torch.Generator().manual_seed(0))
    low, high = weight.amin(-1, keepdim=True).clamp(max=0), weight.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 15).bfloat16().float()
    zero = (-low / scale).round()
    plain = ((weight / scale + zero).round().clamp(0, 15) - zero) * scale
    codes, scales, zeros = quantize_groups(weight, bits=4)
    found = (codes.float() - zeros[..., None].float()) * scales.float()[..., None]
    assert sqnr_db(weight, found) > sqnr_db(weight, plain) + 0.2
    assert (((found - weight) ** 2).sum(-1) <= ((plain - weight) ** 2).sum(-1) * (1 + 1e-5)).all()


def test_zeros_and_all_zero_groups_stay_exact() -> None:
    layer = linear(64, 4)
    layer.weight.data[:, 32:] = 0
    layer.weight.data[0] = 0
    layer.weight.data[1, 3] = 0
    weight = QuantizedLinear.from_linear(layer).dequantize()
    assert (weight[layer.weight == 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", BITS)
def test_forward_is_the_product_with_the_dequantized_weight(bits: int, dtype: torch.dtype) -> None:
    layer = QuantizedLinear.from_linear(linear(70, 9, bias=True), bits)
    x = torch.randn(2, 3, 70)
    expected = x @ layer.dequantize().T + layer.bias
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    out = layer(x.to(dtype).requires_grad_())  # the kernels have no gradient, so this is the plain path
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, **tolerance)


def test_casting_the_model_leaves_the_packed_bytes_alone() -> None:
    layer = QuantizedLinear.from_linear(linear(64, 8, bias=True))
    before = {name: tensor.clone() for name, tensor in layer.named_buffers()}
    layer.half().float().to(torch.float64)
    assert layer.bias.dtype == torch.float64
    assert all(tensor.dtype == before[name].dtype for name, tensor in layer.named_buffers())
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.named_buffers())
    assert layer.nbytes == 8 * 64 * (4 + (16 + 4) / 32) / 8


def test_empty_layers_on_the_meta_device_take_a_state_dict() -> None:
    packed = nn.Sequential(QuantizedLinear.from_linear(linear(40, 6, bias=True)))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(40, 6))
    replace_linears(empty, ["0"], bits=4, group_size=32)
    empty.load_state_dict(packed.state_dict(), assign=True)
    x = torch.randn(3, 40)
    assert torch.equal(empty(x), packed(x))
    with pytest.raises(UserError, match="names '1'"):
        replace_linears(empty, ["1"], bits=4, group_size=32)


def test_unknown_widths_are_refused() -> None:
    for bits in (1, 5, True, 4.0, "4", None, [4] * 10**6):
        with pytest.raises(UserError, match="2, 3, 4 or 8 bits") as error:
            QuantizedLinear(8, 8, bits=bits)
        assert len(str(error.value)) < 500
    for group_size in (0, -32, 2**20 + 1, 10**400, True, 32.0, "32", None, {}):
        with pytest.raises(UserError, match="groups of 1 to 1,048,576 weights") as error:
            QuantizedLinear(8, 8, group_size=group_size)
        assert len(str(error.value)) < 500


def test_a_group_may_be_wider_than_the_layer_and_takes_no_more_memory() -> None:
    dense, x = linear(70, 9), torch.randn(3, 70)
    wide, whole = (QuantizedLinear.from_linear(dense, group_size=size) for size in (2**20, 70))
    assert wide.nbytes == whole.nbytes
    assert torch.equal(wide.codes, whole.codes) and torch.equal(wide.dequantize(), whole.dequantize())
    torch.testing.assert_close(wide(x), whole(x), rtol=0.02, atol=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("bits", [4, 8])
def test_cuda_packs_as_the_processor_does_and_multiplies_what_is_packed(bits: int) -> None:
    dense, x = linear(128, 64, bias=True), torch.randn(5, 128)
    here = QuantizedLinear.from_linear(dense, bits)
    there = QuantizedLinear.from_linear(dense.cuda(), bits)
    assert (here.codes == there.codes.cpu()).float().mean() > 0.999
    expected = F.linear(x, here.dequantize(), here.bias)
    torch.testing.assert_close(here.to("cuda")(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_a_packed_convolution_is_one_with_the_dequantized_kernels(bits: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=2, groups=2)
    packed = empty_packed(conv, bits, group_size=16).fill(conv)
    kernels = packed.dequantize().view(8, 3, 3, 3)
    assert sqnr_db(conv.weight.detach(), kernels) > {2: 5, 3: 11, 4: 18, 8: 40}[bits]
    x = torch.randn(2, 6, 9, 8)
    expected = nn.functional.conv2d(x, kernels, conv.bias, stride=2, padding=1, dilation=2, groups=2)
    torch.testing.assert_close(packed(x), expected)
    assert packed.nbytes < 2 * conv.weight.numel()
    with pytest.raises(UserError, match="pads by 'reflect'"):
        empty_packed(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), bits, group_size=16)


# -- the verb ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random policy whose widths are multiples of 32."""
    shape = Shape(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    path = tmp_path_factory.mktemp("dense") / "checkpoint"
    statistics = {"q01": [-1.0] * 7, "q99": [1.0] * 7}
    new_policy(shape, INSTRUCTIONS, {"tabletop": {"action": statistics}}).save(path)
    return path


def logits(policy: Policy) -> torch.Tensor:
    inputs = policy.prepare(policy.observation(IMAGES, INSTRUCTIONS))
    with torch.no_grad():
        return policy.model.action_logits(inputs, policy.sample(inputs).latent["tokens"][:, 0])[0]


@pytest.mark.parametrize(("bits", "largest"), [(2, 0.18), (3, 0.24), (4, 0.3), (8, 0.55)])
def test_bytes_are_saved_on_disk_and_in_memory(checkpoint: Path, tmp_path: Path, bits: Any, largest: float) -> None:
    result = quantize(QuantizeConfig(policy=checkpoint, bits=bits), tmp_path)
    prefix = "language_model.model.layers."
    dense = {name: t for name, t in load_file(checkpoint / "model.safetensors").items() if name.startswith(prefix)}
    saved = load_file(tmp_path / "checkpoint" / "model.safetensors")
    packed = {name: t for name, t in saved.items() if name.rpartition(".")[2] in ("codes", "scales", "zeros")}
    replaced = 2 * sum(t.numel() for name, t in dense.items() if "_proj" in name)
    assert result["replaced"]["bf16"] == replaced and result["replaced"]["layers"] == 14
    assert sum(t.nbytes for t in packed.values()) == result["replaced"]["disk"] <= largest * replaced
    assert not [name for name in saved if "_proj.weight" in name]

    policy = rlrc.load(tmp_path / "checkpoint")
    in_memory = [m.nbytes for m in policy.model.modules() if isinstance(m, QuantizedLinear)]
    assert sum(in_memory) == result["replaced"]["memory"] == result["replaced"]["disk"]
    total = sum(t.nbytes for t in policy.model.state_dict().values())
    assert total == result["total"]["after"]["memory"] == sum(stored_bytes(tmp_path / "checkpoint").values())
    assert count_parameters(policy.model) == count_parameters(rlrc.load(checkpoint).model)
    least = {2: 5.0, 3: 11.0, 4: 18.0, 8: 40.0}[bits]
    assert all(layer["sqnr_db"] > least for layer in result["per_layer"])


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_fresh_process_computes_equal_logits(checkpoint: Path, tmp_path: Path, bits: Any) -> None:
    """By `rlrc.load` and by transformers' Auto classes."""
    quantize(QuantizeConfig(policy=checkpoint, bits=bits), tmp_path)
    path = tmp_path / "checkpoint"
    here = logits(rlrc.load(path))
    for there in json.loads(fresh(FRESH, path)):
        assert torch.equal(torch.tensor(there), here)


def test_every_part_can_be_packed_and_8_bits_change_little(checkpoint: Path, tmp_path: Path) -> None:
    dense = rlrc.load(checkpoint)
    assert set(dense.parts) <= set(get_args(Part)), "a part that nobody can name"
    result = quantize(QuantizeConfig(policy=checkpoint, bits=8, parts=tuple(dense.parts)), tmp_path)
    names = {layer["name"] for layer in result["per_layer"]}
    assert {dense.part_of(name) for name in names} == set(dense.parts)
    assert any("patch_embed.proj" in name for name in names)
    packed = rlrc.load(tmp_path / "checkpoint")
    inputs = dense.prepare(dense.observation(IMAGES, INSTRUCTIONS))
    tokens = dense.sample(inputs).latent["tokens"][:, 0]
    with torch.no_grad():
        expected, found = (policy.model.action_logits(inputs, tokens)[0] for policy in (dense, packed))
    assert sqnr_db(expected, found) > 30


def test_what_is_not_to_be_converted_stays_and_is_named(checkpoint: Path, tmp_path: Path) -> None:
    config = QuantizeConfig(policy=checkpoint, parts=("vision",), modules_to_not_convert=("patch_embed",))
    result = quantize(config, tmp_path)
    assert result["left_dense"] and all("patch_embed" in name for name in result["left_dense"])
    assert not any("patch_embed" in layer["name"] for layer in result["per_layer"])
    before, after = rlrc.load(checkpoint).model, rlrc.load(tmp_path / "checkpoint").model
    with pytest.raises(UserError, match="'stem9' is in the name of no layer"):
        quantize(QuantizeConfig(policy=checkpoint, modules_to_not_convert=("stem9",)), tmp_path / "typo")
    with pytest.raises(UserError, match="this policy has no action_head; it has decoder, vision"):
        quantize(QuantizeConfig(policy=checkpoint, parts=("decoder", "action_head")), tmp_path / "typo")
    for name in result["left_dense"]:
        assert torch.equal(before.get_submodule(name).weight, after.get_submodule(name).weight)


def test_a_layer_that_would_not_shrink_is_left_dense_and_named(
    tiny_policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for layer in tiny_policy.model.language_model.model.layers:
        layer.mlp.gate_proj, layer.mlp.up_proj = linear(40, 1), linear(40, 1)
        layer.mlp.down_proj = linear(1, 40)
    text_config = tiny_policy.model.config.text_config
    text_config.per_layer_config = {index: {"intermediate_size": 1} for index in range(3)}
    tiny_policy.save(tmp_path / "narrow")
    result = quantize(QuantizeConfig(policy=tmp_path / "narrow"), tmp_path)
    name = "language_model.model.layers.1.mlp.down_proj"
    assert name in result["left_dense"] and len(result["left_dense"]) == 3
    assert f"left dense: {name}" in capsys.readouterr().err
    reloaded = rlrc.load(tmp_path / "checkpoint")
    assert isinstance(reloaded.model.get_submodule(name), nn.Linear)


def test_bad_input_is_told_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    quantize(QuantizeConfig(policy=checkpoint), tmp_path / "once")
    with pytest.raises(UserError, match="quantized already"):
        quantize(QuantizeConfig(policy=tmp_path / "once" / "checkpoint"), tmp_path / "twice")
    policy = rlrc.load(checkpoint)
    names = linear_names(policy, ["decoder"])
    policy.model.get_submodule(names[3]).weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=f"'{names[3]}.weight' holds NaN"):
        quantize_linears(policy.model, names, bits=4, group_size=32)
    for values in ({"bits": 5}, {"group_size": 0}, {"parts": ["hands"]}, {"parts": []}):
        with pytest.raises(UserError):
            QuantizeConfig.parse({"policy": "p", **values}, "recipe")


def test_a_wrong_shaped_packed_tensor_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    quantize(QuantizeConfig(policy=checkpoint), tmp_path)
    path = tmp_path / "checkpoint" / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if name.endswith("codes"))
    save_file({**state, name: state[name][:, :-1].contiguous()}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="has shape"):
        rlrc.load(tmp_path / "checkpoint")


NAMES = ("arange", "empty", "eye", "from_numpy", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros")
MAKERS = {f"torch.{name}" for name in NAMES}


@pytest.mark.parametrize("module", ["quantize", "quantize.gptq", "packed.layers", "packed.layout"])
def test_every_tensor_is_made_on_the_device_of_the_weights(module: str) -> None:
    """`quantize --device cuda` computes there: what a function makes names its device."""
    source = inspect.getsource(import_module(f"rlrc.{module}"))
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    calls = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.Call)]
    for call in calls:
        if ast.unparse(call.func) in MAKERS:
            assert any(keyword.arg == "device" for keyword in call.keywords), ast.unparse(call)
