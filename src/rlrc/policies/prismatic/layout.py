"""The files of a published policy on the trunk, and of a small one: config.json, processor of pictures, tokenizer."""

from pathlib import Path
from typing import Any

from rlrc.files import write_json
from rlrc.policies.folder import Published
from rlrc.policies.parts.llama_tokenizer import llama_like_tokenizer
from rlrc.policies.prismatic.model import Prismatic
from rlrc.policies.prismatic.processor import ImageProcessor
from rlrc.policies.prismatic.published import published_tensors


def published_layout(model_class: type[Prismatic], values: dict[str, Any], about: str) -> Published:
    """The files and the shapes of a policy whose config.json holds `values`.

    Args:
        about: what its README says below the number of parameters.
    """

    def write_files(folder: Path) -> None:
        write_json(folder / "config.json", values)
        write_json(folder / "generation_config.json", GENERATION)
        image_processor(*values["image_sizes"]).save(folder)
        llama_like_tokenizer().save_pretrained(folder)

    shapes = published_tensors(model_class, model_class.config_class.from_dict(values))
    return Published(shapes, write_files, README + about)


def trunk_config(tiny: bool = False) -> dict[str, Any]:
    """The fields of OpenVLA's `config.json` that policies on the trunk share; a tiny one has shapes that differ."""
    if not tiny:
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
    "hf_llm_id": "meta-llama/Llama-2-7b-hf",
    "image_resize_strategy": "resize-naive",
    "image_sizes": [224, 224],
    "llm_backbone_id": "llama2-7b-pure",
    "llm_max_length": 2048,
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

# A policy with random weights

{parameters:,} parameters that were drawn at random, by `rlrc make-random --preset {preset} --seed {seed}`: nothing was
trained, no published weights are in it, and its actions mean nothing. The tokenizer is rlrc's own and has Llama-2's ids
only where OpenVLA's loader relies on them.
"""
