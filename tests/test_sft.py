"""Supervised fine-tuning: it learns, resumes to the bit, and is the same over processes as in one."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_demonstrations import toy_demonstrations

import rlrc
from rlrc.configs.augmentation import Augmentation
from rlrc.configs.learner import LearnerConfig, Lora
from rlrc.configs.prune import Magnitude
from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.openvla.policy import OpenVLAPolicy
from rlrc.progress import MetricsLog
from rlrc.prune import PruneConfig, prune
from rlrc.recover import loop
from rlrc.recover import sft as sft_module
from rlrc.recover.loop import STATE_FILE, Learner, Means, learning_rate_factor
from rlrc.recover.processes import processes_on
from rlrc.recover.sft import Frames, SftConfig, fit


def config(checkpoint: Path, **values: Any) -> SftConfig:
    defaults = {"steps": 6, "batch_size": 4, "warmup_steps": 2, "learning_rate": 3e-3, "precision": "fp32"}
    return SftConfig(policy=checkpoint, dataset=Path("unused"), **{**defaults, **values})


def train(checkpoint: Path, out: Path, **values: Any) -> dict[str, Any]:
    return fit("sft", rlrc.load(checkpoint), config(checkpoint, **values), toy_demonstrations(), out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: Path, after: Path) -> set[str]:
    """Names of the tensors that differ between two checkpoints."""
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def test_it_learns_the_demonstrations(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = train(tiny_checkpoint, tmp_path, steps=60, batch_size=16, precision="bf16")
    assert result["step"] == 60
    assert result["loss"] < 0.5 * math.log(256)
    assert result["token_accuracy"] > 0.3
    policy = rlrc.load(tmp_path / "checkpoint")
    assert policy.lineage["stages"][-1]["verb"] == "sft"
    assert policy.model.dtype == torch.float32, "the precision that was loaded"


@pytest.mark.parametrize("keep_zeros", [False, True])
def test_zeros_of_unstructured_pruning_stay_if_asked(tiny_checkpoint: Path, tmp_path: Path, keep_zeros: bool) -> None:
    prune(PruneConfig(policy=tiny_checkpoint, ratio=0.5, method=Magnitude()), tmp_path / "sparse")
    sparse = tmp_path / "sparse" / "checkpoint"
    train(sparse, tmp_path / "sft", steps=4, keep_zeros=keep_zeros)
    before, after = weights(sparse), weights(tmp_path / "sft" / "checkpoint")
    matrices = [name for name in before if "_proj" in name]
    filled = sum(int(((before[name] == 0) & (after[name] != 0)).sum()) for name in matrices)
    assert (filled == 0) == keep_zeros
    assert all(not torch.equal(before[name], after[name]) for name in matrices)


@pytest.mark.parametrize(
    "values",
    [
        {"precision": "bf16", "augment": Augmentation()},
        {"lora": Lora(rank=4), "gradient_accumulation": 2},
        {"optimizer": "muon"},
    ],
    ids=["full-bf16", "lora", "muon"],
)
def test_a_killed_run_ends_with_the_same_bits(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    monkeypatch.setattr(sft_module, "LOG_EVERY", 2)
    train(tiny_checkpoint, tmp_path / "whole", save_every=0, **values)

    calls, loss = 0, OpenVLAPolicy.loss

    def dies(*args: Any) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == 5 * values.get("gradient_accumulation", 1):
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(OpenVLAPolicy, "loss", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_checkpoint, tmp_path / "killed", save_every=0, **values)
    assert (tmp_path / "killed" / STATE_FILE).exists()
    assert not (tmp_path / "killed" / "checkpoint").exists()
    train(tiny_checkpoint, tmp_path / "killed", save_every=0, **values)

    assert calls < 11 * values.get("gradient_accumulation", 1), "it started over"
    assert not changed(tmp_path / "whole" / "checkpoint", tmp_path / "killed" / "checkpoint")
    rows = [
        (tmp_path / run / "metrics.jsonl").read_text().split("samples_per_second")[0] for run in ("whole", "killed")
    ]
    assert rows[0] == rows[1]
    assert not (tmp_path / "killed" / STATE_FILE).exists()


def test_muon_moves_every_direction_of_a_matrix_alike(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A step of (n, m) is orthogonal times 0.2 sqrt(max(n, m)); what is no matrix of a layer takes AdamW's step."""
    rate = 1e-3
    values = {"steps": 1, "warmup_steps": 0, "weight_decay": 0.0, "learning_rate": rate, "batch_size": 64}
    train(tiny_checkpoint, tmp_path / "muon", optimizer="muon", **values)
    train(tiny_checkpoint, tmp_path / "adamw", **values)
    before, muon, adamw = (
        weights(f) for f in (tiny_checkpoint, *(tmp_path / k / "checkpoint" for k in ("muon", "adamw")))
    )
    name = "language_model.model.layers.0.self_attn.o_proj.weight"
    moved, spread = (torch.linalg.svdvals((after[name] - before[name]).double()) for after in (muon, adamw))
    largest = rate * 0.2 * max(before[name].shape) ** 0.5
    assert 0.7 * largest < moved[0] < 1.25 * largest, "five Newton-Schulz iterations end near 1, not at it"
    assert (moved > 0.5 * moved[0]).sum() > 2 * (spread > 0.5 * spread[0]).sum()
    for same in ("language_model.lm_head.weight", "language_model.model.norm.weight"):
        torch.testing.assert_close(muon[same], adamw[same])


