"""States that matter count more: scores by another road, and weights that reach the loss."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_policies import CASES, look, make
from test_sft import changed, config
from toy_demonstrations import FRAMES, PicturesInMemory, toy_demonstrations

import rlrc
from rlrc.configs.sft import SalientStates, SftConfig
from rlrc.data import Demonstrations
from rlrc.errors import UserError
from rlrc.policies.checkpoint import outline
from rlrc.policies.losses import Teacher
from rlrc.prune.calibrate import Frames
from rlrc.prune.groups import blocks_of
from rlrc.prune.groups import coupled_groups as groups_of
from rlrc.prune.method import Source, Target
from rlrc.prune.saliency import state_saliency
from rlrc.quantize import QuantizeConfig, quantize
from rlrc.recover import salient
from rlrc.recover.salient import FILE, frame_weights, middle_frames, score
from rlrc.recover.sft import sft


def demonstrations_with_texture() -> Demonstrations:
    """Pictures that a blur changes, by more in some frames than in others."""
    random = np.random.default_rng(1)
    noise = random.normal(size=(FRAMES, 96, 96, 3)) * random.uniform(5, 60, (FRAMES, 1, 1, 1)) + 128
    pictures = PicturesInMemory(noise.clip(0, 255).astype(np.uint8))
    return replace(toy_demonstrations(), pictures={"front": pictures})


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Demonstrations, "of", lambda config: demonstrations_with_texture())
    return Path("toy")


def test_scores_are_those_that_pruning_computes_block_by_block(tiny_checkpoint: Path) -> None:
    policy, demonstrations = rlrc.load(tiny_checkpoint), demonstrations_with_texture()
    frames = Frames.draw(outline(tiny_checkpoint), demonstrations, 5, seed=0)
    source = Source(blocks_of(policy), groups_of(policy), Target())
    expected = state_saliency(source.with_frames(frames), frames, 2).flatten(1).sum(dim=1)
    found = score(policy, demonstrations, demonstrations.draw(5, 0), 2)
    assert expected.min() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("every", [1, 4, 5, 100])
def test_neighbours_share_the_frame_in_their_middle(every: int) -> None:
    """Of episodes of six frames."""
    expected = []
    for start in range(0, FRAMES, 6):
        for first in range(0, 6, every):
            middle = min(first + every // 2, 5)
            expected += [start + middle] * min(every, 6 - first)
    assert middle_frames(toy_demonstrations(), every).tolist() == expected


def test_the_top_share_weighs_more_and_scores_are_computed_once(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, demonstrations = rlrc.load(tiny_checkpoint), demonstrations_with_texture()
    options = SalientStates(grid=2, top_share=0.25, weight=3.0, every=1)
    weights = frame_weights(options, policy, demonstrations, tmp_path)
    assert weights.shape == (FRAMES,) and weights.mean() == pytest.approx(1)
    scores = load_file(tmp_path / FILE)["scores"]
    assert set(weights.topk(6).indices.tolist()) == set(scores.topk(6).indices.tolist())
    assert weights.max() / weights.min() == pytest.approx(3) and (weights == weights.max()).sum() == 6
    monkeypatch.setattr(salient, "score", lambda *_: pytest.fail("it scored again"))
    assert torch.equal(frame_weights(options, policy, demonstrations, tmp_path), weights)


def test_a_quantized_policy_learns_salient_states_from_its_teacher(
    tiny_checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    quantize(QuantizeConfig(policy=tiny_checkpoint, bits=2), tmp_path / "packed")
    packed = tmp_path / "packed" / "checkpoint"
    losses = {}
    for name, weight in (("plain", None), ("alike", 1.0), ("salient", 20.0)):
        saliency = None if weight is None else SalientStates(grid=2, weight=weight, every=3)
        values: dict[str, Any] = {"teacher": tiny_checkpoint, "saliency": saliency, "steps": 4}
        losses[name] = sft(config(packed, **values), tmp_path / name)["teacher_loss"]
        assert (tmp_path / name / FILE).exists() == (weight is not None)
    assert losses["plain"] == pytest.approx(losses["alike"], rel=1e-5)
    assert losses["salient"] != pytest.approx(losses["plain"], rel=1e-3)
    assert changed(tmp_path / "plain" / "checkpoint", tmp_path / "salient" / "checkpoint")


def test_each_noise_of_a_frame_has_its_weight() -> None:
    policy = make(CASES["pi0"])
    policy.learn_from(2)
    inputs, actions = policy.prepare(look(policy)), torch.zeros(3, 3, 7)

    def losses(weights: torch.Tensor) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            return policy.loss(inputs, actions, generator=generator, teacher=Teacher(policy, 0.0), weights=weights)

    rows = [losses(row)["loss"] for row in torch.eye(3)]
    assert len({float(row) for row in rows}) == 3
    weights = torch.tensor([0.5, 2.0, 0.5])
    torch.testing.assert_close(losses(weights)["loss"], (torch.stack(rows) * weights).sum())


def test_it_needs_a_teacher(tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="saliency needs a teacher"):
        config(tiny_checkpoint, saliency=SalientStates())
    for values in ({"top_share": 0}, {"weight": 0.5}, {"every": 0}, {"grid": 0}):
        with pytest.raises(UserError):
            SftConfig.parse({"policy": "p", "dataset": "d", "teacher": "t", "saliency": values}, "recipe")
