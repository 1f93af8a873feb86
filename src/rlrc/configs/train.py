"""Options of `train`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlrc.config import CameraName, Config
from rlrc.configs.learner import SupervisedConfig
from rlrc.configs.parts import ActionForm

MAX_PARAMETERS = 2_000_000_000
Width = Annotated[int, Field(ge=1, le=16_384)]
Depth = Annotated[int, Field(ge=1, le=256)]


class TowerShape(Config):
    """Sizes of one vision tower. The last block counts although it is never run, as in OpenVLA."""

    hidden_size: Width = 128
    """Width of the tower."""
    num_hidden_layers: int = Field(default=3, ge=2, le=256)
    """Number of blocks."""
    num_attention_heads: Width = 4
    """Number of attention heads, which must divide the width."""
    intermediate_size: Width = 512
    """Width of the MLPs."""
    num_register_tokens: int = Field(default=0, ge=0, le=256)
    """Number of register tokens."""
    class_token: bool = False
    """Add a class token."""
    layer_scale: bool = False
    """Scale each block's output by learnt factors."""
    stem_channels: tuple[Width, ...] = Field(default=(16, 32, 64), max_length=8)
    """Channels of the convolutions of stride 2 before the patch embedding."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide a width of {self.hidden_size}")
        return self

    @property
    def parameters(self) -> int:
        """Weights of the blocks, roughly."""
        return self.num_hidden_layers * self.hidden_size * (4 * self.hidden_size + 2 * self.intermediate_size)


class Shape(Config):
    """Sizes of a mini policy. It has ten heads, so that pruning 90 % of them leaves exactly one."""

    image_size: int = Field(default=96, ge=16, le=1024)
    """Side of the pictures in pixels."""
    patch_size: int = Field(default=24, ge=1, le=1024)
    """Side of a patch in pixels, which must divide the picture's."""
    towers: tuple[TowerShape, TowerShape] = (
        TowerShape(class_token=True, num_register_tokens=4, layer_scale=True),
        TowerShape(),
    )
    """Sizes of the two vision towers."""
    hidden_size: Width = 160
    """Width of the decoder."""
    num_hidden_layers: Depth = 6
    """Number of decoder layers."""
    num_attention_heads: Width = 10
    """Number of attention heads, which must divide the width into even parts."""
    intermediate_size: Width = 640
    """Width of the decoder's MLPs."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"{self.num_attention_heads} heads do not divide a width of {self.hidden_size} into even parts"
            )
        if self.image_size % self.patch_size:
            raise ValueError(f"patches of {self.patch_size} px do not divide a picture of {self.image_size} px")
        for tower in self.towers:
            if self.patch_size % 2 ** len(tower.stem_channels):
                raise ValueError(
                    f"{len(tower.stem_channels)} convolutions of stride 2 do not divide a patch of {self.patch_size} px"
                )
        decoder = self.num_hidden_layers * self.hidden_size * (4 * self.hidden_size + 3 * self.intermediate_size)
        count = decoder + sum(tower.parameters for tower in self.towers)
        if count > MAX_PARAMETERS:
            raise ValueError(f"this shape has about {count:,} parameters, and `train` makes at most {MAX_PARAMETERS:,}")
        return self


class OFTOptions(Config):
    """Inputs and outputs of a policy of the family openvla-oft."""

    horizon: int = Field(default=8, ge=1, le=1024)
    """Number of actions of a call (the chunk)."""
    head: ActionForm = "l1"
    """Form of the actions: numbers (l1), action tokens, which rl can train, or diffusion."""
    cameras: tuple[CameraName, ...] = Field(default=("front",), min_length=1, max_length=16)
    """Names of the cameras, in the order in which the policy reads them."""
    state: bool = True
    """Read the robot's proprioception."""


OFT_FAMILIES = ("openvla-oft",)
FLOW_FAMILIES = ("pi0", "pi05", "smolvla")


class FlowOptions(Config):
    """Inputs, outputs and expert of a policy of the families pi0, pi05 and smolvla, all of which read the state."""

    horizon: int = Field(default=8, ge=1, le=1024)
    """Number of actions of a call (the chunk)."""
    cameras: tuple[CameraName, ...] = Field(default=("front",), min_length=1, max_length=16)
    """Names of the cameras, in the order in which the policy reads them."""
    num_steps: int = Field(default=10, ge=1, le=1000)
    """Number of denoising steps of an action."""
    num_key_value_heads: Width = 5
    """Number of key-value heads of SmolVLA, which must divide the attention heads. The others have one."""
    expert_hidden_size: Width = 120
    """Width of the action expert."""
    expert_intermediate_size: Width = 320
    """Width of the action expert's MLPs."""


class TrainConfig(SupervisedConfig):
    """Train a mini policy from random weights."""

    family: Literal["openvla", "openvla-oft", "pi0", "pi05", "smolvla"] = "openvla"
    """Kind of policy."""
    oft: OFTOptions = OFTOptions()
    """Options of the family openvla-oft."""
    flow: FlowOptions = FlowOptions()
    """Options of the families pi0, pi05 and smolvla, which have the second of the vision towers alone."""
    shape: Shape = Shape()
    """Sizes of the vision towers and the decoder."""
    unnorm_key: str = Field(default="tabletop", min_length=1, max_length=200)
    """Name under which the checkpoint keeps the demonstrations' action statistics."""
    state_loss_weight: float = Field(default=1.0, ge=0, le=1e6)
    """Weight of an auxiliary loss that asks the pictures' features for the simulator's state. It needs demonstrations
    that hold this state; zero leaves the loss out."""

    @model_validator(mode="after")
    def _of_its_family(self) -> Self:
        for options, default, families in (
            ("oft", OFTOptions(), OFT_FAMILIES),
            ("flow", FlowOptions(), FLOW_FAMILIES),
        ):
            if self.family not in families and getattr(self, options) != default:
                raise ValueError(
                    f"options {options} belong to the family {' or '.join(families)}; name it with family, or leave "
                    "them out"
                )
        if self.family == "smolvla" and self.shape.num_attention_heads % self.flow.num_key_value_heads:
            raise ValueError(
                f"{self.shape.num_attention_heads} heads cannot share {self.flow.num_key_value_heads} key-value heads "
                "equally"
            )
        return self

    @property
    def of_family(self) -> Config | None:
        """The options that the family alone has."""
        if self.family in OFT_FAMILIES:
            return self.oft
        return self.flow if self.family in FLOW_FAMILIES else None
