"""The names under which a robot sends its pictures, state and instruction, and how they become an observation.

Robots have names of their own: LIBERO's clients send `observation/image`, ALOHA's a dict `images` with `cam_high` in
it. A preset or a YAML file says which name belongs to which of the policy's cameras:

    cameras:
      front: observation/image                 # the policy's camera: the name on the wire
      wrist: [observation/wrist_image, images/wrist]   # the first of these that a message has
    state: observation/joint_position + observation/gripper_position     # joined in this order
    instruction: prompt
    gripper: -1 opens, 1 closes              # of the actions of servers that do not say what theirs mean
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field

from rlrc.configs.parts import OTHER_CAMERAS
from rlrc.errors import UserError, shorten
from rlrc.policies.values import Observation, PolicySpec, Previous
from rlrc.reading import FileModel, read_yaml, validate
from rlrc.served import DELAY, PREVIOUS

JOIN = " + "
MAX_SIDE = 8192
"""Largest side of a picture in pixels."""
MAX_INSTRUCTION = 10_000
MAX_DELAY = 2**31


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Name = Annotated[str, Field(min_length=1, max_length=200)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_as_list), Field(max_length=16)]
"""Names of one thing on the wire; the first that a message has is taken."""
SomeNames = Annotated[Names, Field(min_length=1)]
"""Names of what a policy cannot do without."""


class WireNames(FileModel, extra="forbid"):
    """Names on the wire of what a policy reads."""

    cameras: Annotated[dict[Name, SomeNames], Field(min_length=1, max_length=16)]
    state: Names = ()
    instruction: SomeNames = ("prompt", "instruction", "task", "task_description")
    gripper: Annotated[str, Field(max_length=200)] = ""
    """Convention of an action's last number, where a server says nothing of its actions."""


PRESETS = {
    "libero": {
        "cameras": {
            "front": ["observation/image", "images/agentview", "full_image", "image"],
            "wrist": ["observation/wrist_image", "images/wrist", "wrist_image"],
        },
        "state": ["observation/state", "states", "state"],
        "gripper": "-1 opens, 1 closes",  # robosuite's own, which openpi's clients hand to it
    },
    "droid": {
        "cameras": {
            "front": ["observation/exterior_image_1_left"],
            "wrist": ["observation/wrist_image_left"],
        },
        "state": ["observation/joint_position + observation/gripper_position"],
    },
    "aloha": {
        "cameras": {
            "front": ["images/cam_high", "full_image"],
            "left_wrist": ["images/cam_left_wrist", "left_wrist_image"],
            "right_wrist": ["images/cam_right_wrist", "right_wrist_image"],
        },
        "state": ["state"],
    },
    "bridge": {
        "cameras": {"front": ["observation/image_0", "image", "full_image"]},
        "state": ["observation/state", "state"],
    },
    "so101": {
        "cameras": {
            "front": ["observation.images.front", "observation/images/front"],
            "wrist": ["observation.images.wrist", "observation/images/wrist"],
        },
        "state": ["observation.state", "observation/state"],
    },
}


def read_names(asked: str, cameras: Sequence[str]) -> WireNames:
    """The names of a preset or of a YAML file; `rlrc` has every one of the policy's `cameras` under its own name, and
    under those which the scripts of OpenVLA and OpenVLA-OFT send.

    Raises:
        UserError: there is no such preset or file, or the file is damaged.
    """
    if asked == "rlrc":
        own = {name: [f"images/{name}", f"observation/images/{name}", name, f"{name}_image"] for name in cameras}
        own[cameras[0]] += ["full_image", "image"]  # the robot's main camera
        return validate({"cameras": own, "state": ["state", "observation/state"]}, WireNames, "rlrc")
    if asked in PRESETS:
        return validate(PRESETS[asked], WireNames, asked)
    path = Path(asked)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"names '{shorten(asked)}': give a preset ({', '.join(PRESETS)}) or a YAML file")
    return validate(read_yaml(path), WireNames, str(path))


