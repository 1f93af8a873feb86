"""A choice as a recipe: cut, recover, quantize, and measure what has become of the budget."""

from collections.abc import Iterator
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
SHORT = 8
"""The last fine-tuning is this many times as long as those between cuts."""


def recipe_text(config: FitConfig, versions: Versions, answer: Answer, budget: dict[str, Any]) -> str:
    """The recipe in YAML.

    Args:
        budget: the recipe's `budget`: what was asked for and what is predicted.
    """
    asked = " and ".join(part for part in (config.max_latency, config.max_memory) if part is not None)
    recipe: dict[str, Any] = {"name": f"fit-{config.policy.name}", "base": str(config.policy)}
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
    reading = config.model_dump(mode="json", include=READING | {"dataset"}, exclude_defaults=True)
    policy = "base"
    pruned = list(_cuts(answer))
    for number, cut in enumerate(pruned, start=1):
        yield {"verb": "prune", "name": f"cut-{number}", "policy": policy, **reading, "samples": config.samples, **cut}
        policy = f"cut-{number}"
        if number < len(pruned) and config.sft_steps >= SHORT:
            steps = config.sft_steps // SHORT
            yield {"verb": "sft", "name": f"recover-{number}", "policy": policy, **reading, "steps": steps}
            policy = f"recover-{number}"
    if pruned and config.sft_steps:
        yield {"verb": "sft", "policy": policy, **reading, "steps": config.sft_steps}
        policy = "sft"
    if config.rl_iterations:
        yield {"verb": "rl", "policy": policy, "iterations": config.rl_iterations}
        policy = "rl"
    bits = min(answer.vision.bits, answer.language.bits)
    if bits < WHOLE:
        packs = {True: answer.vision.bits < WHOLE, False: answer.language.bits < WHOLE}
        parts = [part for part in versions.packable if packs[part in SEEING]]
        how = {"bits": bits, "parts": parts, "samples": config.samples, "rounding": "gptq"}
        yield {"verb": "quantize", "policy": policy, **reading, **how}


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
    """The stages that measure the policy before and after."""
    policies = list(dict.fromkeys(("base", last)))
    spec = {} if config.spec is None else {"spec": config.spec}
    if config.world is not None:
        for policy in policies:
            yield {"verb": "evaluate", "name": f"{policy}-eval", "policy": policy, **(spec if policy == "base" else {})}
    yield {"verb": "bench", "policies": policies, **spec}
    yield {"verb": "report"}
