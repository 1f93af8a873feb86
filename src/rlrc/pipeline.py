"""Run a recipe: every stage in its own folder, finished ones skipped, a cut-off one resumed.

Killed at any moment and started again, a run continues where it was and ends with the same table.
"""

import os
import time
from pathlib import Path
from typing import Any

import tyro

from rlrc.config import Config
from rlrc.errors import UserError
from rlrc.files import write_text
from rlrc.progress import say
from rlrc.recipe import read_recipe, resolve
from rlrc.report.summary import as_json, print_summary, summarise_run
from rlrc.stage import Stage
from rlrc.tables import human_seconds


class RunConfig(Config):
    """Run a recipe, or continue it where it was cut off."""

    recipe: tyro.conf.Positional[Path]
    """The recipe file; its stages are written to runs/<its name>/<stage>/."""


def run(config: RunConfig, out: Path) -> dict[str, Any]:
    """Bring every stage of the recipe to its end, and print the table of what was kept.

    Raises:
        UserError: the recipe is wrong (nothing was started), or a stage finds its input wrong.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a recipe runs in one process; give `accelerate launch` one training stage, such as `rlrc sft`")
    recipe = read_recipe(config.recipe)
    stages = resolve(recipe, out)
    write_text(out / "recipe.yaml", recipe.to_yaml())
    results = {}
    for number, (name, stage) in enumerate(stages.items(), start=1):
        say(f"[{number}/{len(stages)}] {name}")
        results[name] = _run_stage(name, stage)
    summary = summarise_run(out)
    print_summary(summary)
    pages = [str(stage.folder / "report.html") for stage in stages.values() if stage.verb == "report"]
    for page in pages:
        say(f"page: {page}")
    return {"run": str(out), "pages": pages, "summary": as_json(summary.rows), "stages": results}


def _run_stage(name: str, stage: Stage) -> dict[str, Any]:
    started = time.monotonic()
    if (result := stage.result()) is not None:
        say("  done before")
        return result
    try:
        result = stage.run(restart=True)
    except UserError as error:
        raise UserError(f"stage '{name}': {error}") from error
    say(f"  took {human_seconds(time.monotonic() - started)}")
    return result
