"""Options of `prune` and of each method. `rlrc.prune` holds what a method does."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from rlrc.config import Config, LayerNumber, Seed, Share
from rlrc.configs.parts import PolicyPart, StatisticsPart
from rlrc.configs.saliency import Saliency

Pattern = Annotated[str, StringConstraints(pattern=r"^\d{1,4}:\d{1,4}$")]


class MethodConfig(Config):
    """Base of the methods' options."""

    kind: str

    @property
    def needs_calibration(self) -> bool:
        """True if the method reads calibration samples."""
        return True

    @property
    def reads_pictures(self) -> bool:
        """True if the method looks at the calibration pictures again, so that the vision towers must stay in memory."""
        return False

    @property
    def changes_layers(self) -> bool:
        """True if layers, heads, channels or weights go, so that stacks and protect say which."""
        return True

    @property
    def takes_channels(self) -> bool:
        """True if channels go, so that their number can be rounded."""
        return self.changes_layers

    @property
    def couples_units(self) -> bool:
        """True if heads and channels go, with all that belongs to them, and not single weights of a matrix."""
        return True

    @property
    def takes_tower(self) -> bool:
        """True if a vision tower goes as a whole."""
        return False

    @property
    def needs_target(self) -> bool:
        """True if a ratio must be given, because the method itself does not say how much goes."""
        return True

    @property
    def target_free(self) -> bool:
        """True if measurements hold for every target, because nothing is changed while measuring."""
        return True


class ScoredUnitsConfig(MethodConfig):
    """Options of the methods that give every head and channel a score and keep the best."""

    scope: Literal["local", "global"] = "local"
    """Scope of the choice: each layer keeps its own best units (local), or all layers share one threshold (global)."""


class Random(ScoredUnitsConfig):
    """Remove heads and channels at random, which any criterion has to beat."""

    kind: Literal["random"] = "random"

    @property
    def needs_calibration(self) -> bool:
        return False


class LlmPruner(ScoredUnitsConfig):
    """Remove heads and channels by LLM-Pruner's importance, layer by layer."""

    kind: Literal["llm-pruner"] = "llm-pruner"
    importance: Literal["vectorize", "param_first", "param_second", "param_mix", "magnitude_l1", "magnitude_l2"] = (
        "param_first"
    )
    """Rule by which a weight's importance is computed and summed over a channel. All but the magnitudes need
    gradients."""
    reduction: Literal["sum", "mean", "max", "prod", "first"] = "sum"
    """Rule by which the matrices of a coupled group are combined."""

    @property
    def needs_calibration(self) -> bool:
        return not self.importance.startswith("magnitude")


class StateSaliency(LlmPruner, Saliency):
    """Remove heads and channels by LLM-Pruner's importance, weighted by how much each state matters to the robot."""

    kind: Literal["state-saliency"] = "state-saliency"  # type: ignore[assignment]

    @property
    def reads_pictures(self) -> bool:
        return True

    @model_validator(mode="after")
    def _has_gradients(self) -> Self:
        if not self.needs_calibration:
            raise ValueError(f"state-saliency weights gradients, and {self.importance} has none; choose another one")
        return self


class Flap(MethodConfig):
    """Remove the heads and channels whose inputs fluctuate least, and make up for their mean by a bias (FLAP)."""

    kind: Literal["flap"] = "flap"
    metric: Literal["IFV", "WIFV", "WIFN"] = "WIFV"
    """Measure of how much an input of o_proj or down_proj matters."""
    structure: Literal["AL-AM", "UL-UM"] = "AL-AM"
    """Ranking: heads and channels of all layers share one (AL-AM), or each layer loses the same share (UL-UM)."""
    bias_compensation: bool = True
    """Give o_proj and down_proj a bias, the mean of what left."""


