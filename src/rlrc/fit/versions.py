"""The shapes that a policy can get: what each part may lose, and the outline of any choice among that.

A policy has two sides that are lightened and timed on their own: vision, with the projector behind it, and all else,
which here is called language: the language model, an action expert that runs with it, and what they embed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlrc.configs.fit import FitConfig
from rlrc.configs.quantize import GROUP_SIZE
from rlrc.errors import Impossible
from rlrc.packed.layers import quantization_config, shrinks
from rlrc.policies.contract import Policy
from rlrc.policies.groups import VISION
from rlrc.progress import bar, quietly, say
from rlrc.prune import Task
from rlrc.prune.child import child_of, plan_by_count
from rlrc.prune.groups import chain_of
from rlrc.prune.measured import write_measured
from rlrc.prune.method import Plan, Target, unchanged
from rlrc.quantize import linear_names
from rlrc.sensitivity.variants import LAYERS, TOKENS, Kind, Variant, measured_in, pruning

SEEING = (VISION, "projector")
"""Parts of the side of vision."""
WHOLE = 16
"""Bits of a weight that is not packed."""
MOST_AT_ONCE = 0.6
"""Largest share of the width that goes in one cut; a larger one is made of several, with fine-tuning between, since
from one cut to a head a layer fine-tuning does not find back (docs/journal/recovery.md)."""


@dataclass(frozen=True)
class Choice:
    """The lightening of one side: shares that go, and bits that a weight has left."""

    width: float = 0.0
    depth: float = 0.0
    bits: int = WHOLE
    tokens: float = 0.0
    """Share of each picture's tokens; of the side of language, which reads them."""
    tower: int | None = None
    """Number of the vision tower that stays alone."""


@dataclass(frozen=True)
class Versions:
    """Everything that a policy may lose."""

    parent: Policy
    """The policy as an outline."""
    plans: dict[Variant, Plan]
    """Plans of pruning by what goes."""
    bits: tuple[int, ...]
    packable: tuple[str, ...]
    """Parts that may be packed."""
    out: Path
    """Folder of what pruning has measured."""

    @property
    def has_vision(self) -> bool:
        """True where layers of vision can be pruned."""
        return bool(self.parent.vision_stacks())

    @classmethod
    def of(cls, parent: Policy, config: FitConfig, out: Path) -> "Versions":
        """Measure what pruning needs to know, of which files in `out` are kept; what cannot go is told and left out."""
        sides = [LAYERS, *([VISION] if parent.vision_stacks() else [])]
        degrees: dict[Kind, Sequence[float]] = {"width": config.widths, "depth": config.depths}
        wanted = [Variant(part, kind, each) for part in sides for kind in degrees for each in degrees[kind]]
        wanted += [Variant(TOKENS, "tokens", each) for each in config.tokens]
        wanted += [Variant(VISION, "tower", each) for each in config.towers if len(parent.vision_stacks()) > 1]
        plans = {}
        with bar("importance", len(wanted)) as progress:
            for variant in wanted:
                try:
                    plans[variant] = _plan(config, variant, out)
                except Impossible as error:
                    say(f"{variant}: cannot be ({error})")
                progress.advance(note=str(variant))
        packable = tuple(part for part in config.parts if part in parent.parts)
        return cls(parent, plans, config.bits, packable, out)

    def degrees(self, part: str, kind: Kind) -> list[float]:
        """The degrees of a part that can be, from none on."""
        found = [variant.degree for variant in self.plans if (variant.part, variant.kind) == (part, kind)]
        return [0.0, *sorted(found)]

    @property
    def vision(self) -> list[Choice]:
        """All choices for vision. Layers of a tower that stays alone become narrower and not fewer."""
        bits = (WHOLE, *self.bits) if set(SEEING) & set(self.packable) else (WHOLE,)
        if not self.has_vision:
            return [Choice(bits=number) for number in bits]
        widths, depths = (self.degrees(VISION, kind) for kind in ("width", "depth"))
        towers = [int(variant.degree) for variant in self.plans if variant.kind == "tower"]
        shapes = [Choice(width, depth) for width in widths for depth in depths]
        shapes += [Choice(width, tower=tower) for width in widths for tower in towers]
        return [replace(shape, bits=number) for shape in shapes for number in bits]

    def seeing(self, choice: Choice) -> Policy:
        """The outline of the policy whose vision has become lighter; its weights are not packed yet."""
        policy = self.parent
        if choice.tower is not None:
            policy = child_of(policy, chain_of(policy), self.plans[Variant(VISION, "tower", choice.tower)])
        if choice.width:
            policy = self._narrowed(policy, choice.width, (VISION,))
        if choice.depth:
            plan = self.plans[Variant(VISION, "depth", choice.depth)]
            policy = child_of(policy, chain_of(policy, (VISION,)), plan)
        return policy

    def speaking(self, choice: Choice, policy: Policy | None = None, layers: int | None = None) -> Policy:
        """The outline of a policy whose language has become lighter, with so many of its layers, or as `choice.depth`
        has them; its weights are not packed yet."""
        policy = policy or self.parent
        if choice.width:
            policy = self._narrowed(policy, choice.width)
        chain = chain_of(policy)
        if layers is None and choice.depth:
            plan = self.plans[Variant(LAYERS, "depth", choice.depth)]
        else:
            plan = Plan(tuple(range(layers or len(chain))), unchanged)
        if choice.tokens:
            plan = replace(plan, tokens=self.plans[Variant(TOKENS, "tokens", choice.tokens)].tokens)
        return child_of(policy, chain, plan)

    def packed(self, policy: Policy, vision: int, language: int) -> Policy:
        """The outline with the packable parts of both sides in so many bits; one side at least stays whole, or both
        have as many."""
        bits = min(vision, language)
        if bits == WHOLE:
            return policy
        sides = {part: vision if part in SEEING else language for part in self.packable}
        names = [
            name
            for name in linear_names(policy, [part for part, number in sides.items() if number < WHOLE])
            if shrinks(policy.model.get_submodule(name), bits, GROUP_SIZE)
        ]
        config = type(policy.model.config).from_dict(policy.model.config.to_dict())
        config.quantization_config = quantization_config(bits, GROUP_SIZE, names)
        return policy.rebuilt(config)

    def _narrowed(self, policy: Policy, width: float, stacks: tuple[str] | None = None) -> Policy:
        """Cut in as many steps as the recipe does, so that the same number of units is left."""
        for share in cuts(width):
            plan = plan_by_count(policy, stacks, Target(share))
            policy = child_of(policy, chain_of(policy, stacks), plan)
        return policy


def cuts(width: float) -> list[float]:
    """The shares that go one after the other, so that `width` of all is gone in the end."""
    kept, shares = 1 - width, []
    while kept < 1 - MOST_AT_ONCE - 1e-9:
        shares.append(0.5)
        kept /= 0.5
    return [*shares, round(1 - kept, 6)]


def _plan(config: FitConfig, variant: Variant, out: Path) -> Plan:
    measured = measured_in(out, variant)
    with quietly():
        task = Task.of(pruning(config, variant, measured), out)
        task.method.check(task.groups, task.num_layers, task.target)
        tensors = task.measure()
        plan = task.method.plan(tensors, task.groups, task.num_layers, task.target)
        child_of(task.parent, task.chain, plan)  # what cannot be fails here
        if not measured.exists():
            write_measured(measured, tensors, task.key)
            task.saved.forget()
    return plan
