"""Runs into folders that hold something else, runs with damaged records, two runs at once."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from case import Case
from damage import JSON_FILE, NO_FILE, VALUES, Change, set_field, write
from recipe_case import PRUNE
from recipe_case import recipe_case as _case
from recipe_case import recipe_text as _recipe
from valid import put, template


def cases() -> Iterator[Case]:
    yield from _folders()
    yield from _records()
    yield from _episodes()
    yield from _at_once()


def _folders() -> Iterator[Case]:
    """Runs that would write where the user's files are."""
    user = PRUNE.replace("prune,", "prune, name: user,", 1)
    photos = PRUNE.replace("prune,", "prune, name: photos,", 1)
    here = ("run", "recipe.yaml", "--out", ".")
    yield _case("folder/out-here", _recipe(photos), "photos", arguments=here)
    yield _case("folder/out-here-user", _recipe(user), "user", arguments=here)
    yield _case(
        "folder/out-here-policy", _recipe(PRUNE.replace("prune,", "prune, name: policy,", 1)), "policy", arguments=here
    )
    yield _case("folder/out-user", _recipe(photos), "photos", arguments=("run", "recipe.yaml", "--out", "user"))
    yield _case(
        "folder/out-absolute-dots", _recipe(photos), "photos", arguments=("run", "recipe.yaml", "--out", "user/../user")
    )
    yield _case(
        "folder/two-jobs-user", _recipe(user), "user", arguments=("run", "recipe.yaml", "--out", ".", "--jobs", "2")
    )
    yield _case("folder/out-is-file", _recipe(), "user", arguments=("run", "recipe.yaml", "--out", "user/thesis.txt"))
    yield _case(
        "folder/out-below-file", _recipe(), "thesis", arguments=("run", "recipe.yaml", "--out", "user/thesis.txt/x")
    )
    yield _case(
        "folder/out-is-recipe", _recipe(), "recipe.yaml", arguments=("run", "recipe.yaml", "--out", "recipe.yaml")
    )
    yield _case("folder/out-empty", _recipe(), "out", arguments=("run", "recipe.yaml", "--out", ""), expected="either")
    yield _case("folder/out-proc", _recipe(), "/proc", arguments=("run", "recipe.yaml", "--out", "/proc/nothing"))
    yield _case("folder/out-null", _recipe(), "/dev/null", arguments=("run", "recipe.yaml", "--out", "/dev/null"))
    yield _case("folder/out-long", _recipe(), "out|name|xxx", arguments=("run", "recipe.yaml", "--out", "x" * 5000))
    yield _case(
        "folder/out-is-policy",
        _recipe(),
        "policy",
        arguments=("run", "recipe.yaml", "--out", "policy"),
        expected="either",
    )

    def stage_holds(content: str) -> Change:
        def then(place: Path) -> None:
            path = place / "runs/one/prune" / content
            path.parent.mkdir(parents=True)
            path.write_text("ten years of work")

        return then

    for content in ("thesis.txt", "checkpoint/thesis.txt", "config.yaml", "done.json", "log.txt", "metrics.jsonl"):
        yield _case(f"folder/stage-holds-{content}", _recipe(), "prune", then=stage_holds(content))
        alone = ("prune", "--policy", "policy", "--ratio", "0.5", "--out", "runs/one/prune", "method:random")
        yield _case(f"folder/out-holds-{content}", _recipe(), "prune", then=stage_holds(content), arguments=alone)

    def linked(place: Path) -> None:
        (place / "runs/one").mkdir(parents=True)
        (place / "runs/one/prune").symlink_to(place / "user")

    def linked_run(place: Path) -> None:
        (place / "runs").mkdir()
        (place / "runs/one").symlink_to(place / "user")

    yield _case("folder/stage-is-link", _recipe(), "prune", then=linked)
    yield _case("folder/run-is-link", _recipe(photos), "photos|link", then=linked_run)
    yield _case("folder/run-is-link-fine", _recipe(), "link", then=linked_run, expected="either")
    dangling = _prune_stage(lambda path: path.symlink_to("nowhere"))
    yield _case("folder/stage-is-dangling-link", _recipe(), "prune", then=dangling)
    is_file = _prune_stage(lambda path: path.write_text("x") and None)
    yield _case("folder/stage-is-file", _recipe(), "prune", then=is_file)

    def own(place: Path) -> None:
        put("finished", place / "runs/one")

    into = _recipe("{verb: quantize, policy: base, bits: 8}", base="runs/one/quantize/checkpoint")
    yield _case("folder/base-in-own-stage", into, "quantize", then=own)
    into = _recipe(PRUNE.replace("0.5", "0.25"), base="runs/one/prune/checkpoint")
    yield _case("folder/base-in-pruned-stage", into, "prune", then=own)
    direct = "{verb: prune, policy: runs/one/prune/checkpoint, ratio: 0.25, method: {kind: random}}"
    yield _case("folder/policy-in-own-stage", _recipe(direct), "prune", then=own)
    other = _recipe(
        PRUNE.replace("prune,", "prune, name: quantize,", 1),
        "{verb: quantize, name: prune, policy: runs/one/prune/checkpoint}",
    )
    yield _case("folder/policy-in-other-stage", other, "prune", then=own)
    sure = (
        "prune",
        "--policy",
        "runs/one/prune/checkpoint",
        "--ratio",
        "0.5",
        "--out",
        "runs/one/prune",
        "method:random",
    )
    yield _case("folder/verb-into-own-input", _recipe(), "runs/one/prune", then=own, arguments=sure)
    inside = ("prune", "--policy", "policy", "--ratio", "0.5", "--out", "policy", "method:random")
    yield _case("folder/verb-into-policy", _recipe(), "policy", arguments=inside)
    deeper = ("prune", "--policy", "policy", "--ratio", "0.5", "--out", "policy/x", "method:random")
    yield _case("folder/verb-inside-policy", _recipe(), "policy", arguments=deeper, expected="either")
    for verb in ("make-random", "study"):
        given = (
            ("make-random", "--preset", "openvla-tiny", "user")
            if verb == "make-random"
            else ("study", "recipe.yaml", "--out", "user")
        )
        yield _case(
            f"folder/{verb}-user",
            _recipe(more="study: {policies: {a: prune}}\n"),
            "user|nothing to show",
            arguments=given,
            leaves=("runs",),
        )
    link = ("make-random", "--preset", "openvla-tiny", "link")
    yield _case(
        "folder/make-random-link", _recipe(), "link", arguments=link, then=lambda p: (p / "link").symlink_to("user")
    )
    yield _case(
        "folder/make-random-file",
        _recipe(),
        "thesis",
        arguments=("make-random", "--preset", "openvla-tiny", "user/thesis.txt"),
    )
    changed = lambda place: (place / "policy" / "notes.txt").write_text("mine") and None  # noqa: E731
    yield _case(
        "folder/make-random-over-mine",
        _recipe(),
        "policy",
        arguments=("make-random", "--preset", "openvla-tiny", "policy"),
        then=changed,
    )


