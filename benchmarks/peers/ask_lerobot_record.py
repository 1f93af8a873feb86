"""Ask a server through LeRobot's own `lerobot-record`, unmodified, with lerobot_policy_rlrc and a robot that is none;
__main__.py has its environment.

    python ask_lerobot_record.py PORT OBSERVATIONS.npz ANSWERS.npz

A recording has one task, so there is one for each instruction. It ends when its time is over; what the robot then has
not been asked to do stays NaN.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from rlrc.client import PolicyClient

FPS = 20
CAMERAS = {"front": "observation.images.top", "wrist": "observation.images.gripper"}

port, observations, answers = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    os.environ |= {"HF_HOME": folder, "HF_HUB_OFFLINE": "1"}
    from lerobot.scripts import lerobot_record
    from lerobot_replay import ACTION_SIZE

    with np.load(observations) as asked:
        texts, horizon = [str(text) for text in asked["text"]], int(asked["horizon"])
    played = Path(folder) / "played.npy"
    np.save(played, np.full((len(texts), horizon, ACTION_SIZE), np.nan, np.float32))
    with PolicyClient(f"ws://127.0.0.1:{port}") as client:
        cameras = {name: CAMERAS[name] for name in client.metadata["spec"]["cameras"]}
    for number, text in enumerate(dict.fromkeys(texts)):
        sys.argv = [
            "lerobot-record",
            "--policy.type=rlrc",
            f"--policy.address=ws://127.0.0.1:{port}",
            f"--policy.cameras={json.dumps(cameras)}",
            "--robot.discover_packages_path=lerobot_replay",
            "--robot.type=replay",
            f"--robot.observations={observations}",
            f"--robot.answers={played}",
            f"--robot.text={text}",
            f"--robot.calibration_dir={folder}/calibration",
            f"--dataset.repo_id=rlrc/eval_{number}",
            f"--dataset.root={folder}/dataset_{number}",
            f"--dataset.single_task={text}",
            f"--dataset.fps={FPS}",
            f"--dataset.episode_time_s={5 + 2 * texts.count(text) * horizon / FPS}",
            "--dataset.num_episodes=1",
            "--dataset.vcodec=h264",
            "--dataset.push_to_hub=false",
            "--play_sounds=false",
        ]
        lerobot_record.main()
    np.savez(answers, actions=np.load(played))
