"""A checkpoint of OpenVLA's published layout with random weights: as large and as fast as the real one, without skill.

    rlrc make-random --preset openvla-7b OUT      # 7,541,237,184 parameters, 15 GB
    rlrc make-random --preset openvla-tiny OUT    # the same parts in small, for tests

Names, shapes and files are those of the published checkpoint. Each tensor is drawn from a generator of its own, seeded
by (seed, name), a few megabytes at a time, and written shard by shard: little memory is needed, and neither the order
of tensors nor the size of files matters.
"""

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import torch

from rlrc.configs.make_random import MakeRandomConfig, Preset
from rlrc.errors import UserError
from rlrc.files import atomic_path, require_space, write_json, write_text
from rlrc.models.config import OpenVLAConfig
from rlrc.models.llama_tokenizer import llama_like_tokenizer
from rlrc.models.processor import ImageProcessor
from rlrc.models.published import published_tensors
from rlrc.models.saving import LINEAGE_FILE
from rlrc.models.schema import LineageFields
from rlrc.models.shards import SHARD_BYTES, ShardWriter
from rlrc.ownership import CHECKPOINT, require_own, require_plain
from rlrc.progress import bar, say
from rlrc.reading import read_model
from rlrc.tables import human_bytes
from rlrc.version import __version__

VERB = "make-random"
CHUNK = 2**20
"""Numbers drawn at a time: float32 of that many stay in the processor's cache on their way to bf16."""
MILLION = 10**6


def make_random(config: MakeRandomConfig, out: Path) -> dict[str, Any]:
    """Write the checkpoint to `out_folder`, or to `out` where that is not given; `seconds` counts writing.

    Raises:
        UserError: something else lies there, or the disk is full.
    """
    started = time.monotonic()
    folder = config.out_folder or out
    _refuse_to_overwrite(folder)
    values = published_config(config.preset)
    shapes = published_tensors(OpenVLAConfig.from_dict(values))
    parameters = sum(math.prod(shape) for shape in shapes.values())
    require_space(folder, parameters * torch.bfloat16.itemsize)
    with atomic_path(folder, CHECKPOINT) as aside:
        aside.mkdir()
        write_weights(shapes, config.seed, aside)
        write_json(aside / "config.json", values)
        write_json(aside / "generation_config.json", GENERATION)
        image_processor(*values["image_sizes"]).save(aside)
        llama_like_tokenizer().save_pretrained(aside)
        stage = {"verb": VERB, "config": config.model_dump(mode="json", exclude={"out_folder"})}
        write_json(aside / LINEAGE_FILE, {"stages": [stage], "rlrc_version": __version__})
        write_text(aside / "README.md", README.format(parameters=parameters, preset=config.preset, seed=config.seed))
    nbytes = sum(file.stat().st_size for file in folder.iterdir())
    say(f"{folder}: {parameters:,} random parameters, {human_bytes(nbytes)}")
    return {"parameters": parameters, "bytes": nbytes, "seconds": round(time.monotonic() - started, 1)}


