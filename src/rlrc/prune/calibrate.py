"""Samples that methods are calibrated on: demonstrated frames and their action tokens, or given token ids.

Only the parts around the decoder are read here, the vision towers, the projector, embeddings, final norm and head; the
decoder itself passes by layer by layer (see `stream`).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file

from rlrc.data import Demonstrations
from rlrc.data.frames import read_frames
from rlrc.data.statistics import require_fit
from rlrc.errors import UserError
from rlrc.policies.checkpoint import fill
from rlrc.policies.openvla.model import PolicyInputs
from rlrc.policies.contract import Policy
from rlrc.policies.prismatic.weights import HEAD, Weights
from rlrc.progress import track
from rlrc.prune.stream import DECODER, Calibration
from rlrc.reading import require_file, shorten

PICTURES_AT_ONCE = 4
"""Pictures that pass the vision towers together, which bounds memory."""


@dataclass
class Frames:
    """Demonstrated frames, and around the decoder the parts of the policy that they pass through."""

    policy: Policy
    """Policy whose decoder layers have no weights."""
    images: np.ndarray
    """uint8 (N, H, W, 3), at the size that the policy sees"""
    instructions: list[str]
    tokens: torch.Tensor
    """The demonstrated action ids (N, 7)."""
    weights: torch.Tensor | None = None
    """Weight of each sample and action dimension in the loss (N, 7), 1 on average. None means that all are 1."""
    _embedded: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def draw(cls, policy: Policy, files: Weights, demonstrations: Demonstrations, samples: int, seed: int) -> Self:
        """`samples` random frames; `policy` is an outline, and gets the weights around its decoder from `files`.

        Raises:
            UserError: there are not as many.
        """
        require_fit(policy, demonstrations)
        chosen = demonstrations.draw(samples, seed)
        fill(policy.model, files, wanted=lambda name: not name.startswith(f"{DECODER}."))
        _to_default_device(policy)
        instructions = [demonstrations.instruction(i) for i in chosen]
        tokens = policy.encode(demonstrations.actions[chosen])
        images = read_frames(demonstrations.pictures, chosen, policy.processor.images.one_size)
        return cls(policy, images, instructions, tokens)

    def __len__(self) -> int:
        return len(self.images)

    def let_vision_go(self) -> None:
        """Free the vision towers and the projector, when all pictures have passed them."""
        self.calibration()
        self.policy.model.vision_backbone.to("meta")
        self.policy.model.projector.to("meta")

    def weighted(self, weights: torch.Tensor) -> "Frames":
        return replace(self, weights=weights)

    def calibration(self) -> Calibration:
        """The frames as the decoder sees them, teacher-forced, and the cross-entropy over their action tokens."""
        if not self._embedded:
            embeddings, mask = self.embed(self.images)
            self._embedded |= {"embeddings": embeddings, "mask": mask}
        bins = self.policy.actions.ids_to_bins(self.tokens)
        weights = torch.ones(bins.shape) if self.weights is None else self.weights

        def loss(hidden: torch.Tensor, rows: slice) -> torch.Tensor:
            logits = self.logits(hidden)
            each = F.cross_entropy(logits.flatten(0, 1), bins[rows].flatten(), reduction="none")
            return (each.view(-1, bins.shape[1]) * weights[rows]).sum() / bins.numel()

        return Calibration(self._embedded["embeddings"], self._embedded["mask"], loss)

    def embed(self, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what enters the decoder when these pictures (N, H, W, 3) take the place of the frames' own.

        Returns:
            embeddings (N, T, hidden) and mask (N, T).
        """
        model, device = self.policy.model, self.tokens.device
        prompts = self.policy.processor.prompts(self.instructions).to(device)
        rows = []
        for first in track(range(0, len(images), PICTURES_AT_ONCE), "pictures"):
            here = slice(first, first + PICTURES_AT_ONCE)
            with torch.no_grad():
                pictures = model.project_images(self.policy.processor.images(images[here]).to(device))
                inputs = PolicyInputs(prompts.input_ids[here], prompts.attention_mask[here], image_embeddings=pictures)
                rows.append(model.teacher_forced(inputs, self.tokens[here])[:2])
        embeddings, mask = (torch.cat(column) for column in zip(*rows, strict=True))
        return embeddings, mask.bool()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Turn what leaves the last layer (n, T, hidden) into logits of the action bins, float32 (n, 7, 256)."""
        model = self.policy.model
        last = model.language_model.model.norm(hidden[:, -self.tokens.shape[1] :])
        return model.action_head(last).float()


def _to_default_device(policy: Policy) -> None:
    """Move what stands around the decoder to where new tensors are made."""
    model, decoder = policy.model, policy.model.language_model
    parts = (model.vision_backbone, model.projector, decoder.model.embed_tokens, decoder.model.norm, decoder.lm_head)
    for part in parts:
        part.to(torch.get_default_device())


def text_calibration(source: Policy, files: Weights, path: Path) -> Calibration:
    """Calibrate on given token ids: the loss is that of predicting each from those before it, as for language models.

    `path` is a safetensors file with `input_ids`, integers (N, T).

    Raises:
        UserError: the file is missing or has no such ids, or the checkpoint has kept the action rows of its head alone.
    """
    ids = _read_ids(path)
    vocabulary = source.model.config.text_config.vocab_size
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise UserError(f"{path}: token id {int(ids.max())} is outside the vocabulary of {vocabulary}")
    ids = ids.to(torch.get_default_device())
    head = files.read(HEAD).to(ids.device) if HEAD in files else None
    if head is None or len(head) != vocabulary:
        raise UserError(f"{files.folder}: its head holds the action rows alone, so it has no loss on other tokens")
    embed, norm = source.model.get_input_embeddings(), source.model.language_model.model.norm
    fill(source.model, files, wanted=lambda name: name.startswith(_TEXT_PARTS))
    for part in (embed, norm):
        part.to(ids.device)

    def loss(hidden: torch.Tensor, rows: slice) -> torch.Tensor:
        logits = F.linear(norm(hidden[:, :-1]), head).float()
        targets = ids[rows, 1:]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / ids[:, 1:].numel()

    with torch.no_grad():
        return Calibration(embed(ids), torch.ones(ids.shape, dtype=torch.bool), loss)


_TEXT_PARTS = ("language_model.model.embed_tokens.", "language_model.model.norm.")


def _read_ids(path: Path) -> torch.Tensor:
    require_file(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a safetensors file that can be read ({shorten(str(error))})") from error
    ids = tensors.get("input_ids")
    if ids is None or ids.ndim != 2 or ids.is_floating_point() or ids.shape[1] < 2 or not len(ids):
        raise UserError(f"{path}: holds no `input_ids` of integers (samples, at least 2 tokens)")
    return ids.long()
