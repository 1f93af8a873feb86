"""Products in float32 from weights in bfloat16, on processors that are slow at bfloat16."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rlrc.packed import reference
from rlrc.packed.layers import QuantizedConv2d
from rlrc.policies import checkpoint
from rlrc.policies.contract import Policy
from rlrc.policies.wide import FEWEST_ROWS, WideConv2d, WideLinear, widen_products
from rlrc.prune.calibrate import fill_around_decoder
from rlrc.prune.groups import chain_of
from rlrc.prune.stream import StoredBlocks


@pytest.mark.parametrize("bias", [True, False])
def test_products_of_many_rows_are_those_of_float32_rounded_once(bias: bool) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(300, 40, bias=bias)).bfloat16()
    wide = copy.deepcopy(dense)
    widen_products(wide)
    assert wide.state_dict().keys() == dense.state_dict().keys()
    x = torch.randn(2, FEWEST_ROWS, 300).bfloat16()
    weight, shift = dense[0].weight.float(), dense[0].bias.float() if bias else None
    assert torch.equal(wide(x), F.linear(x.float(), weight, shift).bfloat16())
    few = x[0, : FEWEST_ROWS - 1]
    assert torch.equal(wide(few), dense(few))
    assert torch.equal(wide.float()(x.float()), dense.float()(x.float()))


@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_are_those_of_float32_rounded_once(bias: bool) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=bias)).bfloat16()
    wide = copy.deepcopy(dense)
    widen_products(wide)
    assert wide.state_dict().keys() == dense.state_dict().keys()
    x = torch.randn(2, 3, 9, 9).bfloat16()
    weight, shift = dense[0].weight.float(), dense[0].bias.float() if bias else None
    exact = F.conv2d(x.float(), weight, shift, stride=2, padding=1)
    assert torch.equal(wide(x), exact.bfloat16())
    assert torch.equal(wide.float()(x.float()), exact)


@pytest.mark.parametrize("fast", [True, False])
def test_packed_convolutions_are_too(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "multiplies_bfloat16", lambda: fast)
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1).bfloat16()
    packed = QuantizedConv2d.empty_like(conv, 4, 32).fill(conv)
    x = torch.randn(2, 3, 9, 9).bfloat16()
    dtype = torch.bfloat16 if fast else torch.float32
    exact = F.conv2d(x.to(dtype), packed.dense(dtype).weight, conv.bias.to(dtype), stride=2, padding=1)
    assert torch.equal(packed(x), exact.bfloat16())


def test_master_weights_in_float32_are_left_to_autocast() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(300, 40))
    wide = copy.deepcopy(dense)
    widen_products(wide)
    x = torch.randn(FEWEST_ROWS, 300).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(wide(x), dense(x))


def test_it_has_the_gradient_of_float32() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(30, 4)).bfloat16()
    widen_products(wide)
    x = torch.randn(FEWEST_ROWS, 30).bfloat16()
    wide(x).float().square().sum().backward()
    weight = wide[0].weight.detach().float().requires_grad_()
    F.linear(x.float(), weight, wide[0].bias.detach().float()).bfloat16().float().square().sum().backward()
    assert torch.equal(wide[0].weight.grad, weight.grad.bfloat16())


def test_a_policy_is_loaded_so_where_bfloat16_is_slow(
    tiny_policy: Policy, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_policy.save(folder, dtype=torch.bfloat16)
    actions = []
    for fast in (True, False):
        monkeypatch.setattr("rlrc.policies.wide.multiplies_bfloat16", lambda fast=fast: fast)
        policy = checkpoint.load(folder)
        assert any(isinstance(module, WideLinear) for module in policy.model.modules()) is not fast
        assert any(type(module) is nn.Linear for module in policy.model.modules()) is fast
        assert any(isinstance(module, WideConv2d) for module in policy.model.modules()) is not fast
        actions.append(policy.act(np.zeros((1, 96, 96, 3), np.uint8), ["put carrot on plate"]))
    np.testing.assert_allclose(actions[0], actions[1], atol=0.2)


@pytest.mark.parametrize("fast", [True, False])
def test_what_passes_layer_by_layer_does_so_too(
    fast: bool, tiny_policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_policy.save(tmp_path / "policy", dtype=torch.bfloat16)
    monkeypatch.setattr("rlrc.policies.wide.multiplies_bfloat16", lambda: fast)
    policy = checkpoint.outline(tmp_path / "policy")
    fill_around_decoder(policy)
    around = policy.model.get_submodule(policy.parts["vision"])
    for part in (around, StoredBlocks(policy.weights, chain_of(policy))[0]):
        linear = {type(module) for module in part.modules() if isinstance(module, nn.Linear)}
        assert linear == {nn.Linear if fast else WideLinear}
