"""A budget in, a recipe out: choose how much of each part of a policy goes, and write the recipe that makes it so.

    rlrc fit --policy checkpoints/tabletop-oft-base --dataset DEMOS --max-latency 10ms --max-memory 1.5MB
    rlrc run runs/fit/fit.yaml

Three things are measured. How much the loss on demonstrations rises when one part alone is cut, or rounded, without
fine-tuning (`losses.py`). How long each side of a call takes at each shape, on random policies of that shape
(`costs.py`). How many bytes there are, which is exact. Of all choices that meet the budget the one is taken for which
the rises add up to least (`solve.py`). The sum is a guess: parts are cut together, and fine-tuning follows. The recipe
measures what has really come of it. Measurements are kept (`kept.py`), so that another budget takes seconds.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlrc import envs
from rlrc.bench import machine
from rlrc.configs.fit import FitConfig
from rlrc.data import Demonstrations
from rlrc.data.statistics import adopt_statistics, policy_key
from rlrc.errors import UserError
from rlrc.files import write_json, write_text
from rlrc.fit.costs import Costs, exact_bytes, require_alike
from rlrc.fit.kept import key_of, measure, take_over
from rlrc.fit.solve import Answer, rise_of, solve
from rlrc.fit.versions import WHOLE, Choice, Versions
from rlrc.fit.written import recipe_text
from rlrc.inspect import describe
from rlrc.policies.checkpoint import outline
from rlrc.policies.groups import VISION
from rlrc.process import keep_freed_memory
from rlrc.progress import say
from rlrc.sensitivity.variants import LAYERS
from rlrc.tables import human_bytes, print_table

FILE, RECIPE = "fit.json", "fit.yaml"


def check(config: FitConfig) -> None:
    """Hold a config against its dataset and what its world has; nothing is measured.

    Raises:
        UserError: the dataset cannot be read, or there is no such world.
    """
    Demonstrations.check(config)
    if config.world is not None:
        envs.spec(config.world)


def fit(config: FitConfig, out: Path) -> dict[str, Any]:
    """Write `fit.yaml`, the recipe, and `fit.json`.

    Returns:
        `budget` and `predicted` (`p50_ms` of one call, `weight_bytes`, and `loss_rise`), `dense`, the same of the
        policy as it is; `choice`, what goes of `vision` and of `language`; `rises` of the loss by part and degree;
        `recipe`, its path; the `machine`, and the `seconds` that choosing took.

    Raises:
        UserError: no choice meets the budget; the policy is quantized or pruned already, or does not fit the dataset;
            it has no likelihood, which RL needs; or the measurements of `measured` are of something else.
    """
    keep_freed_memory()
    started = time.monotonic()
    parent = outline(config.policy, policy_key(config), spec=config.spec)
    if getattr(parent.model.config, "quantization_config", None) is not None:
        raise UserError(f"{config.policy} is quantized already; start from the checkpoint it was made from")
    require_alike(parent)
    if config.rl_iterations and parent.no_likelihood is not None:
        raise UserError(f"rl_iterations: {parent.no_likelihood}")
    demonstrations = Demonstrations.of(config)
    adopt_statistics(parent, demonstrations, config)
    key = key_of(parent, demonstrations, config)
    if config.measured is not None:
        take_over(config.measured, out, key)
    versions = Versions.of(parent, config, out)
    own, rises, costs = measure(versions, config, demonstrations, key)
    answer = solve(costs, rises, config.bits, config.most_ms, config.most_bytes)
    if answer is None:
        raise UserError(out_of_reach(costs, config, out))
    whole = {"p50_ms": costs.ms(Choice(), Choice()), "weight_bytes": describe(parent)["bytes"]["total"]}
    predicted = {
        "p50_ms": costs.ms(answer.vision, answer.language),
        "weight_bytes": exact_bytes(versions, answer.vision, answer.language),
    }
    budget = {"max_latency": config.max_latency, "max_memory": config.max_memory}
    text = recipe_text(
        config,
        versions,
        answer,
        {name: value for name, value in budget.items() if value is not None}
        | {"predicted_ms": predicted["p50_ms"], "predicted_bytes": predicted["weight_bytes"]},
    )
    write_text(out / RECIPE, text)
    result = {
        "policy": str(config.policy),
        "budget": budget,
        "predicted": predicted | {"loss_rise": answer.rise},
        "dense": whole | {"loss": own},
        "choice": {"vision": asdict(answer.vision), "language": asdict(answer.language)},
        "rises": [asdict(variant) | {"rise": rise} for variant, rise in rises.items()],
        "recipe": str(out / RECIPE),
        "machine": machine(),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(out / FILE, result)
    _tell(config, answer, costs, whole, predicted, rises)
    say(f"recipe: {out / RECIPE}; carry it out with `rlrc run {out / RECIPE}`")
    return result


def out_of_reach(costs: Costs, config: FitConfig, out: Path) -> str:
    """Say how light and how fast the policy gets at all, and how another budget is asked for."""
    ms = min(costs.ms(vision, language) for vision in costs.vision for language in costs.language)
    size = sum(min(cost.bytes for cost in side.values()) for side in (costs.vision, costs.language))
    asked = " and ".join(part for part in (config.max_latency, config.max_memory) if part is not None)
    return (
        f"no choice meets {asked}: the fastest takes {ms:.3g}ms a call and the smallest {human_bytes(size)}; give "
        f"a larger budget with --measured {out} and another --out, or offer more with --widths, --depths, --tokens or "
        "--bits"
    )


def _tell(
    config: FitConfig,
    answer: Answer,
    costs: Costs,
    whole: dict[str, Any],
    predicted: dict[str, Any],
    rises: dict[Any, float],
) -> None:
    """Print what goes where, and what that saves."""
    rows = []
    for name, part, side, choice in (
        ("vision", VISION, costs.vision, answer.vision),
        ("language", LAYERS, costs.language, answer.language),
    ):
        before, after = side[Choice()], side[choice]
        rows.append(
            [
                name,
                "-" if choice.tower is None else str(choice.tower),
                *(f"{share:.0%}" if share else "-" for share in (choice.width, choice.depth, choice.tokens)),
                str(choice.bits) if choice.bits < WHOLE else "-",
                f"{rise_of(choice, part, rises):+.3f}",
                f"{before.ms:.1f} -> {after.ms:.1f}",
            ]
        )
    columns = ["side", "tower", "width gone", "layers gone", "tokens gone", "bits", "loss", "ms"]
    print_table(f"{config.policy}: what goes", columns, rows)
    rows = [
        ["one call", config.max_latency or "-", f"{predicted['p50_ms']:.1f} ms", f"{whole['p50_ms']:.1f} ms"],
        [
            "weights",
            config.max_memory or "-",
            human_bytes(predicted["weight_bytes"]),
            human_bytes(whole["weight_bytes"]),
        ],
    ]
    print_table("budget", ["", "budget", "predicted", "dense"], rows)
