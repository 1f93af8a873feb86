"""Time and bytes of every choice, measured on random policies of the right shapes.

Each side is timed where the other one is as light as it gets. Vision is made whole. Of the layers of language as many
are made as fit into `MADE_BYTES`, and half as many, and time is taken to grow evenly with the layers, which are alike.
So nothing of the size of the policy is ever in memory. Bytes are counted on outlines.
"""

from dataclasses import dataclass, replace

import numpy as np

from rlrc.bench import STAGES, noise_observation, stage_timer
from rlrc.configs.fit import FitConfig
from rlrc.errors import Impossible, UserError
from rlrc.fit.versions import SEEING, WHOLE, Choice, Versions
from rlrc.inspect import describe
from rlrc.policies.checkpoint import made_ready
from rlrc.policies.contract import Policy
from rlrc.policies.device import resolve_device
from rlrc.policies.groups import VISION
from rlrc.policies.random_weights import fill_at_random
from rlrc.progress import Bar, bar, say
from rlrc.prune.groups import chain_of
from rlrc.sensitivity.variants import LAYERS, TOKENS

MADE_BYTES = 2**30
"""Weights of language that are made at once."""
WARM_UP = 2
"""Calls that do not count."""


@dataclass(frozen=True)
class Cost:
    """The time and bytes of one side of a policy."""

    ms: float
    bytes: int


@dataclass(frozen=True)
class Costs:
    """These are the costs of each choice."""

    vision: dict[Choice, Cost]
    """Milliseconds of the towers alone, and bytes with the projector's."""
    language: dict[Choice, Cost]
    projector: dict[Choice, float]
    """Milliseconds of the projector, by `behind`."""
    rest_ms: float
    """Time of a call that no choice changes: pictures to tensors, tokens to actions."""

    def ms(self, vision: Choice, language: Choice) -> float:
        """Milliseconds of a call of the policy that two choices make together."""
        return (
            self.vision[vision].ms
            + self.projector[behind(vision, language)]
            + self.language[language].ms
            + self.rest_ms
        )


def behind(vision: Choice, language: Choice) -> Choice:
    """The part of both choices that the projector's time depends on."""
    return Choice(bits=vision.bits, tower=vision.tower, tokens=language.tokens)


def costs_of(versions: Versions, config: FitConfig) -> Costs:
    """Time all choices for vision, and all for language."""
    shapes = language_shapes(versions)
    between = {behind(vision, language): None for vision in versions.vision for language in shapes}
    with bar("costs", len(versions.vision) + len(between) + 2 * len(shapes)) as progress:
        clock = Clock(versions, config, progress)
        vision = {choice: clock.vision(choice) for choice in versions.vision}
        projector = {choice: clock.projector(choice) for choice in between}
        language: dict[Choice, Cost] = {}
        for shape in shapes:
            try:
                language |= clock.language(shape)
            except Impossible as error:
                say(f"{shape}: cannot be ({error})")
    return Costs(vision, language, projector, float(np.median(clock.rest)))


def language_shapes(versions: Versions) -> list[Choice]:
    """All choices for language but for the depth."""
    widths, tokens = versions.degrees(LAYERS, "width"), versions.degrees(TOKENS, "tokens")
    bits = (WHOLE, *versions.bits)
    return [Choice(width, 0.0, number, token) for width in widths for token in tokens for number in bits]


def require_alike(policy: Policy) -> None:
    """
    Raises:
        UserError: a stack has layers of several shapes.
    """
    for stack in policy.stacks():
        if stack.config.to_dict().get("per_layer_config"):
            raise UserError(
                f"{policy.source}: layers of '{stack.name}' have several shapes, since it was pruned before; start "
                "from the policy before that"
            )


