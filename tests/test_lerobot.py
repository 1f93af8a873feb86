"""LeRobot's package for served policies, in the environment of its own that `make peers` builds.

That `lerobot-eval` and `lerobot-record` play what the policy gives, `make peers` shows (results/peers.json), and
test_serve_recorded.py plays what `lerobot-eval` sent.
"""

import json
import os
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import served
from small_policies import CASES, make
from websockets.sync.server import serve

import rlrc
from rlrc.policies.contract import Policy
from rlrc.policies.make_random import MakeRandomConfig, make_random
from rlrc.policies.values import Observation
from rlrc.wire import pack

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".peers" / "lerobot" / "bin" / "python"
FRONT = '--policy.cameras=\'{"front": "observation.images.front"}\''

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="LeRobot has no environment here; `make peers` makes it")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp("lerobot") / "oft"
    make_random(MakeRandomConfig(preset="openvla-oft-tiny", out_folder=folder), folder)
    return rlrc.load(folder, spec="libero")


@pytest.fixture(scope="module")
def told(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What lerobot_checks.py says; a batch of requests would be rounded otherwise than a row alone."""
    home = tmp_path_factory.mktemp("home")
    ours = [ROOT / "src", ROOT / "integrations" / "lerobot_policy_rlrc" / "src"]
    clean = {name: value for name, value in os.environ.items() if name not in ("RLRC_API_KEY", "PYTHONPATH")}
    settings = {"HF_HOME": str(home), "PYTHONPATH": os.pathsep.join(map(str, ours))}
    with (
        served(policy, names="libero", max_batch=1) as server,
        served(policy, names="libero", key="long enough") as locked,
        served(policy, names="droid") as parts,
        served(make(CASES["openvla"])) as one,
        serve(lambda connection: connection.send(pack({"model": "theirs"})), "127.0.0.1", 0) as other,
    ):
        threading.Thread(target=other.serve_forever, daemon=True).start()
        addresses = {"two cameras": server.address, "locked": locked.address, "parts": parts.address}
        addresses |= {"one camera": one.address, "another": f"ws://127.0.0.1:{other.socket.getsockname()[1]}"}
        command = [PYTHON, ROOT / "tests" / "lerobot_checks.py", json.dumps(addresses)]
        done = subprocess.run(command, capture_output=True, text=True, env=clean | settings, timeout=240, check=False)
        other.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def seen(seed: int) -> Observation:
    """What `batch` of lerobot_checks.py is made of."""
    generator = np.random.default_rng(seed)
    images = {name: generator.integers(0, 256, (2, 16, 16, 3), np.uint8) for name in ("front", "wrist")}
    return Observation(images, ["stop", "stop"], generator.uniform(-0.1, 0.1, (2, 8)).astype(np.float32))


def chunks(policy: Policy, seed: int) -> np.ndarray:
    """What the policy gives without a server, a row at a time."""
    return np.stack([policy.act(seen(seed)[[row]])[0] for row in range(2)])


def test_chunks_are_played_step_by_step_in_every_row(told: dict[str, Any], policy: Policy) -> None:
    first = chunks(policy, 0)
    expected = [first[:, 0], first[:, 1], first[:, 2], chunks(policy, 3)[:, 0], chunks(policy, 4)[:, 0]]
    np.testing.assert_array_equal(np.array(told["played"], np.float32), expected)


def test_pictures_and_instruction_under_other_names(told: dict[str, Any], policy: Policy) -> None:
    for case in ("renamed", "instructed"):
        np.testing.assert_array_equal(np.array(told[case], np.float32), chunks(policy, 0)[:, 0])


def test_a_policy_with_one_camera_sees_the_only_picture(told: dict[str, Any]) -> None:
    policy = make(CASES["openvla"])
    expected = np.concatenate([policy.act(seen(0).images["front"][[row]], ["stop"]) for row in range(2)])
    np.testing.assert_allclose(np.array(told["one picture"], np.float32), expected, atol=1e-5)


def test_pictures_travel_as_the_bytes_they_were(told: dict[str, Any]) -> None:
    assert told["all bytes arrive"] is True


def test_the_key_comes_from_the_environment(told: dict[str, Any]) -> None:
    assert told["with a key"] == 2


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("no address", "ValueError: say where the policy is served: --policy.address=ws://host:8000"),
        ("a wrong address", "ValueError: localhost:8000: this is no address such as ws://host:8000"),
        ("nobody there", "ServerGone: ws://127.0.0.1:1: nobody answers (.*)"),
        ("another server", "ValueError: ws://.*: the server does not say what its policy reads; `rlrc serve` does"),
        ("without a key", "ServerRefused: ws://.*401"),
        ("a path", "ValueError: a served policy has no --policy.path; give"),
        ("no time", "ValueError: --policy.timeout_s must be above 0, not 0.0"),
        ("an unknown camera", "ValueError: --policy.cameras: the policy has front, wrist, and no top"),
        ("too many steps", "ValueError: --policy.n_action_steps: the policy's chunks have 1 to 8 actions"),
        ("no steps", "ValueError: --policy.n_action_steps: the policy's chunks have 1 to 8 actions"),
        ("six joints", "ValueError: the policy's actions have 7 numbers (.*), and the robot's 6; serve a policy that"),
        ("a camera less", "'wrist' needs observation.images.wrist, and the robot gives observation.images.front; say"),
        ("a camera less", FRONT.replace('"front":', '"wrist":')),
        ("no pictures", "'front' needs observation.images.front, and the robot gives no pictures; say"),
        ("no state", "a state of 8 numbers (.*), and the robot gives no observation.state"),
        ("a short state", "a state of 8 numbers (.*), and the robot's observation.state has 6"),
        (
            "a state in parts",
            "in parts (observation/joint_position + observation/gripper_position): start it with --names",
        ),
        ("NaN", "ServerRefused: 'observation/state': the state holds NaN or infinity"),
        ("bright pictures", "ValueError: observation.images.front: pictures must have values in [0, 1]"),
        ("bytes", "pictures must be floats of the shape B x 3 x H x W, not torch.uint8 2 x 3 x 9 x 9"),
        ("no task", "ValueError: LeRobot gives no task; say what the policy shall do: --policy.instruction="),
        ("no task at all", "ValueError: LeRobot gives no task; say what the policy shall do: --policy.instruction="),
        ("training", "NotImplementedError: a served policy is not trained by LeRobot; train it with rlrc"),
    ],
)
def test_what_cannot_be_is_one_line(told: dict[str, Any], case: str, reason: str) -> None:
    assert isinstance(told[case], str) and "\n" not in told[case]
    assert re.search(re.escape(reason).replace(r"\.\*", ".*"), told[case]), told[case]
