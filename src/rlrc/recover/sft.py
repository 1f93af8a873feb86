"""Supervised fine-tuning: a policy's own loss on the actions of demonstrations.

    rlrc sft --policy runs/default/prune/checkpoint --dataset runs/default/collect/dataset --out runs/default/sft
    accelerate launch --multi_gpu --num_processes 2 -m rlrc sft ...        (the same where there is no GPU)

`fit` is the training loop; training a base policy from scratch runs the same one.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlrc.configs.augmentation import Augmentation
from rlrc.configs.learner import SupervisedConfig
from rlrc.configs.sft import SftConfig
from rlrc.data.batches import ShuffledBatches, vary
from rlrc.data.demonstrations import Demonstrations
from rlrc.data.frames import JPEG_QUALITY, open_frames
from rlrc.data.samples import chunks, states
from rlrc.data.statistics import adopt_statistics, policy_key, require_fit
from rlrc.errors import UserError
from rlrc.policies.checkpoint import load
from rlrc.policies.contract import Policy
from rlrc.policies.device import moved, resolve_device
from rlrc.policies.losses import Teacher
from rlrc.policies.values import Observation
from rlrc.process import keep_freed_memory
from rlrc.recover.loop import Learner, Means, learning_rate_factor, rng
from rlrc.recover.processes import processes_on
from rlrc.recover.salient import frame_weights

LOG_EVERY = 10
"""Steps between two rows of metrics. States are written with rows only, so that a resumed run logs the same ones."""


check = Demonstrations.check


def sft(config: SftConfig, out: Path) -> dict[str, Any]:
    """Fine-tune a policy and write `out/checkpoint`; returns what `fit` does."""
    demonstrations = Demonstrations.of(config)
    policy = load(config.policy, policy_key(config), spec=config.spec)
    adopt_statistics(policy, demonstrations, config)
    if config.head is not None:
        if getattr(policy.model.config, "quantization_config", None) is not None:
            raise UserError("head: a quantized policy keeps its form; give it the new one and quantize the result")
        policy = policy.with_head(config.head, config.seed)
    teacher = weights = None
    if config.teacher is not None:
        teaching = load_teacher(config, policy)
        teacher = Teacher(teaching, config.teacher_share)
        if config.saliency is not None:
            weights = frame_weights(config.saliency, teaching, demonstrations, out)
    return fit("sft", policy, config, demonstrations, out, teacher=teacher, weights=weights)


def load_teacher(config: SftConfig, student: Policy) -> Policy:
    """The policy that `student` learns from, in float32, where the student computes.

    Raises:
        UserError: it sees or does something else than the student, or normalises otherwise.
    """
    assert config.teacher is not None
    _, device = processes_on(resolve_device(config.device))
    teacher = load(config.teacher, student.unnorm_key, device, torch.float32, spec=config.teacher_spec)
    if teacher.spec != student.spec or teacher.image_size != student.image_size:
        raise UserError(
            f"{config.teacher}: the teacher sees and does something else than {config.policy} (family, cameras, state, "
            "actions, chunk or size of pictures); take the policy that it was made from"
        )
    probe = np.linspace(-1, 1, 5)[:, None].repeat(len(student.spec.action), axis=1)
    if not np.array_equal(teacher.to_normalised(probe), student.to_normalised(probe)):
        raise UserError(
            f"{config.teacher}: the teacher normalises actions by other statistics; use --statistics policy"
        )
    if (teacher.action_form, teacher.bin_width) != (student.action_form, student.bin_width):
        raise UserError(f"{config.teacher}: the teacher's actions have another form than those of {config.policy}")
    if config.noise_draws > 1:
        teacher.learn_from(config.noise_draws)
    return teacher


def fit(
    verb: str,
    policy: Policy,
    config: SupervisedConfig,
    demonstrations: Demonstrations,
    out: Path,
    auxiliary: nn.Module | None = None,
    teacher: Teacher | None = None,
    weights: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Train `policy`, continuing where `out` was left, and write `out/checkpoint` and metrics.

    Args:
        auxiliary: a second loss, called with the projected image patches (B, P, hidden) and the numbers (B,) of their
            frames in `demonstrations`. Its parameters are trained beside the policy's and then thrown away.
        teacher: a policy whose predictions are learnt as well.
        weights: of all frames of `demonstrations` in the loss (T,), where the policy computes; see `Policy.loss`.

    Returns:
        The last row of metrics.
    """
    keep_freed_memory()
    if config.noise_draws > 1:
        policy.learn_from(config.noise_draws)
    learner = Learner(policy, config, out, {} if auxiliary is None else {"auxiliary": auxiliary})
    frames = Frames(policy, demonstrations, config.batch_size, learner, config.augment, config.word_dropout)
    done = learner.resume()
    frames.seek(done * config.gradient_accumulation)
    means, started = Means(), time.monotonic()
    with learner.logbook(verb, config.steps, done) as record:
        for step in range(done, config.steps):
            for _ in range(config.gradient_accumulation):
                batch = frames.next()
                with learner.autocast():
                    # A teacher looks with its own eyes, so that it has to be given the pictures.
                    inputs = policy.encode(batch.inputs) if teacher is None else batch.inputs
                    weight = None if weights is None else weights[batch.numbers]
                    losses = policy.loss(
                        inputs, batch.actions, batch.padded, config.label_spread, batch.noise, teacher, weight
                    )
                    if auxiliary is not None:
                        losses["auxiliary_loss"] = auxiliary(policy.features(inputs), batch.numbers)
                total = losses["loss"] + losses.get("auxiliary_loss", 0.0)
                (total / config.gradient_accumulation).backward()
                means.add(**losses)
            factor = learning_rate_factor(step, config.steps, config.warmup_steps, config.schedule)
            means.add(grad_norm=learner.step(factor))
            if (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps:
                values = means.take(learner)
                values["learning_rate"] = config.learning_rate * factor
                samples = (step + 1 - done) * config.gradient_accumulation * config.batch_size * learner.world_size
                values["samples_per_second"] = samples / (time.monotonic() - started)
                record(step + 1, values, f"loss {values['loss']:.3f}")
                learner.save_if_due(step + 1)
    return learner.finish(verb, **frames.facts)


@dataclass(frozen=True)
class Batch:
    """B demonstrated frames."""

    inputs: Any
    """Model inputs."""
    actions: torch.Tensor
    """Chunks, normalised (B, H, D)."""
    padded: torch.Tensor | None
    """Bool (B, H), true behind the end of an episode; None where no chunk reaches it."""
    numbers: torch.Tensor
    """Numbers of the frames (B,)."""
    noise: torch.Generator
    """Source of the noise that policies which denoise learn from."""


class Frames:
    """Endless batches of demonstrated frames, each epoch in its own order, shared out among processes.

    A thread prepares the next batch while this one is learnt from, so that a GPU does not wait for pictures.
    """

    def __init__(
        self,
        policy: Policy,
        demonstrations: Demonstrations,
        batch_size: int,
        learner: Learner,
        augment: Augmentation | None = None,
        word_dropout: float = 0.0,
    ) -> None:
        require_fit(policy, demonstrations)
        self._policy = policy
        self._demonstrations = demonstrations
        seen = demonstrations.seen_by(policy.spec.cameras)
        where = str(demonstrations.path)
        self._images = {
            camera: open_frames(pictures, policy.frame_size, where if len(seen) == 1 else f"{where}, camera {camera}")
            for camera, pictures in seen.items()
        }
        self._learner = learner
        self._batch_size = batch_size
        self._augment, self._word_dropout = augment, word_dropout
        seed = learner.config.seed
        self._order = ShuffledBatches(len(demonstrations), batch_size, seed, learner.rank, learner.world_size)
        self._number = 0
        self._thread = ThreadPoolExecutor(1)
        self._ahead: Future[Batch] | None = None

    @property
    def facts(self) -> dict[str, str]:
        """Facts about the frames for a checkpoint's lineage: whether their pictures have passed through JPEG."""
        through_jpeg = any(frames.kind == "jpeg" for frames in self._images.values())
        return {"frames": f"JPEG, quality {JPEG_QUALITY}"} if through_jpeg else {}

    def seek(self, number: int) -> None:
        """Let the next batch be the one of this number."""
        if self._ahead is not None:
            wait([self._ahead])
            if self._number == number + 1:
                return  # It is the one that was prepared.
        self._ahead = None
        epoch, position = divmod(number * self._batch_size * self._learner.world_size, len(self._demonstrations))
        self._order.load_state_dict({"seed": self._learner.config.seed, "epoch": epoch, "position": position})
        self._number = number

    def next(self) -> Batch:
        """The next batch."""
        batch = (self._ahead or self._thread.submit(self._prepare)).result()
        self._ahead = self._thread.submit(self._prepare)
        return batch

    def _prepare(self) -> Batch:
        rows = next(self._order)
        images = {camera: frames[rows] for camera, frames in self._images.items()}
        if self._augment is not None:
            generator = self._learner.generator("augment", self._number, device="cpu")
            for camera, pictures in images.items():  # each with draws of its own
                images[camera] = vary(torch.from_numpy(pictures), self._augment, generator).numpy()
        instructions = [self._demonstrations.instruction(row) for row in rows]
        if self._word_dropout:
            words = rng(self._learner.config.seed, "words", self._number, self._learner.rank)
            instructions = [hide_words(self._policy, text, self._word_dropout, words) for text in instructions]
        noise = self._learner.generator("noise", self._number)
        self._number += 1
        observation = Observation(images, instructions, states(self._demonstrations, rows, self._policy))
        actions, padded = chunks(self._demonstrations, rows, self._policy)
        device = self._learner.device
        actions, numbers = (moved(tensor, device) for tensor in (actions, torch.from_numpy(rows)))
        behind = moved(padded, device) if padded.any() else None  # asked here, where it waits for no GPU
        return Batch(self._policy.prepare(observation), actions, behind, numbers, noise)


def hide_words(policy: Policy, instruction: str, probability: float, words: np.random.Generator) -> str:
    """`instruction` with each word shown as unknown at the given probability.

    Raises:
        UserError: the policy's tokenizer has no unknown token.
    """
    unknown = policy.unknown_word
    if unknown is None:
        raise UserError("word_dropout needs a tokenizer with an unknown token; this checkpoint has none")
    return " ".join(unknown if words.random() < probability else word for word in instruction.split())
