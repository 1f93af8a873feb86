"""Arguments of native functions."""

import torch


def address(tensor: torch.Tensor | None) -> int | None:
    """Return the address of the numbers of a contiguous tensor on the CPU; the caller keeps it alive."""
    assert tensor is None or (tensor.is_contiguous() and tensor.device.type == "cpu")
    return None if tensor is None else tensor.data_ptr()


def threads() -> int:
    """Return the number of threads that they use: as many as PyTorch."""
    return torch.get_num_threads()
