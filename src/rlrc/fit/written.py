"""A choice as a recipe: cut, recover, quantize, and measure what has become of the budget."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import yaml

from rlrc.configs.fit import FitConfig
from rlrc.fit.solve import Answer
from rlrc.fit.versions import SEEING, WHOLE, Versions, cuts
from rlrc.policies.groups import VISION
from rlrc.prune import READING

HEADER = """\
# Written by `rlrc fit`: {budget}.
# Predicted on this machine: {ms:.1f} ms a call, {bytes:,} bytes of weights.
# `rlrc run` carries it out. Options of sft and rl that suit the policy, such as the learning rate, are yours to set.
"""
ACTING = {"spec", "unnorm_key", "device"}
"""Options of the verbs that let a policy act."""
LONGEST_NAME = 90
"""Characters of the policy's name in that of the recipe."""
SHORT = 8
"""The last fine-tuning is this many times as long as those between cuts."""


def recipe_text(config: FitConfig, versions: Versions, answer: Answer, budget: dict[str, Any]) -> str:
    """The recipe in YAML.

    Args:
        budget: the recipe's `budget`: what was asked for and what is predicted.
    """
    asked = " and ".join(part for part in (config.max_latency, config.max_memory) if part is not None)
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", config.policy.name)[:LONGEST_NAME]
    recipe: dict[str, Any] = {"name": f"fit-{plain}", "base": str(config.policy)}
    if config.world is not None:
        recipe["world"] = config.world
    stages = list(_stages(config, versions, answer))
    last = _last_policy(stages)
    measured = [*stages, *_measures(config, last)]
    recipe |= {"budget": {"policy": last, **budget}, "stages": measured}
    header = HEADER.format(budget=f"a budget of {asked}", ms=budget["predicted_ms"], bytes=budget["predicted_bytes"])
    return header + yaml.safe_dump(recipe, sort_keys=False, width=120)


def _stages(config: FitConfig, versions: Versions, answer: Answer) -> Iterator[dict[str, Any]]:
    """The stages that make the policy, each from the one before."""
    policy = "base"
    reading = partial(_given, config, READING | ACTING | {"dataset", "seed"})
    pruned = list(_cuts(answer))
    for number, cut in enumerate(pruned, start=1):
        read = {"policy": policy, **reading(policy), "samples": config.samples}
        yield {"verb": "prune", "name": f"cut-{number}", **read, **cut}
        policy = f"cut-{number}"
        if number < len(pruned) and config.sft_steps >= SHORT:
            steps = config.sft_steps // SHORT
            yield {"verb": "sft", "name": f"recover-{number}", "policy": policy, **reading(policy), "steps": steps}
            policy = f"recover-{number}"
    if pruned and config.sft_steps:
        yield {"verb": "sft", "policy": policy, **reading(policy), "steps": config.sft_steps}
        policy = "sft"
    if config.rl_iterations:
        yield {
            "verb": "rl",
            "policy": policy,
            **_given(config, ACTING | {"seed"}, policy),
            "iterations": config.rl_iterations,
        }
        policy = "rl"
    bits = min(answer.vision.bits, answer.language.bits)
    if bits < WHOLE:
        packs = {True: answer.vision.bits < WHOLE, False: answer.language.bits < WHOLE}
        parts = [part for part in versions.packable if packs[part in SEEING]]
        how = {"bits": bits, "parts": parts, "samples": config.samples, "rounding": "gptq"}
        yield {"verb": "quantize", "policy": policy, **reading(policy), **how}


def _cuts(answer: Answer) -> Iterator[dict[str, Any]]:
    """Options of `prune` for each cut, the coarse ones first."""
    vision, language = answer.vision, answer.language
    if language.tokens:
        yield {"ratio": language.tokens, "method": {"kind": "tokens", "by": "merge"}}
    if vision.tower is not None:
        yield {"method": {"kind": "tower", "keep": vision.tower}}
    if vision.depth:
        yield {"ratio": vision.depth, "method": {"kind": "depth"}, "stacks": [VISION]}
    if language.depth:
        yield {"ratio": language.depth, "method": {"kind": "depth"}}
    for share in cuts(vision.width) if vision.width else ():
        yield {"ratio": share, "stacks": [VISION]}
    for share in cuts(language.width) if language.width else ():
        yield {"ratio": share}


def _last_policy(stages: list[dict[str, Any]]) -> str:
    return str(stages[-1].get("name", stages[-1]["verb"])) if stages else "base"


def _measures(config: FitConfig, last: str) -> Iterator[dict[str, Any]]:
    """The stages that measure the policy before and after; after alone where before it has not these statistics."""
    policies = [last] if config.statistics == "dataset" else list(dict.fromkeys(("base", last)))
    if config.world is not None:
        for policy in policies:
            yield {"verb": "evaluate", "name": f"{policy}-eval", "policy": policy, **_given(config, ACTING, policy)}
    yield {"verb": "bench", "policies": policies, **_given(config, ACTING, policies[0])}
    yield {"verb": "report"}


def _given(config: FitConfig, names: set[str], policy: str) -> dict[str, Any]:
    """The options of these names that a user has given, for a stage that reads `policy`. What rlrc has written says
    itself what it reads, and takes no `spec`."""
    named = config.model_dump(mode="json", include=names, exclude_defaults=True)
    return {name: value for name, value in named.items() if policy == "base" or name != "spec"}
