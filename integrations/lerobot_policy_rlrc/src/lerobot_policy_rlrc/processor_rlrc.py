"""What LeRobot does to observations before the policy and to actions after it: nothing, since the server does it."""

from typing import Any

from lerobot.processor import AddBatchDimensionProcessorStep, PolicyAction, PolicyProcessorPipeline
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from lerobot_policy_rlrc.configuration_rlrc import RlrcConfig


def make_rlrc_pre_post_processors(
    config: RlrcConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """Make both pipelines; a robot's single observation becomes a batch of one."""
    before = PolicyProcessorPipeline[dict[str, Any], dict[str, Any]](
        steps=[AddBatchDimensionProcessorStep()], name=POLICY_PREPROCESSOR_DEFAULT_NAME
    )
    after = PolicyProcessorPipeline[PolicyAction, PolicyAction](
        steps=[],
        name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return before, after
