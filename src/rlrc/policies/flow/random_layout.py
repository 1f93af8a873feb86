"""Random flow-matching policies at the published sizes, and small ones, as rlrc saves them."""

from pathlib import Path
from typing import Any

from rlrc.files import write_json
from rlrc.policies.flow.checkpoint import Layout, published_tensors
from rlrc.policies.flow.model import FlowModel
from rlrc.policies.folder import Published
from rlrc.policies.parts.llama_tokenizer import llama_like_tokenizer

TINY_VOCABULARY = 32_064
"""As many as the tokenizer of random policies needs."""
TINY: dict[str, Any] = {
    "text_config": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "vocab_size": TINY_VOCABULARY},
    "expert_config": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4},
    "vision_config": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4},
}
"""Sizes of small policies, in place of the published ones."""


def random_layout(
    model_class: type[FlowModel], layout: Layout, values: dict[str, Any], dims: tuple[int, int]
) -> Published:
    """The files and the shapes of a policy.

    Args:
        values: fields of its config, without those of the robot.
        dims: numbers of the state and of an action.
    """
    state, action = dims
    robot = {
        "model_type": model_class.config_class.model_type,
        "architectures": [model_class.__name__],
        "state_dim": state,
        "action_dim": action,
        "normalisation": {"action": "mean_std", "state": "mean_std"},
        "norm_stats": {"random": {"action": _standard(action), "proprio": _standard(state)}},
        "dtype": "bfloat16",
    }
    values = robot | values

    def write_files(folder: Path) -> None:
        write_json(folder / "config.json", values)
        llama_like_tokenizer().save_pretrained(folder)

    shapes = published_tensors(model_class, layout, model_class.config_class.from_dict(values))
    return Published(shapes, write_files, README)


def resized(values: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """A config whose stacks have other sizes."""
    return values | {field: values[field] | sizes for field, sizes in small.items()}


def _standard(count: int) -> dict[str, list[float]]:
    return {"mean": [0.0] * count, "std": [1.0] * count, "q01": [-1.0] * count, "q99": [1.0] * count}


README = """\
---
library_name: rlrc
pipeline_tag: robotics
license: apache-2.0
---

# A policy with random weights

{parameters:,} parameters that were drawn at random, by `rlrc make-random --preset {preset} --seed {seed}`: nothing was
trained, no published weights are in it, and its actions mean nothing. Shapes are the published ones, so that size,
speed and memory are real. The tokenizer is rlrc's own.
"""
