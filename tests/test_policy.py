"""Decoding against independent computations: a plain forward pass, numpy, and sampling statistics."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from rlrc.policies.contract import Policy
from rlrc.policies.parts.action_tokens import ActionTokenizer, choose
from rlrc.policies.prismatic.processor import crop_center
from rlrc.policies.values import Sampler

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
INSTRUCTIONS = ["put carrot on plate", "put red cube on plate", "put an unheard-of thing on plate"]


def test_cached_decoding_equals_the_plain_forward_pass(tiny_policy: Policy) -> None:
    """Token by token through the plain forward of one unpadded prompt at a time."""
    sample = tiny_policy.sample(tiny_policy.prepare(tiny_policy.observation(IMAGES, INSTRUCTIONS)))
    first = tiny_policy.actions.first_id
    for row in range(3):
        inputs = tiny_policy.prepare(tiny_policy.observation(IMAGES[row : row + 1], INSTRUCTIONS[row : row + 1]))
        ids = inputs.input_ids
        for step in range(7):
            with torch.no_grad():
                logits = tiny_policy.model(ids, pixel_values=inputs.pixel_values).logits[0, -1]
            token = int(logits.argmax()) + first
            assert token == int(sample.latent["tokens"][:, 0][row, step])
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_prompt_without_known_words_is_padded_in_the_middle(tiny_policy: Policy) -> None:
    inputs = tiny_policy.prepare(tiny_policy.observation(IMAGES, INSTRUCTIONS))
    assert (inputs.input_ids[:, 0] == tiny_policy.processor.tokenizer.bos_token_id).all()
    assert inputs.attention_mask[:, 0].all() and inputs.attention_mask[:, -1].all()
    lengths = [len(tiny_policy.processor.prompt_ids(text)) for text in INSTRUCTIONS]
    assert inputs.attention_mask.sum(dim=1).tolist() == lengths and lengths[2] > lengths[0]


def test_sampling_follows_the_tempered_distribution() -> None:
    logits = torch.linspace(-2, 2, 256)[None].expand(20_000, -1)
    bins, logprobs = choose(logits, 0.5, torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    probabilities = (logits[0] / 0.5).softmax(-1)
    torch.testing.assert_close(logprobs.exp(), probabilities[bins])
    mean, spread = (probabilities * torch.arange(256)).sum(), bins.float().std() / 20_000**0.5
    assert abs(bins.float().mean() - mean) < 4 * spread


def test_a_row_with_its_own_generator_ignores_its_neighbours(tiny_policy: Policy) -> None:
    def tokens(rows: list[int]) -> torch.Tensor:
        inputs = tiny_policy.prepare(tiny_policy.observation(IMAGES[rows], [INSTRUCTIONS[row] for row in rows]))
        noise = [torch.Generator().manual_seed(row) for row in rows]
        return tiny_policy.sample(inputs, Sampler(1.0), noise).latent["tokens"][:, 0]

    assert torch.equal(tokens([0, 1, 2])[1], tokens([1])[0])


def test_action_tokens_round_trip_within_half_a_bin() -> None:
    tokenizer = ActionTokenizer(32000)
    actions = torch.from_numpy(np.random.default_rng(0).uniform(-1.2, 1.2, (1000, 7)).astype(np.float32))
    ids = tokenizer.encode(actions)
    assert ids.min() >= 31744 and ids.max() <= 31999
    np.testing.assert_allclose(tokenizer.decode(ids.numpy()), actions.clip(-1, 1), atol=1 / 255 + 1e-7)


@pytest.mark.parametrize("n_bins", [16, 255, 256])
def test_action_tokens_are_those_of_the_published_code(n_bins: int) -> None:
    """Its code is `np.digitize` in float64, also of actions that lie on an edge between two bins or beside one."""
    tokenizer = ActionTokenizer(32000, n_bins)
    edges = tokenizer.bins.astype(np.float32)
    beside = [np.nextafter(edges, np.float32(side)) for side in (-2, 2)]
    actions = np.concatenate([edges, *beside, np.linspace(-1.1, 1.1, 5000, dtype=np.float32)])
    expected = 32000 - np.digitize(np.clip(actions, -1.0, 1.0), tokenizer.bins)
    assert np.array_equal(tokenizer.encode(torch.from_numpy(actions)).numpy(), expected)


def test_statistics_give_physical_units(tiny_policy: Policy) -> None:
    """The extreme bins of a masked-in dimension reach q01 and q99 within half a bin; the gripper stays in [-1, 1]."""
    tokenizer = tiny_policy.actions
    first, last = tokenizer.first_id, tokenizer.vocab_end - 1
    high, low = (tiny_policy.to_physical(tokenizer.decode(np.full(7, token))) for token in (first, last))
    np.testing.assert_allclose(high[:3], 0.05, atol=0.05 / 254)
    np.testing.assert_allclose(low[3:6], -0.5, atol=0.5 / 254)
    np.testing.assert_allclose([low[6], high[6]], [-1, 1], atol=1 / 254)


def test_the_crop_lies_where_tensorflow_puts_it() -> None:
    """OpenVLA crops by `crop_and_resize`: output corners lie at the box's edges, times size minus one; bilinear."""
    height, width = 224, 180
    smooth = np.add.outer(np.sin(np.arange(height) / 9), np.cos(np.arange(width) / 7)) * 60 + 128
    images = np.repeat(smooth.round().astype(np.uint8)[None, :, :, None], 3, axis=3)
    rim = (1 - np.sqrt(0.9)) / 2
    rows = np.linspace(rim, 1 - rim, height) * (height - 1)
    columns = np.linspace(rim, 1 - rim, width) * (width - 1)
    expected = map_coordinates(images[0, :, :, 0].astype(float), np.meshgrid(rows, columns, indexing="ij"), order=1)
    cropped = crop_center(images)
    assert cropped.shape == images.shape and cropped.dtype == np.uint8
    np.testing.assert_allclose(cropped[0, :, :, 1], expected, atol=1.0)


def test_a_crop_shows_the_centre(tiny_policy: Policy) -> None:
    """A black rim of 2 % on each side is cut off, and one of 4 % is not, whatever the size of the picture."""
    processor = replace(tiny_policy.processor.images, center_crop=True)
    for side in (96, 192):
        for rim, darkest in ((0.02, 1.0), (0.04, -1.0)):
            picture = np.zeros((1, side, side, 3), np.uint8)
            inside = slice(round(rim * side), side - round(rim * side))
            picture[:, inside, inside] = 255
            pixels = processor(picture)
            assert pixels.shape == (1, 6, 96, 96)
            assert pixels[:, :, 48].min() == pytest.approx(darkest, abs=0.1), (side, rim)
