"""Runs in an environment with lerobot 0.4.4: load a folder with its own class, and write the chunk that it gives.

python ask_smolvla.py FOLDER FIXTURE ANSWER
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

# torchvision from PyPI is built for CUDA; beside a torch for CPUs two of its operators have to be declared.
if not torch.cuda.is_available():
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import lerobot
import transformers
from safetensors.torch import load_file, save_file

tokens = SimpleNamespace(fake_image_token_id=0, global_image_token_id=0)
transformers.AutoProcessor.from_pretrained = classmethod(lambda *_, **__: SimpleNamespace(tokenizer=tokens))

from lerobot.policies.factory import make_pre_post_processors  # noqa: E402
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy  # noqa: E402

folder, fixture, answer = (Path(argument) for argument in sys.argv[1:])
cases = load_file(fixture / "cases.safetensors")
texts = json.loads((fixture / "meta.json").read_text())["prompt"]["texts"]
policy = SmolVLAPolicy.from_pretrained(folder).eval()
before, after = make_pre_post_processors(policy.config, pretrained_path=str(folder))
batch = {
    name.replace("in.image", "observation.images"): tensor.permute(0, 3, 1, 2).float() / 255
    for name, tensor in cases.items()
    if name.startswith("in.image.")
}
with torch.no_grad():
    chunk = policy.predict_action_chunk(
        before({**batch, "observation.state": cases["in.state"], "task": texts}), noise=cases["in.noise"]
    )
save_file({"chunk": chunk.contiguous(), "actions": after(chunk.clone()).contiguous()}, answer)
versions = {module.__name__: module.__version__ for module in (lerobot, transformers, torch)}
print(json.dumps(versions))
