"""Values that pass between a policy and the rest of rlrc: observations, chunks of actions, layers, stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from torch import nn

from rlrc.errors import UserError, shorten
from rlrc.policies.dim import Dim

Generators = torch.Generator | Sequence[torch.Generator] | None
"""Source of sampling noise: one generator for the batch, one for each row, or torch's own."""


@dataclass(frozen=True)
class PolicySpec:
    """Description of what a policy sees and does; a server announces it."""

    family: str
    cameras: tuple[str, ...]
    """Names of the cameras, in the order in which the model reads their pictures."""
    state: tuple[Dim, ...]
    """Proprioception that it reads; empty where it reads none."""
    action: tuple[Dim, ...]
    horizon: int
    """Actions that one call gives (the chunk)."""
    execute: int
    """Actions of a chunk that are carried out before the next call, unless told otherwise."""


@dataclass(frozen=True)
class Previous:
    """The chunks that N robots carry out while their policy thinks, from which the next ones shall go on smoothly."""

    actions: np.ndarray
    """Actions that are left, the first of them for the moment of the observation, in physical units, float32 (N, H, D);
    what follows the last one that is left counts for nothing."""
    left: np.ndarray
    """Number of actions that are left, int (N,); 0 where an episode begins."""
    delay: np.ndarray
    """Control steps until the next chunk arrives, int (N,): so many of the actions will have been carried out."""

    def __getitem__(self, rows: Any) -> Previous:
        return Previous(self.actions[rows], self.left[rows], self.delay[rows])


@dataclass(frozen=True)
class Observation:
    """The pictures, instructions and states of N robots at one moment."""

    images: Mapping[str, np.ndarray]
    """Pictures by camera name, uint8 (N, H, W, 3). Cameras may differ in size."""
    instruction: Sequence[str]
    """N texts."""
    state: np.ndarray | None = None
    """Proprioception in physical units, float32 (N, S)."""
    present: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Flags by camera name, bool (N,), false where a robot lacks the camera; all have those that are not named."""
    previous: Previous | None = None
    """What the robots are carrying out; only policies with `continues_chunks` read it."""

    def __len__(self) -> int:
        return len(self.instruction)

    def __getitem__(self, rows: Any) -> Observation:
        """Some of the robots, chosen by an array of numbers or of booleans."""
        numbers = np.arange(len(self))[rows]
        return Observation(
            {name: images[numbers] for name, images in self.images.items()},
            [self.instruction[number] for number in numbers],
            None if self.state is None else self.state[numbers],
            {name: there[numbers] for name, there in self.present.items()},
            None if self.previous is None else self.previous[numbers],
        )

    @classmethod
    def of(
        cls,
        images: Observation | Mapping[str, np.ndarray] | np.ndarray,
        instructions: Sequence[str] | None,
        state: np.ndarray | None,
        cameras: Sequence[str],
    ) -> Observation:
        """An observation from its parts, or the one that is given; pictures without a name are the only camera's.

        Raises:
            UserError: the instructions are missing, or there are several cameras and the pictures have no names.
        """
        if isinstance(images, Observation):
            return images
        if instructions is None:
            raise UserError("instructions are missing: give a list of texts, one for each picture")
        if not isinstance(images, Mapping):
            if len(cameras) > 1:
                raise UserError(
                    f"the policy sees {len(cameras)} cameras: give pictures by name, "
                    f"{{{', '.join(f'{name!r}: ...' for name in cameras)}}}"
                )
            images = {cameras[0]: images}
        return cls(images, instructions, state)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The robots of all parts, in order; all have the same cameras, and a state or none, and nothing previous."""
        first = parts[0]
        assert all(part.previous is None for part in parts)
        return cls(
            {name: np.concatenate([part.images[name] for part in parts]) for name in first.images},
            [text for part in parts for text in part.instruction],
            None if first.state is None else np.concatenate([part.state for part in parts if part.state is not None]),
            {name: np.concatenate([part.present[name] for part in parts]) for name in first.present},
        )


@dataclass(frozen=True)
class Exploration:
    """Random denoising steps, by which a policy that denoises explores (pi_RL, arXiv 2510.25889)."""

    kind: Literal["flow-sde", "flow-noise"] = "flow-sde"
    """One random step among certain ones, or all steps random with a deviation that a network learns."""
    level: float = 0.5
    """Noise level of "flow-sde"."""


@dataclass(frozen=True)
class Sampler:
    """Options for drawing actions."""

    temperature: float = 0.0
    """Temperature of action tokens; 0 takes the likeliest ones. Where actions are denoised, a factor of the starting
    noise and of random steps; 0 starts from zeros."""
    exploration: Exploration | None = None
    """Random denoising steps, whose chain has a likelihood; None denoises by steps that are certain."""

    @property
    def needs_network(self) -> bool:
        """True where a network beside the policy gives the deviations of random steps."""
        return self.exploration is not None and self.exploration.kind == "flow-noise"

    def __post_init__(self) -> None:
        value = self.temperature
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise UserError(f"the temperature must be a number, not {shorten(repr(value))}")
        if not 0 <= value < math.inf:
            raise UserError(f"the temperature must be a finite number of at least 0, not {value}")


GREEDY = Sampler()


@dataclass(frozen=True)
class Sample:
    """N chunks of actions."""

    actions: torch.Tensor
    """Normalised, float (N, H, D)."""
    latent: dict[str, torch.Tensor]
    """Record of how the actions came about, as `likelihood` needs it, each (N, ...): tokens, or denoising steps."""
    logprobs: torch.Tensor | None = None
    """(N, H, D), of the distribution that was sampled from; at temperature 0 of the untempered one. None where the
    policy has no likelihood."""