def test_a_state_of_another_run_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    policy = rlrc.load(tiny_checkpoint)
    Learner(policy, config(tiny_checkpoint, train="decoder"), tmp_path).save(3)
    with pytest.raises(UserError, match="another training run"):
        train(tiny_checkpoint, tmp_path)


def test_a_state_of_another_number_of_processes_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(rlrc.load(tiny_checkpoint), config(tiny_checkpoint), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "world_size", 2)
        learner.save(3)
    with pytest.raises(UserError, match="began in 2 processes and cannot go on in 1"):
        learner.resume()


def test_each_stage_of_a_process_has_the_device_that_it_asks_for() -> None:
    asked = [torch.device(name) for name in ("cpu", "cuda", "cpu")]
    assert [processes_on(device)[1] for device in asked] == asked


def test_adapters_and_zeros_that_stay_exclude_each_other() -> None:
    with pytest.raises(UserError, match="keep_zeros: adapters are merged into all weights"):
        SftConfig.parse({"policy": "x", "dataset": "y", "keep_zeros": True, "lora": {}}, "recipe")


def test_gradient_accumulation_is_a_larger_batch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    train(tiny_checkpoint, tmp_path / "large", batch_size=8)
    train(tiny_checkpoint, tmp_path / "small", batch_size=4, gradient_accumulation=2)
    assert_close(tmp_path / "large" / "checkpoint", tmp_path / "small" / "checkpoint")


