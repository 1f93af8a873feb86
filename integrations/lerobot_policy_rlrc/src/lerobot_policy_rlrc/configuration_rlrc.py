"""The options of a served policy."""

from dataclasses import dataclass, field
from typing import NoReturn

from lerobot.configs.policies import PreTrainedConfig

NO_TRAINING = "a served policy is not trained by LeRobot; train it with rlrc"


@PreTrainedConfig.register_subclass("rlrc")
@dataclass
class RlrcConfig(PreTrainedConfig):
    """A policy at an address; `rlrc serve` says everything else."""

    address: str = ""
    """Address at which the server listens, such as ws://host:8000."""
    cameras: dict[str, str] = field(default_factory=dict)
    """LeRobot's name of the picture that each of the policy's cameras sees; unless named, observation.images.CAMERA."""
    instruction: str = ""
    """Instruction that the policy gets in place of LeRobot's task."""
    n_action_steps: int | None = None
    """Actions of each chunk that are played before the server is asked again; None takes what the server says."""
    timeout_s: float = 10.0
    """Seconds after which an answer counts as lost."""
    device: str | None = "cpu"
    """Where LeRobot puts the pictures; the policy itself computes at the server."""

    def validate_features(self) -> None:
        """
        Raises:
            ValueError: an option is missing or cannot be.
        """
        if not self.address:
            raise ValueError("say where the policy is served: --policy.address=ws://host:8000")
        if self.pretrained_path is not None:
            raise ValueError("a served policy has no --policy.path; give --policy.type=rlrc and --policy.address")
        if not self.timeout_s > 0:
            raise ValueError(f"--policy.timeout_s must be above 0, not {self.timeout_s}")

    @property
    def observation_delta_indices(self) -> None:
        """One observation at a time."""

    @property
    def action_delta_indices(self) -> None:
        """No actions are learned."""

    @property
    def reward_delta_indices(self) -> None:
        """No rewards are learned."""

    def get_optimizer_preset(self) -> NoReturn:
        """There is none."""
        raise NotImplementedError(NO_TRAINING)

    def get_scheduler_preset(self) -> None:
        """There is none."""
