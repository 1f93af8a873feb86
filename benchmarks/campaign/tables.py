"""Damaged tables of LeRobotDatasets: frames, episodes and tasks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from case import Case, Expected
from damage import Change, at, edit_column, edit_table, inside, set_field
from data_case import TRAIN, arrow_type, lists, number_edits, vector_edits
from data_case import dataset_case as _case
from valid import CAMERA, DATA_FILE, EPISODES_FILE, LENGTHS

FRAMES = sum(LENGTHS)


def cases() -> Iterator[Case]:
    yield from _columns()
    yield from _episode_columns()
    yield from _tasks()


def _columns() -> Iterator[Case]:
    for column in ("action", "observation.state"):
        for kind, (edit, arrow) in vector_edits().items():
            if kind == "lists-of-lists":
                arrow = _nested
            yield _case(f"column/{column}-{kind}", inside(DATA_FILE, edit_column(column, edit, arrow)), "data", column)
    for column in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        for kind, (edit, arrow) in number_edits().items():
            arrow = _seconds if kind == "times" else arrow
            change = inside(DATA_FILE, edit_column(column, edit, arrow))
            read = column in ("episode_index", "task_index")
            fine = not read or kind in ("lists", "bool", "equal") or (column == "task_index" and kind == "disordered")
            fine = fine or kind == "text"
            word = column.removesuffix("_index")
            yield _case(f"column/{column}-{kind}", change, "data", word, expected="either" if fine else "refused")
            if column == "timestamp":
                soft = kind in ("lists", "text")
                expected: Expected = "either" if soft else "refused"
                yield _case(f"video-column/{column}-{kind}", change, "data", word, expected=expected, base="video")
            if column == "episode_index":
                expected = "either" if kind in ("lists", "bool", "text") else "refused"
                yield _case(f"video-column/{column}-{kind}", change, "data", word, expected=expected, base="video")
        drop = edit_table(lambda table, column=column: table.drop_columns([column]))
        needed = column in ("episode_index", "task_index")
        yield _case(
            f"column/{column}-missing",
            inside(DATA_FILE, drop),
            "data",
            column,
            expected="refused" if needed else "either",
        )
        if column == "timestamp":
            yield _case(f"video-column/{column}-missing", inside(DATA_FILE, drop), "data", word, base="video")
    for column, expected in {"action": "refused", "observation.state": "either", CAMERA: "refused"}.items():
        drop = edit_table(lambda table, column=column: table.drop_columns([column]))
        word = "action" if column == "action" else column
        yield _case(f"column/{column}-missing", inside(DATA_FILE, drop), "data", word, expected=expected)  # type: ignore[arg-type]
    for column in ("action", "observation.state", "observation.environment_state"):
        both = _both(
            inside(DATA_FILE, edit_table(lambda t, c=column: t.drop_columns([c]))),
            inside("meta/info.json", set_field(("features", column), None)),
        )
        expected = "refused" if column == "action" else "works"
        yield _case(f"column/{column}-missing-in-info-too", both, "data", "action", expected=expected)  # type: ignore[arg-type]
    train = _both(
        inside(DATA_FILE, edit_table(lambda t: t.drop_columns(["observation.environment_state"]))),
        inside("meta/info.json", set_field(("features", "observation.environment_state"), None)),
    )
    yield _case(
        "column/environment-state-missing-train", train, "environment_state", expected="either", arguments=TRAIN
    )
    for kind in ("nan", "infinity", "ragged-longer", "one-null", "1e300"):
        edit, arrow = vector_edits()[kind]
        change = inside(DATA_FILE, edit_column("observation.environment_state", edit, arrow))
        yield _case(f"column/environment_state-{kind}-train", change, "data", "environment_state", arguments=TRAIN)
    renamed = edit_table(lambda t: t.rename_columns(["Action" if n == "action" else n for n in t.column_names]))
    yield _case("column/action-other-name", inside(DATA_FILE, renamed), "data", "action")
    twice = edit_table(lambda t: t.append_column("action", t["action"]))
    yield _case("column/action-twice", inside(DATA_FILE, twice), "data", "action", expected="either")
    for size in (0, 1, 6, 8, 14):
        wide = edit_column("action", lambda values, size=size: [[0.01] * size for _ in values], lists("float32"))
        yield _case(f"column/action-of-{size}", inside(DATA_FILE, wide), "data", str(size) if size else "action")
    yield _case("rows/none", inside(DATA_FILE, edit_table(lambda t: t.slice(0, 0))), "data")
    yield _case("rows/one-less", inside(DATA_FILE, edit_table(lambda t: t.slice(0, FRAMES - 1))), "data")
    yield _case("rows/first-missing", inside(DATA_FILE, edit_table(lambda t: t.slice(1))), "data")
    yield _case("rows/twice", inside(DATA_FILE, edit_table(_twice)), "data")
    yield _case("rows/shuffled", inside(DATA_FILE, edit_table(lambda t: t.take(list(range(FRAMES))[::-1]))), "data")
    big = inside(DATA_FILE, edit_column("action", lambda values: [[1e6] * 7 for _ in values]))
    yield _case("column/action-far-outside", big, "data", expected="either")
    gap = edit_column("episode_index", lambda values: [5 * value for value in values])
    yield _case("column/episode_index-gap", inside(DATA_FILE, gap), "data", "episode", expected="either")


def _nested() -> Any:
    import pyarrow as pa

    return pa.list_(pa.list_(pa.float32()))


def _seconds() -> Any:
    import pyarrow as pa

    return pa.timestamp("s")


def _twice(table: Any) -> Any:
    import pyarrow as pa

    return pa.concat_tables([table, table])


def _both(*changes: Change) -> Change:
    def change(path: Path) -> None:
        for one in changes:
            one(path)

    return change


def _episode_columns() -> Iterator[Case]:
    """Damaged columns of the table of episodes, among them those that say where an episode lies in the videos."""
    at_1 = {kind: edit for kind, edit in number_edits().items() if kind not in ("disordered", "equal", "times")}
    replaced = {"one-null": at(1, None), "negative": at(1, -1), "nan": at(1, float("nan"))}
    replaced |= {"infinity": at(1, float("inf")), "1e300": at(1, 1e300), "huge": at(1, 2**62)}
    names = ("episode_index", "length", "dataset_from_index")
    names += tuple(f"videos/{CAMERA}/{name}" for name in ("from_timestamp", "chunk_index", "file_index"))
    for column in names:
        short = column.rpartition("/")[2]
        word = {"from_timestamp": "from_timestamp|lasts from", "length": "length|frames"}.get(short, short)
        needed = column not in ("length", "dataset_from_index")
        for kind, (edit, arrow) in at_1.items():
            edited = edit_column(column, replaced.get(kind, edit), arrow)
            soft = not needed or kind in ("lists", "bool", "text") or (kind == "nan" and "index" in short)
            expected: Expected = "either" if soft else "refused"
            yield _case(
                f"episodes/{short}-{kind}",
                inside(EPISODES_FILE, edited),
                "data",
                word,
                expected=expected,
                base="video",
            )
        drop = edit_table(lambda table, column=column: table.drop_columns([column]))
        yield _case(
            f"episodes/{short}-missing",
            inside(EPISODES_FILE, drop),
            "data",
            short,
            expected="refused" if needed else "either",
            base="video",
        )
    equal = edit_column(f"videos/{CAMERA}/from_timestamp", lambda values: [0.0] * len(values))
    yield _case(
        "episodes/from_timestamp-equal",
        inside(EPISODES_FILE, equal),
        "data",
        "from_timestamp|timestamp|episode",
        base="video",
    )
    late = edit_column(f"videos/{CAMERA}/from_timestamp", lambda values: [value + 100 for value in values])
    yield _case("episodes/from_timestamp-late", inside(EPISODES_FILE, late), "data", "episode", base="video")
    yield _case("episodes/none", inside(EPISODES_FILE, edit_table(lambda t: t.slice(0, 0))), "data", base="video")
    yield _case(
        "episodes/one-missing",
        inside(EPISODES_FILE, edit_table(lambda t: t.slice(0, 1))),
        "data",
        "episode",
        base="video",
    )
    yield _case("episodes/twice", inside(EPISODES_FILE, edit_table(_twice)), "data", expected="either", base="video")


def _tasks() -> Iterator[Case]:
    edits: dict[str, tuple[Any, Any]] = {
        "null": (at(1, None), None),
        "bytes": (lambda values: [b"\xff\xfe"] * len(values), arrow_type("binary")),
        "numbers": (lambda values: list(range(len(values))), arrow_type("int64")),
        "lists": (lambda values: [[value] for value in values], lists("string")),
        "empty": (lambda values: ["" for _ in values], None),
        "million-letters": (lambda values: ["put " * 250_000 for _ in values], None),
        "braces": (lambda values: ["{0} {x.__class__}" for _ in values], None),
        "control": (lambda values: ["put\x00 \x1b[31m carrot"] * len(values), None),
        "special-tokens": (lambda values: ["<s></s><PAD>"] * len(values), None),
    }
    for kind, (edit, arrow) in edits.items():
        fine = kind in ("braces", "control", "special-tokens", "empty")
        yield _case(
            f"tasks/task-{kind}",
            inside("meta/tasks.parquet", edit_column("task", edit, arrow)),
            "task",
            expected="either" if fine else "refused",
        )
    for kind, (edit, arrow) in number_edits().items():
        arrow = _seconds if kind == "times" else arrow
        edit = at(1, None) if kind == "one-null" else at(1, -1) if kind == "negative" else edit
        if kind in ("nan", "infinity", "1e300", "huge"):
            edit = at(1, {"nan": float("nan"), "infinity": float("inf"), "1e300": 1e300, "huge": 2**62}[kind])
        fine = kind in ("disordered", "bool", "text", "lists")
        yield _case(
            f"tasks/task_index-{kind}",
            inside("meta/tasks.parquet", edit_column("task_index", edit, arrow)),
            "task",
            expected="either" if fine else "refused",
        )
    for name in ("task", "task_index"):
        drop = edit_table(lambda table, name=name: table.drop_columns([name]))
        yield _case(f"tasks/{name}-missing", inside("meta/tasks.parquet", drop), "tasks.parquet")
    plus = edit_table(lambda table: table.append_column("notes", table["task"]))
    yield _case("tasks/another-column", inside("meta/tasks.parquet", plus), "tasks.parquet", expected="works")
    yield _case("tasks/none", inside("meta/tasks.parquet", edit_table(lambda t: t.slice(0, 0))), "task")
    yield _case("tasks/one-missing", inside("meta/tasks.parquet", edit_table(lambda t: t.slice(0, 1))), "task")
    yield _case("tasks/duplicates", inside("meta/tasks.parquet", edit_table(_twice)), "task", expected="either")
