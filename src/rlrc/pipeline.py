"""Run a recipe: every stage in its own folder, finished ones skipped, a cut-off one resumed.

Killed at any moment and started again, a run continues where it was and ends with the same table.

Stages that do not need each other may run at once, each in a process of its own with its share of the cores. Policies
as small as the built-in one gain nothing from a second core, so on two cores two jobs do twice the work.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import takewhile
from pathlib import Path
from typing import Any

from rlrc.configs.run import RunConfig
from rlrc.errors import UserError
from rlrc.files import write_text
from rlrc.jobs import job_pool
from rlrc.lock import locked
from rlrc.ownership import made, remove_files, require_plain
from rlrc.process import world_size
from rlrc.progress import say
from rlrc.reading import read_yaml
from rlrc.recipe import PROGRESS, RECIPE_FILE, Recipe, read_recipe
from rlrc.report.budget import budget_table
from rlrc.report.summary import as_json, print_summary, summarise_run
from rlrc.resolve import measures, resolve
from rlrc.stage import Stage
from rlrc.tables import human_seconds, print_table
from rlrc.verbs import VERBS

HEADER = "# Written by `rlrc run`; do not edit.\n"


def run(config: RunConfig, out: Path) -> dict[str, Any]:
    """Bring every stage of the recipe to its end, and print the table of what was kept.

    Raises:
        UserError: the recipe is wrong, or a folder holds what rlrc did not write, or another process writes to it
            (nothing was started); or a stage finds its input wrong.
    """
    if world_size() > 1:
        raise UserError("a recipe runs in one process; give `accelerate launch` one training stage, such as `rlrc sft`")
    require_plain(out)
    recipe = read_recipe(config.recipe)
    stages = resolve(recipe, out)
    _check_folders(recipe, stages, out)
    if _is_finished(recipe, stages, out):  # nothing is written, so that it may lie on a medium that cannot be
        results = _run_in_turn(stages)
    else:
        with made(out), locked(out), _recipe_kept(recipe, stages, out):
            results = _run_in_turn(stages) if config.jobs == 1 else _run_at_once(stages, out, config.jobs)
    rows: list[dict[str, Any]] = []
    if measures(stages):
        summary = summarise_run(out)
        print_summary(summary)
        if (budget := budget_table(summary)) is not None:
            print_table("budget", *budget)
        rows = as_json(summary.rows)
    else:
        say("all stages have ended; there is no table, since none of them evaluates or benchmarks")
    pages = [str(stage.folder / "report.html") for stage in stages.values() if stage.verb == "report"]
    for page in pages:
        say(f"page: {page}")
    return {"run": str(out), "pages": pages, "summary": rows, "stages": results}


def _check_folders(recipe: Recipe, stages: dict[str, Stage], out: Path) -> None:
    """Check, before anything is touched, all that the run would write over or empty.

    Raises:
        UserError: rlrc did not write it.
    """
    path = out / RECIPE_FILE
    require_plain(path)
    if path.exists() and not _is_kept(recipe, path) and not _is_written_by_run(path):
        raise UserError(f"{path}: a run keeps its recipe here, and rlrc did not write this file; choose another --out")
    require_plain(out / PROGRESS)
    for name, stage in stages.items():
        try:
            if stage.result() is None:
                stage.check(restart=True)
        except UserError as error:
            raise UserError(f"stage '{name}': {error}") from error


def _is_kept(recipe: Recipe, path: Path) -> bool:
    """Return whether the file already holds the recipe."""
    try:
        return path.is_file() and read_recipe(path) == recipe
    except UserError:
        return False


def _is_written_by_run(path: Path) -> bool:
    """Return whether a run wrote the file: it has our header, or (before there was one) all fields in order."""
    if not path.is_file():
        return False
    if path.read_bytes().startswith(HEADER.encode()):
        return True
    values = read_yaml(path)
    return isinstance(values, dict) and list(values) == list(Recipe.model_fields) and b"#" not in path.read_bytes()


def _is_finished(recipe: Recipe, stages: dict[str, Stage], out: Path) -> bool:
    return _is_kept(recipe, out / RECIPE_FILE) and all(stage.result() is not None for stage in stages.values())


@contextlib.contextmanager
def _recipe_kept(recipe: Recipe, stages: dict[str, Stage], out: Path) -> Iterator[None]:
    """Write the recipe beside its stages; it goes again where the first of them is refused."""
    path = out / RECIPE_FILE
    is_new = not path.exists()
    try:
        if not _is_kept(recipe, path):
            write_text(path, HEADER + recipe.to_yaml())
        yield
    except BaseException:
        if is_new and not any(stage.folder.exists() for stage in stages.values()):
            path.unlink(missing_ok=True)
            remove_files(out / PROGRESS, [f"{name}.txt" for name in stages])
        raise


def _run_in_turn(stages: dict[str, Stage]) -> dict[str, dict[str, Any]]:
    results = {}
    for number, (name, stage) in enumerate(stages.items(), start=1):
        say(f"[{number}/{len(stages)}] {name}")
        results[name] = _run_stage(name, stage)
    return results


def _run_at_once(stages: dict[str, Stage], out: Path, jobs: int) -> dict[str, dict[str, Any]]:
    jobs = min(jobs, len(stages))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))  # read by the processes below
    (out / PROGRESS).mkdir(exist_ok=True)
    try:
        with job_pool(jobs) as pool:
            return schedule(stages, out, jobs, pool, _run_job)
    except BrokenProcessPool as error:
        raise UserError(
            "a stage's process was killed, perhaps because memory ran out; run the same command again"
        ) from error


def schedule(
    stages: dict[str, Stage], out: Path, jobs: int, pool: Executor, work: Callable[[str, Stage, Path], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Call `work(name, stage, out)` for every stage, in order but for those that must wait for another, `jobs` at once.

    A stage whose verb has to be alone waits until nothing runs, and as soon as it waits nothing else begins.
    """
    results: dict[str, dict[str, Any]] = {}
    running: dict[Future[dict[str, Any]], str] = {}
    left = dict(stages)
    while left or running:
        for name in _ready(left, stages, out, results):
            alone = VERBS[stages[name].verb].alone
            beside_alone = any(VERBS[stages[other].verb].alone for other in running.values())
            if len(running) >= jobs or beside_alone or (alone and running):
                break
            say(f"[{len(stages) - len(left) + 1}/{len(stages)}] {name}: begins")
            running[pool.submit(work, name, left.pop(name), out)] = name
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            name = running.pop(future)
            try:
                results[name] = future.result()
            except Exception as error:
                say(f"{name}: failed ({error})" + f", waiting for {', '.join(running.values())}" * bool(running))
                raise (UserError(f"stage '{name}': {error}") if isinstance(error, UserError) else error) from error
            say(f"{name}: done")
    return {name: results[name] for name in stages}


def _ready(left: dict[str, Stage], stages: dict[str, Stage], out: Path, done: dict[str, Any]) -> list[str]:
    """Names of the stages that need nothing more, in the recipe's order."""
    makers = {str(stage.artifact): name for name, stage in stages.items()}
    ready = []
    for name, stage in left.items():
        needs = {makers[source] for source in stage.sources if source in makers}
        if str(out) in stage.sources:  # it shows all that came before
            needs = set(takewhile(name.__ne__, stages))
        if needs <= done.keys():
            ready.append(name)
    return ready


def _run_job(name: str, stage: Stage, out: Path) -> dict[str, Any]:
    with (out / PROGRESS / f"{name}.txt").open("a") as file, contextlib.redirect_stderr(file):
        return stage.run(restart=True)


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
