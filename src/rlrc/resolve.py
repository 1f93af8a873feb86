"""Turn a recipe into its stages: every mistake is found before anything runs."""

import hashlib
from pathlib import Path
from typing import Any

from rlrc.errors import UserError, shorten
from rlrc.ownership import require_apart
from rlrc.recipe import Recipe, check_names, stage_name
from rlrc.stage import Stage, all_that_is_read, content_hash, contents_of, named_files, path_fields
from rlrc.verbs import VERBS


def resolve(recipe: Recipe, folder: Path) -> dict[str, Stage]:
    """The stages by name, validated as a whole: a mistake in the last one is found before the first one runs.

    Raises:
        UserError: a verb, key, value or reference is wrong, or a path names nothing or lies in a stage's folder.
    """
    check_names(recipe)
    stages: dict[str, Stage] = {}
    hashes: dict[Path, str] = {}
    for number, entry in enumerate(recipe.stages, start=1):
        verb, name = entry["verb"], stage_name(entry)
        values = {key: value for key, value in entry.items() if key not in ("verb", "name")}
        where = f"recipe {recipe.name}: stage {number} ({name})"
        cls = VERBS[verb].config_class()
        given = {"world": recipe.world, "run": folder}  # the recipe's own, where a config asks for them
        if verb == "evaluate" and "dataset" in values:
            del given["world"]  # it compares with demonstrations instead of acting
        config = cls.parse({key: given[key] for key in given if key in cls.model_fields} | values, where)
        from_stage = str(getattr(config, "dataset", None)) in stages
        try:
            VERBS[verb].check(config.model_copy(update={"dataset": None}) if from_stage else config)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        stages[name] = _locate(Stage(verb, config, folder / name, {}), recipe, stages, hashes, where)
        if verb == "report" and not measures(stages):
            raise UserError(f"{where}: there is nothing to report, since no stage before it evaluates or benchmarks")
    _check_policies(recipe, stages)
    return stages


def _check_policies(recipe: Recipe, stages: dict[str, Stage]) -> None:
    """Check the stages that a study and a budget name: they make a policy, or let one act in another way. A dry run
    makes none.

    Raises:
        UserError: one of them does not.
    """
    verbs = {name: stage.verb for name, stage in stages.items()}
    at_work = {name: stage.verb for name, stage in stages.items() if not stage.config.is_dry_run}
    makers = {"base", *(name for name, verb in at_work.items() if VERBS[verb].artifact == "checkpoint")}
    study = recipe.study
    in_tables = [name for names in study.of_policies.values() for name in names] if study else []
    ways = {name for name in in_tables if verbs.get(name) == "evaluate"}
    named = [("study", name, makers | ways) for name in (study.stages if study else [])]
    named += [("budget", recipe.budget.policy, makers)] if recipe.budget else []
    for key, name, known in named:
        if name not in known:
            raise UserError(f"recipe {recipe.name}: {key}: '{shorten(name)}' is no stage that makes a policy")


def measures(stages: dict[str, Stage]) -> bool:
    """Return whether any of the stages finds out what a run's table shows."""
    return any(
        stage.verb == "bench" or (stage.verb == "evaluate" and getattr(stage.config, "dataset", None) is None)
        for stage in stages.values()
    )


def _locate(stage: Stage, recipe: Recipe, earlier: dict[str, Stage], hashes: dict[Path, str], where: str) -> Stage:
    """Put real paths in the place of references, and note what identifies each path's contents."""
    sources = named_files(stage.config)

    def locate(field: str, path: Path) -> Path:
        source = earlier.get(str(path))
        if source is not None:
            wanted = "dataset" if field == "dataset" else "checkpoint"
            if VERBS[source.verb].artifact != wanted:
                raise UserError(f"{where}: {field}: stage '{path}' makes no {wanted}")
            if source.config.is_dry_run:
                raise UserError(f"{where}: {field}: stage '{path}' is a dry run, which makes no {wanted}")
            sources[str(source.artifact)] = source.fingerprint
            return source.artifact
        if field == "run":  # a run's page shows every stage before it
            everything = "".join(stage.fingerprint for stage in earlier.values())
            sources[str(path)] = hashlib.sha256(everything.encode()).hexdigest()
            return path
        if str(path) == "base" and recipe.base is not None:
            path = recipe.base
        contents = contents_of(field, path)
        if not contents.exists():
            known = shorten(", ".join(["base"] * (recipe.base is not None) + list(earlier)))
            raise UserError(
                f"{where}: {field}: '{shorten(str(path))}' is neither an earlier stage ({known}) nor an existing path"
            )
        if path not in hashes:
            places = all_that_is_read(contents)
            for place in places:
                require_apart(place, _folders(recipe, stage.folder.parent))
            hashes[path] = content_hash(places)
        sources[str(path)] = hashes[path]
        return path

    changes: dict[str, Any] = {}
    for field, paths in path_fields(stage.config).items():
        located = [locate(field, path) for path in paths]
        value = getattr(stage.config, field)
        changes[field] = located[0] if isinstance(value, Path) else type(value)(located)
    return Stage(stage.verb, stage.config.model_copy(update=changes), stage.folder, sources)


def _folders(recipe: Recipe, run: Path) -> dict[Path, str]:
    """The folders of all stages, also of those after the one that reads, and what an error calls them."""
    names = map(stage_name, recipe.stages)
    return {run / name: f"the folder of stage '{name}' of this run" for name in names}
