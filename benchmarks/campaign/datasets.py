"""Damaged info.json, files, videos and pictures of LeRobotDatasets; version 2.1; the datasets of bug reports."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from case import Case, Expected
from damage import JSON_FILE, NO_FILE, VALUES, Change, at, edit_column, inside, remove, set_field, truncate, write
from data_case import READERS, SFT, TRAIN, arrow_type, number_edits, vector_edits
from data_case import dataset_case as _case
from valid import (
    CAMERA,
    DATA_FILE,
    EPISODES_FILE,
    LENGTHS,
    VIDEO_FILE,
    nothing,
    put,
    put_user_files,
    write_video,
)

FRAMES = sum(LENGTHS)
ROOT = Path(__file__).resolve().parents[2]


def cases() -> Iterator[Case]:
    yield from _info()
    yield from _files()
    yield from _videos()
    yield from _pictures()
    yield from _v21()
    yield from _given()
    yield from _readers()


def _info() -> Iterator[Case]:
    fields: dict[str, tuple[tuple[str | int, ...], set[str]]] = {
        "codebase_version": (("codebase_version",), set()),
        "fps": (("fps",), {"fraction", "true"}),
        "total_frames": (("total_frames",), set()),
        "features": (("features",), set()),
        "features.action": (("features", "action"), set()),
        "features.camera": (("features", CAMERA), set()),
        "camera.dtype": (("features", CAMERA, "dtype"), set()),
    }
    soft: dict[str, tuple[str | int, ...]] = {
        "total_episodes": ("total_episodes",),
        "action.shape": ("features", "action", "shape"),
        "action.names": ("features", "action", "names"),
        "camera.shape": ("features", CAMERA, "shape"),
        "data_path": ("data_path",),
        "chunks_size": ("chunks_size",),
        "splits": ("splits",),
        "robot_type": ("robot_type",),
        "state": ("features", "observation.state"),
    }
    for field, (keys, fine) in fields.items():
        for kind, raw in VALUES.items():
            big = kind.startswith("huge") and field == "fps"
            expected: Expected = "either" if kind in fine or big else "refused"
            change = inside("meta/info.json", set_field(keys, raw))
            word = "info.json|camera" if "camera" in field or field == "features" else "info.json"
            yield _case(f"info/{field}={kind}", change, word, expected=expected)
        yield _case(
            f"info/{field}-removed", inside("meta/info.json", set_field(keys, None)), "info.json|camera|feature"
        )
    for field, keys in soft.items():
        for kind in ("null", "negative", "nan", "text", "empty-list", "deep", "5000-digits", "huge"):
            change = inside("meta/info.json", set_field(keys, VALUES[kind]))
            yield _case(f"info/{field}={kind}", change, "data", expected="either")
        yield _case(f"info/{field}-removed", inside("meta/info.json", set_field(keys, None)), "data", expected="either")
    for kind, raw in VALUES.items():
        change = inside("meta/info.json", set_field(("fps",), raw))
        expected = "either" if kind == "true" else "refused"
        yield _case(f"video-info/fps={kind}", change, "info.json", expected=expected, base="video")
    for version in ("v1.6", "v2.0", "v3.1", "v4.0", "3.0", "v2.1"):
        change = inside("meta/info.json", set_field(("codebase_version",), f'"{version}"'))
        yield _case(f"info/version-{version}", change, "data", expected="either" if version == "v3.1" else "refused")
    paths = {
        "escape": "../user/thesis.txt",
        "absolute": "/etc/passwd",
        "escape-by-key": "{video_key}/../../../user/thesis.txt",
        "attribute": "{video_key.__class__.__mro__}",
        "unknown": "videos/{nothing}.mp4",
        "wide": "{chunk_index:>2000000000}",
        "position": "{0}/{1}.mp4",
        "open": "videos/{video_key",
        "bad-format": "videos/{video_key:d}.mp4",
        "constant": "videos/all.mp4",
        "nul": "videos/\\u0000.mp4",
        "long": "x" * 5000,
    }
    for kind, path in paths.items():
        change = inside("meta/info.json", set_field(("video_path",), f'"{path}"'))
        yield _case(f"video-info/video_path-{kind}", change, "data", base="video")
    for kind, raw in VALUES.items():
        change = inside("meta/info.json", set_field(("video_path",), raw))
        yield _case(f"video-info/video_path={kind}", change, "data/", base="video")
    gone = inside("meta/info.json", set_field(("video_path",), None))
    yield _case("video-info/video_path-removed", gone, "info.json", "video_path", base="video")


def _files() -> Iterator[Case]:
    for kind, change in JSON_FILE.items():
        words = ("info.json", "git lfs pull") if kind == "lfs-pointer" else ("info.json",)
        yield _case(f"info.json/{kind}", inside("meta/info.json", change), *words)
        yield _case(f"stats.json/{kind}", inside("meta/stats.json", change), "stats.json", expected="either")
    for name, word in ((DATA_FILE, "file-000.parquet"), ("meta/tasks.parquet", "tasks.parquet")):
        for kind, change in (
            NO_FILE | {"text": write("hello"), "cut": truncate(0.7), "start-only": truncate(0.01)}
        ).items():
            words = (word, "git lfs pull") if kind == "lfs-pointer" else (word,)
            yield _case(f"files/{word}-{kind}", inside(name, change), *words)
    for kind, change in (NO_FILE | {"text": write("hello"), "cut": truncate(0.7)}).items():
        words = ("file-000.parquet", "git lfs pull") if kind == "lfs-pointer" else ("file-000.parquet",)
        yield _case(f"files/episodes-{kind}", inside(EPISODES_FILE, change), *words, base="video")
    for name in (DATA_FILE, "meta/tasks.parquet", "meta/info.json"):
        yield _case(f"files/{Path(name).name}-removed", inside(name, remove), "data")
    yield _case("files/episodes-removed", inside(EPISODES_FILE, remove), "data", "episodes", base="video")
    yield _case("files/stats.json-removed", inside("meta/stats.json", remove), expected="works")
    yield _case("files/stray", inside("data/chunk-000/notes.txt", write("hello")), expected="works")
    yield _case("files/stray-parquet", inside("data/chunk-000/file-001.parquet", write("hello")), "file-001.parquet")
    yield _case("files/macos", inside("data/chunk-000/._file-000.parquet", write("hello")), "._file", expected="either")
    yield _case("fine", nothing, expected="works")
    yield _case("fine-video", nothing, expected="works", base="video")
    yield _case("fine-train", nothing, expected="works", arguments=TRAIN)


def _videos() -> Iterator[Case]:
    kinds = NO_FILE | {"text": write("hello"), "cut-0.5": truncate(0.5), "cut-0.9": truncate(0.9), "removed": remove}
    for kind, change in kinds.items():
        words = ("file-000.mp4", "git lfs pull") if kind == "lfs-pointer" else ("file-000.mp4",)
        yield _case(f"video/{kind}", inside(VIDEO_FILE, change), *words, base="video")

    def other(frames: int, size: tuple[int, int] = (64, 64), fps: int = 10) -> Change:
        def change(path: Path) -> None:
            import numpy as np

            write_video(path, [np.full((*size, 3), 10 + 5 * i, np.uint8) for i in range(frames)], fps)

        return change

    yield _case("video/too-short", inside(VIDEO_FILE, other(5)), "file-000.mp4", base="video")
    yield _case("video/one-missing", inside(VIDEO_FILE, other(FRAMES - 1)), "file-000.mp4", base="video")
    yield _case("video/one-frame", inside(VIDEO_FILE, other(1)), "file-000.mp4", base="video")
    yield _case("video/other-size", inside(VIDEO_FILE, other(FRAMES, (48, 96))), base="video", expected="either")
    yield _case("video/longer", inside(VIDEO_FILE, other(3 * FRAMES)), base="video", expected="works")
    yield _case("video/thirty-fps", inside(VIDEO_FILE, other(3 * FRAMES, fps=30)), base="video", expected="works")
    yield _case("video/five-fps", inside(VIDEO_FILE, other(FRAMES // 2, fps=5)), "data", base="video")
    yield _case("video/picture", inside(VIDEO_FILE, _png), "file-000.mp4", base="video")
    yield _case("video/sound-only", inside(VIDEO_FILE, _sound), "file-000.mp4", base="video")


def _png(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(path, "PNG")


def _sound(path: Path) -> None:
    import av
    import numpy as np

    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _pictures() -> Iterator[Case]:
    def struct() -> Any:
        import pyarrow as pa

        return pa.struct({"bytes": pa.binary(), "path": pa.string()})

    def row(value: Any) -> Callable[[list[Any]], list[Any]]:
        return at(3, {"bytes": value, "path": None})

    edits: dict[str, tuple[Any, Any]] = {
        "one-null": (at(3, None), struct),
        "bytes-null": (row(None), struct),
        "bytes-empty": (row(b""), struct),
        "bytes-text": (row(b"hello"), struct),
        "all-null": (lambda values: [None] * len(values), struct),
        "cut": (lambda v: [*v[:3], {"bytes": v[3]["bytes"][:60], "path": None}, *v[4:]], struct),
        "numbers": (lambda values: list(range(len(values))), arrow_type("int64")),
        "texts": (lambda values: ["images/a.png"] * len(values), arrow_type("string")),
        "path-only": (lambda values: [{"bytes": None, "path": "../user/thesis.txt"}] * len(values), struct),
        "path-pipe": (lambda values: [{"bytes": None, "path": "/dev/zero"}] * len(values), struct),
        "bomb": (row(_bomb()), struct),
    }
    for kind, (edit, arrow) in edits.items():
        yield _case(
            f"pictures/{kind}", inside(DATA_FILE, edit_column(CAMERA, edit, arrow)), "data", CAMERA + "|frame|row"
        )
    sizes = _encoded((32, 48))
    yield _case(
        "pictures/other-size", inside(DATA_FILE, edit_column(CAMERA, row(sizes), struct)), "data", expected="either"
    )
    deep = _encoded((64, 64), "I;16")
    every = edit_column(CAMERA, lambda values: [{"bytes": deep, "path": None}] * len(values), struct)
    yield _case("pictures/16-bit", inside(DATA_FILE, every), "depth|colour|16")


def _encoded(size: tuple[int, int], mode: str = "RGB") -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


def _bomb() -> bytes:
    """A PNG whose header promises 100,000 x 100,000 pixels."""
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"IDAT" + zlib.compress(bytes(1000))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for part in (chunk, data, b"IEND"):
        parts += [struct.pack(">I", len(part) - 4), part, struct.pack(">I", zlib.crc32(part))]
    return b"".join(parts)


def _v21() -> Iterator[Case]:
    for base in ("images-v21", "video-v21"):
        yield _case(f"v21/fine-{base}", nothing, expected="works", base=base)
    for name in ("episodes.jsonl", "tasks.jsonl", "episodes_stats.jsonl"):
        optional = name == "episodes_stats.jsonl"
        for kind, change in JSON_FILE.items():
            words = (name, "git lfs pull") if kind == "lfs-pointer" else (name,)
            yield _case(
                f"v21/{name}-{kind}",
                inside(f"meta/{name}", change),
                *words,
                base="images-v21",
                expected="either" if optional or name == "episodes.jsonl" else "refused",
            )
        yield _case(
            f"v21/{name}-removed",
            inside(f"meta/{name}", remove),
            name,
            base="images-v21",
            expected="either" if name != "tasks.jsonl" else "refused",
        )
    lines = {
        "task-null": '{"task_index": 0, "task": null}\n{"task_index": 1, "task": "x"}\n',
        "task-number": '{"task_index": 0, "task": 5}\n{"task_index": 1, "task": "x"}\n',
        "index-text": '{"task_index": "a", "task": "x"}\n{"task_index": 1, "task": "x"}\n',
        "index-negative": '{"task_index": -1, "task": "x"}\n{"task_index": 1, "task": "x"}\n',
        "one-missing": '{"task_index": 0, "task": "x"}\n',
        "cut-line": '{"task_index": 0, "task": "x"}\n{"task_ind',
        "not-utf-8": b'{"task_index": 0, "task": "\xff"}\n',
    }
    for kind, text in lines.items():
        yield _case(f"v21/tasks-{kind}", inside("meta/tasks.jsonl", write(text)), "task", base="images-v21")
    first = "data/chunk-000/episode_000000.parquet"
    for kind, change in (NO_FILE | {"text": write("hello"), "cut": truncate(0.7), "removed": remove}).items():
        yield _case(f"v21/episode-{kind}", inside(first, change), "data", base="images-v21")
    video = f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    for kind, change in (NO_FILE | {"text": write("hello"), "cut": truncate(0.5), "removed": remove}).items():
        yield _case(f"v21/video-{kind}", inside(video, change), "data", base="video-v21")
    for field in ("data_path", "video_path", "chunks_size", "fps", "total_frames"):
        for kind in ("null", "negative", "zero", "nan", "text", "empty-list", "deep", "huge"):
            soft = field in ("data_path", "chunks_size") or (kind == "huge" and field == "fps")
            change = inside("meta/info.json", set_field((field,), VALUES[kind]))
            yield _case(
                f"v21/info-{field}={kind}", change, "data", base="video-v21", expected="either" if soft else "refused"
            )
    for column in ("action", "timestamp", "task_index"):
        edit, arrow = (vector_edits() if column == "action" else number_edits())["one-null"]
        yield _case(
            f"v21/{column}-null", inside(first, edit_column(column, edit, arrow)), "data", column, base="video-v21"
        )


def _given() -> Iterator[Case]:
    """The datasets of public bug reports, where they are on this machine."""
    folders = (
        ROOT / "tests" / "cases",
        ROOT / "tests" / "cases" / "datasets",
        ROOT.parent / "shared" / "cases" / "datasets",
    )
    found = next((folder for folder in folders if (folder / "plain").is_dir()), None)
    if found is None:
        return
    wanted: dict[str, tuple[Expected, tuple[str, ...], tuple[str, ...]]] = {
        "plain": ("works", (), ()),
        "hwts": ("either", ("episode",), ()),
        "v_fps": ("works", (), ()),
        "two": ("refused", ("observation.images",), ()),
        "pi0libero": ("works", (), ()),
        "rgbd": ("either", ("depth",), ()),
        "depth": ("refused", ("depth",), ()),
        "nostate": ("works", (), ()),
        "nan": ("refused", ("episode", "action"), ()),
        "scale": ("works", (), ()),
        "list": ("works", (), ()),
        "mix": ("works", (), ()),
        "merged_video": ("works", (), ()),
        "a14": ("refused", ("14",), ()),
        "hd": ("works", (), ()),
    }

    def linked(source: Path) -> Callable[[Path], None]:
        def build(place: Path) -> None:
            put_user_files(place)
            put("policy", place / "policy")
            (place / "data").symlink_to(source)

        return build

    for name, (expected, words, _) in wanted.items():
        if (found / name).is_dir():
            patience = 20 if name == "hd" else 1  # 5000 frames of 1080p are decoded once
            yield Case(f"dataset/given/{name}", SFT, linked(found / name), expected, words, patience=patience)
            if name != "hd":
                gptq = READERS["gptq"]
                yield Case(f"dataset/given/{name}-gptq", gptq, linked(found / name), expected, words)
    if (found / "two").is_dir():
        for name, keys in {"two": _cameras(found / "two"), "pi0libero": _cameras(found / "pi0libero")}.items():
            for key in keys:
                named = (*SFT, "--cameras", key)
                yield Case(f"dataset/given/{name}-camera-{key}", named, linked(found / name), "works")
            unknown = (*SFT, "--cameras", "nothing")
            yield Case(
                f"dataset/given/{name}-camera-unknown", unknown, linked(found / name), "refused", ("nothing", keys[0])
            )
        scaled = (*SFT, "--statistics", "dataset", "--unnorm-key", "new")
        yield Case("dataset/given/scale-own-statistics", scaled, linked(found / "scale"), "works")


def _cameras(folder: Path) -> list[str]:
    import json

    features = json.loads((folder / "meta" / "info.json").read_text())["features"]
    return [key for key, feature in features.items() if feature["dtype"] in ("image", "video")]


def _readers() -> Iterator[Case]:
    """The same faults in every verb that reads a dataset."""
    nan = inside(DATA_FILE, edit_column("action", vector_edits()["nan"][0], None))
    faults: dict[str, tuple[Change, str]] = {
        "nan-action": (nan, "action"),
        "no-info": (inside("meta/info.json", remove), "info.json|LeRobotDataset"),
        "cut-table": (inside(DATA_FILE, truncate(0.6)), "file-000.parquet"),
        "ragged": (inside(DATA_FILE, edit_column("action", *vector_edits()["ragged-longer"])), "action"),
        "task-index": (inside(DATA_FILE, edit_column("task_index", *number_edits()["negative"])), "task_index"),
    }
    for verb, arguments in READERS.items():
        yield _case(f"readers/fine-{verb}", nothing, expected="works", arguments=arguments)
        for kind, (change, word) in faults.items():
            yield _case(f"readers/{kind}-{verb}", change, "data", word, arguments=arguments)

    def place(make: Any) -> Any:
        def build(root: Path) -> None:
            put_user_files(root)
            put("policy", root / "policy")
            make(root / "data")

        return build

    nowhere: dict[str, Any] = {
        "missing": lambda path: None,
        "file": lambda path: path.write_text("x"),
        "pipe": lambda path: os.mkfifo(path),
        "empty": lambda path: path.mkdir(),
        "dev-zero": lambda path: path.symlink_to("/dev/zero"),
    }
    for verb, arguments in READERS.items():
        for kind, make in nowhere.items():
            yield Case(f"dataset/readers/{kind}-{verb}", arguments, place(make), words=("data",))
