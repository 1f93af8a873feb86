"""Options of acting, brought to a policy."""

from rlrc.configs.parts import ActingPart
from rlrc.policies.contract import Policy


def set_up(policy: Policy, config: ActingPart) -> float:
    """Let a policy act as options say, and return the temperature.

    Raises:
        UserError: the family has no such option.
    """
    if config.center_crop:
        policy.crop_pictures()
    if config.denoising_steps is not None:
        policy.denoise_in(config.denoising_steps)
    return policy.default_temperature if config.temperature is None else config.temperature
