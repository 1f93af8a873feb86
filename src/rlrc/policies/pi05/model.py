"""pi0.5 (Black et al., arXiv 2504.16054): the prompt tells the state, and the expert's norms are told the time."""

import torch
import torch.nn.functional as F
from torch import nn

from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.paligemma import PaliGemmaModel
from rlrc.policies.pi05.config import Pi05Config


class Pi05Model(PaliGemmaModel):
    """[actions] in the expert, which see everything."""

    config_class = Pi05Config
    norms = ("gemma", "adaptive")

    def build(self, config: FlowConfig) -> None:
        super().build(config)
        width = config.expert_config.hidden_size
        self.time_mlp_in = nn.Linear(width, width)
        self.time_mlp_out = nn.Linear(width, width)

    def suffix(
        self, noisy: torch.Tensor, times: torch.Tensor, state: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        time = self.time_embedding(times)
        condition = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(time))))
        return self.action_in_proj(noisy), condition
