"""SmolVLA (Shukor et al., arXiv 2506.01844): SmolVLM2, and an expert half of whose layers read it and nothing else."""

import torch
import torch.nn.functional as F
from torch import nn

from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.inputs import FlowInputs
from rlrc.policies.flow.layers import NORMS
from rlrc.policies.flow.model import FlowModel, Names
from rlrc.policies.flow.vision import Holder, VisionTower
from rlrc.policies.parts.tokens import PictureTokens, shuffled
from rlrc.policies.smolvla.config import SmolVLAConfig

ROOT = "vlm_with_expert"


class SmolVLAModel(FlowModel):
    """[pictures][text][state] in the prefix: the state sees all, and nothing but the expert sees it.

    Actions see the prefix and those before them.
    """

    config_class = SmolVLAConfig
    norms = ("llama", "llama")
    picture_scale = True
    names = Names(
        decoder=f"{ROOT}.vlm.model.text_model.layers",
        expert=f"{ROOT}.lm_expert.layers",
        expert_norm=f"{ROOT}.lm_expert.norm",
        vision=f"{ROOT}.vlm.model.vision_model",
        projector=f"{ROOT}.vlm.model.connector.modality_projection.proj",
        embedding=f"{ROOT}.vlm.model.text_model.embed_tokens",
    )

    def build(self, config: FlowConfig) -> None:
        text, expert, vision = config.text_config, config.expert_config, config.vision_config
        decoder, layers = self.layers()
        merged = config.patches_of_token * vision.hidden_size * config.pixel_shuffle**2
        projector = nn.Linear(merged, text.hidden_size, bias=False)
        model = Holder(
            vision_model=VisionTower(vision),
            connector=Holder(modality_projection=Holder(proj=projector)),
            text_model=Holder(embed_tokens=nn.Embedding(text.vocab_size, text.hidden_size), layers=decoder),
        )
        norm = NORMS[self.norms[1]](expert.hidden_size, expert.rms_norm_eps)
        self.vlm_with_expert = Holder(vlm=Holder(model=model), lm_expert=Holder(layers=layers, norm=norm))
        self.state_proj = nn.Linear(config.padded_dim, text.hidden_size)
        self.action_in_proj = nn.Linear(config.padded_dim, expert.hidden_size)
        self.action_out_proj = nn.Linear(expert.hidden_size, config.padded_dim)
        self.action_time_mlp_in = nn.Linear(2 * expert.hidden_size, expert.hidden_size)
        self.action_time_mlp_out = nn.Linear(expert.hidden_size, expert.hidden_size)

    def tokens_from(self, features: torch.Tensor) -> PictureTokens:
        return super().tokens_from(shuffled(features, self.config.patches_of_picture))

    def behind_text(self, inputs: FlowInputs) -> list[torch.Tensor]:
        assert inputs.state is not None, "the prefix holds the state"
        return [self.state_proj(inputs.state.to(self.dtype))[:, None]]

    def seen_in_prefix(self, length: int, device: torch.device) -> torch.Tensor:
        seen = torch.ones(length, length, dtype=torch.bool, device=device)
        seen[:-1, -1] = False
        return seen

    def seen_in_suffix(self, device: torch.device) -> torch.Tensor:
        return torch.ones(self.suffix_length, self.suffix_length, dtype=torch.bool, device=device).tril()

    def suffix(self, noisy: torch.Tensor, times: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        actions = self.action_in_proj(noisy)
        time = self.time_embedding(times)[:, None].expand_as(actions)
        return self.action_time_mlp_out(F.silu(self.action_time_mlp_in(torch.cat([actions, time], dim=2)))), None
