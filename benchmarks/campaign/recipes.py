"""Recipes that are wrong: names, keys, stages, fields, references."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from case import Case, Expected
from damage import JSON_FILE, NO_FILE, VALUES
from recipe_case import PRUNE
from recipe_case import recipe_case as _case
from recipe_case import recipe_text as _recipe
from valid import put


def cases() -> Iterator[Case]:
    yield from _files()
    yield from _names()
    yield from _keys()
    yield from _stages()
    yield from _fields()
    yield from _references()


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
    stages = (PRUNE.replace("prune,", f"prune, name: p{i},", 1) for i in range(10_000))
    many = "".join(f"  - {stage}\n" for stage in stages)
    yield _case("yaml/10000-stages", f"name: one\nbase: policy\nstages:\n{many}", "stage|recipe.yaml")


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
        yield _case(
            f"study/name-{kind}",
            _recipe(name=name),
            "name|study",
            expected="either" if kind in soft else "refused",
            arguments=("study", "recipe.yaml"),
        )
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
        yield _case(f"key/stages={kind}", f"name: one\nbase: policy\nstages: {value}\n", "stage")
        yield _case(f"key/stage={kind}", f"name: one\nbase: policy\nstages: [{value}]\n", "stage")
        yield _case(f"key/base={kind}", _recipe(base=value), "base", expected="either" if kind == "null" else "refused")
        yield _case(
            f"key/world={kind}",
            _recipe(
                "{verb: evaluate, policy: base, episodes: 1, num_envs: 1, num_workers: 0, videos: 0}",
                more=f"world: {value}\n",
            ),
            "world",
        )
        yield _case(
            f"key/study={kind}",
            _recipe(more=f"study: {value}\n"),
            "study",
            expected="either" if kind == "null" else "refused",
        )
        yield _case(
            f"key/policies={kind}",
            _recipe(more=f"study: {{policies: {value}}}\n"),
            "policies|study",
            expected="either" if kind == "object" else "refused",
        )
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
    from rlrc.command_line import commands

    for verb in commands():
        never = verb in ("run", "study", "inspect", "assets", "make-random", "cache")
        yield _case(f"stage/{verb}-unknown-key", _recipe(f"{{verb: {verb}, magic: 1}}"), "magic|verb|missing key")
        yield _case(
            f"stage/{verb}-null-key", _recipe(f"{{verb: {verb}, null: 1}}"), "verb" if never else f"{verb}|stage 1"
        )
        yield _case(
            f"stage/{verb}-number-key", _recipe(f"{{verb: {verb}, 5: 1}}"), "verb" if never else f"{verb}|stage 1"
        )
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

    from rlrc.command_line import commands

    raw = {"nan": ".nan", "infinity": ".inf", "negative": "-1", "text": "abc", "list": "[[1]]", "mapping": "{a: 1}"}
    raw |= {"empty": "''", "date": "2026-01-01", "huge": "1.0e+30", "binary": "!!binary aGVsbG8="}
    needed = {"policy": "base", "policies": "[base]", "dataset": "data", "ratio": "0.5", "source": "data"}

    def stage(verb: str, field: str, value: str) -> str:
        values = {name: given for name, given in needed.items() if name in commands()[verb].config_class().model_fields}
        values = {name: given for name, given in values.items() if name != "dataset" or verb in ("sft", "train")}
        if verb == "prune":  # a method that needs no dataset
            values["method"] = "{kind: random}"
        return f"{{verb: {verb}, {', '.join(f'{k}: {v}' for k, v in (values | {field: value}).items())}}}"

    def with_data(place: Path) -> None:
        put("images", place / "data")

    for verb in commands():
        if verb in ("run", "study", "inspect", "assets", "make-random", "cache", "report"):
            continue
        for field, info in commands()[verb].config_class().model_fields.items():
            annotation = str(info.annotation)
            nested = isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
            numeric = any(kind in annotation for kind in ("int", "float"))
            text = annotation == "<class 'str'>" or "str |" in annotation
            for kind, value in raw.items():
                if kind in ("negative", "huge") and (not numeric or field == "protect" or nested):
                    continue
                if kind == "huge" and "float" in annotation:  # right for some, and then long
                    continue
                if (text and kind in ("text", "date", "empty", "binary")) or (kind == "empty" and "None" in annotation):
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
    yield _case("reference/dot", _recipe(stage(".")), "policy|. is read")
    yield _case("reference/root", _recipe(stage("/proc")), "policy|/proc")
    yield _case("reference/no-base", "name: one\nstages:\n  - " + PRUNE + "\n", "base")
    yield _case("reference/base-missing", _recipe(base="missing"), "missing")
    yield _case("reference/base-itself", _recipe(base="base"), "base")
    yield _case("reference/base-is-stage", _recipe(base="prune"), "prune")
    yield _case(
        "reference/evaluation-as-policy", _recipe("{verb: evaluate, policy: base}", stage("evaluate")), "evaluate"
    )
    yield _case("reference/policy-as-dataset", _recipe(PRUNE, "{verb: sft, policy: prune, dataset: prune}"), "dataset")
    yield _case("reference/long", _recipe(stage("x" * 5000)), "policy")
    yield _case("reference/base-pipe", _recipe(base="pipe"), "pipe", then=lambda place: os.mkfifo(place / "pipe"))
    inner = lambda place: os.mkfifo(place / "policy" / "pipe")  # noqa: E731
    yield _case("reference/pipe-inside-base", _recipe(), "pipe", then=inner, expected="either")
    zero = lambda place: (place / "policy" / "zero").symlink_to("/dev/zero")  # noqa: E731
    yield _case("reference/zero-inside-base", _recipe(), "zero", then=zero, expected="either")
    loop = lambda place: (place / "policy" / "loop").symlink_to(".")  # noqa: E731
    yield _case("reference/loop-inside-base", _recipe(), "loop", then=loop, expected="either")
