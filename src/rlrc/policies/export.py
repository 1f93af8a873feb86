"""Export: write a policy in the form of another library, LeRobot's.

    rlrc export --policy runs/small/prune/checkpoint --out runs/small/export

LeRobot's classes hold fewer shapes than rlrc prunes to. A SmolVLA whose layers differ is filled up with zeros to the
next shape that fits, which changes no action; what cannot fit is refused with the reason.
"""

import shutil
from pathlib import Path
from typing import Any

import torch

from rlrc.configs.export import ExportConfig
from rlrc.files import atomic_path, require_space, write_json, write_text
from rlrc.ownership import LEROBOT_POLICY
from rlrc.packed.layers import count_parameters
from rlrc.policies.card import model_card
from rlrc.policies.checkpoint import load
from rlrc.policies.locate import LINEAGE_FILE
from rlrc.policies.saving import extend_lineage
from rlrc.policies.shards import ShardWriter
from rlrc.progress import say
from rlrc.tables import human_bytes

FOLDER = "lerobot"
ONE_FILE = 2**60
"""Bytes of a shard, so that there is one: LeRobot reads model.safetensors and no others."""


def export(config: ExportConfig, out: Path) -> dict[str, Any]:
    """Write `out/lerobot`.

    Returns:
        `tensors`, `parameters` (those that LeRobot's class has and never reads count), `zeros` (those of the parameters
        that fill up smaller layers) and `bytes` of the weights.

    Raises:
        UserError: LeRobot has no class for the policy, or its class cannot hold the policy's shape.
    """
    policy = load(config.policy, config.unnorm_key, "cpu", spec=config.spec)
    exported = policy.exported(out / FOLDER, config.vlm)
    require_space(out, sum(tensor.nbytes for tensor in exported.tensors.values()))
    paths = () if policy.weights is None else policy.weights.paths
    lineage = extend_lineage(policy.lineage, policy.source, paths, {"verb": "export", "config": {"vlm": config.vlm}})
    with atomic_path(out / FOLDER, LEROBOT_POLICY) as aside:
        aside.mkdir(parents=True)
        weights = ShardWriter(aside, ONE_FILE)
        for name, tensor in exported.tensors.items():
            weights.add(name, tensor.contiguous())
        weights.close()
        for name, values in exported.files.items():
            (aside / name).parent.mkdir(exist_ok=True)
            write_json(aside / name, values)
        for name, path in exported.copies.items():
            shutil.copyfile(path, aside / name)
        for name, tensors in exported.statistics.items():
            _write_tensors(aside / name, tensors)
        write_json(aside / LINEAGE_FILE, lineage)
        size = sum(tensor.nbytes for tensor in exported.tensors.values())
        write_text(aside / "README.md", model_card(policy.spec, count_parameters(policy.model), lineage, size))
    parameters = sum(tensor.numel() for tensor in exported.tensors.values())
    say(f"{out / FOLDER}: {parameters:,} parameters, {human_bytes(size)}")
    if exported.zeros:
        say(f"  {exported.zeros:,} of them are zeros, which fill up layers that are smaller than LeRobot's class has")
    if exported.copies:
        say(f"  its config.json names the folder of its VLM, {exported.files['config.json']['vlm_model_name']}")
    return {"tensors": len(exported.tensors), "parameters": parameters, "zeros": exported.zeros, "bytes": size}


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)