def _prune_stage(make: Change) -> Change:
    """Something in the place of the recipe's only stage."""

    def then(place: Path) -> None:
        (place / "runs/one").mkdir(parents=True)
        make(place / "runs/one/prune")

    return then


def _records() -> Iterator[Case]:
    """A run that ended, its records damaged, run again."""

    def again(name: str, change: Change) -> Change:
        def then(place: Path) -> None:
            put("finished", place / "runs/small")
            _again(place)
            change(place / "runs/small" / name)

        return then

    own = ("runs/small",)
    again_run = ("run", "small.yaml", "--out", "runs/small")
    for name in ("prune/done.json", "prune/config.yaml", "quantize/done.json"):
        kinds = JSON_FILE if name != "quantize/done.json" else NO_FILE
        for kind, change in kinds.items():
            # The first half of YAML may be whole YAML as well.
            soft = name.endswith("config.yaml") and kind in ("empty", "dev-null", "cut-off")
            yield _case(
                f"record/{name}-{kind}",
                "",
                Path(name).name,
                then=again(name, change),
                arguments=again_run,
                leaves=own,
                expected="either" if soft else "refused",
            )
    for kind, change in {key: NO_FILE[key] for key in ("pipe", "folder", "empty")}.items():
        yield _case(
            f"record/recipe.yaml-{kind}",
            "",
            "recipe.yaml",
            then=again("recipe.yaml", change),
            arguments=again_run,
            leaves=own,
            expected="either",
        )
    fields = {"fingerprint": "prune/done.json", "result": "prune/done.json", "seconds": "prune/done.json"}
    for field, name in fields.items():
        for kind in ("null", "negative", "text", "empty-list", "nan", "deep"):
            change = set_field((field,), VALUES[kind])
            soft = (field == "fingerprint" and kind in ("text",)) or field == "result" or kind == "negative"
            yield _case(
                f"record/{field}={kind}",
                "",
                "done.json",
                then=again(name, change),
                arguments=again_run,
                leaves=own,
                expected="either" if soft else "refused",
            )
        gone = again(name, set_field((field,), None))
        yield _case(f"record/{field}-removed", "", "done.json", then=gone, arguments=again_run, leaves=own)
    gone_file = again("prune/done.json", lambda path: path.unlink())
    yield _case(
        "record/done.json-removed", "", "runs/small", then=gone_file, arguments=again_run, expected="either", leaves=own
    )
    yield _case(
        "record/fine", "", then=again("prune/log.txt", lambda path: None), arguments=again_run, expected="works"
    )
    plus = again("prune/thesis.txt", lambda path: path.write_text("mine") and None)
    yield _case("record/fine-beside-mine", "", then=plus, arguments=again_run, expected="works")

    def redone(place: Path) -> None:
        plus(place)
        text = (place / "small.yaml").read_text()
        (place / "small.yaml").write_text(text.replace("0.5", "0.25"))

    yield _case("record/changed-beside-mine", "", "prune", then=redone, arguments=again_run)
    for name in ("compression.json", "config.json", "model.safetensors"):
        for kind in ("lfs-pointer", "pipe", "empty", "dev-zero"):

            def damaged(place: Path, name: str = name, kind: str = kind) -> None:
                again(f"prune/checkpoint/{name}", NO_FILE[kind])(place)
                for path in (place / "runs/small/quantize").glob("*"):
                    if path.is_file():
                        path.unlink()

            yield _case(
                f"record/artifact-{name}-{kind}",
                "",
                "runs/small",
                then=damaged,
                arguments=again_run,
                leaves=("runs/small",),
            )
    report = ("report", "runs/small", "--out", "page")
    for name in ("prune/done.json", "prune/config.yaml", "recipe.yaml"):
        for kind in ("not-utf-8", "list", "null", "pipe", "empty", "deep-objects", "5000-digits", "dev-zero"):
            yield _case(
                f"record/report-{name}-{kind}", "", Path(name).name, then=again(name, JSON_FILE[kind]), arguments=report
            )
    yield _case("record/report-missing", "", "nothing", arguments=("report", "nothing", "--out", "page"))
    yield _case("record/report-user", "", "user", arguments=("report", "user", "--out", "page"))
    yield _case(
        "record/report-pipe",
        "",
        "pipe",
        arguments=("report", "pipe", "--out", "page"),
        then=lambda p: os.mkfifo(p / "pipe"),
    )


