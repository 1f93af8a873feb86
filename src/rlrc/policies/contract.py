"""The contract of a policy: what everything outside a family's folder may know of it.

A family (OpenVLA, OpenVLA-OFT) is a folder that implements `Policy`. Verbs, worlds and datasets speak to a policy only
through what stands here: observations with cameras by name and a state, chunks of actions in the robot's units, and the
layers that pruning may make smaller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from rlrc.policies.groups import Block, Group
from rlrc.policies.losses import Teacher, losses_of
from rlrc.policies.offers import Offers
from rlrc.policies.statistics import Entry
from rlrc.policies.values import (
    GREEDY,
    Generators,
    Observation,
    PolicySpec,
    Sample,
    Sampler,
    Stack,
    Stage,
    StageCall,
    States,
    TeacherForced,
    Tensors,
    sparse,
)

if TYPE_CHECKING:
    from rlrc.policies.folder import Reading


class Policy(Offers, ABC):
    """A policy, as `rlrc.load` returns it. It keeps nothing of an episode: what does is an actor around it."""

    spec: PolicySpec
    model: Any
    """A transformers PreTrainedModel."""
    parts: Mapping[str, str]
    """Dotted names of the model's parts: vision, projector, decoder, embedding, head, and what else a family has."""
    feature_reader: str
    """Dotted name of the linear layer that reads the features of the vision towers."""
    lineage: dict[str, Any]
    """Record of how the checkpoint was made, as in `compression.json`."""
    weights: Tensors | None
    """Tensors on disk; None where the policy was not read from there."""
    unnorm_key: str | None
    """Name of the statistics that normalise actions; None where the checkpoint has one set alone, or none."""
    default_temperature: float = 0.0
    """Temperature at which the policy acts unless told otherwise: 0 takes the likeliest tokens, 1 the starting noise
    that a policy which denoises was trained on."""
    clips: bool = True
    """True where normalised actions and states are clipped to [-1, 1]."""
    eager: bool = False
    """True where an action on a GPU is to be launched kernel by kernel, and not as one CUDA graph."""

    # -- reading -------------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def recognises(cls, config: dict[str, Any], files: Sequence[str], spec: str | None) -> bool:
        """Return whether a folder with this config.json and files of these names holds a policy of the family.

        Args:
            spec: what a user says of it, which its files do not say.

        Raises:
            UserError: it holds one of a kind that cannot be read.
        """

    @classmethod
    @abstractmethod
    def outline(cls, folder: Path, reading: Reading) -> Self:
        """The policy in a folder, its weights still on disk: parameters have their shapes and no memory ("meta").

        Raises:
            UserError: a file is missing or damaged, or describes another model than the weights.
        """

    @abstractmethod
    def fill(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Give each parameter whose name is `wanted` its tensor from the files, one by one.

        Raises:
            UserError: a tensor holds NaN or infinity.
        """

    # -- acting --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self, observation: Observation) -> Any:
        """Turn an observation into model inputs, `Inputs` on the policy's device.

        Raises:
            UserError: a camera or the state is missing, or has a wrong type, shape or number of rows.
        """

    @abstractmethod
    def encode(self, inputs: Any) -> Any:
        """`inputs` with what vision computes of the pictures in place of their pixels; differentiable."""

    @abstractmethod
    def features(self, inputs: Any) -> torch.Tensor:
        """The features that vision has computed in encoded `inputs`, (N, P, hidden)."""

    @property
    @abstractmethod
    def num_patches(self) -> int:
        """P of `features`, of all cameras together."""

    @property
    def records(self) -> bool:
        """True where actions are recorded as CUDA graphs (see `graphs.py`): the first two of a shape take longer."""
        return False

    @abstractmethod
    def sample(self, inputs: Any, sampler: Sampler = GREEDY, generator: Generators = None) -> Sample:
        """Choose a chunk of actions for each row.

        Raises:
            UserError: there are not as many generators as rows, or the sampler asks for what the policy has not.
        """

    def act(
        self,
        images: Observation | Mapping[str, np.ndarray] | np.ndarray,
        instructions: Sequence[str] | None = None,
        temperature: float | None = None,
        generator: Generators = None,
        state: np.ndarray | None = None,
    ) -> np.ndarray:
        """Actions in physical units: float32 (N, H, D), or (N, D) of a policy that gives one action a call.

        Args:
            images: an observation; or pictures uint8 (N, H, W, 3), by camera name where there are several.
            instructions: N texts.
            temperature: 0 takes the likeliest actions; None takes `default_temperature`.
            generator: source of sampling noise, one for all rows or one for each.
            state: proprioception in physical units, float32 (N, S), where the policy reads it.

        Raises:
            UserError: something is missing or has a wrong type, shape or number of rows; the temperature is negative
                or infinite; or there are no statistics to use.
        """
        observation = self.observation(images, instructions, state)
        sampler = Sampler(self.default_temperature if temperature is None else temperature)
        sample = self.sample(self.prepare(observation), sampler, generator)
        chunks = self.to_physical(sample.actions.cpu().numpy())
        return chunks[:, 0] if self.spec.horizon == 1 else chunks

    def observation(
        self,
        images: Observation | Mapping[str, np.ndarray] | np.ndarray,
        instructions: Sequence[str] | None = None,
        state: np.ndarray | None = None,
    ) -> Observation:
        """An observation from its parts (see `Observation.of`)."""
        return Observation.of(images, instructions, state, self.spec.cameras)

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side in pixels of the largest picture that the model reads."""

    @property
    @abstractmethod
    def frame_size(self) -> tuple[int, int] | None:
        """Height and width to which pictures may be brought beforehand, since the model sees no other; None where
        there is no such size."""

    # -- normalisation -------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def norm_stats(self) -> dict[str, Any] | None:
        """All statistics that the checkpoint holds, by name."""

    @abstractmethod
    def adopt(self, statistics: dict[str, Any], key: str) -> None:
        """Keep one more set of statistics under `key`, and use it from now on."""

    @abstractmethod
    def action_statistics(self) -> dict[str, np.ndarray]:
        """The statistics in use, each (D,).

        Raises:
            UserError: they are damaged, missing, unknown, or have another number of dimensions than the actions.
        """

    @abstractmethod
    def outside(self, values: np.ndarray, entry: Entry) -> np.ndarray:
        """Which numbers (T, D) of actions or states in the robot's units are clipped, bool (T, D); where nothing is
        clipped, those that lie far from all that the statistics were made of."""

    @abstractmethod
    def to_physical(self, actions: np.ndarray) -> np.ndarray:
        """Normalised actions (..., D) in the robot's units, float32."""

    @abstractmethod
    def to_normalised(self, actions: np.ndarray) -> np.ndarray:
        """Actions (..., D) in the robot's units as the policy learns them, float32 in [-1, 1]."""

    # -- learning ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def teacher_forced(self, inputs: Any, actions: torch.Tensor, generator: Generators = None) -> TeacherForced:
        """Build what enters the layers for predicting normalised actions (N, H, D).

        Args:
            generator: source of the noise that the policy learns to take away, where it is one that denoises.
        """

    @abstractmethod
    def step(
        self, block: Block, states: States, context: Mapping[str, torch.Tensor], causal: bool | None = None
    ) -> States:
        """What leaves the layers of one number when `states` enter them, teacher-forced; differentiable.

        Args:
            block: the layers, which need not be those of the model.
            context: that of `teacher_forced`.
            causal: true where a position sees itself and those before it alone, false where it sees all; None is the
                policy's own way.
        """

    @abstractmethod
    def read(self, states: States, context: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Predictions (N, H, D, ...) from what leaves the last layers, teacher-forced."""

    @abstractmethod
    def errors(self, predicted: torch.Tensor, target: torch.Tensor, label_spread: float = 0.0) -> torch.Tensor:
        """The error of each number that `read` predicts, (N, H, D): training makes it small.

        Args:
            label_spread: standard deviation, in bins, of a Gaussian that spreads each label over neighbouring bins.

        Raises:
            UserError: labels are to be spread, and the policy has no bins.
        """

    @abstractmethod
    def mean_actions(self, predicted: torch.Tensor) -> torch.Tensor:
        """The mean of what `read` predicts, normalised (N, H, D): actions, or the noise in them where the policy
        denoises."""

    @abstractmethod
    def best_actions(self, predicted: torch.Tensor) -> torch.Tensor:
        """The likeliest of what `read` predicts, normalised (N, H, D): actions, or the noise in them where the policy
        denoises."""

    @abstractmethod
    def predict(self, inputs: Any, actions: torch.Tensor, generator: Generators = None) -> tuple[torch.Tensor, Any]:
        """Run the whole forward pass: the predictions of `read` for normalised actions (N, H, D), and their target."""

    def loss(
        self,
        inputs: Any,
        actions: torch.Tensor,
        padded: torch.Tensor | None = None,
        label_spread: float = 0.0,
        generator: Generators = None,
        teacher: Teacher | None = None,
        weights: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Measure how well the policy predicts demonstrated chunks: scalars, of which training makes `loss` small.

        Args:
            actions: normalised, (N, H, D).
            padded: bool (N, H), true where a chunk goes on after its episode has ended; nothing is learnt there. None
                where no chunk does.
            label_spread: see `errors`.
            generator: see `teacher_forced`.
            teacher: whose predictions are learnt as well; `teacher_loss` is the distance from them.
            weights: of the rows in both losses (N,), 1 on average over all rows that are learnt. None counts all alike.
        """
        return losses_of(self, inputs, actions, padded, label_spread, generator, teacher, weights)

    def predict_drawn(
        self, inputs: Any, actions: torch.Tensor, generator: Generators = None
    ) -> tuple[torch.Tensor, Any]:
        """`predict` as training does it: each row as often as it is learnt from other noise (see `learn_from`)."""
        return self.predict(inputs, actions, generator)

    def distances(self, predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """How far predictions are from those of a teacher, (N, H, D): in bins, Kullback and Leibler's divergence."""
        if self.bin_width is None:
            return self.errors(predicted, wanted)
        ours, theirs = (logits.log_softmax(dim=-1) for logits in (predicted, wanted))
        return (theirs.exp() * (theirs - ours)).sum(dim=-1)

    def vitals(self, predicted: torch.Tensor, target: torch.Tensor, actions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Figures that training reports beside the loss, each (N, H, D)."""
        return {"l1_error": (self.best_actions(predicted) - actions).abs()}

    @property
    @abstractmethod
    def critic_width(self) -> int:
        """Width of what the critic reads (`Likelihood.state`)."""

    action_form: str | None = None
    """Form of the actions, such as an L1 head's, where the family has several."""
    bin_width: float | None = None
    """Distance between two neighbouring actions, normalised, where actions are tokens."""

    @property
    @abstractmethod
    def can_read_instructions(self) -> bool:
        """False where the folder lacks a tokenizer, so that the policy can be changed and cannot act."""

    @property
    @abstractmethod
    def unknown_word(self) -> str | None:
        """The token that stands for an unknown word in an instruction; None where the tokenizer has none."""

    # -- changing ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def stacks(self) -> Sequence[Stack]:
        """The layers that pruning may make smaller and that run together; the language model's first."""

    @abstractmethod
    def groups(self, index: int, block: Block) -> Sequence[Group]:
        """What must leave the block of this number together.

        Raises:
            UserError: a layer is quantized; packed weights cannot be cut.
        """

    def reshape(self, config: Any, layers: Sequence[int], shapes: Mapping[str, Sequence[dict[str, int]]]) -> None:
        """Let a config of the whole model describe fewer layers of other shapes.

        Args:
            layers: old numbers of the layers that stay, in order.
            shapes: their shapes by stack, in transformers' words; stacks that are not named stay as they are.
        """
        for stack in (*self.stacks(), *self.vision_stacks()):
            if stack.name not in shapes:
                continue
            part = stack.config_in(config)
            part.per_layer_config = sparse(part, shapes[stack.name])
            part.num_hidden_layers = len(shapes[stack.name])

    @abstractmethod
    def stored(self, name: str) -> torch.Tensor:
        """A tensor as the files have it, or of its rows those that the policy keeps."""

    @abstractmethod
    def rebuilt(self, config: Any) -> Self:
        """The same policy with a model of another config, whose parameters have shapes and no memory yet."""

    @abstractmethod
    def save(
        self,
        path: str | Path,
        stage: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        tensors: Iterable[tuple[str, torch.Tensor]] | None = None,
    ) -> None:
        """Write a Hugging Face repository; `stage` is appended to the lineage in `compression.json`.

        Args:
            dtype: of the floating-point weights on disk; None keeps the model's own.
            tensors: the weights by name, where the policy is an outline: they are written as they come.

        Raises:
            UserError: something else than an earlier checkpoint lies at `path`, or the disk is full.
        """

    # -- measuring -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def stages(self, inputs: Any) -> dict[str, Stage]:
        """The stages of one action on `inputs` of one row: vision, projector, prefill, decode, as far as there are."""

    @abstractmethod
    def stage_calls(self) -> Sequence[StageCall]:
        """The methods in which an action spends its time."""

    @property
    @abstractmethod
    def published_parameters(self) -> int:
        """Number of parameters as papers count them, with those that are never read."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def source(self) -> Path | None:
        """The folder that the policy was loaded from."""
        return None if self.weights is None else self.weights.folder

    def part_of(self, name: str) -> str | None:
        """The part that the module or tensor of dotted `name` belongs to."""
        return next((part for part, prefix in self.parts.items() if f"{name}.".startswith(f"{prefix}.")), None)
