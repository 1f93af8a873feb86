"""A recipe: the base policy, the world, and the stages to run, in YAML.

    name: default
    base: checkpoints/tabletop-base
    world: tabletop
    stages:
      - {verb: collect, name: demos, episodes: 500}
      - {verb: prune, policy: base, dataset: demos, ratio: 0.9}
      - {verb: evaluate, name: prune-eval, policy: prune}

Every key but `verb` and `name` (the verb, unless given) belongs to the verb's config. Where a config asks for a path,
`base` and the names of earlier stages stand for what they made. Other paths are relative to the working directory.
"""

import re
from pathlib import Path
from typing import Any

from pydantic import Field

from rlrc.config import Config
from rlrc.errors import UserError, shorten
from rlrc.ownership import WRITES
from rlrc.reading import read_yaml

STAGE_VERBS = tuple(WRITES)
"""Verbs that can be a stage."""

RECIPE_FILE, PROGRESS = "recipe.yaml", "progress"
"""Names in a run's folder beside its stages: the recipe, and the progress of stages that run at once."""

MOST_STAGES = 200
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
"""A plain name: one folder, and no other."""


class StudyPlan(Config):
    """The parts that stages play in a study; see `rlrc study`. A policy is named by the stage that made it. Where it
    acts in several ways, the others are named by the stages that evaluated them."""

    name: str | None = Field(default=None, pattern=NAME)
    """Name that begins the names of the evidence's files where another study's lie beside them. Without it they are
    called `summary.json` and so on."""
    policies: dict[str, str | tuple[str, ...]]
    """Names of policies in tables, each with its stage; the first one is what the others are compared with. Several
    stages, which differ by their seed alone and are evaluated with it, are one policy with the episodes of all. Claims
    are checked of the policies called dense, pruned, sft, 8-bit, 4-bit, sft-tokens, more-sft, sft-longer, rl, rl-4bit
    and rl-scratch."""
    seeds: tuple[str, ...] = ()
    """Reinforcement-learning stages that differ by nothing but their seed."""
    sft_steps: dict[int, str] = Field(default={})
    """Fine-tuning stages by their number of steps, each a run of its own with its own learning-rate schedule."""
    ratios: dict[float, tuple[str, ...]] = Field(default={})
    """Policies by pruning ratio: right after pruning, after fine-tuning, and after reinforcement learning."""

    parts: dict[str, dict[float, str]] = Field(default={})
    """Policies by the part that was made lighter, and by how much: the share that went, or the bits that are left."""

    @property
    def stages(self) -> list[str]:
        """All stages that the plan names."""
        by_ratio = (name for names in self.ratios.values() for name in names)
        by_part = (name for degrees in self.parts.values() for name in degrees.values())
        by_policy = (name for names in self.of_policies.values() for name in names)
        named = [*by_policy, *self.seeds, *self.sft_steps.values(), *by_ratio, *by_part]
        return list(dict.fromkeys(named))

    @property
    def of_policies(self) -> dict[str, tuple[str, ...]]:
        """The stages of each policy in tables."""
        return {label: (named,) if isinstance(named, str) else named for label, named in self.policies.items()}


class Budget(Config):
    """A budget that the recipe was chosen for, as `rlrc fit` writes it, and what it predicted."""

    policy: str
    """The stage that makes the policy which is to meet it, or base."""
    max_latency: str | None = None
    """Longest time of one call, such as 200ms."""
    max_memory: str | None = None
    """Most memory of the weights, such as 700MB."""
    predicted_ms: float = Field(ge=0)
    predicted_bytes: int = Field(ge=0)


class Recipe(Config):
    """Contents of a recipe file; its stages are not validated yet."""

    name: str = Field(pattern=NAME)
    """Name of the run's folder and title of its page; the file's name unless given."""
    base: Path | None = None
    """The policy to start from."""
    world: str = "tabletop"
    """World of every stage that needs one and names none."""
    stages: list[dict[str, Any]] = Field(min_length=1)
    """Stages, which run in this order."""
    budget: Budget | None = None
    """The budget that the recipe was chosen for; a page shows it beside what was measured."""
    study: StudyPlan | None = None
    """Parts that stages play in a study; see `rlrc study`."""


def read_recipe(path: Path) -> Recipe:
    """Parse a recipe file.

    Raises:
        UserError: the file is missing, is not YAML, or has an unknown, missing or ill-typed key.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}")
    stages = values.get("stages")
    if isinstance(stages, list):
        if len(stages) > MOST_STAGES:
            raise UserError(f"{path}: {len(stages):,} stages are listed, and a recipe has at most {MOST_STAGES}")
        for number, entry in enumerate(stages, start=1):
            if not isinstance(entry, dict) or not all(isinstance(key, str) for key in entry):
                raise UserError(
                    f"{path}: stage {number}: a mapping is needed, such as {{verb: quantize, policy: base}}"
                )
    name = values.get("name", path.stem)
    if not isinstance(name, str) or re.fullmatch(NAME, name) is None:
        raise UserError(
            f"{path}: 'name': {shorten(repr(name))} is no plain name; a recipe's name is made of letters, digits and "
            "-_., begins with a letter or digit, and has at most 100 characters"
        )
    return Recipe.parse({"name": name, **values}, str(path))


def stage_name(entry: dict[str, Any]) -> str:
    """Return the name of a stage: its `name`, or else its verb."""
    return str(entry.get("name", entry.get("verb")))


def check_names(recipe: Recipe) -> None:
    """Check the verb and the name of every stage.

    Raises:
        UserError: a verb is unknown, a name is taken, or it is no plain name.
    """
    names = {"base", RECIPE_FILE, PROGRESS}
    for number, entry in enumerate(recipe.stages, start=1):
        verb, name = entry.get("verb"), entry.get("name", entry.get("verb"))
        where = f"recipe {recipe.name}: stage {number}"
        if verb not in STAGE_VERBS:
            raise UserError(f"{where}: unknown verb '{shorten(str(verb))}' ({', '.join(STAGE_VERBS)})")
        if not isinstance(name, str) or re.fullmatch(NAME, name) is None or name != name.lower():
            raise UserError(
                f"{where} ({shorten(str(name))}): a name is made of lower-case letters, digits and -_., begins with a "
                "letter or digit, and has at most 100 characters"
            )
        if name in names:
            raise UserError(f"{where} ({name}): the name is taken, give the stage another `name`")
        names.add(name)
