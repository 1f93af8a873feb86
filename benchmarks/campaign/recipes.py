"""Recipes that are wrong, and runs into folders that hold something else."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from case import Case, Expected
from damage import JSON_FILE, NO_FILE, VALUES, Change, set_field, write
from valid import put, put_user_files

RUN = ("run", "recipe.yaml", "--out", "runs/one")
PRUNE = "{verb: prune, policy: base, ratio: 0.5, method: {kind: random}}"


def cases() -> Iterator[Case]:
    yield from _files()
    yield from _names()
    yield from _keys()
    yield from _stages()
    yield from _fields()
    yield from _references()
    yield from _folders()
    yield from _records()
    yield from _at_once()


def _case(
    name: str,
    text: str | bytes,
    *words: str,
    expected: Expected = "refused",
    arguments: tuple[str, ...] = RUN,
    then: Change | None = None,
    **more: Any,
) -> Case:
    def build(place: Path) -> None:
        put_user_files(place)
        put("policy", place / "policy")
        write(text)(place / "recipe.yaml")
        if then is not None:
            then(place)

    return Case(f"recipe/{name}", arguments, build, expected, words, **more)


def _recipe(*stages: str, name: str = "one", base: str = "policy", more: str = "") -> str:
    lines = "".join(f"  - {stage}\n" for stage in stages or (PRUNE,))
    return f"name: {name}\nbase: {base}\n{more}stages:\n{lines}"


def _files() -> Iterator[Case]:
    changes = NO_FILE | {kind: change for kind, change in JSON_FILE.items() if kind != "cut-off"}
    for kind, change in changes.items():
        yield _case(f"file/{kind}", _recipe(), "recipe.yaml", then=lambda place, c=change: c(place / "recipe.yaml"))
    yield _case("file/missing", _recipe(), "recipe.yaml", then=lambda place: (place / "recipe.yaml").unlink())
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    merges = "m0: &m0 {k0: 1}\n"
    merges += "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}], k{i}: 1}}\n" for i in range(1, 10))
    texts = {
        "laughs": laughs + _recipe(),
        "merge-bomb": merges + _recipe(),
        "self-anchor": "name: &n [*n]\nstages: []\n",
        "recursive-stage": "name: one\nstages: &s\n  - {verb: prune, policy: *s}\n",
        "unknown-anchor": "name: *nobody\nstages: []\n",
        "deep": "name: " + "[" * 50_000 + "]" * 50_000 + "\nstages: []\n",
        "deep-blocks": "".join(" " * i + f"k{i}:\n" for i in range(3000)),
        "python-object": 'name: !!python/object/apply:os.system ["touch owned"]\nstages: []\n',
        "unknown-tag": "name: !magic x\nstages: []\n",
        "two-documents": _recipe() + "---\nname: two\nstages: []\n",
        "tab": "name: one\nstages:\n\t- x\n",
        "bad-date": "name: 2026-99-99\nstages: []\n",
        "5000-digits": f"name: {'1' * 5000}\nstages: []\n",
        "5000-digits-stage": _recipe(PRUNE.replace("0.5", "1" * 5000)),
        "duplicate-keys": "name: one\nname: two\nstages: []\n",
        "key-list": "? [a, b]\n: c\nstages: []\n",
        "key-nan": ".nan: c\nstages: []\n",
        "large": "#" + "x" * 5_000_000 + "\n" + _recipe(),
        "long-line": "name: " + "x" * 500_000 + "\nstages: []\n",
        "control": "name: a\x07b\nstages: []\n",
        "sexagesimal": "name: 1:30\nstages: []\n",
    }
    for kind, text in texts.items():
        yield _case(f"yaml/{kind}", text, "recipe.yaml|recipe|large|name")
    many = "".join(f"  - {{verb: prune, name: p{i}, policy: base, ratio: 0.5}}\n" for i in range(10_000))
    yield _case("yaml/10000-stages", f"name: one\nbase: policy\nstages:\n{many}", "stages")


NAMES = {
    "escape": "../user",
    "double-escape": "../../user",
    "absolute": "/tmp/rlrc-never",
    "empty": "''",
    "dot": ".",
    "dots": "..",
    "slash": "user/photos",
    "backslash": "'a\\b'",
    "null": "null",
    "number": "5",
    "list": "[a]",
    "mapping": "{a: b}",
    "true": "true",
    "tilde": "'~'",
    "nul": '"a\\0b"',
    "newline": '"a\\nb"',
    "escape-sequence": '"\\e[31m"',
    "300-characters": "x" * 300,
    "space": "'  '",
    "percent": "'%s'",
    "dash": "'--out'",
    "hidden": ".hidden",
    "nan": ".nan",
}


def _names() -> Iterator[Case]:
    soft = {"number", "true", "percent", "dash", "hidden", "nan", "null", "backslash"}
    for kind, name in NAMES.items():
        expected: Expected = "either" if kind in soft else "refused"
        yield _case(f"name/{kind}", _recipe(name=name), "name", expected=expected, arguments=("run", "recipe.yaml"))
        stage = PRUNE.replace("prune,", f"prune, name: {name},", 1)
        yield _case(f"stage-name/{kind}", _recipe(stage), "name", expected=expected)
        yield _case(f"study/name-{kind}", _recipe(name=name), "name|study", expected="either" if kind in soft else "refused", arguments=("study", "recipe.yaml"))
    for name in ("recipe.yaml", "progress", "base", "config.yaml", "done.json", "log.txt", "con", "a.tmp"):
        stage = PRUNE.replace("prune,", f"prune, name: {name},", 1)
        sure = name in ("base", "recipe.yaml")
        yield _case(f"stage-name/{name}", _recipe(stage), "name", expected="refused" if sure else "either")
    yield _case("stage-name/upper-case", _recipe(PRUNE.replace("prune,", "prune, name: Prune,", 1)), "name")
    yield _case("stage-name/twice", _recipe(PRUNE, PRUNE), "name", "prune")
    yield _case("stage-name/case-twins", _recipe(PRUNE, PRUNE.replace("prune,", "prune, name: PRUNE,", 1)), "name")


def _keys() -> Iterator[Case]:
    raw = {kind: value for kind, value in VALUES.items() if kind not in ("deep", "long-text")}
    raw |= {"nan": ".nan", "infinity": ".inf", "minus-infinity": "-.inf"}
    for kind, value in raw.items():
        yield _case(f"key/stages={kind}", f"name: one\nbase: policy\nstages: {value}\n", "stages")
        yield _case(f"key/stage={kind}", f"name: one\nbase: policy\nstages: [{value}]\n", "stage")
        yield _case(f"key/base={kind}", _recipe(base=value), "base", expected="either" if kind == "null" else "refused")
        yield _case(f"key/world={kind}", _recipe("{verb: evaluate, policy: base, episodes: 1, num_envs: 1, num_workers: 0, videos: 0}", more=f"world: {value}\n"), "world")
        yield _case(f"key/study={kind}", _recipe(more=f"study: {value}\n"), "study", expected="either" if kind == "null" else "refused")
        yield _case(f"key/policies={kind}", _recipe(more=f"study: {{policies: {value}}}\n"), "policies|study", expected="either" if kind == "object" else "refused")
        yield _case(f"key/verb={kind}", _recipe(f"{{verb: {value}}}"), "verb")
    yield _case("key/stages-missing", "name: one\nbase: policy\n", "stages")
    yield _case("key/unknown", _recipe(more="stage: x\n"), "stage")
    yield _case("key/unknown-long", _recipe(more=f"{'x' * 100_000}: x\n"), "x")
    yield _case("key/unknown-world", _recipe("{verb: evaluate, policy: base}", more="world: moon\n"), "moon")
    yield _case("key/ratios-nan", _recipe(more="study: {policies: {a: prune}, ratios: {.nan: [prune]}}\n"), "ratios")
    yield _case("key/study-unknown-stage", _recipe(more="study: {policies: {a: nothing}}\n"), "nothing")
    yield _case("key/fine", _recipe(), expected="works")
    for file in ("recipe.yml", "a b.yaml", "-x.yaml"):
        renamed = lambda place, file=file: (place / "recipe.yaml").rename(place / file) and None  # noqa: E731
        arguments = ("run", file if not file.startswith("-") else f"./{file}", "--out", "runs/one")
        yield _case(f"key/file-{file}", _recipe(), expected="works", arguments=arguments, then=renamed)


def _stages() -> Iterator[Case]:
    """Stages of every verb without what they need, and with what they do not know."""
    from rlrc.verbs import VERBS

    for verb in VERBS:
        never = verb in ("run", "study", "inspect", "assets", "make-random")
        yield _case(f"stage/{verb}-unknown-key", _recipe(f"{{verb: {verb}, magic: 1}}"), "magic|verb")
        yield _case(f"stage/{verb}-null-key", _recipe(f"{{verb: {verb}, null: 1}}"), "verb" if never else verb)
        yield _case(f"stage/{verb}-number-key", _recipe(f"{{verb: {verb}, 5: 1}}"), "verb" if never else verb)
        if verb not in ("collect", "report"):
            yield _case(f"stage/{verb}-bare", _recipe(f"{{verb: {verb}}}"), "verb" if never else verb)
    yield _case("stage/unknown", _recipe("{verb: magic}"), "magic")
    yield _case("stage/no-verb", _recipe("{policy: base}"), "verb")
    yield _case("stage/upper-case", _recipe("{verb: Prune, policy: base}"), "Prune")
    yield _case("stage/second-wrong", _recipe(PRUNE, "{verb: quantize, policy: prune, bits: 3}"), "bits")
    late = _recipe(PRUNE, "{verb: quantize, policy: prune, modules_to_not_convert: [nothing]}")
    yield _case("stage/second-fails-late", late, "nothing", leaves=("runs",))
    yield _case("stage/without-evaluate", _recipe(PRUNE, "{verb: quantize, policy: prune}"), expected="works")
    yield _case("stage/report-alone", _recipe("{verb: report}"), "report", expected="either")


def _fields() -> Iterator[Case]:
    """Every field of every verb with values that it cannot have."""
    from pydantic import BaseModel

    from rlrc.verbs import VERBS, config_class

    raw = {"nan": ".nan", "infinity": ".inf", "negative": "-1", "text": "abc", "list": "[[1]]", "mapping": "{a: 1}"}
    raw |= {"empty": "''", "date": "2026-01-01", "huge": "1.0e+30", "binary": "!!binary aGVsbG8="}
    needed = {"policy": "base", "policies": "[base]", "dataset": "data", "ratio": "0.5", "source": "data"}

    def stage(verb: str, field: str, value: str) -> str:
        values = {name: given for name, given in needed.items() if name in config_class(verb).model_fields}
        values = {name: given for name, given in values.items() if name != "dataset" or verb in ("sft", "train")}
        return f"{{verb: {verb}, {', '.join(f'{k}: {v}' for k, v in (values | {field: value}).items())}}}"

    def with_data(place: Path) -> None:
        put("images", place / "data")

    for verb in VERBS:
        if verb in ("run", "study", "inspect", "assets", "make-random", "report"):
            continue
        for field, info in config_class(verb).model_fields.items():
            annotation = str(info.annotation)
            nested = isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
            numeric = any(kind in annotation for kind in ("int", "float"))
            text = annotation == "<class 'str'>" or "str |" in annotation
            for kind, value in raw.items():
                if kind in ("negative", "huge") and (not numeric or field == "protect" or nested):
                    continue
                if text and kind in ("text", "date", "empty") or (kind == "empty" and "None" in annotation):
                    continue
                if "tuple[str" in annotation and kind in ("text",):
                    continue
                if "bool" in annotation and kind == "text":
                    value = "maybe"
                if "Path" in annotation and kind in ("date", "binary"):
                    continue
                yield _case(f"field/{verb}.{field}={kind}", _recipe(stage(verb, field, value)), field, then=with_data)


def _references() -> Iterator[Case]:
    stage: Callable[[str], str] = lambda policy: PRUNE.replace("base", policy)  # noqa: E731
    yield _case("reference/itself", _recipe(stage("prune")), "prune")
    yield _case("reference/later", _recipe(stage("quantize"), "{verb: quantize, policy: base}"), "quantize")
    yield _case("reference/nothing", _recipe(stage("nothing")), "nothing")
    yield _case("reference/empty", _recipe(stage("''")), "policy")
    yield _case("reference/dot", _recipe(stage(".")), "policy")
    yield _case("reference/root", _recipe(stage("/proc")), "policy|/proc")
    yield _case("reference/no-base", "name: one\nstages:\n  - " + PRUNE + "\n", "base")
    yield _case("reference/base-missing", _recipe(base="missing"), "missing")
    yield _case("reference/base-itself", _recipe(base="base"), "base")
    yield _case("reference/base-is-stage", _recipe(base="prune"), "prune")
    yield _case("reference/evaluation-as-policy", _recipe("{verb: evaluate, policy: base}", stage("evaluate")), "evaluate")
    yield _case("reference/policy-as-dataset", _recipe(PRUNE, "{verb: sft, policy: prune, dataset: prune}"), "dataset")
    yield _case("reference/long", _recipe(stage("x" * 5000)), "policy")
    pipe = "reference/base-pipe"
    import os

    yield _case(pipe, _recipe(base="pipe"), "pipe", then=lambda place: os.mkfifo(place / "pipe"))
    inner = lambda place: os.mkfifo(place / "policy" / "pipe")  # noqa: E731
    yield _case("reference/pipe-inside-base", _recipe(), "pipe", then=inner, expected="either")
    zero = lambda place: (place / "policy" / "zero").symlink_to("/dev/zero")  # noqa: E731
    yield _case("reference/zero-inside-base", _recipe(), "zero", then=zero, expected="either")
    loop = lambda place: (place / "policy" / "loop").symlink_to(".")  # noqa: E731
    yield _case("reference/loop-inside-base", _recipe(), "loop", then=loop, expected="either")


def _folders() -> Iterator[Case]:
    """Runs that would write where the user's files are."""
    user = PRUNE.replace("prune,", "prune, name: user,", 1)
    photos = PRUNE.replace("prune,", "prune, name: photos,", 1)
    here = ("run", "recipe.yaml", "--out", ".")
    yield _case("folder/out-here", _recipe(photos), "photos", arguments=here)
    yield _case("folder/out-here-user", _recipe(user), "user", arguments=here)
    yield _case("folder/out-here-policy", _recipe(PRUNE.replace("prune,", "prune, name: policy,", 1)), "policy", arguments=here)
    yield _case("folder/out-user", _recipe(photos), "photos", arguments=("run", "recipe.yaml", "--out", "user"))
    yield _case("folder/out-absolute-dots", _recipe(photos), "photos", arguments=("run", "recipe.yaml", "--out", "runs/../user"))
    yield _case("folder/two-jobs-user", _recipe(user), "user", arguments=("run", "recipe.yaml", "--out", ".", "--jobs", "2"))
    yield _case("folder/out-is-file", _recipe(), "user", arguments=("run", "recipe.yaml", "--out", "user/thesis.txt"))
    yield _case("folder/out-below-file", _recipe(), "thesis", arguments=("run", "recipe.yaml", "--out", "user/thesis.txt/x"))
    yield _case("folder/out-is-recipe", _recipe(), "recipe.yaml", arguments=("run", "recipe.yaml", "--out", "recipe.yaml"))
    yield _case("folder/out-empty", _recipe(), "out", arguments=("run", "recipe.yaml", "--out", ""), expected="either")
    yield _case("folder/out-proc", _recipe(), "/proc", arguments=("run", "recipe.yaml", "--out", "/proc/nothing"))
    yield _case("folder/out-null", _recipe(), "/dev/null", arguments=("run", "recipe.yaml", "--out", "/dev/null"))
    yield _case("folder/out-long", _recipe(), "out|name|xxx", arguments=("run", "recipe.yaml", "--out", "x" * 5000))
    yield _case("folder/out-is-policy", _recipe(), "policy", arguments=("run", "recipe.yaml", "--out", "policy"), expected="either")

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
    dangling = lambda place: ((place / "runs/one").mkdir(parents=True), (place / "runs/one/prune").symlink_to("nowhere")) and None  # noqa: E731
    yield _case("folder/stage-is-dangling-link", _recipe(), "prune", then=dangling)
    is_file = lambda place: ((place / "runs/one").mkdir(parents=True), (place / "runs/one/prune").write_text("x")) and None  # noqa: E731
    yield _case("folder/stage-is-file", _recipe(), "prune", then=is_file)

    def own(stage: str = "prune") -> Change:
        return lambda place: put("finished", place / "runs/one") and None

    into = _recipe("{verb: quantize, policy: base, bits: 8}", base="runs/one/quantize/checkpoint")
    yield _case("folder/base-in-own-stage", into, "quantize", then=own())
    into = _recipe(PRUNE.replace("0.5", "0.25"), base="runs/one/prune/checkpoint")
    yield _case("folder/base-in-pruned-stage", into, "prune", then=own())
    direct = "{verb: prune, policy: runs/one/prune/checkpoint, ratio: 0.25, method: {kind: random}}"
    yield _case("folder/policy-in-own-stage", _recipe(direct), "prune", then=own())
    other = _recipe(PRUNE.replace("prune,", "prune, name: quantize,", 1), "{verb: quantize, name: prune, policy: runs/one/prune/checkpoint}")
    yield _case("folder/policy-in-other-stage", other, "prune", then=own())
    sure = ("prune", "--policy", "runs/one/prune/checkpoint", "--ratio", "0.5", "--out", "runs/one/prune", "method:random")
    yield _case("folder/verb-into-own-input", _recipe(), "runs/one/prune", then=own(), arguments=sure)
    inside = ("prune", "--policy", "policy", "--ratio", "0.5", "--out", "policy", "method:random")
    yield _case("folder/verb-into-policy", _recipe(), "policy", arguments=inside)
    deeper = ("prune", "--policy", "policy", "--ratio", "0.5", "--out", "policy/x", "method:random")
    yield _case("folder/verb-inside-policy", _recipe(), "policy", arguments=deeper, expected="either")
    for verb in ("make-random", "study"):
        given = ("make-random", "--preset", "openvla-tiny", "user") if verb == "make-random" else ("study", "recipe.yaml", "--out", "user")
        yield _case(f"folder/{verb}-user", _recipe(more="study: {policies: {a: prune}}\n"), "user|study", arguments=given)
    link = ("make-random", "--preset", "openvla-tiny", "link")
    yield _case("folder/make-random-link", _recipe(), "link", arguments=link, then=lambda p: (p / "link").symlink_to("user"))
    yield _case("folder/make-random-file", _recipe(), "thesis", arguments=("make-random", "--preset", "openvla-tiny", "user/thesis.txt"))
    changed = lambda place: (place / "policy" / "notes.txt").write_text("mine") and None  # noqa: E731
    yield _case("folder/make-random-over-mine", _recipe(), "policy", arguments=("make-random", "--preset", "openvla-tiny", "policy"), then=changed)


