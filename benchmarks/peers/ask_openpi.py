"""Ask a server through openpi-client, unmodified; __main__.py has its environment.

python ask_openpi.py PORT OBSERVATIONS.npz ANSWERS.npz
"""

import sys

import numpy as np
from openpi_client import action_chunk_broker, image_tools, websocket_client_policy

port, observations, answers = sys.argv[1:]
asked = np.load(observations)
client = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", int(port))
horizon = client.get_server_metadata()["spec"]["horizon"]
broker = action_chunk_broker.ActionChunkBroker(client, horizon)
chunks = []
for front, wrist, state, text in zip(asked["front"], asked["wrist"], asked["state"], asked["text"], strict=True):
    observation = {
        "observation/image": image_tools.convert_to_uint8(front),
        "observation/wrist_image": image_tools.convert_to_uint8(wrist),
        "observation/state": state,
        "prompt": str(text),
    }
    chunks.append([broker.infer(observation)["actions"] for _ in range(horizon)])
np.savez(answers, actions=np.array(chunks))