class Clock:
    """Measures choices, side by side with as little of the other side as there can be."""

    def __init__(self, versions: Versions, config: FitConfig, progress: Bar) -> None:
        self._versions, self._repeats, self._progress = versions, config.repeats, progress
        self._device = resolve_device(config.device)
        narrow, shallow = (versions.degrees(VISION, kind)[-1] for kind in ("width", "depth"))
        self._little_vision = Choice(narrow, shallow)
        self._little_language = Choice(versions.degrees(LAYERS, "width")[-1])
        self.rest: list[float] = []
        self._sizes: dict[Choice, int] = {}

    def vision(self, choice: Choice) -> Cost:
        """The cost of a choice for vision."""
        versions = self._versions
        light = versions.speaking(self._little_language, versions.seeing(choice), layers=1)
        packed = versions.packed(light, choice.bits, WHOLE)
        self._progress.advance()
        return Cost(1000 * self._seconds(packed, "vision"), _bytes(packed, vision=True))

    def projector(self, choice: Choice) -> float:
        """Milliseconds of the projector behind a tower, in so many bits, for so many tokens."""
        versions, little = self._versions, self._little_vision if choice.tower is None else Choice(tower=choice.tower)
        few = replace(self._little_language, tokens=choice.tokens)
        light = versions.speaking(few, versions.seeing(little), layers=1)
        self._progress.advance()
        return 1000 * self._seconds(versions.packed(light, choice.bits, WHOLE), "projector")

    def language(self, shape: Choice) -> dict[Choice, Cost]:
        """The cost of a choice for language, and of the same with fewer layers."""
        versions, count = self._versions, len(chain_of(self._versions.parent))
        seeing = versions.seeing(self._little_vision)

        def of(layers: int) -> Policy:
            return versions.packed(versions.speaking(shape, seeing, layers), WHOLE, shape.bits)

        one, two = (_bytes(of(layers), vision=False) for layers in (1, min(2, count)))
        most = count if count < 3 else max(2, min(count, int(MADE_BYTES // max(1, two - one))))
        few = max(1, most // 2)
        points = {layers: self._seconds(of(layers), "prefill", "decode") for layers in dict.fromkeys((few, most))}
        self._progress.advance(2)
        found = {}
        for depth in versions.degrees(LAYERS, "depth"):
            left = count - int(count * depth + 1e-9)
            size = self._language_bytes(replace(shape, depth=depth, tokens=0.0))
            found[replace(shape, depth=depth)] = Cost(1000 * _line(points, left), size)
        return found

    def _language_bytes(self, choice: Choice) -> int:
        if choice not in self._sizes:
            lighter = self._versions.packed(self._versions.speaking(choice), WHOLE, choice.bits)
            self._sizes[choice] = _bytes(lighter, vision=False)
        return self._sizes[choice]

    def _seconds(self, policy: Policy, *mine: str) -> float:
        """Median seconds of some stages of a call."""
        fill_at_random(policy.model)
        made_ready(policy, self._device)
        measure = stage_timer(policy, noise_observation(policy, 1))
        seconds = np.array([measure() for _ in range(WARM_UP + self._repeats)])[WARM_UP:]
        stages = dict(zip(STAGES, np.median(seconds, axis=0).tolist(), strict=True))
        self.rest.append(1000 * (stages["preprocess"] + stages["other"]))
        return float(sum(stages[stage] for stage in mine))


def _bytes(policy: Policy, vision: bool) -> int:
    sizes = describe(policy)["bytes"]
    seeing = sum(sizes.get(part, 0) for part in SEEING)
    return int(seeing if vision else sizes["total"] - seeing)


def _line(points: dict[int, float], layers: int) -> float:
    """The value at a number of layers on the line through what was measured at two, or at one."""
    (few, at_few), *more = points.items()
    if not more:
        return at_few
    ((most, at_most),) = more
    return at_few + (at_most - at_few) / (most - few) * (layers - few)


def exact_bytes(versions: Versions, vision: Choice, language: Choice) -> int:
    """Bytes of the policy that two choices make together."""
    lighter = versions.speaking(language, versions.seeing(vision))
    return int(describe(versions.packed(lighter, vision.bits, language.bits))["bytes"]["total"])
