"""The fixtures of flow-matching policies: folders as LeRobot saves them, and what the published codes computed."""

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import FIXTURES, fixture_cases, fixture_folder
from safetensors.torch import load_file

import rlrc
from rlrc.policies.values import Observation

WIDE = {"atol": 5e-4, "rtol": 5e-4}
FEATURES = {"atol": 2e-4, "rtol": 2e-4}
FAMILIES = ("pi0", "pi05", "smolvla")
SETS = sorted(
    f"{family}/{case}"
    for family in FAMILIES
    for case in fixture_cases(family)
    if any((root / family / case / "checkpoint").is_dir() for root in FIXTURES)
)


@dataclass
class FlowSet:
    """One set, and the policy that is read from its folder."""

    name: str
    scratch: Path

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]

    @property
    def folder(self) -> Path:
        return fixture_folder(self.name)

    @cached_property
    def meta(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "meta.json").read_text())
        return found

    @cached_property
    def cases(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "cases.safetensors")

    @property
    def spec(self) -> str:
        if self.family != "smolvla":
            return f"tokenizer={self.folder / 'tokenizer'},vision_heads={self.meta['config']['vision']['heads']}"
        vlm = self.scratch / "vlm"
        if not vlm.exists():
            shutil.copytree(self.folder / "tokenizer", vlm, copy_function=shutil.copyfile)
            vlm.chmod(0o755)
            shutil.copyfile(self.folder / "vlm_config" / "config.json", vlm / "config.json")
        return f"vlm={vlm}"

    def load(self, folder: Path | None = None, more: str = "") -> Any:
        return rlrc.load(folder or self.folder / "checkpoint", spec=self.spec + more)

    @cached_property
    def policy(self) -> Any:
        return self.load()

    def copy(self, name: str) -> Path:
        """A copy of the published folder that may be changed."""
        folder = self.scratch / name
        shutil.copytree(self.folder / "checkpoint", folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        return folder

    @property
    def texts(self) -> list[str]:
        texts: list[str] = self.meta["prompt"]["texts"]
        return texts

    def look(self, present: dict[str, list[bool]] | None = None) -> Observation:
        """What is seen in the main case, or with other cameras."""
        lacking = {"right_wrist_0_rgb": [False, False]} if self.family != "smolvla" else {}
        flags = {name: np.array(rows) for name, rows in (lacking if present is None else present).items()}
        images = {name: self.cases[f"in.image.{name}"].numpy() for name in self.policy.spec.cameras}
        return Observation(images, self.texts, self.cases["in.state"].numpy(), flags)

    @torch.no_grad()
    def velocity(self, observation: Observation, time: float = 0.5, policy: Any = None) -> torch.Tensor:
        policy = policy or self.policy
        inputs = policy.prepare(observation)
        times = torch.full((len(inputs),), time, dtype=torch.float64)
        return policy.model.velocity(policy.model.read_prefix(inputs), self.cases["in.noise"], times, inputs.state)


def differs(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 difference."""
    return float((found - expected).norm() / expected.norm())
