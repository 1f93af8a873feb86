"""The kernel that decodes one token agrees with transformers' Llama in float32 on the same weights."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaModel

from rlrc.packed import cpu
from rlrc.packed.cpu.decode import TokenDecoder
from rlrc.packed.layers import QuantizedLinear, get_linear
from rlrc.policies.contract import Policy
from rlrc.policies.parts import decoding
from rlrc.policies.parts.config import DecoderConfig
from rlrc.policies.parts.decoder import HeterogeneousLlamaModel

pytestmark = pytest.mark.skipif(cpu.missing() is not None, reason=f"no kernels: {cpu.missing()}")

TOKENS = 7


def decoder(**changes: object) -> HeterogeneousLlamaModel:
    """Random, in bf16, and without its last norm: uneven widths, shared keys, a layer of another shape, biases."""
    config = DecoderConfig(
        hidden_size=88,
        intermediate_size=104,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=22,
        vocab_size=16,
        per_layer_config={1: {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 40}},
        **changes,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = HeterogeneousLlamaModel(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.1)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    model.norm = nn.Identity()
    return model.to(torch.bfloat16)


def pack(model: nn.Module, bits: int, group_size: int) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, QuantizedLinear.from_linear(get_linear(model, name), bits, group_size))


def unpacked(model: nn.Module) -> nn.Module:
    """The same weights as plain float32 layers."""
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, QuantizedLinear):
            linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight.data = module.dequantize()
            if module.bias is not None:
                linear.bias.data = module.bias.data
            plain.set_submodule(name, linear)
    return plain.float()


def states(model: LlamaModel, embeddings: torch.Tensor) -> torch.Tensor:
    """What leaves the last layer (T, hidden) when the kernel reads `embeddings` (T, hidden) one by one."""
    layers = [decoding._layer_weights(layer) for layer in model.layers]
    shapes = [(layer.self_attn.k_proj.out_features // 22, 9, 22) for layer in model.layers]
    keys, values = ([torch.zeros(shape, dtype=torch.bfloat16) for shape in shapes] for _ in range(2))
    assert all(layers)
    kernel = TokenDecoder(layers, keys, values, model.config.rms_norm_eps)
    cosine, sine = model.rotary_emb(embeddings.float(), torch.arange(len(embeddings))[None])
    return torch.stack([kernel.advance(e, cosine[0, t], sine[0, t], t) for t, e in enumerate(embeddings)])


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("bits", "group_size", "tolerance"),
    [(16, 0, 0.004), (8, 32, 0.02), (8, 64, 0.02), (4, 32, 0.02), (4, 96, 0.02), (3, 32, 0.02), (2, 64, 0.02)],
)
def test_states_are_those_of_transformers(bits: int, group_size: int, tolerance: float, threads: int) -> None:
    """Within what bf16 keys and values round, and with packed weights what 8-bit activations do."""
    model = decoder(output_bias=True)
    for layer in model.layers:
        nn.init.normal_(layer.mlp.down_proj.bias)
    if bits < 16:
        pack(model, bits, group_size)
    embeddings = torch.randn(TOKENS, 88).bfloat16()
    expected = unpacked(model)(inputs_embeds=embeddings.float()[None]).last_hidden_state[0]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = states(model, embeddings)
    finally:
        torch.set_num_threads(before)
    error = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < tolerance
    # It would notice: the states of another position are far away.
    assert ((found[1:] - expected[:-1]).norm(dim=1) / expected[1:].norm(dim=1)).min() > 0.3


@torch.no_grad()
@pytest.mark.parametrize("bits", [16, 8, 4, 3, 2])
def test_the_number_of_threads_changes_no_bit(bits: int) -> None:
    model = decoder()
    if bits < 16:
        pack(model, bits, 32)
    embeddings = torch.randn(TOKENS, 88).bfloat16()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(states(model, embeddings))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@torch.no_grad()
def test_more_exact_than_bf16_modules() -> None:
    model = decoder()
    embeddings = torch.randn(TOKENS, 88).bfloat16()
    expected = unpacked(model)(inputs_embeds=embeddings.float()[None]).last_hidden_state[0]
    modules = model(inputs_embeds=embeddings[None]).last_hidden_state[0].float()
    assert (states(model, embeddings) - expected).norm() < (modules - expected).norm()


def test_policies_use_it_for_single_sequences_in_bf16(tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    advance = TokenDecoder.advance

    def spy(self: TokenDecoder, *arguments: object) -> torch.Tensor:
        calls.append(1)
        return advance(self, *arguments)

    monkeypatch.setattr(TokenDecoder, "advance", spy)
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    instructions = ["put carrot on plate"] * 2

    def counted(policy: Policy, rows: int) -> int:
        calls.clear()
        policy.act(images[:rows], instructions[:rows])
        return len(calls)

    assert counted(tiny_policy, 1) == 0  # float32
    tiny_policy.model.to(torch.bfloat16)
    assert counted(tiny_policy, 1) == 6
    assert counted(tiny_policy, 2) == 0
    tiny_policy.model.language_model.model.layers[0].mlp.up_proj = nn.Sequential(
        tiny_policy.model.language_model.model.layers[0].mlp.up_proj  # something else than a linear layer
    )
    assert counted(tiny_policy, 1) == 0
