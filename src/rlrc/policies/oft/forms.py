"""Three forms of OpenVLA-OFT's chunks: numbers, action tokens, or noise that is taken away step by step."""

from abc import ABC, abstractmethod

import torch

from rlrc.errors import UserError
from rlrc.policies.oft.diffusion import add_noise, alphas_cumprod, denoise
from rlrc.policies.oft.model import OFTForActionPrediction
from rlrc.policies.parts.action_tokens import ActionTokenizer, choose, likelihood_of, token_errors
from rlrc.policies.parts.noise import draw
from rlrc.policies.prismatic.inputs import DecoderInputs, PrismaticInputs
from rlrc.policies.values import Generators, Likelihood, Sample, Sampler

Entering = tuple[DecoderInputs, torch.Tensor]
"""What enters the decoder, and the target of its predictions (N, H, D)."""


class Form(ABC):
    """A way to make a chunk of the last states (N, H * D, hidden) of its positions."""

    no_likelihood: str | None = None
    bin_width: float | None = None
    passes = 1
    """Passes through the decoder that a chunk takes: its denoising steps, where it is denoised."""

    def __init__(self, model: OFTForActionPrediction) -> None:
        self.model = model
        self.chunk = (model.config.horizon, model.config.action_dim)

    def denoise_in(self, steps: int) -> None:
        """Take this many denoising steps from now on.

        Raises:
            UserError: the form does not denoise, or not in that many.
        """
        raise UserError("denoising_steps: this policy's actions are not denoised")

    @abstractmethod
    def draw(self, rows: int, sampler: Sampler, generator: Generators) -> torch.Tensor | None:
        """The random numbers of an action, (rows, H, D); None where nothing is left to chance.

        Raises:
            UserError: the sampler asks for what the form has not.
        """

    @abstractmethod
    def act(self, inputs: PrismaticInputs, drawn: torch.Tensor | None, sampler: Sampler) -> tuple[torch.Tensor, ...]:
        """Compute an action, without waiting for a GPU, as `sample_of` takes it."""

    def sample_of(self, actions: torch.Tensor) -> Sample:
        """Make a sample of what `act` has returned."""
        return Sample(actions, {})

    @abstractmethod
    def teacher_forced(self, inputs: PrismaticInputs, actions: torch.Tensor, generator: Generators) -> Entering:
        """The decoder's inputs for predicting actions, and the target of the predictions; see `Policy`."""

    @abstractmethod
    def read(self, states: torch.Tensor) -> torch.Tensor:
        """Predictions (N, H, D, ...) from the last states."""

    @abstractmethod
    def errors(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See `Policy.errors`."""

    def spread_errors(self, predicted: torch.Tensor, target: torch.Tensor, label_spread: float) -> torch.Tensor:
        """See `Policy.errors`."""
        raise UserError(
            f"label_spread {label_spread:g}: this policy's actions are no bins that labels could spread over"
        )

    def mean_actions(self, predicted: torch.Tensor) -> torch.Tensor:
        """See `Policy.mean_actions`."""
        return predicted

    def best_actions(self, predicted: torch.Tensor) -> torch.Tensor:
        """See `Policy.best_actions`."""
        return predicted

    def likelihood(self, inputs: PrismaticInputs, latent: dict[str, torch.Tensor], sampler: Sampler) -> Likelihood:
        """See `Policy.likelihood`."""
        raise UserError(self.no_likelihood or "")

    def _chunk_of(self, numbers: torch.Tensor) -> torch.Tensor:
        """(N, H * D, ...) to (N, H, D, ...)."""
        return numbers.unflatten(1, self.chunk)


class Numbers(Form):
    """A network reads the actions off; it is trained on their absolute error."""

    no_likelihood = (
        "PPO needs the likelihood of an action, and an L1 head has none: it gives one action and no distribution; "
        "fine-tune the policy with sft --head tokens first"
    )

    def draw(self, rows: int, sampler: Sampler, generator: Generators) -> None:
        if sampler.temperature:
            raise UserError(f"temperature {sampler.temperature:g}: an L1 head gives one action and cannot be sampled")

    def act(self, inputs: PrismaticInputs, drawn: torch.Tensor | None, sampler: Sampler) -> tuple[torch.Tensor, ...]:
        return (self.read(self.model.action_states(self.model.sequence(inputs))),)

    def teacher_forced(self, inputs: PrismaticInputs, actions: torch.Tensor, generator: Generators) -> Entering:
        return self.model.sequence(inputs), actions

    def read(self, states: torch.Tensor) -> torch.Tensor:
        return self.model.action_head(states).float()

    def errors(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (predicted - target).abs()


class Tokens(Form):
    """Action tokens that are predicted at once, each independent of the others.

    The published code takes the likeliest of all tokens; here, as in training by PPO, the choice is among the action
    tokens alone, all that our checkpoints keep of the head. A trained policy predicts no others.
    """

    def __init__(self, model: OFTForActionPrediction) -> None:
        super().__init__(model)
        self.bin_width = 2 / (model.config.n_action_bins - 1)
        self.actions = ActionTokenizer(model.config.action_vocab_end, model.config.n_action_bins)

    def draw(self, rows: int, sampler: Sampler, generator: Generators) -> torch.Tensor | None:
        if sampler.temperature == 0.0:
            return None
        return draw(torch.rand, (rows, *self.chunk), generator, self.model.device)

    def act(self, inputs: PrismaticInputs, drawn: torch.Tensor | None, sampler: Sampler) -> tuple[torch.Tensor, ...]:
        logits = self.read(self.model.action_states(self.model.sequence(inputs)))
        bins, logprobs = choose(logits, sampler.temperature, drawn)
        return bins + self.actions.first_id, logprobs

    def sample_of(self, tokens: torch.Tensor, logprobs: torch.Tensor) -> Sample:  # type: ignore[override]
        actions = torch.from_numpy(self.actions.decode(tokens.cpu().numpy()))
        return Sample(actions, {"tokens": tokens}, logprobs)

    def teacher_forced(self, inputs: PrismaticInputs, actions: torch.Tensor, generator: Generators) -> Entering:
        tokens = self.actions.encode(actions)
        return self.model.sequence(inputs), self.actions.ids_to_bins(tokens)

    def read(self, states: torch.Tensor) -> torch.Tensor:
        return self._chunk_of(self.model.action_logits_of(states).float())

    def errors(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return token_errors(predicted, target, label_spread=0.0)

    def spread_errors(self, predicted: torch.Tensor, target: torch.Tensor, label_spread: float) -> torch.Tensor:
        return token_errors(predicted, target, label_spread)

    def mean_actions(self, predicted: torch.Tensor) -> torch.Tensor:
        return self.actions.mean(predicted)

    def best_actions(self, predicted: torch.Tensor) -> torch.Tensor:
        return self.actions.best(predicted)

    def likelihood(self, inputs: PrismaticInputs, latent: dict[str, torch.Tensor], sampler: Sampler) -> Likelihood:
        """Exact, since tokens are drawn independently.

        The critic reads the state before the first place, from which the first number is predicted. No state depends
        on an action here: all places hold zeros.
        """
        # All positions, with gradients or without: PPO compares the two, and they should differ in no bit.
        hidden = self.model.language_model.model.read_all(*self.model.sequence(inputs))
        states = self.model.before_places(hidden)
        bins = self.actions.ids_to_bins(latent["tokens"])
        chosen, entropies = likelihood_of(self.read(states), bins, sampler.temperature)
        return Likelihood(chosen, entropies, states[:, 0].float())


class Noise(Form):
    """Chunks that are denoised (DDIM); the network predicts the noise, and is trained on its squared error."""

    def __init__(self, model: OFTForActionPrediction) -> None:
        super().__init__(model)
        alphas_cumprod(self._training)  # computed once here, and not within the first action
        self.passes = self._training

    no_likelihood = (
        "PPO needs the likelihood of an action, and steps of denoising that add no noise have none; fine-tune "
        "the policy with sft --head tokens first"
    )

    def denoise_in(self, steps: int) -> None:
        if not 1 <= steps <= self._training:
            raise UserError(
                f"denoising_steps {steps}: the policy was trained with {self._training}, so it can take "
                f"1 to {self._training}"
            )
        self.passes = steps

    def draw(self, rows: int, sampler: Sampler, generator: Generators) -> torch.Tensor:
        """The noise at the start is normal, times the temperature; the published code takes 1."""
        return sampler.temperature * draw(torch.randn, (rows, *self.chunk), generator, self.model.device)

    def act(self, inputs: PrismaticInputs, drawn: torch.Tensor | None, sampler: Sampler) -> tuple[torch.Tensor, ...]:
        assert drawn is not None, "chunks are made of noise"
        return (self.denoise(inputs, drawn),)

    def denoise(self, inputs: PrismaticInputs, chunks: torch.Tensor) -> torch.Tensor:
        """Chunks (N, H, D) without their noise."""
        return denoise(lambda now, time: self.noise_in(inputs, now, time), chunks, self._training, self.passes)

    def noise_in(self, inputs: PrismaticInputs, chunks: torch.Tensor, time: int) -> torch.Tensor:
        """The noise that is predicted in chunks (N, H, D) at a training step."""
        times = torch.full((len(chunks),), time, device=chunks.device)
        return self.read(self.model.action_states(self.model.sequence(inputs, chunks, times)))

    def teacher_forced(self, inputs: PrismaticInputs, actions: torch.Tensor, generator: Generators) -> Entering:
        noise = draw(torch.randn, actions.shape, generator, actions.device)
        times = (draw(torch.rand, (len(actions),), generator, actions.device) * self._training).long()
        return self.with_noise(inputs, actions, noise, times)

    def with_noise(
        self, inputs: PrismaticInputs, actions: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> Entering:
        """Teacher forcing of noise (N, H, D) that was added to actions up to training steps (N,)."""
        noisy = add_noise(actions, noise, times, self._training)
        return self.model.sequence(inputs, noisy, times), noise

    def read(self, states: torch.Tensor) -> torch.Tensor:
        return self.model.action_head(states).float()

    def errors(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (predicted - target).square()

    @property
    def _training(self) -> int:
        return self.model.config.diffusion_steps


FORMS: dict[str, type[Form]] = {"l1": Numbers, "tokens": Tokens, "diffusion": Noise}
