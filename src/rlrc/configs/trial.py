"""Options of `trial`."""

import re
from pathlib import Path

from pydantic import Field, field_validator

from rlrc.config import Config, Seed
from rlrc.served import address_of

POLICY_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,49}"


class TrialConfig(Config):
    """Try served policies on a real robot, blind and paired: neither you nor the robot's program knows which one
    acts."""

    policies: tuple[str, ...]
    """Policies to compare, two or more, each as NAME=ADDRESS, such as small=ws://127.0.0.1:8000. Each pair of them is
    compared, the later one with the earlier one."""
    scenes: Path
    """YAML file that lists the scenes: a name, an instruction, a layout, and how often it is repeated."""
    host: str = Field(default="127.0.0.1", min_length=1, max_length=253)
    """Address to listen on for the robot's program. Only this machine can connect, unless you give another one, such as
    0.0.0.0."""
    port: int = Field(default=9000, ge=0, le=65_535)
    """Port to listen on for the robot's program; zero takes a free one."""
    seed: Seed | None = None
    """Seed of the random order. A new one is drawn unless you give one, and the plan keeps it."""
    results: bool = False
    """Write the results of the trials that are done, and begin none. The results say that you looked before the end,
    since tests are no longer exact then."""

    @field_validator("policies")
    @classmethod
    def _names_and_addresses(cls, policies: tuple[str, ...]) -> tuple[str, ...]:
        for policy in policies:
            name, _, address = policy.partition("=")
            if re.fullmatch(POLICY_NAME, name) is None or address_of(address) is None:
                raise ValueError(f"'{policy[:80]}' is no NAME=ADDRESS such as small=ws://127.0.0.1:8000")
        if len(policies) < 2:
            raise ValueError("a comparison needs two policies or more, each as NAME=ADDRESS")
        for part, what in enumerate(("name", "address")):
            given = [policy.split("=", 1)[part] for policy in policies]
            if twice := [value for value in given if given.count(value) > 1]:
                raise ValueError(f"two policies have the {what} {twice[0][:80]}: give each one its own")
        return policies

    @property
    def addresses(self) -> dict[str, str]:
        """The address of each policy by its name."""
        return dict(policy.split("=", 1) for policy in self.policies)
