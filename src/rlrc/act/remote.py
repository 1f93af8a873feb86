"""Policies that a server holds, played in rlrc's worlds: `rlrc evaluate --policy ws://host:8000`.

The server may be rlrc's own, which says what its policy sees and does, or anybody's that speaks openpi's websocket,
such as openpi itself. Of the latter the names on the wire must be given, and with them the gripper's convention where
it is not the world's; its other numbers are taken to be in the world's own conventions, and the length of its chunks is
asked from it with one black picture.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from rlrc.act.conventions import connect
from rlrc.client import PolicyClient, ServerGone, ServerRefused
from rlrc.envs.world import WorldSpec
from rlrc.errors import UserError, shorten
from rlrc.policies.dim import Dim
from rlrc.policies.values import Generators, Observation, PolicySpec
from rlrc.progress import say
from rlrc.reading import FileModel, validate
from rlrc.serve.names import JOIN, Reader, WireNames, read_names
from rlrc.served import DELAY, PREVIOUS, without_key

PICTURE_SIDE = 224
"""Side in pixels of the pictures that a server gets which does not say what its policy reads; openpi's clients send
these."""
TIMEOUT_S = 120.0
"""Seconds that an answer may take: a large policy on a small machine needs some."""
AT_ONCE = 256
"""Largest number of robots that ask at once, as many as rlrc's server lets in unless told otherwise."""


