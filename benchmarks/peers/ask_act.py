"""Ask a server by `POST /act` with requests and json-numpy, as OpenVLA's and OpenVLA-OFT's own scripts are asked.

    python ask_act.py PORT OBSERVATIONS.npz ANSWERS.npz

Every second payload is encoded twice, as OpenVLA's example does where json-numpy cannot be patched in.
"""

import json
import sys

import json_numpy
import numpy as np
import requests

json_numpy.patch()
port, observations, answers = sys.argv[1:]
asked = np.load(observations)
chunks = []
for number, text in enumerate(asked["text"]):
    payload = {
        "full_image": asked["front"][number],
        "wrist_image": asked["wrist"][number],
        "state": asked["state"][number],
        "instruction": str(text),
    }
    body = {"encoded": json.dumps(payload)} if number % 2 else payload
    reply = requests.post(f"http://127.0.0.1:{port}/act", json=body, timeout=60)
    reply.raise_for_status()
    actions = reply.json()
    chunks.append(np.atleast_2d(json.loads(actions) if number % 2 else actions))
np.savez(answers, actions=np.array(chunks))
