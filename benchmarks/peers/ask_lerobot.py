"""Ask a server through LeRobot's own `lerobot-eval`, unmodified, with lerobot_policy_rlrc; __main__.py has its
environment.

    python ask_lerobot.py PORT OBSERVATIONS.npz ANSWERS.npz

Worlds are stepped in batches of up to five, and each episode shows two observations, one after the other.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

port, observations, answers = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    os.environ |= {"HF_HOME": folder, "HF_HUB_OFFLINE": "1"}
    from lerobot.scripts import lerobot_eval
    from lerobot_replay import ACTION_SIZE

    with np.load(observations) as asked:
        count, horizon = len(asked["text"]), int(asked["horizon"])
    episodes = (count + 1) // 2
    played = Path(folder) / "played.npy"
    np.save(played, np.full((count, horizon, ACTION_SIZE), np.nan, np.float32))
    sys.argv = [
        "lerobot-eval",
        "--policy.type=rlrc",
        f"--policy.address=ws://127.0.0.1:{port}",
        "--env.discover_packages_path=lerobot_replay",
        "--env.type=replay",
        f"--env.observations={observations}",
        f"--env.answers={played}",
        f"--eval.n_episodes={episodes}",
        f"--eval.batch_size={min(episodes, 5)}",
        "--seed=0",
        f"--output_dir={folder}/out",
    ]
    lerobot_eval.main()
    np.savez(answers, actions=np.load(played))
