"""The schema of an OpenVLA-OFT policy's config.json, beside that of every policy on the trunk."""

from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, StrictInt, model_validator

from rlrc.config import CameraName
from rlrc.configs.parts import ActionForm
from rlrc.policies.parts.schema import MAX_CAMERAS, MAX_HORIZON, MAX_STATE, DimFields, TokenId
from rlrc.policies.prismatic.schema import ConfigFields

MAX_STEPS = 10_000


class OFTFields(ConfigFields):
    """config.json of an OpenVLA-OFT policy that rlrc wrote."""

    horizon: Annotated[StrictInt, Field(ge=1, le=MAX_HORIZON)]
    cameras: Annotated[list[CameraName], Field(min_length=1, max_length=MAX_CAMERAS)]
    state_dim: Annotated[StrictInt, Field(ge=0, le=MAX_STATE)]
    head: ActionForm
    film: StrictBool = False
    normalisation: Literal["quantiles", "bounds"]
    diffusion_steps: Annotated[StrictInt, Field(ge=1, le=MAX_STEPS)] = 50
    stop_token_id: TokenId = 2
    action_dims: list[DimFields] | None = None
    state_dims: list[DimFields] | None = None

    @model_validator(mode="after")
    def _name_each_once(self) -> Self:
        if len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"cameras {', '.join(self.cameras)}: one is named twice")
        if self.stop_token_id >= self.text_config.vocab_size:
            raise ValueError(
                f"stop_token_id {self.stop_token_id} is outside text_config.vocab_size {self.text_config.vocab_size}"
            )
        for field, count in (("action_dims", self.action_dim), ("state_dims", self.state_dim)):
            dims = getattr(self, field)
            if dims is not None and len(dims) != count:
                raise ValueError(f"{field} names {len(dims)} numbers, and there are {count}")
        return self
