"""Starts ManiSkill: what has to be set before it is imported, and a clear word where something of it is missing."""

import importlib
import os
from functools import cache

from rlrc.errors import UserError


@cache
def start() -> str:
    """Import ManiSkill and find what draws; once a process. Returns ManiSkill's name of the device that draws.

    Raises:
        UserError: the extra is not installed, or there is no Vulkan device; the message says what to install.
    """
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's own threads cost more than they bring for small pictures.
    import_maniskill()
    import sapien.render
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sapien.render.set_log_level("off")  # It would say the same as the error below, in many lines.
    try:
        sapien.render.RenderSystem(device)
    except RuntimeError as error:
        raise UserError(
            "ManiSkill draws with Vulkan and finds no device for it; without a GPU use Mesa 25 or newer, on Debian 12: "
            "echo 'deb http://deb.debian.org/debian bookworm-backports main' > /etc/apt/sources.list.d/backports.list "
            "&& apt-get update && apt-get install -y -t bookworm-backports mesa-vulkan-drivers libvulkan1 "
            f"({' '.join(str(error).split())})"
        ) from error
    return "gpu" if device == "cuda" else "cpu"


def import_maniskill() -> None:
    """Import ManiSkill and its registry of tasks.

    Raises:
        UserError: the extra is not installed.
    """
    os.environ["MS_SKIP_ASSET_DOWNLOAD_PROMPT"] = "1"  # It would wait at a prompt that a worker process cannot answer.
    os.environ.setdefault("MS_RENDERER_LOG_LEVEL", "error")
    try:
        importlib.import_module("mani_skill.envs")
    except ImportError as error:
        raise UserError(f"this world needs ManiSkill: pip install 'rlrc[maniskill]' ({error})") from error
    from mani_skill import logger

    logger.setLevel("ERROR")  # It warns of its own robots' definitions, each time that a scene is built.
