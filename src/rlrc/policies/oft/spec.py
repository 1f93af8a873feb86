"""The option `spec`: what the files of a published OpenVLA-OFT policy do not say.

It is a preset, or words, or a preset and words that say something else: `libero`,
`chunk=8,cameras=front+wrist,state=8`, `bridge,cameras=front`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator

from rlrc.configs.parts import ActionForm
from rlrc.errors import UserError, shorten
from rlrc.policies.dim import Dim, dims
from rlrc.policies.oft.schema import MAX_STEPS
from rlrc.policies.parts.schema import MAX_HORIZON, MAX_STATE
from rlrc.policies.parts.words import CameraNames, words_of
from rlrc.reading import FileModel, validate

EXAMPLES = "libero, aloha, 'bridge,cameras=front', or such as chunk=8,cameras=front+wrist,state=8"


class Spec(FileModel, extra="forbid"):
    """The words of a spec."""

    chunk: Annotated[int, Field(ge=1, le=MAX_HORIZON)]
    """Actions of a call."""
    cameras: CameraNames
    """Names of the cameras, in the order in which the policy was trained on them."""
    state: Annotated[int, Field(ge=0, le=MAX_STATE)] = 0
    """Numbers of proprioception."""
    action: Annotated[int, Field(ge=1, le=256)] | None = None
    """Numbers of an action, where neither an action head nor the statistics say it."""
    head: ActionForm | None = None
    """Kind of head, which an action head's own file says."""
    normalisation: Literal["quantiles", "bounds"] = "quantiles"
    """Statistics that normalise: q01 and q99, or min and max."""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 50
    """Diffusion steps of training."""

    @field_validator("cameras")
    @classmethod
    def _once_each(cls, cameras: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(cameras)) < len(cameras):
            raise ValueError("a camera is named twice")
        return cameras


@dataclass(frozen=True)
class Preset:
    """A robot that OpenVLA-OFT was published for (its `prismatic/vla/constants.py`)."""

    words: dict[str, str]
    action: tuple[Dim, ...]
    """Numbers of an action; empty where their order is not published."""
    state: tuple[Dim, ...]
    """Numbers of the state; empty where their order is not published."""


END_EFFECTOR = (*dims("x y z roll pitch yaw"), Dim("gripper", "", "1 opens, 0 closes"))
PRESETS = {
    "libero": Preset(
        {"chunk": "8", "cameras": "front+wrist", "state": "8", "action": "7"},
        END_EFFECTOR,
        (
            *dims("x y z", "m"),
            *dims("rx ry rz", "rad", "axis-angle, not wrapped at pi"),
            *dims("finger_left finger_right", "m"),
        ),
    ),
    "aloha": Preset(
        {
            "chunk": "25",
            "cameras": "front+left_wrist+right_wrist",
            "state": "14",
            "action": "14",
            "normalisation": "bounds",
        },
        (),
        (),
    ),
    "bridge": Preset({"chunk": "5", "state": "7", "action": "7"}, END_EFFECTOR, ()),
}


@dataclass(frozen=True)
class Told:
    """The words of a spec, and the meaning of the numbers of the preset in it."""

    words: Spec
    action: tuple[Dim, ...]
    state: tuple[Dim, ...]


def read_spec(text: str) -> Told:
    """
    Raises:
        UserError: a preset or word is unknown, missing, given twice or out of range.
    """
    where = f"spec '{shorten(text)}'"
    first, *rest = text.split(",")
    preset = PRESETS.get(first.strip())
    if preset is None and "=" not in first:
        raise UserError(f"{where}: '{shorten(first)}' is no preset; give {EXAMPLES}")
    words = words_of(rest if preset is not None else (first, *rest), where, EXAMPLES)
    told = validate((preset.words if preset is not None else {}) | words, Spec, where)
    if preset is None:
        return Told(told, (), ())
    # Numbers that are not those of the preset have no names.
    action = preset.action if "action" not in words else ()
    return Told(told, action, preset.state if "state" not in words else ())
