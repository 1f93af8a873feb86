"""pi0.5 as a policy: the prompt tells the state."""

from functools import partial
from typing import Any

import numpy as np

from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.paligemma_policy import PaligemmaPolicy
from rlrc.policies.flow.processor import FlowProcessor
from rlrc.policies.pi05.layout import Pi05Layout
from rlrc.policies.pi05.model import Pi05Model

BINS = 256


class Pi05Policy(PaligemmaPolicy):
    """pi0.5 (Black et al., 2025)."""

    model: Pi05Model
    model_class = Pi05Model
    layout = Pi05Layout()
    family = "pi05"
    prompt_step = "pi05_prepare_state_tokenizer_processor_step"

    @classmethod
    def new_processor(cls, tokenizer: Any, config: FlowConfig) -> FlowProcessor:
        width = config.padded_dim if config.state_in_prompt == "padded" else 0
        return FlowProcessor(tokenizer, config, partial(prompt, width=width), cls.place)


def prompt(instruction: str, state: np.ndarray | None, width: int = 0) -> str:
    """openpi's prompt of an instruction and a normalised state (S,).

    Args:
        width: numbers of the state in the prompt, those behind its own zeros; 0 takes its own alone.
    """
    text = instruction.strip().replace("_", " ").replace("\n", " ")
    if state is None:
        return f"{instruction}\n" if not instruction.endswith("\n") else instruction
    numbers = np.zeros(max(width, len(state)))
    numbers[: len(state)] = state
    return f"Task: {text}, State: {' '.join(map(str, bins(numbers)))};\nAction: "


def bins(state: np.ndarray) -> list[int]:
    """The bins of a normalised state (S,): 0 to 255, and -1 below -1."""
    edges = np.linspace(-1, 1, BINS + 1)[:-1]
    return (np.digitize(state, edges) - 1).tolist()


FAMILY = Pi05Policy