def _records() -> Iterator[Case]:
    """A run that ended, its records damaged, run again."""

    def again(name: str, change: Change) -> Change:
        def then(place: Path) -> None:
            put("finished", place / "runs/small")
            _again(place)
            change(place / "runs/small" / name)

        return then

    again_run = ("run", "small.yaml", "--out", "runs/small")
    for name in ("prune/done.json", "prune/config.yaml", "quantize/done.json"):
        kinds = JSON_FILE if name != "quantize/done.json" else NO_FILE
        for kind, change in kinds.items():
            soft = name.endswith("config.yaml") and kind in ("empty", "dev-null")
            yield _case(f"record/{name}-{kind}", "", Path(name).name, then=again(name, change), arguments=again_run, expected="either" if soft else "refused")
    for kind, change in {key: NO_FILE[key] for key in ("pipe", "folder", "empty")}.items():
        yield _case(f"record/recipe.yaml-{kind}", "", "recipe.yaml", then=again("recipe.yaml", change), arguments=again_run, expected="either")
    fields = {"fingerprint": "prune/done.json", "result": "prune/done.json", "seconds": "prune/done.json"}
    for field, name in fields.items():
        for kind in ("null", "negative", "text", "empty-list", "nan", "deep"):
            change = set_field((field,), VALUES[kind])
            soft = (field == "fingerprint" and kind in ("text",)) or field == "result" or kind == "negative"
            yield _case(f"record/{field}={kind}", "", "done.json", then=again(name, change), arguments=again_run, expected="either" if soft else "refused")
        gone = again(name, set_field((field,), None))
        yield _case(f"record/{field}-removed", "", "done.json", then=gone, arguments=again_run)
    gone_file = again("prune/done.json", lambda path: path.unlink())
    yield _case("record/done.json-removed", "", "runs/small", then=gone_file, arguments=again_run, expected="either")
    yield _case("record/fine", "", then=again("prune/log.txt", lambda path: None), arguments=again_run, expected="works")
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

            yield _case(f"record/artifact-{name}-{kind}", "", "runs/small", then=damaged, arguments=again_run, leaves=("runs/small",))
    report = ("report", "--run", "runs/small") if False else ("report", "runs/small", "--out", "page")
    for name in ("prune/done.json", "prune/config.yaml", "recipe.yaml"):
        for kind in ("not-utf-8", "list", "null", "pipe", "empty", "deep-objects", "5000-digits", "dev-zero"):
            yield _case(f"record/report-{name}-{kind}", "", Path(name).name, then=again(name, JSON_FILE[kind]), arguments=report)
    yield _case("record/report-missing", "", "nothing", arguments=("report", "nothing", "--out", "page"))
    yield _case("record/report-user", "", "user", arguments=("report", "user", "--out", "page"))
    yield _case("record/report-pipe", "", "pipe", arguments=("report", "pipe", "--out", "page"), then=lambda p: __import__("os").mkfifo(p / "pipe"))
    yield from _episodes()


