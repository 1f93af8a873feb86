"""The base of pi0, pi0.5 and SmolVLA as policies: inputs, normalisation, denoising, the flow-matching loss."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch

from rlrc.errors import UserError
from rlrc.policies.dim import dims_of
from rlrc.policies.flow import normalisation
from rlrc.policies.flow.checkpoint import Layout, published_tensors, read_outline
from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.denoising import NoiseNetwork, euler
from rlrc.policies.flow.exploring import Explorer
from rlrc.policies.flow.guidance import guided, pulled
from rlrc.policies.flow.inputs import FlowInputs
from rlrc.policies.flow.lerobot import refuse_parts
from rlrc.policies.flow.model import FlowModel, Prefix, step_times
from rlrc.policies.flow.pictures import Place
from rlrc.policies.flow.processor import FlowProcessor, with_newline
from rlrc.policies.flow.schema import MAX_STEPS
from rlrc.policies.flow.tower import vision_pass, vision_stack
from rlrc.policies.folder import Reading
from rlrc.policies.groups import DECODER, EXPERT, VISION, Block
from rlrc.policies.parts.noise import draw, require_generators
from rlrc.policies.parts.observed import state_of
from rlrc.policies.statistics import Entry
from rlrc.policies.stored import StoredPolicy
from rlrc.policies.values import (
    GREEDY,
    Exploration,
    Exported,
    Generators,
    Likelihood,
    Observation,
    PolicySpec,
    Sample,
    Sampler,
    Stack,
    Stage,
    StageCall,
    States,
    TeacherForced,
    VisionPass,
)

EARLIEST = 1e-3
"""Time nearest to the action in training; the others are drawn from Beta(1.5, 1) above it."""


AROUND_THE_EXPERT = (
    "state_proj",
    "action_in_proj",
    "action_out_proj",
    "action_time_mlp_in",
    "action_time_mlp_out",
    "time_mlp_in",
    "time_mlp_out",
)
"""Small layers, each a part of its own; families have some of them."""


class FlowPolicy(StoredPolicy):
    """A policy on the base of `flow/model.py`."""

    model: FlowModel
    model_class: ClassVar[type[FlowModel]]
    processor: FlowProcessor
    layout: ClassVar[Layout]
    family: ClassVar[str]
    place: ClassVar[Place]
    """Place of a picture in its square."""
    default_temperature = 1.0
    masks_cameras = True
    continues_chunks = True
    clips = False
    exploration = "flow-sde"
    noise_draws: int = 1
    """Noises and times from which each frame is learnt."""
    noise_network: NoiseNetwork | None = None
    """Flow-Noise's network, while PPO trains the policy."""

    @property
    def parts(self) -> dict[str, str]:  # type: ignore[override]
        names = self.model.names
        return {
            "decoder": names.decoder,
            "expert": names.expert,
            "vision": names.vision,
            "projector": names.projector,
            "embedding": names.embedding,
        } | {name: name for name in AROUND_THE_EXPERT if hasattr(self.model, name)}

    @property
    def feature_reader(self) -> str:  # type: ignore[override]
        return self.model.names.projector

    # -- reading -------------------------------------------------------------------------------------------------------

    @classmethod
    def recognises(cls, config: dict[str, Any], files: Sequence[str], spec: str | None) -> bool:
        ours = config.get("model_type") == cls.model_class.config_class.model_type
        return ours or ("model_type" not in config and config.get("type") == cls.family)

    @classmethod
    def outline(cls, folder: Path, reading: Reading) -> Self:
        found = read_outline(cls.model_class, cls.layout, folder, reading)
        processor = cls.new_processor(found.tokenizer, found.model.config)
        try:
            policy = cls(found.model, processor, reading.unnorm_key, found.lineage)
        except UserError as error:
            raise UserError(f"{found.home}: {error}") from error
        policy.weights = found.weights
        return policy

    @classmethod
    def new_processor(cls, tokenizer: Any, config: FlowConfig) -> FlowProcessor:
        """The processor of pictures, prompts and states."""
        return FlowProcessor(tokenizer, config, with_newline, cls.place)

    def describe(self) -> PolicySpec:
        config = self.model.config
        return PolicySpec(
            self.family,
            tuple(config.cameras or ()),
            dims_of(config.state_dims, config.state_dim),
            dims_of(config.action_dims, config.action_dim),
            config.horizon,
            config.execute,
        )

    def require_readable(self, instructions: Sequence[str]) -> None:
        state = np.zeros((len(instructions), len(self.spec.state)), np.float32) if self.spec.state else None
        self.processor.prompts(instructions, state)

    # -- acting --------------------------------------------------------------------------------------------------------

    def prepare(self, observation: Observation) -> FlowInputs:
        self.processor.require_rows(observation)
        state = self.normalised_state(observation) if self.spec.state else None
        inputs = self.processor(observation, state, self.device)
        if observation.previous is None:
            return inputs
        return pulled(inputs, observation.previous, self.model.config, self.to_normalised)

    def normalised_state(self, observation: Observation) -> np.ndarray:
        """The state as the model reads it, float32 (N, S)."""
        state = state_of(observation, len(self.spec.state))
        return normalisation.normalise(state, self._statistics("proprio"), self._kind("state"))

    @property
    def image_size(self) -> int:
        return self.model.config.vision_config.image_size

    @property
    def frame_size(self) -> None:
        return None  # pictures of any size are put into a square

    def sample(self, inputs: FlowInputs, sampler: Sampler = GREEDY, generator: Generators = None) -> Sample:
        """Denoise a chunk for each row, by Euler's steps or by the random ones of `sampler.exploration`."""
        require_generators(generator, len(inputs))
        config = self.model.config
        shape = (len(inputs), config.horizon, config.padded_dim)
        if sampler.exploration is not None:
            if inputs.previous is not None:
                raise UserError("random denoising steps cannot go on from a previous chunk")
            return self._explorer(sampler, sampler.exploration).sample(inputs, generator)
        noise = sampler.temperature * draw(torch.randn, shape, generator, self.device)
        denoise = partial(self._denoise, steps=config.num_steps)
        if inputs.previous is None:
            (chunks,) = self.do(denoise, inputs, noise, key=config.num_steps)
        else:  # launched kernel by kernel: a recorded graph has no gradient
            (chunks,) = denoise(inputs, noise)
        return Sample(chunks[..., : config.action_dim], {})

    def learn_from(self, noise_draws: int) -> None:
        self.noise_draws = noise_draws

    def denoise_in(self, steps: int) -> None:
        if not 1 <= steps <= MAX_STEPS:
            raise UserError(f"denoising_steps {steps}: the policy denoises in 1 to {MAX_STEPS}")
        self.model.config.num_steps = steps

    @torch.no_grad()
    def _denoise(self, inputs: FlowInputs, noise: torch.Tensor | None, steps: int) -> tuple[torch.Tensor]:
        assert noise is not None
        prefix, x = self.model.read_prefix(inputs), noise
        for number in range(steps):
            times = step_times(torch.full((len(x),), number, device=x.device), steps)
            velocity = partial(self.model.velocity, prefix, times=times, state=inputs.state)
            if inputs.previous is None or inputs.pull is None:
                x = euler(x, velocity(x), steps)
            else:
                x = euler(x, guided(velocity, x, times, inputs.previous, inputs.pull), steps)
        return (x,)

    # -- normalisation -------------------------------------------------------------------------------------------------

    def _kind(self, what: Literal["action", "state"]) -> normalisation.Kind:
        return self.model.config.normalisation[what]  # type: ignore[index,return-value]

    def _statistics(self, entry: Entry) -> dict[str, np.ndarray]:
        config = self.model.config
        is_action = entry == "action"
        count, kind = (config.action_dim, "action") if is_action else (config.state_dim, "state")
        try:
            return normalisation.statistics_of(self.norm_stats, self.unnorm_key, entry, self._kind(kind), count)  # type: ignore[arg-type]
        except UserError as error:
            raise error if self.source is None else UserError(f"{self.source}: {error}") from None

    def action_statistics(self) -> dict[str, np.ndarray]:
        if self.spec.state:
            _ = self._statistics("proprio")
        return self._statistics("action")

    def outside(self, values: np.ndarray, entry: Entry) -> np.ndarray:
        kind = self._kind("action" if entry == "action" else "state")
        return normalisation.far(values, self._statistics(entry), kind)

    def to_physical(self, actions: np.ndarray) -> np.ndarray:
        return normalisation.unnormalise(actions, self._statistics("action"), self._kind("action"))

    def to_normalised(self, actions: np.ndarray) -> np.ndarray:
        return normalisation.normalise(actions, self._statistics("action"), self._kind("action"))

    # -- learning ------------------------------------------------------------------------------------------------------

    def noised(self, actions: torch.Tensor, generator: Generators) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noise (N, H, padded_dim), times (N,) and the chunks between noise and actions (N, H, D) at these times."""
        config, device = self.model.config, actions.device
        shape = (*actions.shape[:2], config.padded_dim)
        noise = draw(torch.randn, shape, generator, device)
        # Beta(1.5, 1) has the distribution function t^1.5.
        times = EARLIEST + (1 - EARLIEST) * draw(torch.rand, (len(actions),), generator, device) ** (1 / 1.5)
        return noise, times, self.mixed(actions, noise, times)

    def mixed(self, actions: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Chunks (N, H, padded_dim) at times (N,) on the way from actions (N, H, D), padded with zeros, to noise."""
        padded = torch.nn.functional.pad(actions, (0, noise.shape[2] - actions.shape[2]))
        share = times[:, None, None]
        return share * noise + (1 - share) * padded

    def predict(
        self, inputs: FlowInputs, actions: torch.Tensor, generator: Generators = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocities (N, H, D) at random times, and what they should be: noise minus action."""
        return self._velocities(self.model.read_prefix(inputs), inputs.state, actions, generator)

    def _velocities(
        self, prefix: Prefix, state: torch.Tensor | None, actions: torch.Tensor, generator: Generators
    ) -> tuple[torch.Tensor, torch.Tensor]:
        noise, times, noisy = self.noised(actions, generator)
        velocity, count = self.model.velocity(prefix, noisy, times, state), actions.shape[2]
        return velocity[..., :count], noise[..., :count] - actions

    def predict_drawn(
        self, inputs: FlowInputs, actions: torch.Tensor, generator: Generators = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """With several `noise_draws` a frame is read once, and only the expert runs again for each noise and time."""
        if self.noise_draws == 1:
            return self.predict(inputs, actions, generator)
        prefix = self.model.repeat(self.model.read_prefix(inputs), self.noise_draws)
        state = None if inputs.state is None else inputs.state.repeat_interleave(self.noise_draws, dim=0)
        return self._velocities(prefix, state, actions.repeat_interleave(self.noise_draws, dim=0), generator)

    def errors(self, predicted: torch.Tensor, target: torch.Tensor, label_spread: float = 0.0) -> torch.Tensor:
        """Squared errors of the velocities of the robot's own dimensions, as LeRobot trains since 0.6."""
        if label_spread:
            raise UserError(
                f"label_spread {label_spread:g}: this policy's actions are no bins that labels could spread over"
            )
        return (predicted - target).square()

    def mean_actions(self, predicted: torch.Tensor) -> torch.Tensor:
        return predicted

    def best_actions(self, predicted: torch.Tensor) -> torch.Tensor:
        return predicted

    def vitals(self, predicted: torch.Tensor, target: torch.Tensor, actions: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}  # the loss says it all: velocities at random times are no actions

    def teacher_forced(self, inputs: FlowInputs, actions: torch.Tensor, generator: Generators = None) -> TeacherForced:
        noise, times, noisy = self.noised(actions, generator)
        hidden, there, places = self.model.embed_prefix(inputs)
        there = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if there is None else there
        suffix, condition = self.model.suffix(noisy.to(self.model.dtype), times, inputs.state)
        context = {"there": there}
        context |= {} if places is None else {"places": places}
        context |= {} if condition is None else {"condition": condition}
        count = actions.shape[2]
        return TeacherForced(
            States({DECODER: hidden, EXPERT: suffix}),
            {DECODER: there, EXPERT: torch.ones(suffix.shape[:2], dtype=torch.bool, device=suffix.device)},
            context,
            noise[..., :count] - actions,
        )

    def step(
        self, block: Block, states: States, context: Mapping[str, torch.Tensor], causal: bool | None = None
    ) -> States:
        assert causal is None, "who sees whom is the family's own affair"
        model, condition = self.model, context.get("condition")
        seen = model.context(states[DECODER], context["there"], context.get("places"))
        hidden, memory = model.remember(block.layer(DECODER), states[DECODER], seen)
        expert = model.read_memory(block.layer(EXPERT), states[EXPERT], memory, seen, condition)
        return States({DECODER: hidden, EXPERT: expert})

    def read(self, states: States, context: Mapping[str, torch.Tensor]) -> torch.Tensor:
        final = self.model.final_norm(states[EXPERT], context.get("condition"))
        return self.model.velocity_of(final)[..., : self.model.config.action_dim]

    def likelihood(self, inputs: FlowInputs, latent: dict[str, torch.Tensor], sampler: Sampler) -> Likelihood:
        """Of the numbers that the robot carries out, given the steps of denoising before them.

        Raises:
            UserError: the sampler denoises by steps that are certain.
        """
        if sampler.exploration is None:
            raise UserError("PPO needs the likelihood of an action, and steps of denoising that add no noise have none")
        explorer = self._explorer(sampler, sampler.exploration)
        return explorer.likelihood(inputs, latent, lambda prefix, seen: self.model.critic_state(prefix, seen.state))

    def _explorer(self, sampler: Sampler, exploration: Exploration) -> Explorer:
        return Explorer(self.model, exploration, self.model.config.num_steps, self.noise_network, sampler.temperature)

    def with_noise_network(self, seed: int) -> NoiseNetwork:
        config = self.model.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = NoiseNetwork(config.expert_config.hidden_size, config.padded_dim)
        self.noise_network = network.to(self.device)
        return self.noise_network

    @property
    def critic_width(self) -> int:
        return self.model.critic_width

    # -- changing ------------------------------------------------------------------------------------------------------

    def stacks(self) -> Sequence[Stack]:
        model, names = self.model, self.model.names
        text, expert = model.config.text_config, model.config.expert_config
        return [
            Stack(DECODER, names.decoder, model.decoder, text, lambda c: c.text_config, model.new_decoder_layer),
            Stack(EXPERT, names.expert, model.expert, expert, lambda c: c.expert_config, model.new_expert_layer),
        ]

    def vision_stacks(self) -> Sequence[Stack]:
        return [vision_stack(self.model)]

    def vision_pass(self, inputs: FlowInputs) -> VisionPass:
        return vision_pass(self.model, inputs)

    def reshape(self, config: Any, layers: Sequence[int], shapes: Mapping[str, Sequence[dict[str, int]]]) -> None:
        if VISION in shapes:  # a head's share of the width, which the number of heads no longer tells
            config.vision_config.head_dim = self.model.config.vision_config.head_size
        super().reshape(config, layers, shapes)
        if config.cross_layers is not None and DECODER in shapes:
            config.cross_layers = [new for new, old in enumerate(layers) if old in config.cross_layers]

    def exported(self, folder: Path, vlm: str | None = None) -> Exported:
        refuse_parts(self)
        return self.lerobot_form(folder, vlm)

    @abstractmethod
    def lerobot_form(self, folder: Path, vlm: str | None) -> Exported:
        """The policy as LeRobot saves one; see `exported`."""

    # -- measuring -----------------------------------------------------------------------------------------------------

    def stages(self, inputs: FlowInputs) -> dict[str, Stage]:
        model, patches = self.model, self.model.config.vision_config.num_patches * len(self.spec.cameras)
        prefix = self.num_patches + inputs.input_ids.shape[1] + len(model.behind_text(inputs))
        return {
            "vision": Stage(model.get_submodule(model.names.vision), patches),
            "projector": Stage(model.get_submodule(model.names.projector), self.num_patches),
            "prefill": Stage(model.decoder, prefix),
            "decode": Stage(model.expert, model.suffix_length, passes=model.config.num_steps),
        }

    def stage_calls(self) -> Sequence[StageCall]:
        model = self.model
        return [
            StageCall(model.get_submodule(model.names.vision), "forward", lambda *_: "vision"),
            StageCall(model.get_submodule(model.names.projector), "forward", lambda *_: "projector"),
            StageCall(model, "remember", lambda *_: "prefill"),
            StageCall(model, "expert_states", lambda *_: "decode"),
        ]

    @property
    def published_parameters(self) -> int:
        shapes = published_tensors(self.model_class, self.layout, self.model.config)
        return sum(torch.Size(shape).numel() for shape in shapes.values())
