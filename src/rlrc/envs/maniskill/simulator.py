"""Starts ManiSkill: what has to be set before it is imported, and a clear word where something of it is missing."""

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from zipfile import BadZipFile

from rlrc.errors import UserError


@cache
def start() -> str:
    """Import ManiSkill and find what draws; once a process. Returns ManiSkill's name of the device that draws.

    A GPU draws where Vulkan's drivers know one, else the processor: so VK_DRIVER_FILES can choose the processor too.

    Raises:
        UserError: the extra is not installed, or there is no Vulkan device; the message says what to install.
    """
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's own threads cost more than they bring for small pictures.
    import_maniskill()
    import sapien.render
    import torch

    gc.freeze()  # It looks for garbage each time that it builds a scene, and need not look through all that is loaded.
    sapien.render.set_log_level("off")  # It would say the same as the error below, in many lines.
    if torch.cuda.is_available():
        with suppress(RuntimeError):
            sapien.render.RenderSystem("cuda")
            return "gpu"
    try:
        sapien.render.RenderSystem("cpu")
    except RuntimeError as error:
        raise UserError(
            "ManiSkill draws with Vulkan and finds no device for it; without a GPU use Mesa 25 or newer, on Debian 12: "
            "echo 'deb http://deb.debian.org/debian bookworm-backports main' > /etc/apt/sources.list.d/backports.list "
            "&& apt-get update && apt-get install -y -t bookworm-backports mesa-vulkan-drivers libvulkan1 "
            f"({' '.join(str(error).split())})"
        ) from error
    return "cpu"


def start_physx_on_gpu() -> None:
    """Let PhysX simulate on a GPU.

    Raises:
        UserError: there is no GPU or it is not the first, PhysX's library for it cannot be loaded, or this process
            simulates on the CPU.
    """
    import sapien.physx
    import torch

    if not torch.cuda.is_available():
        raise UserError("this world simulates on a GPU, and PyTorch finds none; `putonplate` simulates on the CPU")
    if torch.cuda.current_device() != 0:
        raise UserError("PhysX simulates only on the first GPU, so this world cannot be used with accelerate launch")
    try:
        sapien.physx.enable_gpu()
    except (OSError, BadZipFile) as error:
        folder = f"~/.sapien/physx/{sapien.physx.version()}"
        raise UserError(
            f"SAPIEN could not load PhysX's GPU library from {folder} ({error}); where it is missing, unpack there "
            f"linux-so.zip of release {sapien.physx.version()} of https://github.com/sapien-sim/physx-precompiled"
        ) from error
    except RuntimeError as error:
        raise UserError(f"PhysX cannot use the GPU in this process; start it in a fresh one ({error})") from error


@contextmanager
def full_precision() -> Iterator[None]:
    """The simulator's own tensors keep their 32 bits, while a policy beside it runs in 16."""
    import torch

    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


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
