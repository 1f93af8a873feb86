"""Training quantized policies: gradients by hand, and packed weights that are those of training to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_sft import changed, train, weights
from torch import nn
from torch.nn.utils import parametrize

import rlrc
from rlrc.configs.learner import LearnerConfig, Lora
from rlrc.errors import UserError
from rlrc.packed.layers import QuantizedLinear, empty_packed
from rlrc.policies.openvla.policy import OpenVLAPolicy
from rlrc.progress import MetricsLog
from rlrc.quantize import QuantizeConfig, quantize
from rlrc.recover import sft as sft_module
from rlrc.recover.loop import STATE_FILE, Learner
from rlrc.recover.straight_through import PackedLayers

ALL = ("decoder", "vision", "projector", "embedding", "head")
LAYERS = {
    "linear": nn.Linear(19, 6),
    "convolution": nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2),
    "embedding": nn.Embedding(9, 21),
}
SEEN = {
    "linear": torch.randn(3, 19),
    "convolution": torch.randn(2, 4, 7, 8),
    "embedding": torch.tensor([[0, 8], [3, 3]]),
}


def packed(kind: str, bits: int, group_size: int = 8) -> nn.Sequential:
    return nn.Sequential(empty_packed(LAYERS[kind], bits, group_size).fill(LAYERS[kind]))


@pytest.fixture
def quantized(tiny_checkpoint: Path, tmp_path: Path) -> Any:
    """A function that packs the small policy."""

    def pack(bits: Any = 2, parts: tuple[Any, ...] = ("decoder", "projector")) -> Path:
        quantize(QuantizeConfig(policy=tiny_checkpoint, bits=bits, parts=parts, group_size=16), tmp_path / "packed")
        return tmp_path / "packed" / "checkpoint"

    return pack


# -- the layer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_training_begins_and_ends_with_what_is_packed(kind: str, bits: int) -> None:
    torch.manual_seed(0)
    model = packed(kind, bits)
    layer: Any = model[0]
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    expected = layer.dequantize()
    layers = PackedLayers(model)
    dense: Any = model[0]
    assert isinstance(dense, type(LAYERS[kind])) and torch.equal(dense.weight.flatten(1), expected)
    torch.testing.assert_close(dense(SEEN[kind]), layer(SEEN[kind]).float(), atol=0.02, rtol=0.02)
    layers.restore()
    assert model[0] is layer and all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())

    layers = PackedLayers(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape) * parameter.abs().mean()
    dense = model[0]
    trained, bias = dense.weight.detach().flatten(1), getattr(dense, "bias", None)
    layers.restore()
    assert torch.equal(layer.dequantize(), trained) and not torch.equal(trained, expected)
    assert layer.bias is bias
    assert torch.equal(layer.zeros, before["zeros"])


@pytest.mark.parametrize("bits", [2, 4])
def test_gradients_are_those_of_lsq(bits: int) -> None:
    """Number by number: a weight has 1 within the range, else 0; a scale has round(v) - v, or the last code."""
    torch.manual_seed(1)
    model = packed("linear", bits)
    PackedLayers(model)
    dense: Any = model[0]
    parametrization = dense.parametrizations.weight
    rounding, latent = parametrization[0], parametrization.original
    with torch.no_grad():  # some weights leave the range; none ends halfway between two codes, as 5 steps of 1.3 would
        latent *= 1.27
    above = torch.randn(6, 19)
    (dense.weight * above).sum().backward()
    top, of_scales = 2**bits - 1, torch.zeros(6, 3)
    outside = 0
    for row in range(6):
        for column in range(19):
            group = column // 8
            scale, zero = float(rounding.scales.detach()[row, group]), int(rounding.zeros[row, group])
            place = float(latent.detach()[row, column]) / scale + zero
            inside = 0 <= round(place) <= top
            outside += not inside
            assert float(latent.grad[row, column]) == pytest.approx(float(above[row, column]) * inside, rel=1e-5)
            step = round(place) - place if inside else min(max(round(place), 0), top) - zero
            of_scales[row, group] += above[row, column] * step
    assert 0 < outside < 60
    torch.testing.assert_close(rounding.scales.grad, of_scales / (8 * top) ** 0.5, rtol=1e-3, atol=1e-4)


def test_a_scale_cannot_leave_the_positive_numbers() -> None:
    model = packed("linear", 2)
    layers = PackedLayers(model)
    dense: Any = model[0]
    with torch.no_grad():
        dense.parametrizations.weight[0].scales[0] = torch.tensor([-1.0, 0.0, 1e-30])
    dense.weight.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in dense.parametrizations.parameters())
    trained = dense.weight.detach()
    layers.restore()
    layer: Any = model[0]
    assert torch.equal(layer.dequantize(), trained) and layer.scales.min() > 0


# -- policies ----------------------------------------------------------------------------------------------------------


def packed_weights(policy: Any) -> dict[str, torch.Tensor]:
    modules = policy.model.named_modules()
    return {name: module.dequantize() for name, module in modules if isinstance(module, QuantizedLinear)}


@pytest.mark.parametrize("values", [{}, {"lora": Lora(rank=4)}, {"train": "decoder"}], ids=["all", "lora", "decoder"])
def test_the_packed_policy_has_the_weights_of_the_trained_one(
    quantized: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    """Under bf16 autocast, in which everything but the rounding is computed."""
    policy_path, found = quantized(3, ALL), {}
    restore = PackedLayers.restore

    def looks(self: PackedLayers) -> None:
        for name in self._packed:
            dense: Any = self._model.get_submodule(name)
            with torch.autocast("cpu", torch.bfloat16):
                found[name] = dense.weight.detach().float().flatten(1)
        restore(self)

    monkeypatch.setattr(PackedLayers, "restore", looks)
    before = packed_weights(rlrc.load(policy_path))
    train(policy_path, tmp_path / "sft", steps=3, precision="bf16", **values)
    policy = rlrc.load(tmp_path / "sft" / "checkpoint")
    after = packed_weights(policy)
    assert policy.model.config.quantization_config == rlrc.load(policy_path).model.config.quantization_config
    assert before.keys() == after.keys() == found.keys()
    assert all(torch.equal(after[name], found[name]) for name in after)
    moved = {policy.part_of(name) for name in after if not torch.equal(before[name], after[name])}
    expected = {"lora": {"decoder"}, "train": {"decoder", "embedding", "head"}}
    assert moved == expected.get(next(iter(values), ""), set(ALL))


@pytest.mark.parametrize("bits", [2, 3])
def test_it_learns_the_demonstrations(quantized: Any, tmp_path: Path, bits: int) -> None:
    policy = quantized(bits)
    first = train(policy, tmp_path / "start", steps=1, learning_rate=1e-9, batch_size=16)
    last = train(policy, tmp_path / "sft", steps=30, batch_size=16)
    assert last["loss"] < 0.8 * first["loss"]
    again = train(tmp_path / "sft" / "checkpoint", tmp_path / "again", steps=1, learning_rate=1e-9, batch_size=16)
    assert again["loss"] < 0.8 * first["loss"], "what was saved is what was trained"


def test_adapters_change_the_decoders_codes_alone(quantized: Any, tmp_path: Path) -> None:
    policy = quantized(2)
    train(policy, tmp_path / "sft", steps=4, lora=Lora(rank=4), learning_rate=2e-2)
    moved = changed(policy, tmp_path / "sft" / "checkpoint")
    assert moved and all(".layers." in name and name.endswith("_proj.codes") for name in moved)
    assert moved == {name for name in weights(policy) if ".layers." in name and name.endswith("_proj.codes")}


def test_adapters_of_dense_and_packed_layers_go_together(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As where `quantize` leaves a layer dense because it would not shrink."""
    config = QuantizeConfig(policy=tiny_checkpoint, bits=4, modules_to_not_convert=("k_proj",))
    quantize(config, tmp_path / "packed")
    path = tmp_path / "packed" / "checkpoint"
    train(path, tmp_path / "sft", steps=3, lora=Lora(rank=4), learning_rate=1e-2)
    moved = changed(path, tmp_path / "sft" / "checkpoint")
    matrices = [name for name in weights(path) if "_proj." in name and ".layers." in name]
    assert moved == {name for name in matrices if name.endswith(("k_proj.weight", "_proj.codes"))}


