"""The plan of an experiment: every scene tried with every policy, in random order, and the file that keeps it.

A block is one repeat of a scene: one trial of each policy, in random order (a randomised complete block design). The
first repeats of all scenes come first, in random order, then the second ones, so that every scene has had its turn
where an experiment ends early.
"""

import random
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlrc.configs.trial import POLICY_NAME, TrialConfig
from rlrc.errors import UserError, shorten
from rlrc.reading import FileModel, read_yaml, validate
from rlrc.served import without_key

MOST_TRIALS = 2000


class Scene(FileModel, extra="forbid"):
    """One scene of the file that lists them."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    instruction: Annotated[str, Field(max_length=1000)] = ""
    """What the robot is asked to do; the robot's program sends it, and the operator sees it."""
    layout: Annotated[str, Field(max_length=5000)] = ""
    """This tells how the scene is set up."""
    repeats: Annotated[int, Field(ge=1, le=MOST_TRIALS)] = 1


class Trial(FileModel, extra="forbid"):
    """One attempt of one policy in one scene."""

    block: Annotated[int, Field(ge=0, lt=MOST_TRIALS)]
    scene: str
    policy: str


class Plan(FileModel, extra="forbid"):
    """Everything that is fixed before the first trial."""

    format: Literal[1] = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    policies: Annotated[dict[Annotated[str, Field(pattern=f"^{POLICY_NAME}$")], str], Field(min_length=2)]
    """Addresses by name, without keys."""
    greetings: dict[str, dict[str, Any]]
    """Each policy's server says this of itself; the keys are the policies' names."""
    scenes: Annotated[list[Scene], Field(min_length=1)]
    trials: Annotated[list[Trial], Field(min_length=1, max_length=MOST_TRIALS)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        scenes, size = {scene.name for scene in self.scenes}, len(self.policies)
        for number, first in enumerate(range(0, len(self.trials), size)):
            block = self.trials[first : first + size]
            places = {(trial.block, trial.scene) for trial in block}
            if places not in [{(number, name)} for name in scenes] or {t.policy for t in block} != set(self.policies):
                raise ValueError(f"block {number} is not one trial of each policy in one scene")
        if self.greetings.keys() != self.policies.keys():
            raise ValueError("the greetings are not those of the policies")
        return self

    def scene(self, trial: Trial) -> Scene:
        """The scene of a trial."""
        return next(scene for scene in self.scenes if scene.name == trial.scene)


def read_scenes(path: Path) -> list[Scene]:
    """The scenes that a YAML file lists.

    Raises:
        UserError: the file is missing, damaged or empty, has an unknown key, or two scenes of one name.
    """
    values = read_yaml(path)
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: a list of scenes is needed, such as '- {{name: mug-left, layout: the mug is left}}'")
    scenes = [validate(value, Scene, f"{path}: scene {number}") for number, value in enumerate(values, start=1)]
    names = [scene.name for scene in scenes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: two scenes are called '{shorten(twice[0])}'; to try one again, give it `repeats`")
    return scenes


def new_plan(config: TrialConfig, scenes: Sequence[Scene], greetings: Mapping[str, dict[str, Any]]) -> Plan:
    """Draw the order of the trials.

    Raises:
        UserError: there are too many.
    """
    count = len(config.policies) * sum(scene.repeats for scene in scenes)
    if count > MOST_TRIALS:
        raise UserError(f"{config.scenes}: these are {count:,} trials, and a plan has at most {MOST_TRIALS:,}")
    seed = secrets.randbits(63) if config.seed is None else config.seed
    draw = random.Random(seed)
    trials: list[Trial] = []
    for repeat in range(max(scene.repeats for scene in scenes)):
        again = [scene for scene in scenes if scene.repeats > repeat]
        for scene in draw.sample(again, len(again)):
            block = len(trials) // len(config.policies)
            policies = draw.sample(list(config.addresses), len(config.policies))
            trials += [Trial(block=block, scene=scene.name, policy=policy) for policy in policies]
    return Plan(seed=seed, policies=_written(config), greetings=dict(greetings), scenes=list(scenes), trials=trials)


def require_same(plan: Plan, config: TrialConfig, scenes: Sequence[Scene], folder: Path) -> None:
    """Check that a command means the plan that is in its folder.

    Raises:
        UserError: it names other policies, other scenes or another seed.
    """
    elsewhere = f"than the plan in {folder}; give the same again, or begin a new plan with another --out"
    if plan.policies != _written(config):
        raise UserError(f"--policies names other policies or addresses {elsewhere}")
    if plan.scenes != list(scenes):
        raise UserError(f"{config.scenes} lists other scenes {elsewhere}")
    if config.seed not in (None, plan.seed):
        raise UserError(f"--seed is another one {elsewhere}")


def _written(config: TrialConfig) -> dict[str, str]:
    return {name: without_key(address) for name, address in config.addresses.items()}
