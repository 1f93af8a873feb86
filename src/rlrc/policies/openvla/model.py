"""OpenVLA: seven action tokens, decoded one after the other behind the picture and the prompt."""

from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from rlrc.errors import UserError
from rlrc.policies.openvla.config import OpenVLAConfig
from rlrc.policies.parts.action_tokens import choose
from rlrc.policies.parts.decoding import Decoding
from rlrc.policies.parts.fused_decoding import begin_decoding
from rlrc.policies.parts.noise import draw
from rlrc.policies.prismatic.inputs import DecoderInputs, PrismaticInputs
from rlrc.policies.prismatic.model import Prismatic
from rlrc.policies.values import Generators


class OpenVLAForActionPrediction(Prismatic):
    """[BOS][image patches][prompt] -> seven action tokens."""

    config_class = OpenVLAConfig
    config: OpenVLAConfig

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits over the full vocabulary at every position of [BOS][patches][rest]: (B, L + P, V).

        `labels` (B, L) use -100 where nothing is predicted; the patches never are. Without `pixel_values` the prompt is
        read alone. With `action_head_only` the logits are those of the action ids alone.

        Raises:
            UserError: labels were given to a policy whose head holds the action ids alone.
        """
        if labels is not None and self.config.action_head_only:
            raise UserError("this policy's head holds the action ids alone; load the checkpoint with full_head=True")
        if pixel_values is None:
            return self.language_model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
        inputs = PrismaticInputs(input_ids, attention_mask, pixel_values)
        embeddings, mask, positions = self.sequence(inputs)
        if labels is not None:
            patches = embeddings.shape[1] - labels.shape[1]
            labels = torch.cat([labels[:, :1], labels.new_full((len(labels), patches), -100), labels[:, 1:]], dim=1)
        return self.language_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, labels=labels, **kwargs
        )

    def action_logits(self, inputs: PrismaticInputs, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Teacher-forced logits of the action bins (B, D, 256), and the state (B, hidden) behind the first of them.

        `tokens` (B, D) are the action ids whose prefixes are read; one pass, no cache, differentiable.
        """
        embeddings, mask, positions = self.sequence(inputs, tokens)
        output = self.language_model.model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
        )
        hidden = output.last_hidden_state[:, -tokens.shape[1] :]
        return self.action_logits_of(hidden), hidden[:, 0]

    def sequence(self, inputs: PrismaticInputs, tokens: torch.Tensor | None = None) -> DecoderInputs:
        """What the decoder reads: the prompt, and behind it all but the last of the action ids `tokens` (B, D)."""
        ids, mask = inputs.input_ids, inputs.attention_mask
        if tokens is not None:
            ids = torch.cat([ids, tokens[:, :-1]], dim=1)
            mask = None if mask is None else torch.cat([mask, torch.ones_like(tokens[:, :-1])], dim=1)
        return self.with_images(self.embed(ids), mask, self.images_of(inputs))

    def draw(self, rows: int, temperature: float, generator: Generators) -> torch.Tensor | None:
        """Numbers that decide which tokens `sample_actions` takes, uniform in [0, 1), (B, D); None at temperature 0,
        where nothing is left to chance."""
        if temperature == 0.0:
            return None
        numbers = [draw(torch.rand, (rows,), generator, self.device) for _ in range(self.config.action_dim)]
        return torch.stack(numbers, dim=1)

    @torch.no_grad()
    def sample_actions(
        self,
        inputs: PrismaticInputs,
        uniform: torch.Tensor | None = None,
        temperature: float = 0.0,
        decode: Callable[..., Decoding] = begin_decoding,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode the action tokens, greedily at temperature 0, else sampled over the 256 action ids.

        Nothing here waits for a GPU.

        Args:
            uniform: what `draw` returns.
            decode: makes the object that runs the decoder, and takes the arguments of `Decoding`.

        Returns:
            tokens (B, D), and their log-probabilities (B, D) in the distribution that was sampled from; at temperature
            0 in the untempered one.
        """
        embeddings, mask, positions = self.sequence(inputs)
        length = embeddings.shape[1] + self.config.action_dim - 1
        gone = self.config.patches_of_picture - self.config.tokens_of_picture
        decoding = decode(self.language_model.model, mask, positions, length, gone)
        tokens, logprobs = [], []
        for number in range(self.config.action_dim):
            chance = None if uniform is None else uniform[:, number]
            bins, logprob = choose(self.action_logits_of(decoding.advance(embeddings)), temperature, chance)
            tokens.append(bins + self.first_action_id)
            logprobs.append(logprob)
            embeddings = self.embed(tokens[-1])[:, None]
        return torch.stack(tokens, dim=1), torch.stack(logprobs, dim=1)
