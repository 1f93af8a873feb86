"""Ask a server through vla-eval's connection and messages, unmodified; __main__.py has its environment.

python ask_vla_eval.py PORT OBSERVATIONS.npz ANSWERS.npz
"""

import sys

import anyio
import numpy as np
from vla_eval.connection import Connection

port, observations, answers = sys.argv[1:]
asked = np.load(observations)


async def play() -> list[list[np.ndarray]]:
    """An episode for each observation, which the robot sees again until the chunk is played."""
    chunks = []
    async with Connection(f"ws://127.0.0.1:{port}", max_retries=1) as connection:
        assert connection.server_info["protocol_version"] == 1, connection.server_info
        for number, text in enumerate(asked["text"]):
            observation = {
                "images": {"agentview": asked["front"][number], "wrist": asked["wrist"][number]},
                "task_description": str(text),
                "states": asked["state"][number],
            }
            await connection.start_episode({"task": {"name": str(text)}})
            chunks.append([(await connection.act(observation))["actions"] for _ in range(int(asked["horizon"]))])
            await connection.end_episode({"metrics": {"success": True}, "steps": int(asked["horizon"])})
    return chunks


np.savez(answers, actions=np.array(anyio.run(play)))
