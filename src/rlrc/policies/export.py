"""Export: write a policy in the form of another library, LeRobot's.

    rlrc export --policy runs/small/prune/checkpoint --out runs/small/export

LeRobot's classes hold fewer shapes than rlrc prunes to: a SmolVLA of fewer layers fits, one whose layers differ does
not. What does not fit is refused with the reason.
"""

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
        `tensors`, `parameters` (those that LeRobot's class has and never reads count) and `bytes` of the weights.

    Raises:
        UserError: LeRobot has no class for the policy, or its class cannot hold the policy's shape.
    """
    policy = load(config.policy, config.unnorm_key, "cpu", spec=config.spec)
    exported = policy.exported(config.vlm)
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
            write_json(aside / name, values)
        for name, tensors in exported.statistics.items():
            _write_tensors(aside / name, tensors)
        write_json(aside / LINEAGE_FILE, lineage)
        size = sum(tensor.nbytes for tensor in exported.tensors.values())
        write_text(aside / "README.md", model_card(policy.spec, count_parameters(policy.model), lineage, size))
    parameters = sum(tensor.numel() for tensor in exported.tensors.values())
    say(f"{out / FOLDER}: {parameters:,} parameters, {human_bytes(size)}")
    return {"tensors": len(exported.tensors), "parameters": parameters, "bytes": size}


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)
