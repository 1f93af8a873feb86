"""Random denoising, so that a chunk of actions has a likelihood and PPO can train a policy that denoises (pi_RL).

Chunks of the latent are (N, H, padded_dim); likelihoods are those of the robot's own dimensions.
"""

from collections.abc import Callable

import torch

from rlrc.errors import UserError
from rlrc.policies.flow.denoising import (
    NoiseNetwork,
    Step,
    entropy,
    euler,
    log_density,
    sde_step,
)
from rlrc.policies.flow.inputs import FlowInputs
from rlrc.policies.flow.model import FlowModel, Prefix, step_times
from rlrc.policies.parts.noise import draw
from rlrc.policies.values import Exploration, Generators, Likelihood, Sample

FEWEST_STEPS = 2
"""Flow-SDE divides by the time of the second step."""


class Explorer:
    """Samples chunks by random steps, and computes their likelihoods.

    Args:
        network: gives the deviations of Flow-Noise; None of Flow-SDE.
        temperature: factor of the starting noise and of the random steps' deviations, in samples and likelihoods
            alike. At 0 all steps are Euler's, from zeros.

    Raises:
        UserError: the exploration needs more steps, or a network that is not there.
    """

    def __init__(
        self,
        model: FlowModel,
        exploration: Exploration,
        steps: int,
        network: NoiseNetwork | None,
        temperature: float = 1.0,
    ) -> None:
        if exploration.kind == "flow-sde" and steps < FEWEST_STEPS:
            raise UserError(f"flow-sde needs at least {FEWEST_STEPS} denoising steps, not {steps}")
        if exploration.kind == "flow-noise" and network is None:
            raise UserError("flow-noise needs the network that rl trains beside the policy")
        self._model, self._steps, self.network, self._level = model, steps, network, exploration.level
        self._learns_noise, self._temperature = exploration.kind == "flow-noise", temperature

    @torch.no_grad()
    def sample(self, inputs: FlowInputs, generator: Generators) -> Sample:
        """Chunks, with all that `likelihood` needs of how they came about."""
        config, device, rows = self._model.config, inputs.input_ids.device, len(inputs)
        shape = (rows, config.horizon, config.padded_dim)
        prefix = self._model.read_prefix(inputs)
        x = self._temperature * draw(torch.randn, shape, generator, device)
        # One step is random in each row. pi_RL draws it once for all rows; a row's own draw does not depend on others.
        share = draw(torch.rand, (rows,), generator, device)
        chosen = (share * self._steps).long().clamp(max=self._steps - 1)
        chain = [x]
        for number in range(self._steps):
            numbers = torch.full((rows,), number, device=device)
            velocity, deviation = self._look(prefix, x, numbers, inputs)
            noise = draw(torch.randn, shape, generator, device)
            step = self._step(x, velocity, numbers, deviation)
            wandered = step.mean + step.deviation * noise
            if self._learns_noise:
                x = wandered
            else:
                x = torch.where((chosen == number)[:, None, None], wandered, euler(x, velocity, self._steps))
            chain.append(x)
        whole = torch.stack(chain, dim=1)
        latent = {"chain": whole}
        if not self._learns_noise:
            rows_of = torch.arange(rows, device=device)
            latent = {"step": chosen, "chain": torch.stack([whole[rows_of, chosen], whole[rows_of, chosen + 1]], dim=1)}
        actions = x[..., : config.action_dim]
        return Sample(actions, latent, self._logprobs(prefix, inputs, latent)[0])

    def likelihood(
        self,
        inputs: FlowInputs,
        latent: dict[str, torch.Tensor],
        state_of: Callable[[Prefix, FlowInputs], torch.Tensor],
    ) -> Likelihood:
        """
        Args:
            state_of: what the critic reads.
        """
        prefix = self._model.read_prefix(inputs)
        logprobs, entropies = self._logprobs(prefix, inputs, latent)
        return Likelihood(logprobs, entropies, state_of(prefix, inputs).float())

    def _logprobs(
        self, prefix: Prefix, inputs: FlowInputs, latent: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-densities and entropies of each number of the robot's own dimensions, (N, H, D)."""
        chain, own = latent["chain"], slice(self._model.config.action_dim)
        if not self._learns_noise:
            velocity, _ = self._look(prefix, chain[:, 0], latent["step"], inputs)
            step = self._step(chain[:, 0], velocity, latent["step"], None)
            return log_density(chain[:, 1], step)[..., own], entropy(step.deviation)[..., own]
        # The mean over the starting noise and all steps, as pi_RL's joint log-probability.
        start = Step(torch.zeros_like(chain[:, 0]), torch.full_like(chain[:, 0], self._temperature))
        logprobs, entropies = log_density(chain[:, 0], start), entropy(start.deviation)
        for number in range(self._steps):
            numbers = torch.full((len(chain),), number, device=chain.device)
            velocity, deviation = self._look(prefix, chain[:, number], numbers, inputs)
            step = self._step(chain[:, number], velocity, numbers, deviation)
            logprobs = logprobs + log_density(chain[:, number + 1], step)
            entropies = entropies + entropy(step.deviation)
        return logprobs[..., own] / (self._steps + 1), entropies[..., own] / (self._steps + 1)

    def _look(
        self, prefix: Prefix, x: torch.Tensor, numbers: torch.Tensor, inputs: FlowInputs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Velocities of chunks at steps (N,), and the deviations that the network gives."""
        model = self._model
        states = model.expert_states(prefix, x, step_times(numbers, self._steps), inputs.state)
        deviation = None
        if self.network is not None and self._learns_noise:
            deviation = self.network(states[:, -model.config.horizon :])
        return model.velocity_of(states), deviation

    def _step(
        self, x: torch.Tensor, velocity: torch.Tensor, numbers: torch.Tensor, deviation: torch.Tensor | None
    ) -> Step:
        if deviation is None:
            return sde_step(x, velocity, numbers, self._steps, self._level * self._temperature)
        return Step(euler(x, velocity, self._steps), deviation * self._temperature)
