"""OpenVLA as our own module: vision towers, projector, Llama decoder, 256 action bins, and a value head for PPO.

The published checkpoint's remote code does not run on today's transformers, and where patched it answers without
looking at the image. This module keeps its parameter names and its arithmetic (tests hold it to tensors of the original
code) and adds what compression and reinforcement learning need: layers of any shape, teacher-forced action logits,
batched sampling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from rlrc.errors import UserError
from rlrc.models import quantizer  # noqa: F401  (registers the quantizer that builds packed layers on loading)
from rlrc.models.config import OpenVLAConfig
from rlrc.models.decoder import HeterogeneousLlamaForCausalLM
from rlrc.models.decoding import Decoding
from rlrc.models.linear import QuantizedLinear
from rlrc.models.vision import LayerScale, Projector, VisionBackbone, VisionTower

Generators = torch.Generator | Sequence[torch.Generator] | None
"""Source of sampling noise: one generator for the batch, one for each row, or torch's own."""


@dataclass(frozen=True)
class PolicyInputs:
    """A left-padded batch: `input_ids` (B, L) = [BOS, padding, prompt], `attention_mask` (B, L), and the image.

    The image is `pixel_values` (B, 3 * towers, H, W), or `image_embeddings` (B, P, hidden) where the projector has
    already run.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    pixel_values: torch.Tensor | None = None
    image_embeddings: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: Any) -> "PolicyInputs":
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> "PolicyInputs":
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Any) -> "PolicyInputs":
        present = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: function(tensor) for name, tensor in present.items()})


@dataclass(frozen=True)
class ActionSample:
    """Result of acting: `tokens` (B, 7) ids, `logprobs` (B,) summed over them, `values` (B,) given a critic."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    values: torch.Tensor | None


