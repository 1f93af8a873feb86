"""Options of `sft`."""

from rlrc.configs.learner import SupervisedConfig
from rlrc.configs.parts import PolicyPart, StatisticsPart


class SftConfig(SupervisedConfig, StatisticsPart, PolicyPart):
    """Fine-tune a policy on demonstrations."""