def write_weights(shapes: dict[str, tuple[int, ...]], seed: int, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Draw the tensors and write them to safetensors files of up to `shard_bytes`."""
    writer = ShardWriter(folder, shard_bytes)
    done, total = 0, sum(math.prod(shape) for shape in shapes.values())
    with bar("random weights, in millions", total // MILLION) as progress:
        for name, shape in shapes.items():
            writer.add(name, draw(name, shape, seed))
            before, done = done, done + math.prod(shape)
            progress.advance(done // MILLION - before // MILLION)
    writer.close()


def draw(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """One tensor in bf16: biases 0, scales of norms and LayerScale 1, all else normal.

    A matrix keeps the variance of what it multiplies (1 / fan-in), so that signals neither die nor explode through 32
    layers. Queries and keys are twice as large: attention then chooses, where random scores near 0 would average all
    patches and words, and with them whatever differs between two pictures or two instructions.
    """
    if name.endswith(".bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(_tensor_seed(name, seed))
    deviation = _deviation(name, shape)
    tensor = torch.empty(shape, dtype=torch.bfloat16)
    for chunk in tensor.view(-1).split(CHUNK):
        # Drawn in float32: torch's bf16 normals are made from uniforms of 8 bits.
        chunk.copy_(torch.randn(len(chunk), generator=generator) * deviation)
    return tensor


def _deviation(name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of the tensor's numbers."""
    # Position embeddings and learnt tokens are added, not multiplied; their last axis is the hidden size.
    fan_in = math.prod(shape[1:]) if name.endswith(".weight") else shape[-1]
    gain = 2.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
    return gain / math.sqrt(fan_in)


def _tensor_seed(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")


def _refuse_to_overwrite(folder: Path) -> None:
    """Refuse to replace what this verb did not write, and what was made since from what it wrote.

    Raises:
        UserError: something else is there.
    """
    require_plain(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    lineage = folder / LINEAGE_FILE
    if not lineage.is_file() or [stage.verb for stage in read_model(lineage, LineageFields).stages] != [VERB]:
        raise UserError(f"{folder} holds something else; choose another folder, or delete it first")
    require_own(folder, CHECKPOINT.files)


# -- the published files -----------------------------------------------------------------------------------------------


def published_config(preset: Preset) -> dict[str, Any]:
    """Return what `config.json` holds: the published fields, and for the tiny preset the shapes that differ."""
    if preset == "openvla-7b":
        return PUBLISHED
    return PUBLISHED | {
        "text_config": PUBLISHED["text_config"] | TINY_DECODER,
        "vision_towers": [
            TINY_TOWER | {"class_token": True, "num_register_tokens": 4, "layer_scale": True},
            TINY_TOWER,
        ],
        "image_sizes": [TINY_TOWER["image_size"]] * 2,
    }


def image_processor(*sizes: int) -> ImageProcessor:
    """The published `preprocessor_config.json` for two towers that read pictures of these sizes (pixels)."""
    norms = [
        # DINOv2's as the published file has them: they were once stored in bf16.
        {"inplace": False, "mean": [0.484375, 0.455078125, 0.40625], "std": [0.228515625, 0.2236328125, 0.224609375]},
        {"inplace": False, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    ]
    resize = {"antialias": True, "interpolation": 3, "max_size": None}
    return ImageProcessor(
        {
            "image_processor_type": "PrismaticImageProcessor",
            "image_resize_strategy": "resize-naive",
            "input_sizes": [[3, size, size] for size in sizes],
            "interpolations": ["bicubic", "bicubic"],
            "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
            "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
            "tvf_crop_params": [{"output_size": [size, size]} for size in sizes],
            "tvf_do_letterbox": False,
            "tvf_letterbox_fill": None,
            "tvf_normalize_params": norms,
            "tvf_resize_params": [resize | {"size": [size, size]} for size in sizes],
            "use_fused_vision_backbone": True,
        }
    )


PUBLISHED: dict[str, Any] = {
    "arch_specifier": "no-align+fused-gelu-mlp",
    "architectures": ["OpenVLAForActionPrediction"],
    "hf_llm_id": "meta-llama/Llama-2-7b-hf",
    "image_resize_strategy": "resize-naive",
    "image_sizes": [224, 224],
    "llm_backbone_id": "llama2-7b-pure",
    "llm_max_length": 2048,
    "model_type": "openvla",
    "n_action_bins": 256,
    "norm_stats": {
        "bridge_orig": {
            # The range of a WidowX's steps: metres, radians, and a gripper that is open at 1.
            "action": {
                "q01": [-0.03, -0.04, -0.03, -0.08, -0.09, -0.2, 0.0],
                "q99": [0.03, 0.04, 0.04, 0.08, 0.08, 0.2, 1.0],
                "mask": [True, True, True, True, True, True, False],
            }
        }
    },
    "output_projector_states": False,
    "pad_to_multiple_of": 64,
    "pad_token_id": 32000,
    # What is not said is LlamaConfig's default: Llama-2-7B's shape, but an rms_norm_eps of 1e-6.
    "text_config": {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "timm_override_act_layers": [None, None],
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_fused_vision_backbone": True,
    "vision_backbone_id": "dinosiglip-vit-so-224px",
}
TINY_DECODER = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4}
TINY_TOWER: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 160,
    "image_size": 56,
    "patch_size": 14,
}
GENERATION = {
    "_from_model_config": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 32000,
    "transformers_version": "4.40.1",
}
README = """\
---
library_name: rlrc
pipeline_tag: robotics
license: apache-2.0
---

# OpenVLA's layout with random weights

{parameters:,} parameters that were drawn at random, by `rlrc make-random --preset {preset} --seed {seed}`: nothing was
trained, no published weights are in it, and its actions mean nothing. Names, shapes and files are those of the
published OpenVLA checkpoint, so that size, speed and memory are the real ones. The tokenizer is rlrc's own and has
Llama-2's ids only where OpenVLA's loader relies on them.
"""
