"""The processes that train together, and the device of each."""

import atexit
from datetime import timedelta

import torch
from accelerate import PartialState

from rlrc.errors import UserError

LONGEST_WAIT = timedelta(hours=12)
"""Longest time that processes wait for one of them, such as for the main one while it measures a learning curve."""


def processes_on(place: torch.device) -> tuple[PartialState, torch.device]:
    """The group of processes that train together, and the device of this one.

    Raises:
        UserError: the device cannot be trained on, or is one of several processes' and has a number.
    """
    # Not `Accelerator`: it fixes one precision for the life of the process, and a recipe's stages may differ.
    processes = PartialState(cpu=place.type != "cuda", timeout=LONGEST_WAIT)
    # The threads of a process group that is still there when the interpreter ends can abort the process.
    atexit.register(processes.destroy_process_group)
    if place.type == "mps":
        raise UserError("training runs on the CPU or on CUDA; give --device cpu")
    if processes.num_processes == 1:
        if place.type == "cuda" and place.index is not None:
            torch.cuda.set_device(place)
        return processes, place  # not the group's device, which is that of the first stage in this process
    if place.index is not None:
        raise UserError(f"--device {place}: several processes train on a device each; leave the number out")
    return processes, processes.device