def _again(place: Path) -> None:
    """The finished run's recipe; its paths are the template's."""
    (place / "small.yaml").write_text(template("recipe.yaml").read_text())


def _episodes() -> Iterator[Case]:
    """A report on damaged evaluations."""

    def evaluated(change: Change) -> Change:
        def then(place: Path) -> None:
            from rlrc.episodes import Episode, write_episodes

            run = place / "runs/small"
            put("finished", run)
            folder = run / "look"
            folder.mkdir()
            common = {"steps": None, "sum_reward": 0.0, "max_reward": 0.0, "path_length": 1.0, "jerk": 1.0, "seed": 0}
            won = dict.fromkeys(("success_at_end", "success_once", "grasped"), True)
            rows = [Episode("policy", "tabletop", "ind", "main", i, **won, **common) for i in range(3)]
            write_episodes(folder / "episodes.parquet", rows)
            import yaml

            config = {"policy": "policy", "world": "tabletop", "episodes": 3}
            (folder / "config.yaml").write_text(
                yaml.safe_dump({"verb": "evaluate", "fingerprint": "0123456789abcdef", "config": config})
            )
            (folder / "done.json").write_text(
                json.dumps({"fingerprint": "0123456789abcdef", "seconds": 1.0, "result": {}})
            )
            recipe = (run / "recipe.yaml").read_text()
            entry = "\n- {verb: evaluate, name: look, policy: base, episodes: 3}\n"
            (run / "recipe.yaml").write_text(recipe.replace("stages:", "stages:" + entry.rstrip(), 1))
            change(folder / "episodes.parquet")

        return then

    report = ("report", "runs/small", "--out", "page")
    yield _case("episodes/fine", "", then=evaluated(lambda path: None), arguments=report, expected="either")
    for kind, change in (NO_FILE | {"text": write("hello")}).items():
        yield _case(f"episodes/{kind}", "", "episodes.parquet", then=evaluated(change), arguments=report)


def _at_once() -> Iterator[Case]:
    """Two runs into one folder at the same time."""
    long = ("sft", "--policy", "policy", "--dataset", "data", "--out", "out", "--steps", "1000000", "--batch-size", "2")

    def with_data(place: Path) -> None:
        put("images", place / "data")

    yield _case(
        "at-once/one-verb", "", "out", then=with_data, arguments=long, beside=long, beside_file="out/config.yaml"
    )
    other = ("prune", "--policy", "policy", "--ratio", "0.5", "--out", "out", "method:random")
    yield _case(
        "at-once/other-verb", "", "out", then=with_data, arguments=other, beside=long, beside_file="out/config.yaml"
    )
    stage = "{verb: sft, policy: base, dataset: data, steps: 1000000, batch_size: 2}"
    run = ("run", "recipe.yaml", "--out", "out")
    yield _case(
        "at-once/one-recipe",
        _recipe(stage),
        "out",
        then=with_data,
        arguments=run,
        beside=run,
        beside_file="out/sft/config.yaml",
    )
    into = ("prune", "--policy", "policy", "--ratio", "0.5", "--out", "out/sft", "method:random")
    yield _case(
        "at-once/verb-into-stage",
        _recipe(stage),
        "out",
        then=with_data,
        arguments=into,
        beside=run,
        beside_file="out/sft/config.yaml",
    )