class UnstructuredConfig(MethodConfig):
    """Options of the methods that set single weights to zero."""

    pattern: Pattern | None = None
    """Zero n of every m neighbouring inputs, written n:m, instead of the lowest ratio of all."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.pattern is not None:
            n, m = self.n_of_m
            if not 0 < n < m:
                raise ValueError(f"pattern {self.pattern}: zero fewer than all of every m inputs, as in 2:4")
        return self

    @property
    def couples_units(self) -> bool:
        return False

    @property
    def takes_channels(self) -> bool:
        return False

    @property
    def needs_target(self) -> bool:
        return self.pattern is None

    @property
    def n_of_m(self) -> tuple[int, int]:
        """The two numbers of the pattern."""
        assert self.pattern is not None
        n, m = self.pattern.split(":")
        return int(n), int(m)


class Magnitude(UnstructuredConfig):
    """Set the smallest weights of each matrix to zero."""

    kind: Literal["magnitude"] = "magnitude"

    @property
    def needs_calibration(self) -> bool:
        return False


class Wanda(UnstructuredConfig):
    """Set weights to zero by their magnitude times the norm of their inputs."""

    kind: Literal["wanda"] = "wanda"
    mass: bool = False
    """Use Wanda's variant: in each row goes what adds up to the same share of the row's scores, found by bisection."""

    @model_validator(mode="after")
    def _has_a_share(self) -> Self:
        if self.mass and self.pattern is not None:
            raise ValueError("mass takes a share of each row's scores, and pattern some of every few; give one of them")
        return self

    @property
    def target_free(self) -> bool:
        return False


class Depth(MethodConfig):
    """Remove whole layers, by a ranking or all but a list."""

    kind: Literal["depth"] = "depth"
    keep: tuple[LayerNumber, ...] = ()
    """Layers that stay; -1 is the last. Without it, ratio of the layers go: the last of the ranking."""
    rank: Literal["influence", "gates"] = "influence"
    """Ranking of the layers: by how much a layer changes its input (influence), or by how much the loss changes when
    the layer fades (gates)."""

    @model_validator(mode="after")
    def _ranks_or_keeps(self) -> Self:
        if self.keep and "rank" in self.model_fields_set:
            raise ValueError("keep says itself which layers stay; leave rank out")
        return self

    @property
    def needs_calibration(self) -> bool:
        return not self.keep

    @property
    def takes_channels(self) -> bool:
        return False

    @property
    def needs_target(self) -> bool:
        return not self.keep


class Tokens(MethodConfig):
    """Let fewer tokens of each picture into the language model; ratio of them go."""

    kind: Literal["tokens"] = "tokens"
    by: Literal["pool", "shuffle", "merge", "select"] = "pool"
    """Way to make fewer: means over square windows (pool), square windows with their features side by side (shuffle),
    means over those that are most alike (merge), or those alone whose embedding is nearest to that of the instruction
    (select). With shuffle the projector gets as many times the inputs, and computes at first what pool gives; with the
    others no weight changes."""

    @property
    def needs_calibration(self) -> bool:
        return False

    @property
    def changes_layers(self) -> bool:
        return False


class Tower(MethodConfig):
    """Keep one of two vision towers whose features are joined, and make up for the mean of the other one by a bias."""

    kind: Literal["tower"] = "tower"
    keep: Literal[0, 1]
    """Number of the tower that stays: 0 is the first one (OpenVLA's DINOv2), 1 the second one (its SigLIP)."""
    bias_compensation: bool = True
    """Add to the bias of the layer that reads the features what those of the other tower give on average, which is
    measured on a dataset. Without it nothing is left of them."""

    @property
    def needs_calibration(self) -> bool:
        return self.bias_compensation

    @property
    def reads_pictures(self) -> bool:
        return True

    @property
    def changes_layers(self) -> bool:
        return False

    @property
    def takes_tower(self) -> bool:
        return True

    @property
    def needs_target(self) -> bool:
        return False


Method = Annotated[
    LlmPruner | StateSaliency | Flap | Wanda | Magnitude | Depth | Tokens | Tower | Random,
    Field(discriminator="kind"),
]


class PruneConfig(StatisticsPart, PolicyPart):
    """Make the language model's layers, and an action expert's, smaller or sparser."""

    method: Method = LlmPruner()
    """Method that decides what is removed."""
    ratio: Share | None = None
    """Share to remove: of the heads and channels of each layer, or of all layers together where the method's scope is
    global; of the weights (wanda, magnitude); of the layers (depth); or of a picture's tokens (tokens)."""
    overall: Share | None = None
    """Share of the parameters of the linear layers to remove, protected layers included. It is given instead
    of ratio."""
    stacks: tuple[Literal["decoder", "expert", "vision"], ...] | None = Field(default=None, min_length=1)
    """Layers that lose heads, channels or weights: those of the language model (decoder), of the action expert, or of
    both. These all do unless you name some. Heads of the decoder take with them what the expert makes of them. The
    layers of the vision tower (vision) are pruned by a command of their own."""
    protect: tuple[LayerNumber, ...] = ()
    """Numbers of layers that stay whole; -1 is the last."""
    round_to: int = Field(default=1, ge=1, le=65_536)
    """Kept MLP channels become a multiple of this. 32 suits 4-bit groups, 128 suits most matrix kernels."""
    round_direction: Literal["up", "down", "nearest"] = "up"
    """Direction in which kept MLP channels are rounded."""
    token_ids: Path | None = None
    """Safetensors file with input_ids (samples, tokens). It is used in place of a dataset, as language models are
    calibrated, and all of its samples are used."""
    samples: int = Field(default=64, ge=1, le=100_000)
    """Number of calibration frames, drawn at random from the demonstrations."""
    measured: Path | None = None
    """File measured.safetensors that an earlier run of the same method on the same data has left beside its checkpoint.
    With it, another ratio is tried without measuring again."""
    full_head: bool = False
    """Keep all rows of the output head, so that the result still generates text. Acting needs the action rows alone."""
    seed: Seed = 0
    """Seed for choosing calibration samples, and for random scores."""
    dry_run: bool = False
    """Print the coupled groups and what would be kept, and cut nothing."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.ratio is not None and self.overall is not None:
            raise ValueError("give either ratio or overall, and not both")
        given = self.ratio is not None or self.overall is not None
        if given != self.method.needs_target:
            raise ValueError(
                "give either ratio or overall" if self.method.needs_target else "the method says itself how much goes"
            )
        for option in () if self.method.changes_layers else ("stacks", "protect"):
            if getattr(self, option):
                raise ValueError(f"{self.method.kind} changes no layer; leave {option} out")
        if not self.method.takes_channels and self.round_to > 1:
            raise ValueError(f"{self.method.kind} takes no channels that could be rounded; leave round_to out")
        if self.stacks not in (None, ("vision",)) and self.method.kind == "depth":
            raise ValueError("depth removes the layers of one number from all stacks but vision; leave stacks out")
        if self.stacks is not None and "vision" in self.stacks:
            if len(self.stacks) > 1:
                raise ValueError("vision is pruned by a command of its own: name it alone in stacks")
            if self.token_ids is not None:
                raise ValueError("token_ids hold no pictures, which stacks vision is calibrated on: give a dataset")
            if self.method.reads_pictures:
                raise ValueError(f"{self.method.kind} weights states for the language model, not for stacks vision")
        if self.dataset is not None and self.token_ids is not None:
            raise ValueError("give either dataset or token_ids, and not both")
        if self.method.takes_tower and self.token_ids is not None:
            raise ValueError("token_ids hold no pictures, on which a tower's mean is measured: give a dataset")
        if self.method.takes_tower and self.dataset is None and self.method.needs_calibration:
            raise ValueError(
                "tower leaves the mean of what goes as a bias, which is measured on a dataset: give one, or set the "
                "method's bias_compensation to false (--method.no-bias-compensation)"
            )
        if self.dataset is None and self.token_ids is None and self.method.needs_calibration:
            raise ValueError("the method needs a dataset of demonstrations (or token_ids) to calibrate on")
        return self
