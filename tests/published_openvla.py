"""Checkpoints as the fixtures of OpenVLA and OpenVLA-OFT hold them, made whole."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file


def tower_shape(timm: dict[str, Any], image_size: int) -> dict[str, Any]:
    """Vision shapes are not in a published config.json, so the fixture gives timm's arguments."""
    return {
        "hidden_size": timm["embed_dim"],
        "num_hidden_layers": timm["depth"],
        "num_attention_heads": timm["num_heads"],
        "intermediate_size": int(timm["embed_dim"] * timm.get("mlp_ratio", 4)),
        "image_size": image_size,
        "patch_size": timm["patch_size"],
        "num_register_tokens": timm.get("reg_tokens", 0),
        "class_token": timm.get("class_token", True),
        "layer_scale": "init_values" in timm,
    }


def tower_shapes(meta: dict[str, Any]) -> list[dict[str, Any]]:
    """The two vision towers of a fixture, from its meta.json."""
    shapes = meta["config"]
    timm = (shapes["dinov2_like_timm_args"], shapes["siglip_like_timm_args"])
    return [tower_shape(arguments, shapes["image_size"]) for arguments in timm]


def whole_vocabulary(folder: Path, scratch: Path) -> None:
    """Give the checkpoint in `scratch` all rows of its vocabulary, of which a small copy of a fixture keeps those that
    its cases read; the other rows are zero."""
    if not (folder / "vocabulary.safetensors").exists():
        return
    weight_map = json.loads((scratch / "model.safetensors.index.json").read_text())["weight_map"]
    rows = load_file(folder / "vocabulary.safetensors")
    ids = rows.pop("ids")
    for name, known in rows.items():
        whole = known.new_zeros(32064, known.shape[1])
        whole[ids] = known
        shard = scratch / weight_map[name]
        others = {key: tensor.clone() for key, tensor in load_file(shard).items()} if shard.exists() else {}
        save_file(others | {name: whole}, shard)
