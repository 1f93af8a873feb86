"""OpenVLA: seven action tokens, decoded one after the other behind the picture and the prompt."""

from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from rlrc.errors import UserError
from rlrc.policies.openvla.config import OpenVLAConfig
from rlrc.policies.parts.action_tokens import choose
from rlrc.policies.parts.decoding import Decoding
from rlrc.policies.prismatic.inputs import PrismaticInputs
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
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if pixel_values is None:
            return self.language_model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
        inputs = PrismaticInputs(input_ids, attention_mask, pixel_values)
        embeddings, mask, positions = self._joint_sequence(inputs, self.embed(input_ids), attention_mask)
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
        embeddings, mask, positions = self.teacher_forced(inputs, tokens)
        output = self.language_model.model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
        )
        hidden = output.last_hidden_state[:, -tokens.shape[1] :]
        return self.action_logits_of(hidden), hidden[:, 0]

    def teacher_forced(
        self, inputs: PrismaticInputs, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The decoder's inputs for predicting `tokens` (B, D): embeddings (B, T, hidden), mask and positions (B, T)."""
        text = torch.cat([self.embed(inputs.input_ids), self.embed(tokens[:, :-1])], dim=1)
        mask = torch.cat(
            [inputs.attention_mask, inputs.attention_mask.new_ones(len(tokens), tokens.shape[1] - 1)], dim=1
        )
        return self._joint_sequence(inputs, text, mask)

    @torch.no_grad()
    def sample_actions(
        self,
        inputs: PrismaticInputs,
        temperature: float = 0.0,
        generator: Generators = None,
        decode: Callable[..., Decoding] = Decoding,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode the action tokens, greedily at temperature 0, else sampled over the 256 action ids.

        `decode` makes the object that runs the decoder, and takes the arguments of `Decoding`.

        Returns:
            tokens (B, D), and their log-probabilities (B, D) in the distribution that was sampled from; at temperature
            0 in the untempered one.
        """
        text = self.embed(inputs.input_ids)
        embeddings, mask, positions = self._joint_sequence(inputs, text, inputs.attention_mask)
        length = embeddings.shape[1] + self.config.action_dim - 1
        decoding = decode(self.language_model.model, mask, positions, length)
        tokens, logprobs = [], []
        for _ in range(self.config.action_dim):
            bins, logprob = choose(self.action_logits_of(decoding.advance(embeddings)), temperature, generator)
            tokens.append(bins + self.first_action_id)
            logprobs.append(logprob)
            embeddings = self.embed(tokens[-1])[:, None]
        return torch.stack(tokens, dim=1), torch.stack(logprobs, dim=1)

    def _joint_sequence(
        self, inputs: PrismaticInputs, text: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Put the patches behind BOS: embeddings (B, L + P, hidden), mask and positions (B, L + P)."""
        image = self.images_of(inputs)
        embeddings = torch.cat([text[:, :1], image.to(text.dtype), text[:, 1:]], dim=1)
        mask = torch.cat([mask[:, :1], mask.new_ones(image.shape[:2]), mask[:, 1:]], dim=1)
        return embeddings, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)
