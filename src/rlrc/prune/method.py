"""Base of the pruning methods: something to measure, and a plan that follows from it.

A method first measures the layers, block by block, into a handful of small tensors, and then says what each layer
becomes. Measuring takes minutes and the plan no time, so that other targets can be tried on the same measurements.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from rlrc.configs.prune import MethodConfig
from rlrc.errors import UserError
from rlrc.policies.groups import Block, Group
from rlrc.policies.parts.tokens import TokenReduction
from rlrc.policies.parts.towers import JoinedTowers, OneTower
from rlrc.policies.values import States
from rlrc.progress import bar
from rlrc.prune.allocate import Rounding
from rlrc.prune.calibrate import Frames
from rlrc.prune.groups import describe
from rlrc.prune.measured import Measured, SavedSums
from rlrc.prune.stream import Calibration, Stream

Visit = Callable[[int, Block, States], tuple[Measured, States]]
"""Takes a block's number, the block and its inputs; returns measurements and the block's outputs."""
BackwardVisit = Callable[[int, Block, States, States], tuple[Measured, States]]
"""Takes a block's number, the block, its inputs and the loss's gradient of its outputs; returns measurements and the
gradient of the inputs."""
STATES = "states."
"""Stands before the names of stacks in saved sums."""


@dataclass(frozen=True)
class Target:
    """The amount that is to go: `ratio` or `overall`, or neither where the method itself says it."""

    ratio: float | None = None
    overall: float | None = None
    protected: frozenset[int] = frozenset()
    """Layers that stay as they are."""
    rounding: Rounding = field(default_factory=Rounding)
    tokens: int = 0
    """Tokens that a picture becomes before pruning."""
    towers: JoinedTowers | None = None
    """Vision towers of which one is to go, where the method takes one."""


@dataclass(frozen=True)
class Source:
    """Everything that a method may read: layers, groups, target and samples."""

    blocks: Sequence[Block]
    """All layers; each block may be read anew whenever it is asked for."""
    groups: Sequence[Group]
    """The coupled groups that may lose units."""
    target: Target
    seed: int = 0
    saved: SavedSums = field(default_factory=lambda: SavedSums(None, {}))
    calibration: Calibration | None = None
    """Samples, where the method needs them and they are made of something else than `frames`."""
    frames: Frames | None = None
    """Frames that the samples are made of, where they are demonstrations."""

    @property
    def stream(self) -> Stream:
        """The calibration samples before the first layer."""
        calibration = self.frames.calibration() if self.calibration is None and self.frames else self.calibration
        assert calibration is not None, "a method asks for what it does not need"
        return Stream(calibration)

    def forward(self, what: str, visit: Visit) -> Measured:
        """Send the samples through the blocks, calling `visit` for each, and go on where an earlier run was cut off.

        Args:
            what: is measured, for people.

        Returns:
            All that `visit` has measured.
        """
        done, measured = self.saved.load()
        states = unpacked(measured) or self.stream.calibration.states
        with bar(what, total=len(self.blocks), start=done) as progress:
            for index in range(done, len(self.blocks)):
                here, states = visit(index, self.blocks[index], states)
                measured |= here
                self.saved.save(index + 1, measured | packed(states))
                progress.advance()
        return measured

    def backward(self, what: str, visit: BackwardVisit) -> Measured:
        """Send the samples forward once, keeping what enters each block, and the loss's gradient back, calling `visit`
        for each block from the last to the first; go on where an earlier run was cut off.

        Args:
            what: is measured, for people.

        Returns:
            All that `visit` has measured.
        """
        stream, count = self.stream, len(self.blocks)
        done, measured = self.saved.load()
        upstream = unpacked(measured)
        inputs = [stream.calibration.states]
        with bar(what, total=2 * count) as progress:
            for index in range(count if upstream is None else count - done - 1):
                inputs.append(stream.step(self.blocks[index], inputs[-1]))
                progress.advance()
            if upstream is None:
                upstream = stream.loss_gradient(inputs.pop())
            else:
                progress.advance(2 * done + 1)
            for index in reversed(range(count - done)):
                here, upstream = visit(index, self.blocks[index], inputs.pop(), upstream)
                measured |= here
                self.saved.save(count - index, measured | packed(upstream))
                progress.advance()
        return measured

    def with_frames(self, frames: Frames) -> "Source":
        return replace(self, frames=frames)


def packed(states: States) -> Measured:
    """States under names of their own, to be saved beside what was measured."""
    return {f"{STATES}{stack}": tensor for stack, tensor in states.items()}


def unpacked(saved: Measured) -> States | None:
    """Take the states out of what was saved; None where there are none."""
    names = [name for name in saved if name.startswith(STATES)]
    return States({name.removeprefix(STATES): saved.pop(name) for name in names}) if names else None


@dataclass(frozen=True)
class Plan:
    """The layers after pruning, as a plan."""

    layers: tuple[int, ...]
    """The layers that stay, in order."""
    edit: Callable[[int, Block], None]
    """Changes the block of the given (old) number in place."""
    shapes: dict[tuple[int, str], dict[str, int]] = field(default_factory=dict)
    """Shapes that an edit changes, in transformers' words, by a layer's old number and stack."""
    output_bias: bool = False
    """True if edits give o_proj and down_proj a bias."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Units, layers or tokens that stay, for the lineage; JSON-able."""
    tokens: TokenReduction | None = None
    """A way to make fewer tokens of each picture."""
    tower: OneTower | None = None
    """One of two vision towers, which stays alone."""


MethodOptions = TypeVar("MethodOptions", bound=MethodConfig)


class PruningMethod(ABC, Generic[MethodOptions]):
    """Base of the methods; `config` holds the options of one."""

    def __init__(self, config: MethodOptions) -> None:
        self.config = config

    def announcement(self, groups: Sequence[Group], target: Target) -> str:
        """Tell people what may go."""
        return describe(groups)

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


def unchanged(index: int, block: Block) -> None:
    """The edit of a plan that leaves the blocks as they are."""


def refuse_overall(target: Target, kind: str) -> None:
    """
    Raises:
        UserError: `overall` was asked of a method that removes no parameters of its own choice.
    """
    if target.overall is not None:
        raise UserError(f"{kind} takes a ratio, not an overall share of the parameters")
