"""OpenVLA-OFT: a chunk of actions in one pass, in which every position sees every other."""

from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutput

from rlrc.policies.oft.config import OFTConfig
from rlrc.policies.oft.heads import ActionHead, TokenProjector, timestep_embedding
from rlrc.policies.parts.tokens import mean_of_text
from rlrc.policies.prismatic.inputs import DecoderInputs, PrismaticInputs
from rlrc.policies.prismatic.model import Prismatic

FORM_PARTS = ("action_head", "noisy_action_projector")
"""Networks that one form of actions has and another has not."""


class OFTForActionPrediction(Prismatic):
    """[BOS][patches of each camera][state][timestep][prompt][a place for each number of the chunk][stop].

    State and timestep are there where the policy reads them. The places hold zeros, or the noisy numbers of a policy
    that denoises; what predicts a number leaves the position before its place, as in next-token training.
    """

    config_class = OFTConfig
    config: OFTConfig
    # Its kernels in transformers take no mask of our own, and are causal without one.
    _supports_flash_attn = False

    def add_heads(self, config: OFTConfig) -> None:
        if config.state_dim:
            self.proprio_projector = TokenProjector(config.state_dim, config.text_config.hidden_size)
        self._add_form(config)

    def _add_form(self, config: OFTConfig) -> None:
        hidden = config.text_config.hidden_size
        if config.head != "tokens":
            self.action_head = ActionHead(hidden, config.action_dim)
        if config.head == "diffusion":
            self.noisy_action_projector = TokenProjector(1, hidden)

    def change_form(self, head: str) -> None:
        """Make actions in another form, whose networks have random weights; the old form's are dropped."""
        for name in FORM_PARTS:
            if hasattr(self, name):
                delattr(self, name)
        self.config.head = head
        self._add_form(self.config)
        for name in FORM_PARTS:
            if hasattr(self, name):
                self.get_submodule(name).to(self.device, self.dtype).apply(self._init_weights)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits (B, T, V) at every position of the whole sequence, of the action ids alone with `action_head_only`.

        Args:
            input_ids: prompts (B, L), padded behind BOS; the places of the chunk and the stop token are added here.
            pixel_values: of all cameras, (B, 3 * towers * cameras, H, W).
            state: normalised, (B, S).
        """
        inputs = PrismaticInputs(input_ids, attention_mask, pixel_values, state=state)
        states = self.language_model.model.read_all(*self.sequence(inputs))
        return CausalLMOutput(logits=self.language_model.lm_head(states))

    def pictures_of(self, inputs: PrismaticInputs) -> tuple[torch.Tensor, torch.Tensor | None]:
        pixels, _ = super().pictures_of(inputs)
        cameras = len(self.config.cameras or ())
        pictures = pixels.unflatten(1, (cameras, -1)).flatten(0, 1)
        if not self.config.film:
            return pictures, None
        condition = self.mean_text(inputs.input_ids, inputs.attention_mask)
        return pictures, condition.repeat_interleave(cameras, dim=0)

    def mean_text(self, input_ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The mean embedding (B, hidden) of prompt and stop token, which conditions the vision towers (FiLM)."""
        text = torch.cat([self.embed(input_ids), self._stop(len(input_ids))], dim=1)
        return mean_of_text(text, None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1))

    def sequence(
        self, inputs: PrismaticInputs, noisy: torch.Tensor | None = None, timesteps: torch.Tensor | None = None
    ) -> DecoderInputs:
        """Put together what the decoder reads.

        Args:
            noisy: chunks (B, H, D) with noise, and the training steps (B,) that they have reached, where the policy
                denoises.
        """
        text, rows = self.embed(inputs.input_ids), len(inputs)
        front: list[torch.Tensor] = []
        if self.config.state_dim:
            assert inputs.state is not None, "inputs need a state"
            front.append(self.proprio_projector(inputs.state.to(text.dtype))[:, None])
        places = text.new_zeros(rows, self.config.numbers, text.shape[-1])
        if noisy is not None and timesteps is not None:
            front.append(timestep_embedding(timesteps, text.shape[-1])[:, None])
            places = self.noisy_action_projector(noisy.flatten(1)[..., None].to(text.dtype)).to(text.dtype)
        text = torch.cat([text, places, self._stop(rows)], dim=1)
        mask = inputs.attention_mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(rows, self.config.numbers + 1)], dim=1)
        return self.with_images(text, mask, self.images_of(inputs), front)

    def action_states(self, sequence: DecoderInputs) -> torch.Tensor:
        """The final states (B, H * D, hidden) from which the numbers of the chunk are predicted."""
        return self.language_model.model.read_all(*sequence, self.read_positions)

    def before_places(self, hidden: torch.Tensor) -> torch.Tensor:
        """Choose of all positions (B, T, hidden) those before each place of the chunk, (B, H * D, hidden)."""
        return hidden[:, self.read_positions]

    @property
    def read_positions(self) -> slice:
        """The positions before each place of the chunk."""
        return slice(-self.config.numbers - 2, -2)

    def _stop(self, rows: int) -> torch.Tensor:
        return self.embed(torch.full((rows, 1), self.config.stop_token_id, device=self.device))
