"""A policy on disk: a plain Hugging Face repository that loads anywhere, and nothing pickled.

`config.json`, `model.safetensors` (or shards and an index), tokenizer and processor files, `compression.json` (the
lineage) and a model card. Published checkpoints have the same names and load by the same code, tensor by tensor,
read-only; so does a LoRA adapter, merged onto its base. `saving.py` writes.
"""

from pathlib import Path

import torch

from rlrc.policies.contract import Policy
from rlrc.policies.device import resolve_device
from rlrc.policies.folder import Reading
from rlrc.policies.locate import on_disk
from rlrc.policies.registry import recognise
from rlrc.policies.warm_up import warm_up
from rlrc.policies.wide import widen_where_slow


def load(
    path_or_hub_id: str | Path,
    unnorm_key: str | None = None,
    device: str | torch.device | None = "cpu",
    dtype: torch.dtype | None = None,
    full_head: bool = False,
    spec: str | None = None,
) -> Policy:
    """Load a policy from a folder or from the Hugging Face hub, ready to act (`eval` mode).

    Args:
        unnorm_key: which action statistics to use, where the checkpoint holds several.
        device: where it computes; None is a GPU where there is one.
        dtype: of the floating-point weights; None keeps what is stored.
        full_head: keep every row of `lm_head`, so that `forward` gives the logits of text as well; acting reads the
            action rows alone.
        spec: what the files of a published OpenVLA-OFT policy do not say: "libero", "aloha", or such as
            "chunk=8,cameras=front+wrist,state=8". What rlrc saves says it itself.

    Raises:
        UserError: the checkpoint is missing, damaged, incomplete, of another kind, holds NaN or infinity, or does not
            know `unnorm_key`; `spec` is missing or does not fit; there is no such device; or the full head is asked for
            and was left out before.
    """
    policy = _outline(path_or_hub_id, Reading(unnorm_key, dtype, full_head, spec))
    policy.fill()
    return made_ready(policy, resolve_device(device))


def made_ready(policy: Policy, device: torch.device) -> Policy:
    """The policy, whose weights are there, ready to act on a device."""
    policy.model.to(device)
    widen_where_slow(policy.model, device)
    warm_up(policy)
    return policy


def outline(
    path_or_hub_id: str | Path, unnorm_key: str | None = None, full_head: bool = False, spec: str | None = None
) -> Policy:
    """Load a policy as `load` does, but leave its weights on disk: every parameter has a shape and no memory ("meta").

    Raises:
        UserError: as `load`, except that the weights themselves are not read.
    """
    return _outline(path_or_hub_id, Reading(unnorm_key, full_head=full_head, spec=spec))


def _outline(path_or_hub_id: str | Path, reading: Reading) -> Policy:
    folder = on_disk(path_or_hub_id)
    return recognise(folder, reading.spec).outline(folder, reading)
