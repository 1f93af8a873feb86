"""Which frames training sees in which order, and how their pictures are varied."""

import colorsys
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from rlrc.configs.augmentation import Augmentation
from rlrc.data.batches import ShuffledBatches, vary
from rlrc.errors import UserError


def test_every_epoch_sees_every_frame_once_in_its_own_order() -> None:
    batches = ShuffledBatches(10, 4, seed=3)
    stream = np.concatenate([next(batches) for _ in range(5)])
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert (stream[:10] != stream[10:]).any()
    assert (next(ShuffledBatches(10, 4, seed=3)) == stream[:4]).all()
    assert (next(ShuffledBatches(10, 4, seed=4)) != stream[:4]).any()


def test_processes_share_each_global_batch() -> None:
    whole = ShuffledBatches(11, 6, seed=0)
    shares = [ShuffledBatches(11, 2, seed=0, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(7):
        assert sorted(next(whole)) == sorted(np.concatenate([next(share) for share in shares]))


def test_resumed_batches_go_on_exactly() -> None:
    batches = ShuffledBatches(10, 4, seed=3)
    for number in range(9):
        state = json.loads(json.dumps(batches.state_dict()))
        resumed = ShuffledBatches(10, 4, seed=0)
        resumed.load_state_dict(state)
        expected = next(batches)
        np.testing.assert_array_equal(next(resumed), expected, err_msg=str(number))


def test_no_batches_of_nothing() -> None:
    with pytest.raises(UserError, match="cannot make batches"):
        ShuffledBatches(0, 4, seed=0)


PICTURES = torch.from_numpy(np.random.default_rng(0).integers(40, 200, (6, 48, 48, 3), dtype=np.uint8))
NOTHING = {"crop_area": 1.0, "shift": 0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def augmented(seed: int = 0, pictures: torch.Tensor = PICTURES, **strengths: Any) -> np.ndarray:
    result = vary(pictures, Augmentation(**{**NOTHING, **strengths}), torch.Generator().manual_seed(seed))
    assert (result.shape, result.dtype) == (pictures.shape, torch.uint8)
    return result.numpy().astype(float)


def test_without_strength_pictures_stay_as_they_are() -> None:
    np.testing.assert_array_equal(augmented(), PICTURES.numpy())


def test_augmentation_depends_on_the_generator_alone() -> None:
    strengths = {name: field.default for name, field in Augmentation.model_fields.items()}
    np.testing.assert_array_equal(augmented(1, **strengths), augmented(1, **strengths))
    assert (augmented(1, **strengths) != augmented(2, **strengths)).any()


def test_crop_is_pillows() -> None:
    """Each result is the resized crop (41 of 48 pixels a side, area 0.73) at one of the 64 corners."""
    corners = set()
    for picture, result in zip(PICTURES.numpy(), augmented(crop_area=0.73), strict=True):
        image = Image.fromarray(picture)
        errors = {
            (left, top): np.abs(
                np.asarray(image.crop((left, top, left + 41, top + 41)).resize((48, 48), Image.Resampling.BILINEAR))
                - result
            ).max()
            for left in range(8)
            for top in range(8)
        }
        corner = min(errors, key=errors.__getitem__)
        assert errors[corner] <= 1
        corners.add(corner)
    assert len(corners) > 3


def test_shift_moves_the_picture_and_repeats_its_edge() -> None:
    moves = set()
    for picture, result in zip(PICTURES.numpy(), augmented(shift=3), strict=True):
        padded = np.pad(picture, ((3, 3), (3, 3), (0, 0)), mode="edge")
        found = [(y, x) for y in range(7) for x in range(7) if (padded[y : y + 48, x : x + 48] == result).all()]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) > 3


def test_brightness_adds_one_number_to_a_picture() -> None:
    added = augmented(brightness=0.1) - PICTURES.numpy()
    assert np.ptp(added, axis=(1, 2, 3)).max() <= 1
    assert np.abs(added).max() <= 0.1 * 255
    assert np.ptp(added[:, 0, 0, 0]) > 5


def test_contrast_stretches_around_the_mean_colour() -> None:
    pictures = PICTURES.numpy().astype(float)
    mean = pictures.mean((1, 2), keepdims=True)
    results = augmented(contrast=0.2)
    factors = ((results - mean) * (pictures - mean)).sum((1, 2, 3)) / ((pictures - mean) ** 2).sum((1, 2, 3))
    expected = mean + factors[:, None, None, None] * (pictures - mean)
    assert np.abs(results - expected).max() < 1
    assert np.abs(factors - 1).max() <= 0.2 < np.ptp(factors) * 2


def test_saturation_is_pillows() -> None:
    for picture, result in zip(PICTURES.numpy(), augmented(saturation=0.2), strict=True):
        enhancer = ImageEnhance.Color(Image.fromarray(picture))
        errors = [np.abs(np.asarray(enhancer.enhance(factor)) - result).max() for factor in np.linspace(0.8, 1.2, 101)]
        assert min(errors) <= 2


def test_hue_turns_the_chroma_and_keeps_luma_and_saturation() -> None:
    """In colorsys's YIQ, whose coefficients differ from ours in the third digit."""

    def yiq(pictures: np.ndarray) -> np.ndarray:
        return np.array([colorsys.rgb_to_yiq(*pixel) for pixel in pictures[:, ::6, ::6].reshape(-1, 3) / 255])

    before, after = yiq(PICTURES.numpy()), yiq(augmented(hue=0.05))
    assert np.abs(after[:, 0] - before[:, 0]).max() < 0.02
    chroma = [values[:, 1] + 1j * values[:, 2] for values in (before, after)]
    clear = np.abs(chroma[0]) > 0.1
    turns = (np.angle(chroma[1] / chroma[0]) / (2 * np.pi)).reshape(6, -1)
    assert np.abs(np.abs(chroma[1]) / np.abs(chroma[0]) - 1)[clear].max() < 0.2
    for turn, mask in zip(turns, clear.reshape(6, -1), strict=True):
        assert np.ptp(turn[mask]) < 0.03
        assert abs(np.median(turn[mask])) <= 0.055
    assert np.ptp(np.median(turns, axis=1)) > 0.02
