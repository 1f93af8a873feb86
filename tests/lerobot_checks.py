"""What lerobot_policy_rlrc does and refuses, told as JSON; test_lerobot.py runs it in LeRobot's own environment.

python lerobot_checks.py JSON_OF_ADDRESSES
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.utils import preprocess_observation

from lerobot_policy_rlrc.configuration_rlrc import RlrcConfig
from lerobot_policy_rlrc.modeling_rlrc import RlrcPolicy

ADDRESSES = json.loads(sys.argv[1])
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
SEVEN = {"action": PolicyFeature(FeatureType.ACTION, (7,))}


def policy(robot: dict[str, PolicyFeature] = SEVEN, **options: Any) -> RlrcPolicy:
    return RlrcPolicy(RlrcConfig(**{"address": ADDRESSES["two cameras"], "output_features": robot} | options))


def batch(changes: dict[str, Any] | None = None, seed: int = 0) -> dict[str, Any]:
    """What LeRobot makes of two worlds' observations, drawn as test_lerobot.py draws them; None takes something out."""
    generator = np.random.default_rng(seed)
    pixels = {name: generator.integers(0, 256, (2, 16, 16, 3), np.uint8) for name in ("front", "wrist")}
    state = generator.uniform(-0.1, 0.1, (2, 8)).astype(np.float32)
    seen = preprocess_observation({"pixels": pixels, "agent_pos": state}) | {"task": ["stop", "stop"]}
    return {name: value for name, value in (seen | (changes or {})).items() if value is not None}


def refused(**changes: Any) -> Callable[[], Any]:
    """Ask with a batch that is wrong."""
    names = {"front": FRONT, "wrist": WRIST, "state": "observation.state", "task": "task"}
    return lambda: policy().select_action(batch({names[name]: value for name, value in changes.items()}))


def all_bytes_arrive() -> bool:
    """Every byte of a picture is that byte again after LeRobot has made a float of it."""
    every = np.arange(3 * 256, dtype=np.int64).reshape(1, 16, 16, 3).astype(np.uint8)
    seen = preprocess_observation({"pixels": {"front": every}, "agent_pos": np.zeros((1, 8), np.float32)})
    (message,) = policy(cameras={"wrist": FRONT})._messages(seen | {"task": ["stop"]})
    sent = message["observation/image"]
    return sent.dtype == np.uint8 and np.array_equal(sent, every[0])


def with_key() -> int:
    os.environ["RLRC_API_KEY"] = "long enough"
    try:
        return len(policy(address=ADDRESSES["locked"]).select_action(batch()))
    finally:
        del os.environ["RLRC_API_KEY"]


def played() -> list[list[list[float]]]:
    """Three steps of the chunks for batch 0, the first for batch 3, and after a reset the first for batch 4."""
    acts = policy(n_action_steps=3)
    steps = [acts.select_action(batch(seed=seed)) for seed in range(4)]
    acts.reset()
    return [step.tolist() for step in (*steps, acts.select_action(batch(seed=4)))]


def renamed() -> list[list[float]]:
    seen = batch({"observation.image": batch()[FRONT], FRONT: None})
    return policy(cameras={"front": "observation.image"}).select_action(seen).tolist()


def one_picture() -> list[list[float]]:
    """A policy with one camera sees a world's only picture, whatever its name."""
    return (
        policy(address=ADDRESSES["one camera"])
        .select_action({"observation.image": batch()[FRONT], "task": ["stop", "stop"]})
        .tolist()
    )


CASES: dict[str, Callable[[], Any]] = {
    "all bytes arrive": all_bytes_arrive,
    "with a key": with_key,
    "played": played,
    "renamed": renamed,
    "one picture": one_picture,
    "instructed": lambda: policy(instruction="stop").select_action(batch({"task": ["", ""]})).tolist(),
    "no address": lambda: policy(address=""),
    "a wrong address": lambda: policy(address="localhost:8000"),
    "nobody there": lambda: policy(address="ws://127.0.0.1:1"),
    "another server": lambda: policy(address=ADDRESSES["another"]),
    "without a key": lambda: policy(address=ADDRESSES["locked"]),
    "a path": lambda: policy(pretrained_path=Path("folder")),
    "no time": lambda: policy(timeout_s=0.0),
    "an unknown camera": lambda: policy(cameras={"top": FRONT}),
    "too many steps": lambda: policy(n_action_steps=9),
    "no steps": lambda: policy(n_action_steps=0),
    "six joints": lambda: policy({"action": PolicyFeature(FeatureType.ACTION, (6,))}),
    "a camera less": refused(wrist=None),
    "no pictures": refused(front=None, wrist=None),
    "no state": refused(state=None),
    "a short state": refused(state=torch.zeros(2, 6)),
    "a state in parts": lambda: policy(address=ADDRESSES["parts"]).select_action(batch()),
    "NaN": refused(state=torch.full((2, 8), torch.nan)),
    "bright pictures": refused(front=torch.full((2, 3, 9, 9), 1.1)),
    "bytes": refused(front=torch.zeros(2, 3, 9, 9, dtype=torch.uint8)),
    "no task": refused(task=["", ""]),
    "no task at all": refused(task=None),
    "training": lambda: policy().forward(batch()),
}


def tell(case: Callable[[], Any]) -> Any:
    try:
        return case()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


print(json.dumps({name: tell(case) for name, case in CASES.items()}, default=repr))