class ValueHead(nn.Module):
    """RL4VLA's critic: hidden (B, H) -> 512 -> 128 -> value (B,), on the state that predicts the first action token."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.head_l1 = nn.Linear(hidden_size, 512)
        self.head_l2 = nn.Linear(512, 128)
        self.head_l3 = nn.Linear(128, 1, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head_l3(F.gelu(self.head_l2(F.gelu(self.head_l1(hidden))))).squeeze(-1)


class OpenVLAForActionPrediction(PreTrainedModel):
    """[BOS][image patches][prompt] -> seven action tokens."""

    config_class = OpenVLAConfig
    config: OpenVLAConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["LlamaDecoderLayer", "Block"]  # noqa: RUF012
    # Of published checkpoints, what is never read at inference (see vision.py).
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"vision_backbone\.\w+\.blocks\.\d+\.",
        r"vision_backbone\.\w+\.norm\.",
        r"vision_backbone\.\w+\.attn_pool\.",
    ]

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(config)
        towers = config.towers
        self.vision_backbone = VisionBackbone(towers)
        self.projector = Projector(sum(tower.hidden_size for tower in towers), config.text_config.hidden_size)
        self.language_model = HeterogeneousLlamaForCausalLM(config.text_config)
        if config.action_head_only:
            self.language_model.lm_head = nn.Linear(config.text_config.hidden_size, config.n_action_bins, bias=False)
        self.value_head: ValueHead | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionTower):
            for token in (module.pos_embed, module.cls_token, module.reg_token):
                if token is not None:
                    nn.init.trunc_normal_(token, std=0.02)
        elif isinstance(module, LayerScale):
            nn.init.ones_(module.scale_factor)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    # -- transformers' interface ---------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.lm_head

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
        inputs = PolicyInputs(input_ids, attention_mask, pixel_values)
        embeddings, mask, positions = self._joint_sequence(inputs, self.embed(input_ids), attention_mask)
        if labels is not None:
            patches = embeddings.shape[1] - labels.shape[1]
            labels = torch.cat([labels[:, :1], labels.new_full((len(labels), patches), -100), labels[:, 1:]], dim=1)
        return self.language_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, labels=labels, **kwargs
        )

    # -- acting and learning -------------------------------------------------------------------------------------------

    def add_value_head(self, seed: int = 0) -> None:
        """Give the model a fresh critic; the last layer starts at N(0, 0.02), so that first values are near zero."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = ValueHead(self.config.text_config.hidden_size)
            nn.init.normal_(head.head_l3.weight, std=0.02)
        self.value_head = head.to(device=self.device, dtype=self.dtype)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...) to the decoder's embeddings (..., hidden)."""
        return self.get_input_embeddings()(ids).to(self.dtype)

    def project_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3 * towers, H, W) to the decoder's embeddings of the patches (B, P, hidden)."""
        return self.projector(self.vision_backbone(pixel_values.to(self.dtype)))

    def action_logits(self, inputs: PolicyInputs, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Teacher-forced logits of the action bins (B, 7, 256), and the state (B, hidden) behind the first of them.

        `tokens` (B, 7) are the action ids whose prefixes are read; one pass, no cache, differentiable.
        """
        embeddings, mask, positions = self.teacher_forced(inputs, tokens)
        output = self.language_model.model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
        )
        hidden = output.last_hidden_state[:, -tokens.shape[1] :]
        return self.action_head(hidden), hidden[:, 0]

    def teacher_forced(
        self, inputs: PolicyInputs, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what the decoder reads to predict `tokens` (B, 7): embeddings (B, T, hidden), mask and positions (B,
        T)."""
        text = torch.cat([self.embed(inputs.input_ids), self.embed(tokens[:, :-1])], dim=1)
        mask = torch.cat(
            [inputs.attention_mask, inputs.attention_mask.new_ones(len(tokens), tokens.shape[1] - 1)], dim=1
        )
        return self._joint_sequence(inputs, text, mask)

    @torch.no_grad()
    def sample_actions(
        self,
        inputs: PolicyInputs,
        temperature: float = 0.0,
        generator: Generators = None,
        decode: Callable[..., Decoding] = Decoding,
    ) -> ActionSample:
        """Decode seven action tokens, greedily at temperature 0, else sampled over the 256 action ids.

        `decode` makes the object that runs the decoder, and takes the arguments of `Decoding`. `logprobs` are those of
        the distribution sampled from (at temperature 0, of the untempered one).
        """
        text = self.embed(inputs.input_ids)
        embeddings, mask, positions = self._joint_sequence(inputs, text, inputs.attention_mask)
        length = embeddings.shape[1] + self.config.action_dim - 1
        decoding = decode(self.language_model.model, mask, positions, length)
        tokens, logprobs, states = [], [], []
        for _ in range(self.config.action_dim):
            states.append(decoding.advance(embeddings))
            bins, logprob = _choose(self.action_head(states[-1]), temperature, generator)
            tokens.append(bins + self.first_action_id)
            logprobs.append(logprob)
            embeddings = self.embed(tokens[-1])[:, None]
        values = None if self.value_head is None else self.value_head(states[0]).float()
        return ActionSample(torch.stack(tokens, dim=1), torch.stack(logprobs, dim=1).sum(dim=1), values)

    @property
    def first_action_id(self) -> int:
        return self.config.first_action_id

    def action_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the action ids alone: the other rows of `lm_head` are never needed."""
        head, rows = self.language_model.lm_head, self.config.action_ids
        if self.config.action_head_only:
            return head(hidden)
        packed = isinstance(head, QuantizedLinear)
        return F.linear(hidden, head.dequantize(hidden.dtype, rows) if packed else head.weight[rows])

    def _joint_sequence(
        self, inputs: PolicyInputs, text: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Put the patches behind BOS: embeddings (B, L + P, hidden), mask and positions (B, L + P)."""
        image = inputs.image_embeddings
        if image is None:
            assert inputs.pixel_values is not None, "PolicyInputs needs pixel_values or image_embeddings"
            image = self.project_images(inputs.pixel_values)
        embeddings = torch.cat([text[:, :1], image.to(text.dtype), text[:, 1:]], dim=1)
        mask = torch.cat([mask[:, :1], mask.new_ones(image.shape[:2]), mask[:, 1:]], dim=1)
        return embeddings, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)


def _choose(logits: torch.Tensor, temperature: float, generator: Generators) -> tuple[torch.Tensor, torch.Tensor]:
    """Bins (B,) and their log-probabilities (B,) from logits (B, 256)."""
    logprobs = F.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if temperature == 0.0:
        bins = logprobs.argmax(dim=-1)
    else:
        # Inverse transform sampling: one uniform number a row, so that each row can have a generator of its own.
        cumulative = logprobs.exp().cumsum(dim=-1)
        threshold = _uniform(len(logits), generator, logits.device) * cumulative[:, -1]
        bins = (cumulative <= threshold[:, None]).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
    return bins, logprobs.gather(-1, bins[:, None]).squeeze(-1)


def _uniform(count: int, generator: Generators, device: torch.device) -> torch.Tensor:
    if isinstance(generator, Sequence):
        return torch.cat([torch.rand(1, generator=row, device=device) for row in generator])
    return torch.rand(count, generator=generator, device=device)
