"""Decoding agrees with transformers' own modules: their attention, their cache, their masks."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from rlrc.policies.contract import Policy

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
INSTRUCTIONS = ["put carrot on plate", "put red cube on plate", "put carrot on plate"]


def transformers_tokens(policy: Policy, instructions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Seven greedy tokens (B, 7) and the logits of the last one (B, 256), by LlamaModel and DynamicCache."""
    model = policy.model
    inputs = policy.prepare(policy.observation(IMAGES[: len(instructions)], instructions))
    embed = model.get_input_embeddings()
    embeddings, mask, positions = model.sequence(inputs)
    cache, tokens = DynamicCache(), []
    for _ in range(7):
        hidden = model.language_model.model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        logits = model.action_logits_of(hidden)
        tokens.append(logits.argmax(-1) + model.first_action_id)
        embeddings = embed(tokens[-1])[:, None]
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return torch.stack(tokens, dim=1), logits


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 3], ids=["one", "padded", "three"])
@pytest.mark.parametrize("kind", ["plain", "grouped"])
def test_tokens_are_those_of_transformers(kind: str, count: int, tiny_policy: Policy, grouped_policy: Policy) -> None:
    policy = tiny_policy if kind == "plain" else grouped_policy
    instructions = INSTRUCTIONS[:count]
    inputs = policy.prepare(policy.observation(IMAGES[:count], instructions))
    assert (inputs.attention_mask is None) == (count == 1)  # the second instruction is longer
    expected, _ = transformers_tokens(policy, instructions)
    sample = policy.sample(inputs)
    assert torch.equal(sample.latent["tokens"][:, 0], expected)
    logits, _ = policy.model.action_logits(inputs, expected)
    torch.testing.assert_close(sample.logprobs[:, 0], logits.log_softmax(-1).amax(-1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_bfloat16_stays_close(tiny_policy: Policy) -> None:
    """Within bf16's own rounding, 2^-8 of the largest logit a layer."""
    tiny_policy.model.to(torch.bfloat16)
    inputs = tiny_policy.prepare(tiny_policy.observation(IMAGES[:2], INSTRUCTIONS[:2]))
    sample = tiny_policy.sample(inputs)
    tokens = sample.latent["tokens"][:, 0]
    logits, _ = tiny_policy.model.action_logits(inputs, tokens)
    chosen = logits.float().log_softmax(-1).gather(-1, (tokens - tiny_policy.model.first_action_id)[..., None])
    torch.testing.assert_close(sample.logprobs[:, 0], chosen.squeeze(-1), rtol=0, atol=3 * 2**-8)
