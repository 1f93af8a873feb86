"""OpenVLA-OFT as a policy: several cameras, a state, a chunk of actions a call."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlrc.errors import UserError
from rlrc.policies.dim import dims_of
from rlrc.policies.folder import Reading, beside
from rlrc.policies.groups import DECODER
from rlrc.policies.locate import CONFIG_FILE, SIDE_FILE
from rlrc.policies.lora import base_of
from rlrc.policies.oft.config import OFTConfig
from rlrc.policies.oft.forms import FORMS
from rlrc.policies.oft.layout import require_same, supplement
from rlrc.policies.oft.model import OFTForActionPrediction
from rlrc.policies.parts.noise import require_generators
from rlrc.policies.parts.observed import state_of
from rlrc.policies.prismatic.checkpoint import Supplement
from rlrc.policies.prismatic.inputs import PrismaticInputs
from rlrc.policies.prismatic.policy import PARTS, PrismaticPolicy
from rlrc.policies.statistics import Entry, clipped, normalise, unnormalise
from rlrc.policies.values import (
    GREEDY,
    Generators,
    Likelihood,
    Observation,
    PolicySpec,
    Sample,
    Sampler,
    Stage,
    StageCall,
    States,
    TeacherForced,
)
from rlrc.reading import read_object

OWN_PARTS = {"action_head": "action_head", "proprio": "proprio_projector", "noisy_action": "noisy_action_projector"}
MARGIN = 1e-8
"""Number that the published code adds to the range of an action, both ways."""


class OFTPolicy(PrismaticPolicy):
    """OpenVLA-OFT (Kim, Finn and Liang, 2025)."""

    model: OFTForActionPrediction
    model_class = OFTForActionPrediction
    causal = False

    def __init__(self, model: OFTForActionPrediction, *others: Any, **named: Any) -> None:
        self.form = FORMS[model.config.head](model)
        super().__init__(model, *others, **named)
        self.parts = PARTS | {part: name for part, name in OWN_PARTS.items() if hasattr(model, name)}
        self.no_likelihood, self.bin_width = self.form.no_likelihood, self.form.bin_width
        self.action_form = model.config.head
        if self.unnorm_key is not None or len(self.norm_stats or ()) == 1:
            _ = self.state_statistics()

    # -- reading -------------------------------------------------------------------------------------------------------

    @classmethod
    def recognises(cls, config: dict[str, Any], files: Sequence[str], spec: str | None) -> bool:
        if config.get("model_type") == OFTConfig.model_type:
            return True
        published = spec is not None or any(SIDE_FILE.fullmatch(name) for name in files)
        return config.get("model_type") == "openvla" and published

    @classmethod
    def outline(cls, folder: Path, reading: Reading) -> "OFTPolicy":
        policy = super().outline(folder, reading)
        if reading.spec is not None:
            require_same(folder, reading.spec, policy.model.config)
        return policy

    @classmethod
    def supplement(cls, folder: Path, reading: Reading) -> Supplement | None:
        base = base_of(folder)
        home = beside(folder, base, CONFIG_FILE)
        folders = [folder] if base is None else [folder, base]
        if read_object(home / CONFIG_FILE).get("model_type") != OFTConfig.model_type:
            return supplement(folders, reading.spec)
        for path in (path for home in folders for path in sorted(home.iterdir())):
            if SIDE_FILE.fullmatch(path.name):
                raise UserError(f"{path}: this checkpoint holds everything in safetensors files; move this file away")
        return None

    def describe(self) -> PolicySpec:
        config = self.model.config
        action = dims_of(config.action_dims, config.action_dim)
        state = dims_of(config.state_dims, config.state_dim)
        cameras = tuple(config.cameras or ())
        return PolicySpec("openvla-oft", cameras, state, action, config.horizon, execute=config.horizon)

    # -- acting --------------------------------------------------------------------------------------------------------

    def prepare(self, observation: Observation) -> PrismaticInputs:
        inputs = super().prepare(observation)
        if not self.spec.state:
            return inputs
        return replace(inputs, state=torch.from_numpy(self.normalised_state(observation)).to(self.device))

    def sample(self, inputs: PrismaticInputs, sampler: Sampler = GREEDY, generator: Generators = None) -> Sample:
        require_generators(generator, len(inputs))
        drawn = self.form.draw(len(inputs), sampler, generator)
        with torch.no_grad():
            act = partial(self.form.act, sampler=sampler)
            return self.form.sample_of(*self.do(act, inputs, drawn, key=(sampler, self.form.passes)))

    def denoise_in(self, steps: int) -> None:
        self.form.denoise_in(steps)

    def normalised_state(self, observation: Observation) -> np.ndarray:
        """The state in [-1, 1], float32 (N, S), as it is read in training and at work.

        The published training sets numbers that never move to 0 and the published evaluation to -1 or 1; here it is
        the evaluation's way in both.
        """
        state = state_of(observation, len(self.spec.state))
        stats = self.state_statistics()
        return np.clip(normalise(state, stats), -1, 1)

    # -- normalisation -------------------------------------------------------------------------------------------------

    def action_statistics(self) -> dict[str, np.ndarray]:
        config = self.model.config
        return self.statistics_of("action", config.action_dim, config.normalisation)

    def outside(self, values: np.ndarray, entry: Entry) -> np.ndarray:
        return clipped(values, self.action_statistics() if entry == "action" else self.state_statistics())

    def state_statistics(self) -> dict[str, np.ndarray]:
        """The statistics in use of the state, as `action_statistics`; none of a policy that reads no state.

        Raises:
            UserError: as `action_statistics`.
        """
        config = self.model.config
        if not config.state_dim:
            return {}
        return self.statistics_of("proprio", config.state_dim, config.normalisation)

    def to_physical(self, actions: np.ndarray) -> np.ndarray:
        return unnormalise(actions, self.action_statistics(), MARGIN).astype(np.float32)

    def to_normalised(self, actions: np.ndarray) -> np.ndarray:
        stats = self.action_statistics()
        return np.where(stats["constant"], np.float32(0), normalise(actions, stats))

    # -- learning ------------------------------------------------------------------------------------------------------

    def teacher_forced(
        self, inputs: PrismaticInputs, actions: torch.Tensor, generator: Generators = None
    ) -> TeacherForced:
        return self.entering(*self.form.teacher_forced(inputs, actions, generator))

    def read(self, states: States, context: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.form.read(self.model.language_model.model.norm(self.model.before_places(states[DECODER])))

    def predict(
        self, inputs: PrismaticInputs, actions: torch.Tensor, generator: Generators = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sequence, target = self.form.teacher_forced(inputs, actions, generator)
        return self.form.read(self.model.action_states(sequence)), target

    def errors(self, predicted: torch.Tensor, target: torch.Tensor, label_spread: float = 0.0) -> torch.Tensor:
        """Absolute error of numbers, cross-entropy of tokens over the action bins, squared error of noise."""
        if label_spread:
            return self.form.spread_errors(predicted, target, label_spread)
        return self.form.errors(predicted, target)

    def mean_actions(self, predicted: torch.Tensor) -> torch.Tensor:
        return self.form.mean_actions(predicted)

    def best_actions(self, predicted: torch.Tensor) -> torch.Tensor:
        return self.form.best_actions(predicted)

    def vitals(self, predicted: torch.Tensor, target: torch.Tensor, actions: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.model.config.head == "diffusion":
            return {}
        vitals = super().vitals(predicted, target, actions)
        if self.model.config.head == "tokens":
            vitals["token_accuracy"] = (predicted.argmax(dim=-1) == target).float()
        return vitals

    def likelihood(self, inputs: PrismaticInputs, latent: dict[str, torch.Tensor], sampler: Sampler) -> Likelihood:
        return self.form.likelihood(inputs, latent, sampler)

    def with_head(self, head: str, seed: int) -> "OFTPolicy":
        if head == self.model.config.head:
            return self
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model.change_form(head)
        policy = OFTPolicy(self.model, self.processor, self.unnorm_key, self.lineage)
        policy.weights = self.weights
        return policy

    # -- measuring -----------------------------------------------------------------------------------------------------

    def stages(self, inputs: PrismaticInputs) -> dict[str, Stage]:
        """The decoder reads everything in one pass, or in one a denoising step; nothing is decoded token by token."""
        model = self.model
        positions = inputs.input_ids.shape[1] + self.num_patches + model.config.numbers + 1
        extra = bool(model.config.state_dim) + (model.config.head == "diffusion")
        decoder = model.language_model.model
        return {
            "vision": Stage(model.vision_backbone, len(self.spec.cameras) * model.config.towers[0].num_patches),
            "projector": Stage(model.projector, self.num_patches),
            "prefill": Stage(decoder.layers, positions + extra, self.form.passes),
        }

    def stage_calls(self) -> Sequence[StageCall]:
        return [
            StageCall(self.model.vision_backbone, "forward", lambda *_: "vision"),
            StageCall(self.model.projector, "forward", lambda *_: "projector"),
            StageCall(self.model.language_model.model, "read_all", lambda *_: "prefill"),
        ]


FAMILY = OFTPolicy