def _again(place: Path) -> None:
    """The finished run's recipe; its paths are the template's."""
    from valid import template

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
            (folder / "config.yaml").write_text(yaml.safe_dump({"verb": "evaluate", "fingerprint": "x", "config": config}))
            (folder / "done.json").write_text(json.dumps({"fingerprint": "x", "seconds": 1.0, "result": {}}))
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

    yield _case("at-once/one-verb", "", "out", then=with_data, arguments=long, beside=long, beside_file="out/config.yaml")
    other = ("prune", "--policy", "policy", "--ratio", "0.5", "--out", "out", "method:random")
    yield _case("at-once/other-verb", "", "out", then=with_data, arguments=other, beside=long, beside_file="out/config.yaml")
    stage = "{verb: sft, policy: base, dataset: data, steps: 1000000, batch_size: 2}"
    run = ("run", "recipe.yaml", "--out", "out")
    yield _case("at-once/one-recipe", _recipe(stage), "out", then=with_data, arguments=run, beside=run, beside_file="out/sft/config.yaml")
    into = ("prune", "--policy", "policy", "--ratio", "0.5", "--out", "out/sft", "method:random")
    yield _case("at-once/verb-into-stage", _recipe(stage), "out", then=with_data, arguments=into, beside=run, beside_file="out/sft/config.yaml")
