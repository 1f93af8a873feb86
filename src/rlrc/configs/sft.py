"""Options of `sft`."""

from rlrc.configs.learner import SupervisedConfig
from rlrc.configs.parts import ActionForm, PolicyPart, StatisticsPart


class SftConfig(SupervisedConfig, StatisticsPart, PolicyPart):
    """Fine-tune a policy on demonstrations."""

    head: ActionForm | None = None
    """Form that an OpenVLA-OFT policy's actions get before it is trained, where they have another one: numbers (l1),
    action tokens, which rl can train, or diffusion. What the new form needs starts from random weights."""