def assert_close(a: Path, b: Path) -> None:
    old, new = weights(a), weights(b)
    for name in old:
        torch.testing.assert_close(old[name], new[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("values", "trained"),
    [
        ({"train": "decoder"}, ("language_model.",)),
        ({"lora": Lora(rank=4)}, ("language_model.model.layers.",)),
        ({}, ("language_model.", "projector.", "vision_backbone.")),
    ],
    ids=["decoder", "lora", "all"],
)
def test_only_what_is_chosen_moves(
    tiny_checkpoint: Path, tmp_path: Path, values: dict[str, Any], trained: tuple[str, ...]
) -> None:
    train(tiny_checkpoint, tmp_path, steps=2, **values)
    moved = changed(tiny_checkpoint, tmp_path / "checkpoint")
    assert all(name.startswith(trained) for name in moved)
    assert all(any(name.startswith(part) for name in moved) for part in trained)
    if "lora" in values:
        expected = {name for name in weights(tiny_checkpoint) if ".layers." in name and "_proj." in name}
        assert moved == expected, "adapters sit on every linear layer of the decoder, and on nothing else"


def test_merged_adapters_compute_the_same(tiny_policy: Policy, tmp_path: Path) -> None:
    chosen = config(tmp_path, lora=Lora(rank=4), learning_rate=1e-2)
    demonstrations = toy_demonstrations()
    learner = Learner(tiny_policy, chosen, tmp_path)
    batch = Frames(tiny_policy, demonstrations, 8, learner).next()
    inputs, tokens = batch.inputs, tiny_policy.actions.encode(batch.actions[:, 0])
    with torch.no_grad():
        before = tiny_policy.model.action_logits(inputs, tokens)[0]
    for _ in range(5):
        tiny_policy.loss(inputs, batch.actions)["loss"].backward()
        learner.step()
    with torch.no_grad():
        adapted = tiny_policy.model.action_logits(inputs, tokens)[0]
    with MetricsLog(tmp_path) as log:
        log.log(5, loss=0.0)
    learner.finish("sft")
    with torch.no_grad():
        merged = rlrc.load(tmp_path / "checkpoint").model.action_logits(inputs, tokens)[0]
    assert (adapted - before).abs().max() > 0.1
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)


def test_losses_are_what_their_names_say(tiny_policy: Policy, tmp_path: Path) -> None:
    learner = Learner(tiny_policy, LearnerConfig(), tmp_path)
    batch = Frames(tiny_policy, toy_demonstrations(), 8, learner).next()
    inputs, actions = batch.inputs, batch.actions[:, 0]
    losses = tiny_policy.loss(inputs, batch.actions, batch.padded)
    tokens = tiny_policy.actions.encode(actions)
    with torch.no_grad():
        logits = tiny_policy.model.action_logits(inputs, tokens)[0].double().numpy()
    labels = tokens.numpy() - tiny_policy.actions.first_id
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.take_along_axis(probabilities, labels[..., None], -1)
    best = logits.argmax(-1)
    error = tiny_policy.actions.decode(best + tiny_policy.actions.first_id) - actions.numpy()
    assert losses["loss"].item() == pytest.approx(-np.log(chosen).mean(), rel=1e-4)
    assert losses["token_accuracy"].item() == pytest.approx((best == labels).mean())
    assert losses["l1_error"].item() == pytest.approx(np.abs(error).mean(), rel=1e-4)

    weights = np.exp(-0.5 * ((np.arange(256) - labels[..., None]) / 3.0) ** 2)
    weights /= weights.sum(-1, keepdims=True)
    spread = tiny_policy.loss(inputs, batch.actions, label_spread=3.0)["loss"]
    assert spread.item() == pytest.approx(-(weights * np.log(probabilities)).sum(-1).mean(), rel=1e-4)


def test_frames_know_their_numbers_and_can_be_sought(tiny_policy: Policy, tmp_path: Path) -> None:
    demonstrations = toy_demonstrations()
    learner = Learner(tiny_policy, LearnerConfig(), tmp_path)
    frames = Frames(tiny_policy, demonstrations, 5, learner)
    batches = [frames.next() for _ in range(12)]
    batch, numbers = batches[7], batches[7].numbers
    pictures, instructions = demonstrations.images[numbers], [demonstrations.instruction(i) for i in numbers]
    expected = tiny_policy.prepare(tiny_policy.observation(pictures, instructions))
    assert torch.equal(batch.inputs.pixel_values, expected.pixel_values)
    assert batch.padded is None, "a chunk of one action ends with its frame"
    physical = tiny_policy.to_physical(tiny_policy.actions.decode(tiny_policy.actions.encode(batch.actions).numpy()))
    np.testing.assert_allclose(physical[:, 0], demonstrations.actions[numbers], atol=1 / 128)
    frames.seek(7)
    assert all(torch.equal(frames.next().numbers, batch.numbers) for batch in batches[7:])


