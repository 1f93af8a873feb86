"""LeRobot's commands with a policy that rlrc serves: `--policy.type=rlrc --policy.address=ws://host:8000`.

LeRobot imports this package because of its name, and finds everything else by the names of files and classes.
"""

from lerobot_policy_rlrc.configuration_rlrc import RlrcConfig

__all__ = ["RlrcConfig"]
