"""Base of the pruning methods: something to measure, and a plan that follows from it.

A method first measures the decoder, layer by layer, into a handful of small tensors, and then says what each layer
becomes. Measuring takes minutes and the plan no time, so that other targets can be tried on the same measurements.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from rlrc.configs.prune import MethodConfig
from rlrc.errors import UserError
from rlrc.progress import bar
from rlrc.prune.allocate import Rounding
from rlrc.prune.calibrate import Frames
from rlrc.prune.groups import Group
from rlrc.prune.measured import Measured, SavedSums
from rlrc.prune.stream import Calibration, Stream

Visit = Callable[[int, LlamaDecoderLayer, torch.Tensor], tuple[Measured, torch.Tensor]]
"""Takes a layer's number, the layer and its inputs (N, T, hidden); returns measurements and the layer's outputs."""


@dataclass(frozen=True)
class Target:
    """The amount that is to go: `ratio` or `overall`, or neither where the method itself says it."""

    ratio: float | None = None
    overall: float | None = None
    protected: frozenset[int] = frozenset()
    """Layers that stay as they are."""
    rounding: Rounding = field(default_factory=Rounding)


@dataclass(frozen=True)
class Source:
    """Everything that a method may read: layers, groups, target and samples."""

    layers: Sequence[LlamaDecoderLayer]
    """Decoder layers; each may be read anew whenever it is asked for."""
    groups: Sequence[Group]
    """The coupled groups of these layers."""
    target: Target
    seed: int = 0
    saved: SavedSums = field(default_factory=lambda: SavedSums(None, {}))
    rotary: nn.Module | None = None
    calibration: Calibration | None = None
    """Samples, where the method needs them."""
    frames: Frames | None = None
    """Frames that the samples were made of, where they are demonstrations."""

    @property
    def stream(self) -> Stream:
        """The calibration samples before the first layer."""
        assert self.calibration is not None and self.rotary is not None, "a method asks for what it does not need"
        return Stream(self.calibration, self.rotary)

    def forward(self, what: str, visit: Visit) -> Measured:
        """Send the samples through the layers, calling `visit` for each, and go on where an earlier run was cut off.

        Args:
            what: is measured, for people.

        Returns:
            All that `visit` has measured.
        """
        done, measured = self.saved.load()
        hidden = measured.pop("hidden", self.stream.calibration.embeddings)
        with bar(what, total=len(self.layers), start=done) as progress:
            for index in range(done, len(self.layers)):
                here, hidden = visit(index, self.layers[index], hidden)
                measured |= here
                self.saved.save(index + 1, measured | {"hidden": hidden})
                progress.advance()
        return measured

    def with_frames(self, frames: Frames) -> "Source":
        return replace(self, frames=frames, calibration=frames.calibration())


@dataclass(frozen=True)
class Plan:
    """The decoder after pruning, as a plan."""

    layers: tuple[int, ...]
    """The layers that stay, in order."""
    edit: Callable[[int, LlamaDecoderLayer], None]
    """Changes the layer of the given (old) number in place."""
    shapes: dict[int, dict[str, int]] = field(default_factory=dict)
    """Shapes that an edit changes, in transformers' words, by a layer's old number."""
    output_bias: bool = False
    """True if edits give o_proj and down_proj a bias."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Units or layers that stay, for the lineage; JSON-able."""


MethodOptions = TypeVar("MethodOptions", bound=MethodConfig)


class PruningMethod(ABC, Generic[MethodOptions]):
    """Base of the methods; `config` holds the options of one."""

    def __init__(self, config: MethodOptions) -> None:
        self.config = config

    def check(self, groups: Sequence[Group], layers: int, target: Target) -> None:
        """Refuse a target that cannot be reached, before anything is measured.

        Raises:
            UserError: it cannot.
        """

    @abstractmethod
    def measure(self, source: Source) -> Measured:
        """Read the layers, and the calibration samples with them."""

    @abstractmethod
    def plan(self, measured: Measured, groups: Sequence[Group], layers: int, target: Target) -> Plan:
        """Decide what each layer becomes for this target."""


def refuse_overall(target: Target, kind: str) -> None:
    """
    Raises:
        UserError: `overall` was asked of a method that removes no parameters of its own choice.
    """
    if target.overall is not None:
        raise UserError(f"{kind} takes a ratio, not an overall share of the parameters")
