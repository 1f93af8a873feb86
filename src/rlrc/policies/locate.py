"""Find the folder that a policy's name means."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from rlrc.errors import UserError, shorten

CONFIG_FILE = "config.json"
LINEAGE_FILE = "compression.json"
WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*_checkpoint.pt"]
"""Files of a repository that are downloaded: no code, and nothing pickled but files of plain tensors."""
SIDE_FILE = re.compile(
    r"(action_head|proprio_projector|noisy_action_projector|vision_backbone)([-_.].*)?\.(pt|pth|bin)"
)
"""Parts of an OpenVLA-OFT policy, which lie beside a config.json that is OpenVLA's."""


def on_disk(path_or_hub_id: str | Path, wanted: Sequence[str] = WANTED) -> Path:
    """The folder of a checkpoint; one that is named by its hub id is downloaded, unless it was before.

    Args:
        wanted: names of the files to download, which may have an asterisk.

    Raises:
        UserError: there is no such folder, and the hub has no such repository or cannot be reached.
    """
    if not isinstance(path_or_hub_id, str | Path):
        raise UserError(f"a checkpoint is named by a path or a hub id, not by {shorten(repr(path_or_hub_id))}")
    name = str(path_or_hub_id)
    folder = Path(path_or_hub_id)
    try:
        if name and folder.is_dir():
            return folder
        exists = folder.exists()
        is_hub_id = re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not folder.parent.exists()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"{shorten(name)}: this folder cannot be read ({shorten(str(error))})") from error
    if name and exists:
        raise UserError(f"{name}: this is a file, and a checkpoint is a folder")
    if not is_hub_id:
        raise UserError(f"{shorten(name) or 'the empty path'}: no such checkpoint folder")
    return _download(name, wanted)


def _download(hub_id: str, wanted: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(wanted)))
    except Exception as error:  # of the hub, of HTTP, of the system
        raise UserError(
            f"{hub_id}: not a folder here, and the Hugging Face hub did not give it ({type(error).__name__})"
        ) from error
