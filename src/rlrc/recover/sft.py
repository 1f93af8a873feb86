"""Supervised fine-tuning: cross-entropy on the seven action tokens of demonstrations.

    rlrc sft --policy runs/default/prune/checkpoint --dataset runs/default/collect/dataset --out runs/default/sft
    accelerate launch --multi_gpu --num_processes 2 -m rlrc sft ...        (the same where there is no GPU)

`fit` is the training loop; training a base policy from scratch runs the same one.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rlrc.configs.augmentation import Augmentation
from rlrc.configs.learner import SupervisedConfig
from rlrc.configs.sft import SftConfig
from rlrc.data.batches import ShuffledBatches, vary
from rlrc.data.demonstrations import Demonstrations
from rlrc.data.frames import JPEG_QUALITY, open_frames
from rlrc.data.statistics import adopt_statistics, policy_key, require_fit
from rlrc.errors import UserError
from rlrc.policies.statistics import action_statistics, normalise
from rlrc.policies.checkpoint import load
from rlrc.policies.openvla.model import PolicyInputs
from rlrc.policies.contract import Policy
from rlrc.process import keep_freed_memory
from rlrc.recover.loop import Learner, Means, learning_rate_factor, project, rng

LOG_EVERY = 10
"""Steps between two rows of metrics. States are written with rows only, so that a resumed run logs the same ones."""


def check(config: SupervisedConfig) -> None:
    """Look at the dataset; nothing is started.

    Raises:
        UserError: it cannot be read.
    """
    Demonstrations.check(config)


def sft(config: SftConfig, out: Path) -> dict[str, Any]:
    """Fine-tune a policy and write `out/checkpoint`; returns what `fit` does."""
    demonstrations = Demonstrations.of(config)
    policy = load(config.policy, policy_key(config))
    adopt_statistics(policy, demonstrations, config)
    return fit("sft", policy, config, demonstrations, out)


def fit(
    verb: str,
    policy: Policy,
    config: SupervisedConfig,
    demonstrations: Demonstrations,
    out: Path,
    auxiliary: nn.Module | None = None,
) -> dict[str, Any]:
    """Train `policy`, continuing where `out` was left, and write `out/checkpoint` and metrics.

    Args:
        auxiliary: a second loss, called with the projected image patches (B, P, hidden) and the numbers (B,) of their
            frames in `demonstrations`. Its parameters are trained beside the policy's and then thrown away.

    Returns:
        The last row of metrics.
    """
    keep_freed_memory()
    learner = Learner(policy, config, out, {} if auxiliary is None else {"auxiliary": auxiliary})
    frames = Frames(policy, demonstrations, config.batch_size, learner, config.augment, config.word_dropout)
    done = learner.resume()
    frames.seek(done * config.gradient_accumulation)
    means, started = Means(), time.monotonic()
    with learner.logbook(verb, config.steps, done) as record:
        for step in range(done, config.steps):
            for _ in range(config.gradient_accumulation):
                inputs, actions, numbers = frames.next()
                with learner.autocast():
                    inputs = project(policy, inputs)
                    losses = action_losses(policy, inputs, actions, config.label_spread)
                    if auxiliary is not None:
                        losses["auxiliary_loss"] = auxiliary(inputs.image_embeddings, numbers)
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


def action_losses(
    policy: Policy, inputs: PolicyInputs, actions: torch.Tensor, label_spread: float = 0.0
) -> dict[str, torch.Tensor]:
    """Measure how well a policy predicts normalised actions (B, 7): scalars `loss`, `token_accuracy` and `l1_error`.

    The loss is the cross-entropy over the 256 action ids; the error is that of the likeliest action.
    """
    tokens = torch.from_numpy(policy.actions.encode(actions.cpu().numpy())).to(actions.device)
    logits = policy.model.action_logits(inputs, tokens)[0].float().flatten(0, 1)
    labels = policy.actions.ids_to_bins(tokens).flatten()
    loss = F.cross_entropy(logits, _spread(labels, label_spread, logits.shape[-1]) if label_spread else labels)
    predicted = logits.argmax(dim=-1)
    ids = np.arange(policy.actions.first_id, policy.actions.vocab_end)
    centres = torch.from_numpy(policy.actions.decode(ids)).to(actions)
    return {
        "loss": loss,
        "token_accuracy": (predicted == labels).float().mean(),
        "l1_error": (centres[predicted] - actions.flatten()).abs().mean(),
    }


def _spread(labels: torch.Tensor, spread: float, bins: int) -> torch.Tensor:
    """Bin numbers (B,) to distributions (B, bins): a Gaussian around each label."""
    distance = torch.arange(bins, device=labels.device) - labels[:, None]
    return (-0.5 * (distance / spread) ** 2).softmax(dim=-1)


Batch = tuple[PolicyInputs, torch.Tensor, torch.Tensor]
"""Model inputs, normalised actions (B, 7) and numbers (B,) of the frames."""


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
        self._images = open_frames(demonstrations.pictures, policy.processor.images.one_size, str(demonstrations.path))
        self._learner = learner
        self._batch_size = batch_size
        self._augment, self._word_dropout = augment, word_dropout
        seed = learner.config.seed
        self._order = ShuffledBatches(len(demonstrations), batch_size, seed, learner.rank, learner.world_size)
        self._number = 0
        self._actions = normalise(demonstrations.actions, action_statistics(policy.norm_stats, policy.unnorm_key))
        self._thread = ThreadPoolExecutor(1)
        self._ahead: Future[Batch] | None = None

    @property
    def facts(self) -> dict[str, str]:
        """Facts about the frames for a checkpoint's lineage: whether their pictures have passed through JPEG."""
        return {"frames": f"JPEG, quality {JPEG_QUALITY}"} if self._images.kind == "jpeg" else {}

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
        images = self._images[rows]
        if self._augment is not None:
            generator = self._learner.generator("augment", self._number, device="cpu")
            images = vary(torch.from_numpy(images), self._augment, generator).numpy()
        instructions = [self._demonstrations.instruction(row) for row in rows]
        if self._word_dropout:
            words = rng(self._learner.config.seed, "words", self._number, self._learner.rank)
            instructions = [hide_words(self._policy, text, self._word_dropout, words) for text in instructions]
        self._number += 1
        inputs = self._policy.prepare(images, instructions)
        actions, numbers = (torch.from_numpy(array).to(self._learner.device) for array in (self._actions[rows], rows))
        return inputs, actions, numbers


def hide_words(policy: Policy, instruction: str, probability: float, words: np.random.Generator) -> str:
    """`instruction` with each word shown as unknown at the given probability.

    Raises:
        UserError: the policy's tokenizer has no unknown token.
    """
    tokenizer = policy.processor.tokenizer
    if tokenizer is None or tokenizer.unk_token is None:
        raise UserError("word_dropout needs a tokenizer with an unknown token; this checkpoint has none")
    return " ".join(tokenizer.unk_token if words.random() < probability else word for word in instruction.split())
