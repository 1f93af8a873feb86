"""Work at loading that the first action would otherwise wait for, so that it takes no longer than the tenth."""

import numpy as np
import torch

from rlrc.bfloat16 import library
from rlrc.packed import cpu
from rlrc.packed.layers import QuantizedLinear
from rlrc.policies.contract import Policy
from rlrc.policies.values import Observation

SMALL_BYTES = 2**28
"""Weights of a policy whose action takes less than half a second on a processor."""


def warm_up(policy: Policy) -> None:
    """Compile the kernels that the policy uses, and let it act once where that costs little.

    The first time, PyTorch and its libraries prepare each product for its shape: about 40 ms on a processor, longer on
    a GPU. A large policy on a processor does not act here: its action takes seconds, of which 40 ms are nothing.
    Neither does one that cannot act yet, because it has no tokenizer, or because it reads a state and nobody has chosen
    among its statistics.
    """
    on_processor = policy.device.type == "cpu"
    packed = any(isinstance(module, QuantizedLinear) for module in policy.model.modules())
    if on_processor and (packed or policy.model.dtype == torch.bfloat16):
        cpu.missing()
        library.missing()
    large = sum(tensor.nbytes for tensor in policy.model.state_dict().values()) > SMALL_BYTES
    if not policy.can_read_instructions or (on_processor and large):
        return
    if policy.spec.state and policy.unnorm_key is None and len(policy.norm_stats or ()) != 1:
        return
    side = policy.image_size + 1  # so that pictures have to be resized
    images = {camera: np.zeros((1, side, side, 3), np.uint8) for camera in policy.spec.cameras}
    state = np.zeros((1, len(policy.spec.state)), np.float32) if policy.spec.state else None
    policy.sample(policy.prepare(Observation(images, ["do nothing"], state)))
