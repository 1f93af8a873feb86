"""pi0 (Black et al., arXiv 2410.24164): the state is a token of the expert, the time is mixed into each action."""

import torch
import torch.nn.functional as F
from torch import nn

from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.model import Prefix
from rlrc.policies.flow.paligemma import PaliGemmaModel
from rlrc.policies.pi0.config import Pi0Config


class Pi0Model(PaliGemmaModel):
    """[state][actions] in the expert: the state sees the prefix and itself, actions see everything."""

    config_class = Pi0Config
    norms = ("gemma", "gemma")

    def build(self, config: FlowConfig) -> None:
        super().build(config)
        width = config.expert_config.hidden_size
        self.state_proj = nn.Linear(config.padded_dim, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)

    @property
    def suffix_length(self) -> int:
        return 1 + self.config.horizon

    def seen_in_suffix(self, device: torch.device) -> torch.Tensor:
        seen = torch.ones(self.suffix_length, self.suffix_length, dtype=torch.bool, device=device)
        seen[0, 1:] = False
        return seen

    def suffix(self, noisy: torch.Tensor, times: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        assert state is not None, "the expert reads the state"
        actions = self.action_in_proj(noisy)
        time = self.time_embedding(times)[:, None].expand_as(actions)
        mixed = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(torch.cat([actions, time], dim=2))))
        return torch.cat([self.state_proj(state.to(self.dtype))[:, None], mixed], dim=1), None

    def critic_state(self, prefix: Prefix, state: torch.Tensor | None) -> torch.Tensor:
        """The expert's state at the robot's state, which sees the prefix and no action; all of it is read, as pi_RL
        reads the mean of the expert's states, which depends on actions."""
        assert state is not None, "the expert reads the state"
        noisy = state.new_zeros(len(state), self.config.horizon, self.config.padded_dim)
        return self.expert_states(prefix, noisy, torch.ones(len(state), device=state.device), state)[:, 0]

    @property
    def critic_width(self) -> int:
        return self.config.expert_config.hidden_size
