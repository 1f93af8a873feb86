"""The trunk that OpenVLA and OpenVLA-OFT share: vision towers, a projector, a Llama decoder.

The published checkpoints' remote code does not run on today's transformers, and where patched it answers without
looking at the image. This module keeps its parameter names and its arithmetic (tests hold it to tensors of the original
code) and adds what compression needs: layers of any shape.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rlrc.packed.layers import QuantizedLinear
from rlrc.policies.parts import quantizer  # noqa: F401  (registers the quantizer that builds packed layers on loading)
from rlrc.policies.parts.decoder import HeterogeneousLlamaForCausalLM
from rlrc.policies.parts.tokens import PictureTokens, lightened, mean_of_text, selected, stretched
from rlrc.policies.parts.vit import LayerScale, VisionTower
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.prismatic.inputs import DecoderInputs, PrismaticInputs
from rlrc.policies.prismatic.vision import Projector, VisionBackbone


class Prismatic(PreTrainedModel):
    """[BOS][image patches][prompt] through a language model; families add what they make of its last states."""

    config_class = PrismaticConfig
    config: PrismaticConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["LlamaDecoderLayer", "Block"]  # noqa: RUF012
    # What is never read at inference (see vision.py).
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"vision_backbone\.\w+\.blocks\.\d+\.",
        r"vision_backbone\.\w+\.norm\.",
        r"vision_backbone\.\w+\.attn_pool\.",
        r"value_head\.",
    ]

    def __init__(self, config: PrismaticConfig) -> None:
        super().__init__(config)
        self.vision_backbone = VisionBackbone(config.towers)
        features, size = config.features, config.projector_size or 4 * config.features
        self.projector = Projector(config.patches_of_token * features, size, config.text_config.hidden_size)
        self.language_model = HeterogeneousLlamaForCausalLM(config.text_config)
        if config.action_head_only:
            self.language_model.lm_head = nn.Linear(config.text_config.hidden_size, config.n_action_bins, bias=False)
        self.add_heads(config)
        self.post_init()

    def make_tables(self) -> None:
        """Make what is computed from the config and never stored; a model without memory lacks it.

        Raises:
            ValueError: the rotary embedding has frequencies that are not finite.
        """
        decoder = self.language_model.model
        decoder.rotary_emb = LlamaRotaryEmbedding(self.config.text_config)
        if not decoder.rotary_emb.inv_freq.isfinite().all():
            raise ValueError("its rotary embedding has frequencies that are not finite")

    def add_heads(self, config: Any) -> None:
        """Build what a family has beside the trunk."""

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

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.lm_head

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...) to the decoder's embeddings (..., hidden)."""
        return self.get_input_embeddings()(ids).to(self.dtype)

    def project_images(self, inputs: PrismaticInputs) -> PictureTokens:
        """The pixels of `inputs` to the decoder's embeddings of the patches of all cameras (B, P, hidden)."""
        pictures, condition = self.pictures_of(inputs)
        tokens, reduction = self.tokens_from(self.vision_backbone(pictures, condition)), self.config.reduction
        if reduction is not None and reduction.kind == "select":
            text = mean_of_text(self.embed(inputs.input_ids), inputs.attention_mask)
            text = text.repeat_interleave(len(pictures) // len(text), dim=0)
            tokens = selected(tokens.embeddings, text, reduction.count)
        return tokens.by_row(len(inputs))

    def tokens_from(self, features: torch.Tensor) -> PictureTokens:
        """Features of the towers (B, patches, width) to the decoder's embeddings (B, P, hidden)."""
        fewer = lightened(features, self.config.reduction)
        return fewer._replace(embeddings=self.projector(fewer.embeddings))

    def pictures_of(self, inputs: PrismaticInputs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The pictures (B * cameras, 3 * towers, H, W), and what conditions the towers (B * cameras, width), if any."""
        assert inputs.pixel_values is not None, "inputs need pixel_values or image_embeddings"
        return inputs.pixel_values.to(self.dtype), None

    def images_of(self, inputs: PrismaticInputs) -> PictureTokens:
        """The embeddings of the patches (B, P, hidden), computed unless they were before."""
        if inputs.image_embeddings is None:
            return self.project_images(inputs)
        return PictureTokens(inputs.image_embeddings, inputs.image_places)

    def with_images(
        self,
        text: torch.Tensor,
        mask: torch.Tensor | None,
        images: PictureTokens,
        beside: Sequence[torch.Tensor] = (),
    ) -> DecoderInputs:
        """Put the tokens of pictures and what else stands in front behind BOS.

        Args:
            text: embeddings (B, L, hidden), BOS first.
            mask: (B, L), 0 where there is padding; None where there is none.
            beside: embeddings (B, P, hidden) that follow the pictures.
        """
        front = [image.to(text.dtype) for image in (images.embeddings, *beside)]
        embeddings = torch.cat([text[:, :1], *front, text[:, 1:]], dim=1)
        rows, length = embeddings.shape[:2]
        if mask is None:
            positions = torch.arange(length, device=text.device).expand(rows, -1)
        else:
            behind = mask.new_ones(rows, length - mask.shape[1])
            mask = torch.cat([mask[:, :1], behind, mask[:, 1:]], dim=1)
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        picture = self.config.patches_of_picture, self.config.tokens_of_picture
        return DecoderInputs(embeddings, mask, stretched(positions, images.places, 1, picture))

    @property
    def first_action_id(self) -> int:
        return self.config.first_action_id

    def action_logits_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the action ids alone: the other rows of `lm_head` are never needed."""
        head, rows = self.language_model.lm_head, self.config.action_ids
        if self.config.action_head_only:
            return head(hidden)
        packed = isinstance(head, QuantizedLinear)
        return F.linear(hidden, head.dequantize(hidden.dtype, rows) if packed else head.weight[rows])
