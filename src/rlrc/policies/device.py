"""The choice of the device that a policy computes on, and the way there."""

import torch

from rlrc.errors import UserError


def resolve_device(name: str | torch.device | None) -> torch.device:
    """The device of this name; None is a GPU where there is one, and the CPU elsewhere.

    Raises:
        UserError: there is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device '{name}': no such kind of device (there are cpu, cuda, cuda:1 and mps)") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UserError(f"device '{name}': PyTorch sees {count} CUDA GPUs on this machine; use --device cpu")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(f"device '{name}': PyTorch sees no Apple GPU on this machine; use --device cpu")
    elif device.type != "cpu":
        raise UserError(f"device '{name}': rlrc computes on cpu, cuda, cuda:1 and mps")
    return device


def moved(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on `device`. To a CUDA GPU it goes through pinned memory, so that nobody waits for the GPU."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
