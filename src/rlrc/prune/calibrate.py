"""Samples that methods are calibrated on: demonstrated frames and their action tokens, or given token ids.

Only the parts around the decoder are read here, the vision towers, the projector, embeddings, final norm and head; the
decoder itself passes by layer by layer (see `stream`).
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file

from rlrc.data import Demonstrations
from rlrc.data.samples import chunks, observe
from rlrc.data.statistics import require_fit
from rlrc.errors import UserError, shorten
from rlrc.policies.contract import Policy
from rlrc.policies.groups import DECODER
from rlrc.policies.values import Observation, States, TeacherForced
from rlrc.policies.wide import widen_where_slow
from rlrc.progress import track
from rlrc.prune.stream import Calibration
from rlrc.reading import require_file

PICTURES_AT_ONCE = 4
"""Pictures that pass the vision towers together, which bounds memory."""


@dataclass
class Frames:
    """Demonstrated frames, and around the decoder the parts of the policy that they pass through."""

    policy: Policy
    """The policy, whose decoder layers have no weights."""
    observation: Observation
    """The N frames as the policy sees them, pictures at the size that it reads."""
    actions: torch.Tensor
    """The demonstrated chunks, normalised (N, H, D)."""
    padded: torch.Tensor
    """Bool (N, H), true behind the end of an episode."""
    weights: torch.Tensor | None = None
    """Weight of each number in the loss (N, H, D), 1 on average. None means that all are 1."""
    seed: int = 0
    """Seed of the noise that a policy which denoises has to find in the actions, the same whatever the pictures are."""
    _entering: list[TeacherForced] = field(default_factory=list, repr=False)

    @classmethod
    def draw(
        cls, policy: Policy, demonstrations: Demonstrations, samples: int, seed: int, held_out: bool = False
    ) -> Self:
        """`samples` random frames, as `Demonstrations.draw` has them; `policy` is an outline, and reads the weights
        around its decoder from its files.

        Raises:
            UserError: there are not as many.
        """
        require_fit(policy, demonstrations)
        chosen = demonstrations.draw(samples, seed, held_out)
        fill_around_decoder(policy)
        actions, padded = (tensor.to(torch.get_default_device()) for tensor in chunks(demonstrations, chosen, policy))
        return cls(policy, observe(demonstrations, chosen, policy), actions, padded, seed=seed)

    def __len__(self) -> int:
        return len(self.observation)

    def let_vision_go(self) -> None:
        """Free the vision towers and the projector, when all pictures have passed them."""
        self.calibration()
        for part in ("vision", "projector"):
            if part in self.policy.parts:
                self.policy.model.get_submodule(self.policy.parts[part]).to("meta")

    def weighted(self, weights: torch.Tensor) -> "Frames":
        return replace(self, weights=weights)

    def calibration(self) -> Calibration:
        """The frames as the decoder sees them, teacher-forced, and the loss of what it predicts of their actions."""
        if not self._entering:
            self._entering.append(self.embed(self.observation))
        entering, policy = self._entering[0], self.policy
        counted = (~self.padded)[..., None].expand(self.actions.shape).to(self.actions.dtype)
        weights = counted if self.weights is None else counted * self.weights

        def loss(states: States, rows: slice) -> torch.Tensor:
            context = {name: tensor[rows] for name, tensor in entering.context.items()}
            errors = policy.errors(policy.read(states, context), entering.target[rows])
            return (errors * weights[rows]).sum() / counted.sum()

        return Calibration(entering.states, entering.there, entering.context, policy.step, loss)

    @torch.no_grad()
    def embed(self, observation: Observation) -> TeacherForced:
        """The decoder's inputs when these pictures take the place of the frames' own."""
        parts = []
        for first in track(range(0, len(observation), PICTURES_AT_ONCE), "pictures"):
            rows = slice(first, first + PICTURES_AT_ONCE)
            parts.append(self.policy.encode(self.policy.prepare(observation[rows]).to(self.actions.device)))
        noise = torch.Generator(self.actions.device).manual_seed(self.seed)
        return self.policy.teacher_forced(type(parts[0]).concatenate(parts), self.actions, noise)


def fill_around_decoder(policy: Policy) -> None:
    """Read all weights but those of the decoder's layers, to where new tensors are made."""
    prefixes = tuple(f"{stack.prefix}." for stack in policy.stacks())
    policy.fill(wanted=lambda name: not name.startswith(prefixes))
    for name, parameter in policy.model.named_parameters():
        if not name.startswith(prefixes):
            parameter.data = parameter.data.to(torch.get_default_device())
    widen_where_slow(policy.model, torch.get_default_device())


def text_calibration(source: Policy, path: Path) -> Calibration:
    """Given token ids and the loss of predicting each from those before it, as language models are calibrated.

    `path` is a safetensors file with `input_ids`, integers (N, T).

    Raises:
        UserError: the file is missing or has no such ids, or the checkpoint has kept the action rows of its head alone.
    """
    ids = _read_ids(path)
    stack, around, files = source.stacks()[0], source.language_model, source.weights
    assert files is not None
    if around is None:
        raise UserError(f"{files.folder}: the policy writes no text, so token ids cannot calibrate it; give a dataset")
    vocabulary = stack.config.vocab_size
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise UserError(f"{path}: token id {int(ids.max())} is outside the vocabulary of {vocabulary}")
    ids = ids.to(torch.get_default_device())
    head = files.read(f"{around.head}.weight").to(ids.device) if f"{around.head}.weight" in files else None
    if head is None or len(head) != vocabulary:
        raise UserError(f"{files.folder}: its head holds the action rows alone, so it has no loss on other tokens")
    source.fill(wanted=lambda name: name.startswith((f"{around.embedding}.", f"{around.norm}.")))
    embed, norm = (source.model.get_submodule(name).to(ids.device) for name in (around.embedding, around.norm))

    def loss(states: States, rows: slice) -> torch.Tensor:
        logits = F.linear(norm(states[DECODER][:, :-1]), head).float()
        targets = ids[rows, 1:]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / ids[:, 1:].numel()

    with torch.no_grad():
        positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        there = torch.ones_like(ids, dtype=torch.bool)
        context = {"mask": there, "positions": positions}
        run = partial(source.step, causal=True)
        return Calibration(States({DECODER: embed(ids)}), {DECODER: there}, context, run, loss)


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
