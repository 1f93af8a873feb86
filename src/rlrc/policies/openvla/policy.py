"""OpenVLA as a policy: one camera, one action a call, as seven tokens."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from rlrc.policies.dim import Dim
from rlrc.policies.groups import DECODER
from rlrc.policies.locate import SIDE_FILE
from rlrc.policies.openvla.model import OpenVLAForActionPrediction
from rlrc.policies.parts.action_tokens import ActionTokenizer, likelihood_of, token_errors
from rlrc.policies.parts.decoding import Decoding
from rlrc.policies.parts.noise import require_generators
from rlrc.policies.prismatic.inputs import PrismaticInputs
from rlrc.policies.prismatic.policy import PrismaticPolicy
from rlrc.policies.values import (
    GREEDY,
    Generators,
    Likelihood,
    PolicySpec,
    Sample,
    Sampler,
    Stage,
    StageCall,
    States,
    TeacherForced,
)

if TYPE_CHECKING:
    from rlrc.configs.evaluate import VlaCacheConfig

CAMERA = "front"
"""Name of the only camera; a published folder gives it none."""


class OpenVLAPolicy(PrismaticPolicy):
    """OpenVLA (Kim et al., 2024)."""

    model: OpenVLAForActionPrediction
    model_class = OpenVLAForActionPrediction
    causal = True

    @classmethod
    def recognises(cls, config: dict[str, Any], files: Sequence[str], spec: str | None) -> bool:
        beside = any(SIDE_FILE.fullmatch(name) for name in files)
        return config.get("model_type") == "openvla" and spec is None and not beside

    def describe(self) -> PolicySpec:
        action = tuple(Dim(str(number)) for number in range(self.model.config.action_dim))
        return PolicySpec("openvla", (CAMERA,), (), action, horizon=1, execute=1)

    @property
    def actions(self) -> ActionTokenizer:
        """Action bins and the token ids that stand for them."""
        return ActionTokenizer(self.model.config.action_vocab_end, self.model.config.n_action_bins)

    @property
    def bin_width(self) -> float:  # type: ignore[override]
        return 2 / (self.model.config.n_action_bins - 1)

    # -- acting --------------------------------------------------------------------------------------------------------

    def sample(
        self, inputs: PrismaticInputs, sampler: Sampler = GREEDY, generator: Generators = None, decode: Any = None
    ) -> Sample:
        """
        Args:
            decode: makes the object that runs the decoder; see `OpenVLAForActionPrediction.sample_actions`.
        """
        require_generators(generator, len(inputs))
        temperature, uniform = sampler.temperature, self.model.draw(len(inputs), sampler.temperature, generator)
        if decode is None:
            sample = partial(self.model.sample_actions, temperature=temperature)
            tokens, logprobs = self.do(sample, inputs, uniform, key=temperature)
        else:
            tokens, logprobs = self.model.sample_actions(inputs, uniform, temperature, decode)
        actions = torch.from_numpy(self.actions.decode(tokens.cpu().numpy()))
        return Sample(actions[:, None], {"tokens": tokens[:, None]}, logprobs[:, None])

    def with_vla_cache(self, config: "VlaCacheConfig") -> Any:
        from rlrc.policies.openvla.vla_cache import VlaCache

        return VlaCache(self, config)

    # -- learning ------------------------------------------------------------------------------------------------------

    def tokens_of(self, actions: torch.Tensor) -> torch.Tensor:
        """Normalised actions (N, 1, D) to token ids (N, D)."""
        return self.actions.encode(actions[:, 0])

    def teacher_forced(
        self, inputs: PrismaticInputs, actions: torch.Tensor, generator: Generators = None
    ) -> TeacherForced:
        tokens = self.tokens_of(actions)
        target = self.actions.ids_to_bins(tokens)[:, None]
        return self.entering(self.model.sequence(inputs, tokens), target)

    def read(self, states: States, context: Mapping[str, torch.Tensor]) -> torch.Tensor:
        last = self.model.language_model.model.norm(states[DECODER][:, -self.model.config.action_dim :])
        return self.model.action_logits_of(last).float()[:, None]

    def predict(
        self, inputs: PrismaticInputs, actions: torch.Tensor, generator: Generators = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.tokens_of(actions)
        logits, _ = self.model.action_logits(inputs, tokens)
        return logits.float()[:, None], self.actions.ids_to_bins(tokens)[:, None]

    def errors(self, predicted: torch.Tensor, target: torch.Tensor, label_spread: float = 0.0) -> torch.Tensor:
        """Cross-entropy over the action bins."""
        return token_errors(predicted, target, label_spread)

    def mean_actions(self, predicted: torch.Tensor) -> torch.Tensor:
        return self.actions.mean(predicted)

    def best_actions(self, predicted: torch.Tensor) -> torch.Tensor:
        return self.actions.best(predicted)

    def vitals(self, predicted: torch.Tensor, target: torch.Tensor, actions: torch.Tensor) -> dict[str, torch.Tensor]:
        right = (predicted.argmax(dim=-1) == target).float()
        return {"token_accuracy": right, **super().vitals(predicted, target, actions)}

    def likelihood(self, inputs: PrismaticInputs, latent: dict[str, torch.Tensor], sampler: Sampler) -> Likelihood:
        """Log-probabilities in the distribution over the 256 action ids at the temperature that is sampled from."""
        tokens = latent["tokens"][:, 0]
        logits, hidden = self.model.action_logits(inputs, tokens)
        chosen, entropies = likelihood_of(logits.float(), self.actions.ids_to_bins(tokens), sampler.temperature)
        return Likelihood(chosen[:, None], entropies[:, None], hidden.float())

    # -- measuring -----------------------------------------------------------------------------------------------------

    def stages(self, inputs: PrismaticInputs) -> dict[str, Stage]:
        model, patches = self.model, self.model.config.towers[0].num_patches
        decoder = model.language_model.model.layers
        return {
            "vision": Stage(model.vision_backbone, patches),
            "projector": Stage(model.projector, self.num_patches),
            "prefill": Stage(decoder, inputs.input_ids.shape[1] + self.num_patches),
            "decode": Stage(decoder, 1, passes=model.config.action_dim - 1),
        }

    def stage_calls(self) -> Sequence[StageCall]:
        return [
            StageCall(self.model.vision_backbone, "forward", lambda *_: "vision"),
            StageCall(self.model.projector, "forward", lambda *_: "projector"),
            # The first call reads the prompt, the others add a token each.
            StageCall(Decoding, "advance", lambda _, new: "prefill" if new.shape[1] > 1 else "decode"),
        ]


FAMILY = OpenVLAPolicy
