"""The lighter versions of a policy, each made by the verb that a user would call, in a folder that goes again."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rlrc.configs.lightening import LighteningPart
from rlrc.configs.prune import Depth, PruneConfig, Tokens, Tower
from rlrc.configs.quantize import QuantizeConfig
from rlrc.configs.sensitivity import SensitivityConfig
from rlrc.data import Demonstrations
from rlrc.data.statistics import adopt_statistics, policy_key
from rlrc.errors import UserError
from rlrc.policies.checkpoint import load
from rlrc.policies.contract import Policy
from rlrc.policies.groups import VISION
from rlrc.progress import quietly
from rlrc.prune import prune
from rlrc.quantize import linear_names, quantize
from rlrc.sensitivity_map import name_of

Kind = Literal["bits", "width", "depth", "tower", "tokens"]
LAYERS, TOKENS = "layers", "tokens"
"""Parts that are none of the contract's: the layers of all stacks that run together, and what pictures become."""


@dataclass(frozen=True)
class Variant:
    """One part of a policy, made lighter in one way."""

    part: str
    """A part by its name in the contract, or LAYERS or TOKENS."""
    kind: Kind
    degree: float
    """Bits of a weight, the number of the tower that stays, or the share of the units, layers or tokens that go."""

    def __str__(self) -> str:
        return name_of(asdict(self))


def variants_of(policy: Policy, config: SensitivityConfig) -> Sequence[Variant]:
    """All versions that are asked for.

    Raises:
        UserError: nothing is asked for, the policy has no such part, or a part has nothing to quantize.
    """
    parts = [part for part in policy.parts if linear_names(policy, [part])]
    if lacking := [part for part in config.parts or () if part not in parts]:
        raise UserError(f"parts: this policy has no layers to quantize in '{lacking[0]}'; it has {', '.join(parts)}")
    parts = [part for part in parts if config.parts is None or part in config.parts]
    bits = [Variant(part, "bits", number) for part in parts for number in config.bits]
    vision = policy.vision_stacks()
    stacks = [*(stack.name for stack in policy.stacks()), *([VISION] if vision else [])]
    widths = [Variant(stack, "width", degree) for stack in stacks for degree in config.widths]
    deep = [LAYERS, *([VISION] if vision else [])]
    depths = [Variant(part, "depth", degree) for part in deep for degree in config.depths]
    towers = [Variant(VISION, "tower", number) for number in config.towers if len(vision) > 1]
    tokens = [Variant(TOKENS, "tokens", degree) for degree in config.tokens]
    if not (found := [*bits, *widths, *depths, *towers, *tokens]):
        raise UserError("nothing would become lighter; give bits, widths, depths, tokens or towers")
    return found


class Maker:
    """Makes versions of a policy's checkpoint.

    Args:
        folder: for what outlasts a version: the importance of units, which holds for every degree.
    """

    def __init__(self, config: SensitivityConfig, demonstrations: Demonstrations, folder: Path) -> None:
        self._config, self._demonstrations, self._folder = config, demonstrations, folder

    @contextmanager
    def make(self, variant: Variant) -> Iterator[Policy]:
        """The version, as it acts after saving and loading.

        Raises:
            UserError: it cannot be, since a layer would keep nothing, say.
        """
        with tempfile.TemporaryDirectory(dir=self._folder) as out:
            with quietly():
                if variant.kind == "bits":
                    quantize(self._quantize(variant), Path(out))
                else:
                    self._prune(variant, Path(out))
            # `prune` keeps the statistics that it has made of the dataset, and `quantize` those that were there.
            key = policy_key(self._config) if variant.kind == "bits" else self._config.unnorm_key
            lighter = load(Path(out) / "checkpoint", key, self._config.device)
            adopt_statistics(lighter, self._demonstrations, self._config)
            yield lighter

    def _quantize(self, variant: Variant) -> QuantizeConfig:
        reading = _reading(self._config) | {"unnorm_key": policy_key(self._config)}
        return QuantizeConfig(**reading, bits=int(variant.degree), parts=(variant.part,))  # type: ignore[arg-type]

    def _prune(self, variant: Variant, out: Path) -> None:
        """Prune with what was measured before, where it was."""
        measured = measured_in(self._folder, variant)
        prune(pruning(self._config, variant, measured), out)
        if not measured.exists():
            (out / "measured.safetensors").rename(measured)


def pruning(config: LighteningPart, variant: Variant, measured: Path) -> PruneConfig:
    """The options of `prune` that make a version, which reads what was measured before where that is there."""
    return PruneConfig(
        **_reading(config),
        statistics=config.statistics,
        **config.model_dump(include={"dataset", "cameras", "action_key", "state_key", "dataset_episodes", "samples"}),
        seed=config.seed,
        measured=measured if measured.exists() else None,
        **_lighter(variant),
    )


def measured_in(folder: Path, variant: Variant) -> Path:
    """The file of what was measured for a version, which holds for every share that goes."""
    what = variant.degree if variant.kind == "tower" else variant.part
    return folder / f"{variant.kind}-{what}.safetensors"


def _reading(config: LighteningPart) -> dict[str, Any]:
    return {"policy": config.policy} | config.model_dump(include={"spec", "device", "unnorm_key"})


def _lighter(variant: Variant) -> dict[str, Any]:
    """The options of `prune` that say what goes."""
    if variant.kind == "tower":
        return {"method": Tower(keep=int(variant.degree))}  # type: ignore[arg-type]
    methods = {"depth": Depth(), "tokens": Tokens(by="merge")}
    options: dict[str, Any] = {"ratio": variant.degree}
    if variant.part not in (LAYERS, TOKENS):
        options["stacks"] = (variant.part,)
    return options | ({"method": methods[variant.kind]} if variant.kind in methods else {})
