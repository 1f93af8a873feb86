"""Find the folder that a policy's name means, and check that what lies there is of a family that rlrc reads."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from rlrc.errors import UserError
from rlrc.reading import shorten

CONFIG_FILE = "config.json"
WANTED = ["*.json", "*.safetensors", "*.model", "*.txt"]
"""Files of a repository that are downloaded: nothing pickled, and no code."""
OFT_FILE = re.compile(r"(action_head|proprio_projector|noisy_action_projector|vision_backbone)([-_.].*)?\.(pt|pth|bin)")
"""Files that OpenVLA-OFT leaves beside a config.json that says openvla."""
LEROBOT_FAMILIES = ("smolvla", "pi0", "pi05", "pi0_fast", "act", "diffusion", "vqbet", "tdmpc", "groot", "xvla")


def on_disk(path_or_hub_id: str | Path) -> Path:
    """The folder of a checkpoint; one that is named by its hub id is downloaded, unless it was before.

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
    return _download(name)


def _download(hub_id: str) -> Path:
    try:
        names = HfApi().list_repo_files(hub_id)
    except Exception:  # Offline it may have been downloaded before, and otherwise the next call fails as well.
        names = []
    refuse_side_files(names, hub_id)
    try:
        return Path(snapshot_download(hub_id, allow_patterns=WANTED))
    except Exception as error:  # of the hub, of HTTP, of the system
        raise UserError(
            f"{hub_id}: not a folder here, and the Hugging Face hub did not give it ({type(error).__name__})"
        ) from error


def refuse_side_files(names: Iterable[str], where: str | Path) -> None:
    """Refuse OpenVLA-OFT, whose config.json is that of OpenVLA.

    Raises:
        UserError: one of its files is among `names`.
    """
    found = next((name for name in sorted(names) if OFT_FILE.fullmatch(name)), None)
    if found is not None:
        raise UserError(
            f"{where}: this is an OpenVLA-OFT policy ('{shorten(found)}' lies beside config.json); rlrc reads OpenVLA "
            "and does not read OpenVLA-OFT yet"
        )


def require_openvla(values: dict[str, Any], path: Path) -> None:
    """Refuse the config.json of another family by its name.

    Raises:
        UserError: `values`, what `path` holds, describe no OpenVLA on Llama.
    """
    kind = values.get("type")
    if "model_type" not in values and isinstance(kind, str):
        known = "a LeRobot policy" if kind in LEROBOT_FAMILIES else "a policy"
        raise UserError(f"{path}: this is {known} of type '{shorten(kind)}'; rlrc reads OpenVLA alone so far")
    if values.get("model_type") != "openvla":
        found = shorten(repr(values.get("model_type")))
        raise UserError(f"{path}: model_type is {found}, rlrc reads 'openvla'")
    text = values.get("text_config")
    decoder = text.get("model_type", "llama") if isinstance(text, dict) else "llama"
    if decoder != "llama":
        raise UserError(f"{path}: the language model is a {shorten(repr(decoder))}, rlrc reads 'llama'")