def test_norms_biases_and_embeddings_do_not_decay(tiny_policy: Policy, tmp_path: Path) -> None:
    learner = Learner(tiny_policy, LearnerConfig(weight_decay=0.5, learning_rate=0.1), tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in learner.parameters.items()}
    for parameter in learner.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    learner.step()  # without gradients, decay alone moves a weight: by the factor 1 - lr * decay
    for name, parameter in learner.parameters.items():
        decays = name.endswith(".weight") and parameter.ndim >= 2 and "embed_tokens" not in name
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decays else 1.0))


def test_learning_rate_schedule() -> None:
    cosine = [learning_rate_factor(step, 8, 4, "cosine") for step in range(8)]
    assert cosine == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.853553, 0.5, 0.146447], abs=1e-5)
    assert learning_rate_factor(7, 8, 0, "constant") == 1.0


@pytest.mark.parametrize("capable", [False, True])
def test_precision_follows_the_processor_and_slow_bf16_is_told(
    tiny_policy: Policy,
    tmp_path: Path,
    capable: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loop, "multiplies_bfloat16", lambda: capable)
    assert Learner(tiny_policy, LearnerConfig(device="cpu"), tmp_path).precision == ("bf16" if capable else "fp32")
    assert Learner(tiny_policy, LearnerConfig(device="cpu", precision="fp32"), tmp_path).precision == "fp32"
    assert not capsys.readouterr().err
    assert Learner(tiny_policy, LearnerConfig(device="cpu", precision="bf16"), tmp_path).precision == "bf16"
    assert ("--precision fp32 trains" in capsys.readouterr().err) == (not capable)


def test_divergence_is_told(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = OpenVLAPolicy.loss

    def broken(*args: Any) -> dict[str, torch.Tensor]:
        losses = loss(*args)
        return {**losses, "loss": losses["loss"] * float("nan")}

    monkeypatch.setattr(OpenVLAPolicy, "loss", broken)
    with pytest.raises(UserError, match="diverged"):
        train(tiny_checkpoint, tmp_path, save_every=0)
    assert not (tmp_path / STATE_FILE).exists() and not (tmp_path / "checkpoint").exists()


def test_a_diverged_training_saves_nothing(tiny_policy: Policy, tmp_path: Path) -> None:
    learner = Learner(tiny_policy, config(tmp_path), tmp_path)
    for gradient in (math.inf, 1.0):  # one that is not finite is remembered
        for parameter in learner.parameters.values():
            parameter.grad = torch.full_like(parameter, gradient)
        learner.step()
    means = Means()
    means.add(grad_norm=torch.ones(()))
    for save in (lambda: means.take(learner), lambda: learner.save(2), lambda: learner.finish("sft")):
        with pytest.raises(UserError, match="diverged"):
            save()
    assert not (tmp_path / STATE_FILE).exists() and not (tmp_path / "checkpoint").exists()


def test_hidden_words_are_unknown_tokens_at_the_chosen_rate(tiny_policy: Policy, tmp_path: Path) -> None:
    learner = Learner(tiny_policy, LearnerConfig(precision="fp32"), tmp_path)
    demonstrations = toy_demonstrations()
    unknown = tiny_policy.processor.tokenizer.unk_token_id

    def ids(number: int, word_dropout: float) -> torch.Tensor:
        frames = Frames(tiny_policy, demonstrations, 256, learner, word_dropout=word_dropout)
        frames.seek(number)
        return frames.next().inputs.input_ids

    whole, hidden = ids(3, 0.0), ids(3, 0.3)
    words = (whole != unknown) & (whole != tiny_policy.model.config.pad_token_id)
    words[:, 0] = False  # BOS is no word
    assert torch.equal(hidden, ids(3, 0.3)), "a resumed run hides the same words"
    assert torch.equal(hidden[hidden != unknown], whole[hidden != unknown])
    rate = (hidden == unknown)[words].float().mean().item()
    assert abs(rate - 0.3) < 4 * math.sqrt(0.3 * 0.7 / int(words.sum()))
