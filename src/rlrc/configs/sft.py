"""What one can ask of `sft`."""

from pathlib import Path

from rlrc.configs.learner import SupervisedConfig
from rlrc.configs.parts import PolicyPart


class SftConfig(PolicyPart, SupervisedConfig):
    """Fine-tune a policy on demonstrations."""

    policy: Path
    """Policy to start from: a folder or a Hugging Face hub id."""
