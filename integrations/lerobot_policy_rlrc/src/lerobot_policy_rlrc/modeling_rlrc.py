"""A served policy as LeRobot sees one: batches of observations go in, actions come out."""

import logging
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_IMAGE, OBS_IMAGES, OBS_STATE
from torch import Tensor

from lerobot_policy_rlrc.configuration_rlrc import NO_TRAINING, RlrcConfig

try:
    from rlrc.client import PolicyClient
    from rlrc.served import API_KEY
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"there is no module {error.name}: see the README of lerobot_policy_rlrc") from error


class RlrcPolicy(PreTrainedPolicy):
    """Asks the server for a chunk of actions for each robot, and plays it step by step.

    Each row of a batch has a connection of its own, so that the server can answer all of them at once.

    Raises:
        ConnectionError: nobody answers at the address.
        RuntimeError: the server refuses.
        ValueError: an option is wrong, or the policy does not fit the robot.
    """

    config_class = RlrcConfig
    name = "rlrc"

    def __init__(self, config: RlrcConfig, **_: Any) -> None:
        super().__init__(config)
        config.validate_features()
        self._clients: list[PolicyClient] = []
        self._played: deque[Tensor] = deque()
        told = self._client(0).metadata
        if not isinstance(told.get("spec"), dict) or not isinstance(told.get("names"), dict):
            raise ValueError(f"{config.address}: the server does not say what its policy reads; `rlrc serve` does")
        self._spec, self._names = told["spec"], told["names"]
        self._steps = self._spec["execute"] if config.n_action_steps is None else config.n_action_steps
        self._check()
        for number in self._spec["action"]:  # for whoever compares it with the robot: nothing is converted
            words = [number[part] for part in ("name", "unit", "convention") if number.get(part)]
            logging.info("%s: the policy's actions have %s", config.address, _listed(words))

    def _check(self) -> None:
        """Compare the policy with the options and with the robot, as far as LeRobot tells of it by now."""
        cameras, numbers, horizon = self._spec["cameras"], self._spec["action"], self._spec["horizon"]
        if unknown := self.config.cameras.keys() - set(cameras):
            raise ValueError(f"--policy.cameras: the policy has {_listed(cameras)}, and no {_listed(sorted(unknown))}")
        if not 1 <= self._steps <= horizon:
            raise ValueError(f"--policy.n_action_steps: the policy's chunks have 1 to {horizon} actions to play")
        robot = self.config.action_feature
        if robot is not None and tuple(robot.shape) != (len(numbers),):
            names = _listed(number["name"] for number in numbers)
            raise ValueError(
                f"the policy's actions have {len(numbers)} numbers ({names}), and the robot's {_shape(robot.shape)}; "
                "serve a policy that was made for this robot"
            )

    # -- acting --------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """An episode begins: throw away the rest of the chunks."""
        self._played.clear()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next actions (B, D): of the chunks that are being played, or the first of new ones."""
        if not self._played:
            self._played.extend(self.predict_action_chunk(batch)[:, : self._steps].unbind(1))
        return self._played.popleft()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Chunks (B, H, D) for the observations, in the policy's units.

        Raises:
            ConnectionError: the server is gone.
            RuntimeError: the server refuses.
            ValueError: an observation lacks something that the policy reads.
        """
        messages = self._messages(batch)
        clients = [self._client(row) for row in range(len(messages))]
        with ThreadPoolExecutor(len(messages)) as pool:
            answers = list(pool.map(lambda client, message: client.infer(message), clients, messages))
        return torch.from_numpy(np.stack([np.asarray(answer["actions"], np.float32) for answer in answers]))

    def _client(self, number: int) -> PolicyClient:
        while len(self._clients) <= number:
            key = os.environ.get(API_KEY) or None
            self._clients.append(PolicyClient(self.config.address, key, self.config.timeout_s))
        return self._clients[number]

    # -- what is sent --------------------------------------------------------------------------------------------------

    def _messages(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Each row under the names that the server has announced."""
        columns: dict[str, Any] = {
            names[0]: self._pictures(batch, camera) for camera, names in self._names["cameras"].items()
        }
        rows = len(next(iter(columns.values())))
        if self._spec["state"]:
            columns[self._name_of_state()] = self._state(batch)
        columns[self._names["instruction"][0]] = self._instructions(batch, rows)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _pictures(self, batch: dict[str, Any], camera: str) -> np.ndarray:
        """A camera's pictures, uint8 (B, H, W, 3): the bytes that became LeRobot's floats."""
        there = [name for name in batch if name == OBS_IMAGE or name.startswith(f"{OBS_IMAGES}.")]
        name = self.config.cameras.get(camera, f"{OBS_IMAGES}.{camera}")
        if not self.config.cameras and len(there) == len(self._names["cameras"]) == 1:
            name = there[0]
        if name not in batch:
            example = f'{{"{camera}": "{there[0] if there else name}"}}'
            raise ValueError(
                f"the policy's camera '{camera}' needs {name}, and the robot gives {_listed(there) or 'no pictures'}; "
                f"say which one it sees: --policy.cameras='{example}'"
            )
        pictures = batch[name]
        if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
            kind = f"{pictures.dtype} {_shape(pictures.shape)}"
            raise ValueError(f"{name}: pictures must be floats of the shape B x 3 x H x W, not {kind}")
        if not (pictures.min() >= 0 and pictures.max() <= 1):
            raise ValueError(f"{name}: pictures must have values in [0, 1]")
        return (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _name_of_state(self) -> str:
        """The first name that is not several, which are joined with a plus."""
        names = self._names["state"]
        for name in names:
            if " + " not in name:
                return name
        raise ValueError(f"the server wants the state in parts ({_listed(names)}): start it with --names rlrc")

    def _state(self, batch: dict[str, Any]) -> np.ndarray:
        numbers = self._spec["state"]
        reads = f"the policy reads a state of {len(numbers)} numbers ({_listed(number['name'] for number in numbers)})"
        if OBS_STATE not in batch:
            raise ValueError(f"{reads}, and the robot gives no {OBS_STATE}")
        state = batch[OBS_STATE]
        if state.ndim != 2 or state.shape[1] != len(numbers):
            raise ValueError(f"{reads}, and the robot's {OBS_STATE} has {_shape(state.shape[1:])}")
        return state.to("cpu", torch.float32).numpy()

    def _instructions(self, batch: dict[str, Any], rows: int) -> list[str]:
        tasks = [self.config.instruction] * rows if self.config.instruction else batch.get("task")
        if not tasks or not all(tasks):
            raise ValueError("LeRobot gives no task; say what the policy shall do: --policy.instruction='...'")
        return list(tasks)

    # -- learning ------------------------------------------------------------------------------------------------------

    def get_optim_params(self) -> NoReturn:
        """There are none."""
        raise NotImplementedError(NO_TRAINING)

    def forward(self, batch: dict[str, Any]) -> NoReturn:
        """There is no loss."""
        raise NotImplementedError(NO_TRAINING)


def _listed(names: Any) -> str:
    return ", ".join(names)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
