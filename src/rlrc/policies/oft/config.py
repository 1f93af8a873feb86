"""The config of an OpenVLA-OFT policy (Kim, Finn and Liang, 2025)."""

from typing import Any

from rlrc.policies.oft.schema import OFTFields
from rlrc.policies.parts.config import VisionTowerConfig
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.statistics import Kind


class OFTConfig(PrismaticConfig):
    """OpenVLA-OFT at any size: a chunk of actions in one pass, from several cameras and a state.

    Published folders say `openvla` and hold none of the fields here; `layout.py` finds them. `head` is "l1" (a network
    that gives numbers), "tokens" (action bins, as OpenVLA's) or "diffusion". `state_dim` is 0 where no proprioception
    is read. `diffusion_steps` are those of training. `stop_token_id` stands behind the actions. `action_dims` and
    `state_dims` are the fields of `contract.Dim`, or None where nobody has said what the numbers mean.
    """

    model_type = "openvla_oft"

    horizon: int = 8
    cameras: list[str] | None = None
    state_dim: int = 0
    head: str = "l1"
    film: bool = False
    normalisation: Kind = "quantiles"
    diffusion_steps: int = 50
    stop_token_id: int = 2
    action_dims: list[dict[str, str]] | None = None
    state_dims: list[dict[str, str]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.cameras = self.cameras or ["front"]

    @classmethod
    def fields(cls) -> type[OFTFields]:
        return OFTFields

    @property
    def towers(self) -> list[VisionTowerConfig]:
        towers = super().towers
        for tower in towers if self.film else ():
            tower.condition_size = self.text_config.hidden_size
        return towers

    @property
    def numbers(self) -> int:
        """Numbers in a chunk, each of which has a position in the decoder."""
        return self.horizon * self.action_dim