@dataclass(frozen=True)
class Likelihood:
    """Log-probabilities of chunks of actions, as PPO needs them."""

    logprobs: torch.Tensor
    """(N, H, D)."""
    entropy: torch.Tensor
    """(N, H, D), of each number's distribution."""
    state: torch.Tensor
    """(N, hidden) float32: what the critic reads, which depends on no action."""


class States(dict[str, torch.Tensor]):
    """What enters or leaves the layers of one number, (N, T, width) by stack."""

    @property
    def count(self) -> int:
        """N."""
        return len(next(iter(self.values())))

    def rows(self, rows: slice) -> States:
        """Some of the N."""
        return States({stack: tensor[rows] for stack, tensor in self.items()})

    @classmethod
    def cat(cls, parts: Sequence[States]) -> States:
        """The rows of all parts, in order."""
        return cls({stack: torch.cat([part[stack] for part in parts]) for stack in parts[0]})


@dataclass(frozen=True)
class TeacherForced:
    """What enters the layers when a policy predicts known actions, and the predictions that it should make."""

    states: States
    there: dict[str, torch.Tensor]
    """Bool (N, T) by stack, false where there is padding."""
    context: dict[str, torch.Tensor]
    """What all layers need to know of the N rows, such as positions, each (N, ...)."""
    target: torch.Tensor
    """(N, H, D): numbers of action bins, normalised actions, noise or velocities."""


class Inputs(Protocol):
    """A family's model inputs, N rows of tensors; nothing in it is changed."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Self:
        """Some rows, which compute what they would have computed if they had been prepared alone."""
        ...

    def to(self, device: torch.device | str) -> Self: ...

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, in order."""
        ...


@dataclass(frozen=True)
class Stage:
    """One stage of an action, for those who measure it."""

    module: nn.Module
    """Holds the weights that are read."""
    positions: int
    """Rows that are multiplied at once."""
    passes: int = 1
    """Number of times that the weights are read in one action."""


@dataclass(frozen=True)
class StageCall:
    """A method whose time belongs to a stage."""

    owner: Any
    """Object or class that has the method."""
    method: str
    stage: Any
    """Name of the stage, from the method's arguments."""


@dataclass(frozen=True)
class Stack:
    """A run of transformer layers that can lose heads, channels or whole layers; stacks that run together are as deep.

    Those of language models and experts have leaf names as in transformers' Llama: `self_attn.{q,k,v,o}_proj`,
    `mlp.{gate,up,down}_proj`; those of vision towers as in its SigLIP: `self_attn.{q,k,v,out}_proj`, `mlp.fc{1,2}`, or
    as in timm: `attn.{qkv,proj}`, `mlp.fc{1,2}`.
    """

    name: str
    """"decoder" for the language model's, "expert" for those of an action expert, "vision" and "fused_vision" for those
    of towers."""
    prefix: str
    """Dotted name of the list of layers in the model."""
    layers: Sequence[Any]
    config: Any
    """Its part of the model's config, with `num_hidden_layers` and `per_layer_config`."""
    config_in: Callable[[Any], Any]
    """Finds `config` in a config of the whole model."""
    new_layer: Callable[[int], nn.Module]
    """Builds the layer of a number, of the shape that `config` gives it."""


def sparse(config: Any, shapes: Sequence[dict[str, int]]) -> dict[int | str, dict[str, Any]] | None:
    """The shapes of layers as transformers' `per_layer_config` holds them: those alone that differ from the config's
    own; None where none does."""
    whole = config.to_dict()
    return {layer: shape for layer, shape in enumerate(shapes) if not shape.items() <= whole.items()} or None


@dataclass(frozen=True)
class VisionPass:
    """Pictures on their way through the layers of vision towers."""

    states: States
    """States that enter the first layer of each tower, (pictures, patches, width)."""
    read: Callable[[States], torch.Tensor]
    """What leaves the last layers as it enters the language model, (pictures, tokens, hidden); some pictures at a
    time."""
    share: Callable[[torch.Tensor], torch.Tensor]
    """The part that belongs to the pictures, (pictures, tokens, hidden), of a tensor like what enters the language
    model, (N, positions, hidden)."""
    context: dict[str, torch.Tensor] = field(default_factory=dict)
    """Each layer takes these tensors beside its state, (pictures, ...) each."""


@dataclass(frozen=True)
class LanguageModel:
    """What a language model has around its layers, for those who read text with it alone."""

    embedding: str
    """Dotted name of the embedding whose vectors enter the first layer."""
    norm: str
    """Dotted name of what follows the last layer."""
    head: str
    """Dotted name of the matrix that reads tokens off; its rows may be those of the action ids alone."""


@dataclass(frozen=True)
class Exported:
    """A policy in the form of another library."""

    files: dict[str, Any]
    """JSON files by name."""
    statistics: dict[str, dict[str, torch.Tensor]]
    """Files of statistics by name."""
    tensors: dict[str, torch.Tensor]
    """The weights by name."""
    zeros: int = 0
    """Numbers of the weights that fill up layers which are smaller than the library holds them."""
    copies: Mapping[str, Path] = field(default_factory=dict)
    """Files to copy, by name."""


class Tensors(Protocol):
    """The tensors of a checkpoint by name, each read, merged, cast and checked when it is asked for."""

    folder: Path

    @property
    def paths(self) -> list[Path]:
        """The files that hold them."""
        ...

    def __iter__(self) -> Iterator[str]: ...

    def __contains__(self, name: str) -> bool: ...

    def outline(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """A tensor of the shape and dtype that `read` gives, without memory."""
        ...

    def read(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """Some rows of the tensor, in memory of their own.

        Raises:
            UserError: they hold NaN or infinity.
        """
        ...
