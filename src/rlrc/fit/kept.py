"""What `fit` has measured, in a file of its folder. A run that was cut off goes on from it, and another budget takes
seconds."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Self

from rlrc.configs.fit import FitConfig
from rlrc.data import Demonstrations
from rlrc.errors import UserError
from rlrc.files import atomic_path, write_json
from rlrc.fit.costs import Cost, Costs, costs_of
from rlrc.fit.losses import loss_rises
from rlrc.fit.versions import Choice, Versions
from rlrc.native import processor
from rlrc.policies.contract import Policy
from rlrc.prune import READING, identity
from rlrc.reading import FileModel, read_model
from rlrc.sensitivity.variants import Variant

FILE = "measured.json"
DECIDING = {"bits", "widths", "depths", "tokens", "towers", "parts", "samples", "seed", "device", "repeats"}
"""Options that decide what is measured, and how, beside those that say how the policy and the dataset are read."""


class Times(FileModel):
    """The costs of each choice, in rows."""

    vision: list[tuple[Choice, Cost]]
    language: list[tuple[Choice, Cost]]
    projector: list[tuple[Choice, float]]
    rest_ms: float

    @classmethod
    def of(cls, costs: Costs) -> Self:
        sides = {name: list(getattr(costs, name).items()) for name in ("vision", "language", "projector")}
        return cls(**sides, rest_ms=costs.rest_ms)

    @property
    def costs(self) -> Costs:
        return Costs(dict(self.vision), dict(self.language), dict(self.projector), self.rest_ms)


class Measured(FileModel):
    """`measured.json`."""

    key: dict[str, Any]
    """Everything that the measurements depend on."""
    loss: float
    """The policy's own."""
    rises: list[tuple[Variant, float]]
    times: Times | None = None
    """None where the run was cut off before the end of timing."""
    checksum: str = ""
    """The `sum` when this was written."""

    @property
    def sum(self) -> str:
        """Hash of all that was measured and what it depends on."""
        values = self.model_dump(mode="json", exclude={"checksum"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def key_of(parent: Policy, demonstrations: Demonstrations, config: FitConfig) -> dict[str, Any]:
    """Everything that measurements depend on, by a word that a user knows."""
    assert parent.weights is not None
    options = config.model_dump(mode="json", include=READING | DECIDING)
    return {
        "policy": identity(parent, parent.weights),
        "dataset": demonstrations.sha256,
        "machine": processor.described(),
    } | options


def take_over(theirs: Path, out: Path, key: dict[str, Any]) -> None:
    """Copy to `out` what an earlier `fit` has measured in the folder `theirs`.

    Raises:
        UserError: it has not measured everything there, or has done so with something else.
    """
    if not (theirs / FILE).is_file():
        raise UserError(f"measured: {theirs} has no {FILE}, which `fit` writes when it has measured something")
    if _read(theirs / FILE, key).times is None:
        raise UserError(f"measured: `fit` was cut off in {theirs}; the command that ran there brings it to its end")
    for path in (*sorted(theirs.glob("*-*.safetensors")), theirs / FILE):
        with atomic_path(out / path.name) as aside:
            shutil.copyfile(path, aside)


def measure(
    versions: Versions, config: FitConfig, demonstrations: Demonstrations, key: dict[str, Any]
) -> tuple[float, dict[Variant, float], Costs]:
    """The policy's own loss, the rises of it, and the costs: what is not measured yet is measured.

    Raises:
        UserError: there are too few frames, or they do not fit the policy; or what was measured here is damaged or was
            measured with something else.
    """
    file = versions.out / FILE
    if file.exists():
        found = _read(file, key)
    else:
        loss, rises = loss_rises(versions, config, demonstrations)
        found = _written(file, Measured(key=key, loss=loss, rises=list(rises.items())))
    if found.times is None:
        times = Times.of(costs_of(versions, config))
        found = _written(file, found.model_copy(update={"times": times}))
    assert found.times is not None
    return found.loss, dict(found.rises), found.times.costs


def _written(file: Path, measured: Measured) -> Measured:
    write_json(file, measured.model_dump(mode="json") | {"checksum": measured.sum})
    return measured


def _read(file: Path, key: dict[str, Any]) -> Measured:
    try:
        found = read_model(file, Measured)
    except UserError as error:
        raise UserError(f"{error}; delete it, and `fit` measures anew") from error
    if found.checksum != found.sum:
        raise UserError(f"{file} was changed after it was measured; delete it, and `fit` measures anew")
    if differing := [name for name, value in key.items() if found.key.get(name) != value]:
        other = ", ".join(f"other {name}" for name in differing)
        raise UserError(f"{file} was measured for something else ({other}); choose another --out and no --measured")
    return found
