"""Does a policy that `rlrc fit` chose cost what it predicted? Three budgets, each predicted, made and measured.

    python benchmarks/fit.py                    about 15 minutes on 2 cores; writes results/fit.json
    python benchmarks/fit.py --policy FOLDER --samples 2 --budgets 4s,3GB --few --out results/fit-7b.json

Fine-tuning changes no shape, so it is left out: the recipe's cuts and its rounding are carried out, and the result is
measured by `bench`. Each budget is chosen in a process of its own, whose largest size in memory is kept. What was cut
off goes on with the same command. Rows of other policies and budgets stay in the file.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

from rlrc.bench import bench, machine, peak_resident
from rlrc.configs.bench import BenchConfig
from rlrc.configs.collect import CollectConfig
from rlrc.configs.fit import FitConfig
from rlrc.configs.run import RunConfig
from rlrc.data.collect import collect
from rlrc.files import write_json, write_text
from rlrc.fit import fit
from rlrc.jobs import in_fresh_process
from rlrc.pipeline import run
from rlrc.progress import say
from rlrc.reading import read_json, read_yaml

BUDGETS = ("15ms", "2MB", "13ms,1.5MB")
DEMONSTRATIONS = 64
FEW: dict[str, Any] = {"widths": (0.5, 0.75), "depths": (0.5,), "tokens": (0.75,), "bits": (4,)}
"""Degrees of a large policy, each of which takes minutes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, default=Path("checkpoints/tabletop-oft-base"))
    parser.add_argument(
        "--budgets", nargs="+", default=BUDGETS, help="each a time, a size, or both with a comma between"
    )
    parser.add_argument("--few", action="store_true", help=f"choose among these degrees alone: {FEW}")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=30, help="calls of which the measured time is the median")
    parser.add_argument("--cameras", nargs="+", default=["front", "wrist"])
    parser.add_argument("--out", type=Path, default=Path("results/fit.json"))
    options = parser.parse_args()
    place = Path("runs") / f"fit-{options.policy.name}"
    demonstrations = place / "demos"
    if not (demonstrations / "dataset").exists():
        demonstrations.mkdir(parents=True, exist_ok=True)
        collect(CollectConfig(episodes=DEMONSTRATIONS, cameras=tuple(options.cameras)), demonstrations)
    for budget in options.budgets:
        config = FitConfig(
            policy=options.policy,
            dataset=demonstrations / "dataset",
            samples=options.samples,
            sft_steps=0,
            **(FEW if options.few else {}),
            **asked(budget),
        )
        folder = place / budget.replace(",", "-")
        row = predicted(config, folder)
        keep(row, options.out)  # so that it is there if what follows is cut off
        row["measured"] = measured(config.policy, folder, options.repeats)
        say(f"{budget}: predicted {row['predicted']}, measured {row['measured']}")
        keep(row, options.out)


def keep(row: dict[str, Any], path: Path) -> None:
    """Write a row in the place of an earlier one of the same policy and budget, or behind all others."""
    before = read_json(path)["rows"] if path.exists() else []
    others = [other for other in before if (other["policy"], other["budget"]) != (row["policy"], row["budget"])]
    write_json(path, {"machine": machine(), "rows": [*others, row]})


def asked(budget: str) -> dict[str, str]:
    """The options of a budget."""
    return {"max_latency" if part.endswith("s") else "max_memory": part for part in budget.split(",")}


def predicted(config: FitConfig, folder: Path) -> dict[str, Any]:
    """What was chosen for a budget, what it is to cost, and how much memory choosing took."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen, peak = choose_once(config, folder)
    kept = ("policy", "budget", "predicted", "dense", "choice", "seconds")
    return {name: chosen[name] for name in kept} | {"peak_bytes": peak}


def measured(parent: Path, folder: Path, repeats: int) -> dict[str, float]:
    """Make of a policy what was chosen, and measure what that costs."""
    recipe = read_yaml(folder / "fit.yaml")
    last = recipe["budget"]["policy"]
    recipe["stages"] = [stage for stage in recipe["stages"] if stage["verb"] in ("prune", "quantize")]
    write_text(folder / "made.yaml", yaml.safe_dump(recipe, sort_keys=False))
    run(RunConfig(recipe=folder / "made.yaml"), folder / "made")
    policy = parent if last == "base" else folder / "made" / last / "checkpoint"
    (cost,) = bench(BenchConfig(policies=[policy], batch_sizes=(1,), repeats=repeats), folder)["policies"]
    return {"p50_ms": cost["latency_ms"]["p50"], "weight_bytes": cost["bytes"]["memory"]}


def choose_once(config: FitConfig, folder: Path) -> tuple[dict[str, Any], int]:
    """What `choose` finds in a process of its own, or found there in an earlier call with this config."""
    wanted, file = config.model_dump(mode="json"), folder / "chosen.json"
    kept = read_json(file) if file.exists() else {}
    if kept.get("config") != wanted:
        chosen, peak = in_fresh_process(choose, config, folder)
        kept = {"config": wanted, "chosen": chosen, "peak_bytes": peak}
        write_json(file, kept)
    return kept["chosen"], kept["peak_bytes"]


def choose(config: FitConfig, folder: Path) -> tuple[dict[str, Any], int]:
    """What `fit` finds, and the largest resident size (bytes) of the process that found it."""
    return fit(config, folder), peak_resident()


if __name__ == "__main__":
    main()