@dataclass(frozen=True)
class Reader:
    """Reads a policy's observations out of messages."""

    cameras: Mapping[str, Names]
    """Names on the wire by the policy's camera."""
    state: Names
    instruction: Names
    state_size: int
    """Numbers of the state; zero where the policy reads none."""
    chunk: tuple[int, int]
    """Actions of a chunk, and numbers of an action."""

    @classmethod
    def of(cls, names: WireNames, spec: PolicySpec) -> "Reader":
        """
        Raises:
            UserError: a camera or the state of the policy has no name on the wire.
        """
        cameras = dict(names.cameras)
        if len(spec.cameras) == 1 and spec.cameras[0] not in cameras:
            cameras = {spec.cameras[0]: next(iter(cameras.values()))}  # the first is the robot's main camera
        if missing := [camera for camera in spec.cameras if camera not in cameras]:
            raise UserError(
                f"the policy's camera '{shorten(missing[0])}' has no name on the wire: there are names for "
                f"{', '.join(map(shorten, cameras))}; give a YAML file that names it; {OTHER_CAMERAS}"
            )
        if spec.state and not names.state:
            raise UserError(f"the policy reads a state of {len(spec.state)} numbers, which has no name on the wire")
        used = {camera: cameras[camera] for camera in spec.cameras}
        chunk = spec.horizon, len(spec.action)
        return cls(used, names.state if spec.state else (), names.instruction, len(spec.state), chunk)

    def announced(self) -> dict[str, Any]:
        """The names for a server's metadata."""
        return {
            "cameras": {camera: list(names) for camera, names in self.cameras.items()},
            "state": list(self.state),
            "instruction": list(self.instruction),
        }

    def __call__(self, message: Mapping[str, Any]) -> Observation:
        """The observation of one robot.

        Raises:
            UserError: something is missing, or has a wrong type or shape.
        """
        images = {
            camera: as_picture(_find(message, names, f"camera '{camera}'"), names[0])[None]
            for camera, names in self.cameras.items()
        }
        text = _find(message, self.instruction, "instruction")
        if not isinstance(text, str) or len(text) > MAX_INSTRUCTION:
            raise UserError(
                f"'{self.instruction[0]}': the instruction must be a text of at most {MAX_INSTRUCTION} characters"
            )
        state = self._state(message) if self.state_size else None
        return Observation(images, [text], state, previous=self._previous(message))

    def _previous(self, message: Mapping[str, Any]) -> Previous | None:
        """Return what the robot is carrying out, where the message says it."""
        rest, delay = message.get(PREVIOUS), message.get(DELAY)
        if rest is None and delay is None:
            return None
        horizon, numbers = self.chunk
        try:
            actions = np.asarray(rest, np.float32).reshape(-1, numbers)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"'{PREVIOUS}' must be actions of {numbers} numbers each") from error
        if len(actions) > horizon:
            raise UserError(f"'{PREVIOUS}' holds {len(actions)} actions, and the policy's chunks have {horizon}")
        if type(delay) is not int or not 0 <= delay < MAX_DELAY:
            raise UserError(f"'{DELAY}' must be a whole number of control steps from 0 on, beside '{PREVIOUS}'")
        padded = np.zeros((1, horizon, numbers), np.float32)
        padded[0, : len(actions)] = actions
        return Previous(padded, np.array([len(actions)]), np.array([delay]))

    def _state(self, message: Mapping[str, Any]) -> np.ndarray:
        found = _find(message, self.state, "state")
        try:
            state = np.asarray(found, np.float32).reshape(1, -1)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"'{self.state[0]}': the state must be numbers") from error
        if state.shape[1] != self.state_size:
            raise UserError(
                f"'{self.state[0]}': the state has {state.shape[1]} numbers, and the policy reads {self.state_size}"
            )
        if not np.isfinite(state).all():
            raise UserError(f"'{self.state[0]}': the state holds NaN or infinity")
        return state


def as_picture(value: Any, name: str) -> np.ndarray:
    """A picture uint8 (H, W, 3) from one that may have its channels first, values in [0, 1], or one channel.

    Raises:
        UserError: it is none of these.
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "uf":
        kind = getattr(value, "dtype", type(value).__name__)
        raise UserError(f"'{name}': a picture must be an array of uint8, or of floats in [0, 1], not {kind}")
    if value.ndim == 4 and len(value) == 1:
        value = value[0]
    if value.ndim == 3 and value.shape[0] == 3 and value.shape[2] != 3:
        value = value.transpose(1, 2, 0)
    if value.ndim == 2:
        value = np.repeat(value[..., None], 3, axis=2)
    if value.ndim != 3 or value.shape[2] != 3 or not 1 <= min(value.shape) <= max(value.shape) <= MAX_SIDE:
        raise UserError(f"'{name}': a picture must have the shape (height, width, 3), not {shorten(str(value.shape))}")
    if value.dtype.kind == "f":
        if not (value >= 0).all() or not (value <= 1).all():
            raise UserError(f"'{name}': a picture of floats must have values in [0, 1]")
        value = (value * 255).astype(np.uint8)  # as openpi rounds
    if value.dtype != np.uint8:
        raise UserError(f"'{name}': a picture must be an array of uint8, or of floats in [0, 1], not {value.dtype}")
    return np.array(value, order="C")  # the message's own memory cannot be written to


def _find(message: Mapping[str, Any], names: Names, what: str) -> Any:
    """What a message has under the first of `names` that is there.

    Raises:
        UserError: none is.
    """
    for name in names:
        parts = [_look_up(message, part) for part in name.split(JOIN)]
        if all(part is not None for part in parts):
            return parts[0] if len(parts) == 1 else _joined(parts, name)
    there = ", ".join(shorten(str(key), 40) for key in list(message)[:12]) or "nothing"
    raise UserError(f"the observation has no '{shorten(names[0])}' ({what}); it has {there}")


def _joined(parts: Sequence[Any], name: str) -> np.ndarray:
    try:
        return np.concatenate([np.ravel(part) for part in parts])
    except ValueError as error:
        raise UserError(f"'{name}': these are no numbers that could be joined") from error


def _look_up(message: Any, name: str) -> Any:
    """`message[name]`, or what lies at its parts between slashes in nested mappings; None where nothing is."""
    if not isinstance(message, Mapping):
        return None
    if name in message:
        return message[name]
    first, slash, rest = name.partition("/")
    return _look_up(message.get(first), rest) if slash else None
