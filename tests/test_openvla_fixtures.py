"""Our OpenVLA against tensors that the original code computed (tolerances from the fixtures' meta.json)."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fixture_cases, fixture_folder
from published_openvla import tower_shapes, whole_vocabulary
from safetensors.torch import load_file

from rlrc.policies.checkpoint import load
from rlrc.policies.openvla.model import OpenVLAForActionPrediction
from rlrc.policies.parts.action_tokens import ActionTokenizer
from rlrc.policies.prismatic.inputs import PrismaticInputs
from rlrc.policies.prismatic.processor import ImageProcessor
from rlrc.policies.statistics import action_statistics, unnormalise


@dataclass
class Case:
    folder: Path
    meta: dict[str, Any]
    model: OpenVLAForActionPrediction
    expected: dict[str, torch.Tensor]
    processor: dict[str, torch.Tensor]

    def pixel_values(self, count: int = 3) -> torch.Tensor:
        return torch.stack([self.processor[f"expected.pixel_values.{i}"] for i in range(count)])

    def columns(self, logits: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        """The logits that are expected: all, or of a small copy of the fixture those of the action ids."""
        return logits if logits.shape == expected.shape else logits[..., self.model.config.action_ids]


def whole_checkpoint(folder: Path, scratch: Path) -> Path:
    """The checkpoint of a fixture, written to `scratch` with the vision towers' shapes in its config.json.

    A small copy of a fixture has the rows of the vocabulary that its cases read; the other rows are zero.
    """
    shutil.copytree(folder / "checkpoint", scratch)
    scratch.chmod(0o755)
    config = json.loads((scratch / "config.json").read_text())
    config["vision_towers"] = tower_shapes(json.loads((folder / "meta.json").read_text()))
    (scratch / "config.json").unlink()
    (scratch / "config.json").write_text(json.dumps(config))
    whole_vocabulary(folder, scratch)
    return scratch


@pytest.fixture(scope="module", params=fixture_cases("openvla"))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = fixture_folder(f"openvla/{request.param}")
    checkpoint = whole_checkpoint(folder, tmp_path_factory.mktemp("openvla") / "checkpoint")
    meta = json.loads((folder / "meta.json").read_text())
    model = load(checkpoint, full_head=True).model
    files = [load_file(folder / name) for name in ("cases.safetensors", "processor.safetensors")]
    return Case(folder, meta, model, *files)


def test_image_processor(case: Case) -> None:
    processor = ImageProcessor.load(case.folder / "checkpoint")
    for i in range(3):
        pixels = processor(case.processor[f"image.{i}"].numpy()[None])
        torch.testing.assert_close(pixels[0], case.processor[f"expected.pixel_values.{i}"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_vision_and_projector(case: Case) -> None:
    features = case.model.vision_backbone(case.pixel_values())
    torch.testing.assert_close(features, case.expected["expected.vision_features"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        case.model.projector(features), case.expected["expected.projected"], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("index", range(3))
@torch.no_grad()
def test_logits_and_greedy_tokens(case: Case, index: int) -> None:
    ids = case.expected[f"case{index}.input_ids"]
    pixels = case.pixel_values()[index : index + 1]
    output = case.model(ids, pixel_values=pixels, output_hidden_states=True)
    positions = case.expected[f"case{index}.logit_positions"]
    tolerance = {"atol": 5e-4, "rtol": 5e-4}
    expected = case.expected[f"case{index}.expected.logits"]
    torch.testing.assert_close(case.columns(output.logits[0, positions], expected), expected, **tolerance)
    if index == 0:
        hidden = torch.cat(output.hidden_states)
        torch.testing.assert_close(hidden, case.expected["case0.expected.hidden_states"], **tolerance)
    inputs = PrismaticInputs(ids, torch.ones_like(ids), pixels)
    tokens, found = case.model.sample_actions(inputs)
    assert tokens[0].tolist() == case.expected[f"case{index}.expected.tokens"].tolist()
    logits, _ = case.model.action_logits(inputs, tokens)
    torch.testing.assert_close(logits[0], case.expected[f"case{index}.expected.step_logits"], **tolerance)
    logprobs = logits.log_softmax(-1).gather(-1, (tokens - case.model.first_action_id)[..., None]).squeeze(-1)
    torch.testing.assert_close(found, logprobs, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_text_alone(case: Case) -> None:
    logits = case.model(case.expected["case0.input_ids_no_space"]).logits
    expected = case.expected["text_only.expected.logits_last"]
    torch.testing.assert_close(case.columns(logits[0, -1], expected), expected, atol=5e-4, rtol=5e-4)


@torch.no_grad()
def test_padded_batch(case: Case) -> None:
    """Right-padded by the fixture, left-padded by us: the same logits wherever there is no padding."""
    ids, mask = case.expected["batch.input_ids"], case.expected["batch.attention_mask"]
    pixels = case.pixel_values(2)
    first = case.model.first_action_id
    logits = case.model(ids, mask, pixels).logits[..., first : first + 256]
    patches = logits.shape[1] - ids.shape[1]
    for row, length in enumerate(mask.sum(1).tolist()):
        expected = case.expected["batch.expected.action_logits"][row, : patches + length]
        torch.testing.assert_close(logits[row, : patches + length], expected, atol=5e-4, rtol=5e-4)
        alone = PrismaticInputs(ids[row : row + 1, :length], mask[row : row + 1, :length], pixels[row : row + 1])
        left = torch.cat([ids[row, :1], ids.new_full((3,), 32000), ids[row, 1:length]])[None]
        left_mask = torch.cat([mask.new_ones(1), mask.new_zeros(3), mask.new_ones(length - 1)])[None]
        padded = PrismaticInputs(left, left_mask, pixels[row : row + 1])
        tokens, _ = case.model.sample_actions(alone)
        torch.testing.assert_close(
            case.model.action_logits(padded, tokens)[0],
            case.model.action_logits(alone, tokens)[0],
            atol=5e-4,
            rtol=5e-4,
        )


def test_loss_and_gradients(case: Case) -> None:
    if "train.labels" not in case.expected:
        pytest.skip("the small copy of this fixture has no vocabulary to take a loss over")
    case.model.zero_grad()
    case.model.set_attn_implementation("eager")
    expected = case.expected
    loss = case.model(
        expected["train.input_ids"],
        expected["train.attention_mask"],
        case.pixel_values(2),
        labels=expected["train.labels"],
    ).loss
    torch.testing.assert_close(loss, expected["train.expected.loss"], atol=1e-4, rtol=0)
    loss.backward()
    checked = 0
    for name, parameter in case.model.named_parameters():
        if (gradient := expected.get(f"train.expected.grad.{name}")) is not None:
            torch.testing.assert_close(
                parameter.grad, gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
            checked += 1
    assert checked == 12
    case.model.zero_grad()


def test_detokenisation(case: Case) -> None:
    tokenizer = ActionTokenizer(case.model.config.action_vocab_end)
    np.testing.assert_allclose(tokenizer.bin_centers, case.expected["detok.bin_centers"].numpy(), atol=1e-12)
    normalised = tokenizer.decode(case.expected["detok.tokens"].numpy())
    for key in case.meta["config"]["norm_stats_keys"]:
        actions = unnormalise(normalised, action_statistics(case.model.config.norm_stats, key))
        np.testing.assert_allclose(actions, case.expected[f"detok.expected.actions.{key}"].numpy(), atol=1e-9)