@pytest.mark.parametrize("values", [{}, {"lora": Lora(rank=4)}, {"optimizer": "muon"}], ids=["all", "lora", "muon"])
def test_a_killed_run_ends_with_the_same_bits(
    quantized: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    monkeypatch.setattr(sft_module, "LOG_EVERY", 2)
    policy = quantized(2)
    train(policy, tmp_path / "whole", save_every=0, **values)
    calls, loss = 0, OpenVLAPolicy.loss

    def dies(*args: Any) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(OpenVLAPolicy, "loss", dies)
    with pytest.raises(KeyboardInterrupt):
        train(policy, tmp_path / "killed", save_every=0, **values)
    assert (tmp_path / "killed" / STATE_FILE).exists()
    train(policy, tmp_path / "killed", save_every=0, **values)
    assert calls < 11, "it started over"
    assert not changed(tmp_path / "whole" / "checkpoint", tmp_path / "killed" / "checkpoint")


def test_scales_take_small_steps_by_adamw_and_do_not_decay(quantized: Any, tmp_path: Path) -> None:
    policy = rlrc.load(quantized(2))
    learner = Learner(policy, LearnerConfig(optimizer="muon", learning_rate=0.01, weight_decay=0.5), tmp_path)
    scales = {name: p for name, p in learner.parameters.items() if name.endswith(".scales")}
    latents = {name: p for name, p in learner.parameters.items() if name.endswith(".weight.original")}
    assert len(scales) == len(latents) > 20
    before = {name: parameter.detach().clone() for name, parameter in learner.parameters.items()}
    for parameter in learner.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    for parameter in scales.values():
        parameter.grad = torch.ones_like(parameter)
    learner.step()
    for name, parameter in scales.items():  # AdamW's first step is the learning rate: a tenth of 0.01, over 2^2 - 1
        torch.testing.assert_close(before[name] - parameter.detach(), torch.full_like(parameter, 0.001 / 3))
    for name, parameter in latents.items():
        torch.testing.assert_close(parameter.detach(), before[name] * 0.995)


def test_weights_are_rounded_once_while_acting(quantized: Any, tmp_path: Path) -> None:
    policy = rlrc.load(quantized(2))
    learner = Learner(policy, LearnerConfig(), tmp_path)
    dense = policy.model.language_model.model.layers[0].mlp.gate_proj
    assert parametrize.is_parametrized(dense) and policy.eager
    with learner.acting():
        first = dense.weight
        assert dense.weight is first and not first.requires_grad
    assert dense.weight is not first and dense.weight.requires_grad


def test_what_cannot_work_is_refused(quantized: Any, tmp_path: Path) -> None:
    policy = quantized(4)
    with pytest.raises(UserError, match="keep_zeros: many weights of a quantized policy are rounded to zero"):
        train(policy, tmp_path / "sft", keep_zeros=True)
    assert not (tmp_path / "sft" / "checkpoint").exists()


def test_a_policy_that_was_trained_can_be_trained_again(quantized: Any, tmp_path: Path) -> None:
    """The layers are packed again in the very policy that was trained."""
    policy = rlrc.load(quantized(3))
    names = set(policy.model.state_dict())
    for number in range(2):
        learner = Learner(policy, LearnerConfig(), tmp_path / str(number))
        with MetricsLog(tmp_path / str(number)) as log:
            log.log(1, loss=0.0)
        learner.finish("sft")
        assert set(policy.model.state_dict()) == names