class RemotePolicy:
    """A served policy as an actor: each robot has a connection of its own, so that the server can batch them.

    Raises:
        UserError: nobody answers at the address, or its policy does not fit the world.
    """

    device = torch.device("cpu")

    def __init__(self, address: str, names: str | None, world: WorldSpec, api_key: str | None) -> None:
        self._address, self._api_key = address, api_key
        self._clients: list[PolicyClient] = []
        self._askers = ThreadPoolExecutor(AT_ONCE, "ask")
        try:
            self._learn(names, world)
            connect(self.spec, world)
        except BaseException:
            self.close()
            raise

    def _learn(self, names: str | None, world: WorldSpec) -> None:
        """Find out what the policy sees and does, and under which names."""
        metadata, address = self._client(0).metadata, self._address
        self.continues_chunks = metadata.get("continues_chunks") is True
        spec = metadata.get("spec")
        self._takes_seeds = isinstance(spec, dict)  # as rlrc's own server does
        if isinstance(spec, dict):
            self.spec = validate(spec, _Spec, f"{without_key(address)}: the server's spec").policy
            if names is None:
                self._names = validate(metadata.get("names"), WireNames, f"{without_key(address)}: the server's names")
            else:
                self._names = read_names(names, self.spec.cameras)
        elif names is None:
            raise UserError(
                f"{without_key(address)}: the server does not say what its policy reads; give --names, such as libero"
            )
        else:
            self._names = read_names(names, world.cameras)
            self.spec = self._seen_by(world)
            self._reader = Reader.of(self._names, self.spec)
            self.spec = self._asked_for(self.spec)
        self._reader = Reader.of(self._names, self.spec)
        if any(JOIN in name for name in self._reader.state[:1]):
            raise UserError(
                f"the state has several names on the wire ({self._reader.state[0]}), and a world has one state"
            )
        side = metadata.get("image_size")
        self.image_size = side if isinstance(side, int) and 1 <= side <= 2048 else PICTURE_SIDE

    def _seen_by(self, world: WorldSpec) -> PolicySpec:
        """The world's own cameras, state and actions, as far as they have names on the wire, with the gripper that the
        names tell."""
        cameras = tuple(camera for camera in self._names.cameras if camera in world.cameras)
        if not cameras:
            raise UserError(
                f"there are names for the cameras {', '.join(self._names.cameras)}, and the world '{world.name}' has "
                f"{', '.join(world.cameras)}"
            )
        *arm, gripper = world.action
        if self._names.gripper:
            gripper = replace(gripper, convention=self._names.gripper)
        meaning = f", but for the gripper ({gripper.convention})" if self._names.gripper else ""
        say(f"the server does not say what its numbers mean: they are taken as the world's{meaning}")
        return PolicySpec("served", cameras, world.state if self._names.state else (), (*arm, gripper), 1, 1)

    def _asked_for(self, spec: PolicySpec) -> PolicySpec:
        """`spec` with the length of the chunk that the server gives for black pictures."""
        images = {name: np.zeros((1, PICTURE_SIDE, PICTURE_SIDE, 3), np.uint8) for name in spec.cameras}
        state = np.zeros((1, len(spec.state)), np.float32) if spec.state else None
        (chunk,) = self._infer(Observation(images, ["do nothing"], state))
        if chunk.shape[1] != len(spec.action):
            raise UserError(
                f"{without_key(self._address)}: its actions have {chunk.shape[1]} numbers, and those of the world "
                f"{len(spec.action)}"
            )
        return replace(spec, horizon=len(chunk), execute=len(chunk))

    # -- acting --------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Nothing was kept: each observation is asked for by itself."""

    def act(self, observation: Observation, temperature: float = 0.0, generator: Generators = None) -> np.ndarray:
        """See `Thinker.act`.

        Raises:
            UserError: the server is gone or refuses, or actions are to be sampled, which is for the server to say.
        """
        if temperature:
            raise UserError("the temperature of a served policy is the server's: start it with --temperature")
        chunks = self._infer(observation, generator)
        wanted = (self.spec.horizon, len(self.spec.action))
        if wrong := [chunk.shape for chunk in chunks if chunk.shape != wanted]:
            raise UserError(f"{without_key(self._address)}: it gave a chunk of shape {wrong[0]} in place of {wanted}")
        return np.stack(chunks)

    def _infer(self, observation: Observation, generator: Generators = None) -> list[np.ndarray]:
        messages = [self._message(observation, row) for row in range(len(observation))]
        if self._takes_seeds and isinstance(generator, Sequence):
            for message, own in zip(messages, generator, strict=True):
                message["seed"] = int(torch.randint(2**62, (), generator=own))
        clients = [self._client(row) for row in range(len(messages))]
        try:
            answers = list(self._askers.map(PolicyClient.infer, clients, messages))
        except (ServerGone, ServerRefused) as error:
            raise UserError(f"the served policy gave no actions: {shorten(str(error), 400)}") from error
        return [np.asarray(answer["actions"], np.float32) for answer in answers]

    def _message(self, observation: Observation, row: int) -> dict[str, Any]:
        """One robot's observation under the names on the wire."""
        message: dict[str, Any] = {}
        for camera, pictures in observation.images.items():
            _put(message, self._reader.cameras[camera][0], pictures[row])
        if observation.state is not None:
            _put(message, self._reader.state[0], observation.state[row])
        _put(message, self._reader.instruction[0], observation.instruction[row])
        if (previous := observation.previous) is not None:
            message |= {
                PREVIOUS: previous.actions[row, : previous.left[row]],
                DELAY: int(previous.delay[row]),
            }
        return message

    def _client(self, number: int) -> PolicyClient:
        while len(self._clients) <= number:
            try:
                self._clients.append(PolicyClient(self._address, self._api_key, timeout_s=TIMEOUT_S))
            except (ServerGone, ServerRefused, ValueError) as error:
                raise UserError(str(error)) from error
        return self._clients[number]

    def close(self) -> None:
        """Leave the server, and end the threads that ask it."""
        for client in self._clients:
            client.close()
        self._askers.shutdown()


def _put(message: dict[str, Any], name: str, value: Any) -> None:
    """Set `message[name]`; a name such as images/cam_high is an entry of the mapping `images`, as openpi's servers have
    it, while observation/image is one name."""
    first, slash, rest = name.partition("/")
    if slash and first == "images":
        message.setdefault(first, {})[rest] = value
    else:
        message[name] = value


class _Number(FileModel):
    name: str
    unit: str = ""
    convention: str = ""


class _Spec(FileModel):
    """A policy's spec as rlrc's server announces it."""

    family: str
    cameras: Annotated[list[str], Field(min_length=1, max_length=16)]
    state: Annotated[list[_Number], Field(max_length=1024)]
    action: Annotated[list[_Number], Field(min_length=1, max_length=256)]
    horizon: Annotated[int, Field(ge=1, le=1024)]
    execute: Annotated[int, Field(ge=1, le=1024)]

    @property
    def policy(self) -> PolicySpec:
        state, action = (
            tuple(Dim(number.name, number.unit, number.convention) for number in numbers)
            for numbers in (self.state, self.action)
        )
        return PolicySpec(self.family, tuple(self.cameras), state, action, self.horizon, self.execute)
