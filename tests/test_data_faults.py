"""Damaged datasets: each is one line that names the file and what is wrong, and nothing hangs or is half read."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_files import (
    DATA,
    EPISODES,
    FRONT,
    VIDEO,
    column,
    copy_case,
    edit_json,
    only_camera,
    set_column,
    write_v21,
    write_video,
)
from PIL import Image

from rlrc.data import Demonstrations
from rlrc.errors import UserError
from rlrc.reading import LFS_POINTER

RAW_PYTHON = ("Traceback", "<class", "object at 0x", "unpack", "NoneType", "('", "KeyError", "iterable")


def refused(path: Path, *words: str, **options: Any) -> None:
    with pytest.raises(UserError) as error:
        Demonstrations.load(path, **options).images  # noqa: B018
    message = str(error.value)
    assert "\n" not in message and len(message) < 700, message
    assert not [raw for raw in RAW_PYTHON if raw in message], message
    for word in words:
        assert word in message, message


def changed(name: str, values: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    return lambda path: set_column(path / DATA, name, values(column(path / DATA, name)))


def at(row: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value if number == row else old for number, old in enumerate(values)]


def inside(row: int, dimension: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [at(dimension, value)(old) if number == row else old for number, old in enumerate(values)]


def typed(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind)


ACTION_FAULTS = {
    "ragged": (at(8, [0.0] * 6), ["episode 1, frame 2", "length 6", "7"]),
    "one of another length": (lambda old: [[0.0] * 6] * len(old), ["episode 0, frame 0", "length 6"]),
    "null row": (at(3, None), ["episode 0, frame 3", "empty"]),
    "null inside": (inside(7, 2, None), ["episode 1, frame 1", "lacks a number"]),
    "infinite": (inside(2, 0, -np.inf), ["episode 0, frame 2", "-inf", "dimension 0"]),
    "too large": (inside(6, 6, 1e300), ["episode 1, frame 0", "1e+300"]),
    "texts": (lambda old: [["a"] * 7] * len(old), ["string", "numbers are needed"]),
    "single numbers": (lambda old: [0.5] * len(old), ["double", "lists of 7 numbers"]),
    "single texts": (lambda old: ["x"] * len(old), ["string"]),
    "booleans": (lambda old: [[True] * 7] * len(old), ["bool"]),
    "lists of lists": (lambda old: [[[0.0]] * 7] * len(old), ["list<"]),
    "empty lists": (lambda old: typed([[]] * len(old), pa.list_(pa.float32())), ["length 0"]),
}


@pytest.mark.parametrize("fault", ACTION_FAULTS)
def test_actions(fault: str, tmp_path: Path) -> None:
    path = copy_case("plain", tmp_path)
    change, words = ACTION_FAULTS[fault]
    changed("action", change)(path)
    refused(path, str(path / DATA), "'action'", *words)


def test_states(tmp_path: Path) -> None:
    path = copy_case("plain", tmp_path)
    changed("observation.state", inside(10, 1, np.nan))(path)
    refused(path, str(path / DATA), "'observation.state'", "episode 1, frame 4", "dimension 1")


INDEX_FAULTS = {
    "task before the first": ("task_index", at(4, -1), ["-1", "row 4"]),
    "task beyond the last": ("task_index", at(9, 2), ["episode 1, frame 3", "2"]),
    "task missing": ("task_index", at(9, None), ["row 9"]),
    "task as number with a point": ("task_index", at(0, 0.5), ["double", "whole numbers"]),
    "episodes in disorder": ("episode_index", lambda old: old[::-1], ["falls from 1 to 0", "row 8"]),
    "episodes mixed": ("episode_index", at(3, 1), ["falls from 1 to 0", "row 4"]),
    "episode missing": ("episode_index", at(0, None), ["row 0"]),
    "episode negative": ("episode_index", at(0, -1), ["-1", "row 0"]),
    "episode too large": ("episode_index", lambda old: typed([2**64 - 1] * len(old), pa.uint64()), ["large"]),
    "episodes as texts": ("episode_index", lambda old: [str(n) for n in old], ["string"]),
    "frames again": ("frame_index", at(3, 2), ["episode 0, frame 2", "rise"]),
    "frame missing": ("frame_index", at(3, None), ["row 3"]),
    "times equal": ("timestamp", lambda old: [0.0] * len(old), ["episode 0, frame 1", "rise"]),
    "time backwards": ("timestamp", at(8, 0.05), ["episode 1, frame 2", "rise"]),
    "time missing": ("timestamp", at(8, None), ["row 8"]),
    "time not a number": ("timestamp", at(8, float("nan")), ["nan", "row 8"]),
    "times as texts": ("timestamp", lambda old: ["now"] * len(old), ["string"]),
    "times as lists": ("timestamp", lambda old: [[t] for t in old], ["list"]),
    "index missing": ("index", at(8, None), ["row 8"]),
}


@pytest.mark.parametrize("fault", INDEX_FAULTS)
@pytest.mark.parametrize("case", ["plain", "hwts"])
def test_index_columns(fault: str, case: str, tmp_path: Path) -> None:
    path = copy_case(case, tmp_path)
    name, change, words = INDEX_FAULTS[fault]
    changed(name, change)(path)
    refused(path, str(path / DATA), f"'{name}'", *words)


@pytest.mark.parametrize("name", ["action", "timestamp", "frame_index", "episode_index", "index", "task_index", FRONT])
def test_missing_columns(name: str, tmp_path: Path) -> None:
    path = copy_case("plain", tmp_path)
    pq.write_table(pq.read_table(path / DATA).drop_columns([name]), path / DATA)
    refused(path, str(path / DATA), "no column", f"'{name}'")


def test_rows_that_are_missing_or_too_many(tmp_path: Path) -> None:
    path = copy_case("plain", tmp_path)
    table = pq.read_table(path / DATA)
    pq.write_table(table.slice(0, 13), path / DATA)
    refused(path, str(path), "7 frames of episode 1", "8")
    pq.write_table(table.slice(0, 0), path / DATA)
    refused(path, str(path), "0 frames of episode 0", "6")
    edit_json(path / "meta/info.json", lambda info: info.update(total_frames=15))
    refused(path, str(path / "meta/episodes"), "14 frames", "15")
    edit_json(path / "meta/info.json", lambda info: info.update(total_episodes=3))
    refused(path, str(path / "meta/episodes"), "2 episodes", "3")
    edit_json(path / "meta/info.json", lambda info: info.update(total_episodes=2))
    set_column(path / EPISODES, "length", [0, 0])
    edit_json(path / "meta/info.json", lambda info: info.update(total_frames=0))
    refused(path, str(path / "meta/episodes"), "no frames")
    set_column(path / EPISODES, "length", [6, 8])
    edit_json(path / "meta/info.json", lambda info: info.update(total_frames=14))
    set_column(path / EPISODES, "episode_index", [0, 2])
    pq.write_table(table, path / DATA)
    refused(path, str(path / DATA), "holds 1", "does not list")
    pq.write_table(pa.table([*table.columns, table["action"]], names=[*table.column_names, "action"]), path / DATA)
    refused(path, str(path / DATA), "two columns are called 'action'")


INFO_FAULTS = {
    "fps zero": ({"fps": 0}, ["fps"]),
    "fps negative": ({"fps": -10}, ["fps"]),
    "fps a text": ({"fps": "10"}, ["fps"]),
    "fps infinite": ({"fps": float("inf")}, ["fps"]),
    "fps null": ({"fps": None}, ["fps"]),
    "frames negative": ({"total_frames": -14}, ["total_frames"]),
    "frames a text": ({"total_frames": "14"}, ["total_frames"]),
    "chunks of nothing": ({"chunks_size": 0}, ["chunks_size"]),
    "features a list": ({"features": []}, ["features"]),
    "features empty": ({"features": {}}, ["no colour camera"]),
    "a feature a text": ({"features": {"action": "float32"}}, ["features.action"]),
    "a shape a number": ({"features": {"action": {"dtype": "float32", "shape": 7}}}, ["features.action.shape"]),
    "a shape negative": ({"features": {"action": {"dtype": "float32", "shape": [-7]}}}, ["features.action.shape"]),
    "a shape of texts": ({"features": {"action": {"dtype": "float32", "shape": ["7"]}}}, ["features.action.shape"]),
    "version old": ({"codebase_version": "v1.6"}, ["v1.6", "v3.0, v2.1"]),
    "version new": ({"codebase_version": "v4.0"}, ["v4.0"]),
    "version a number": ({"codebase_version": 3}, ["codebase_version"]),
    "outside": ({"data_path": "../../x"}, ["data_path", "out of the dataset"]),
    "outside by a field": ({"data_path": "{chunk_index}/../../{file_index}"}, ["data_path", "out of the dataset"]),
    "absolute": ({"data_path": "/etc/{file_index}"}, ["data_path", "out of the dataset"]),
    "wide": ({"data_path": "data/{chunk_index:>2000000000}"}, ["data_path", "fields"]),
    "attribute": ({"data_path": "data/{chunk_index.__class__}"}, ["data_path", "fields"]),
    "item": ({"data_path": "data/{file_index[0]}"}, ["data_path", "fields"]),
    "unknown field": ({"data_path": "data/{episode}"}, ["data_path", "fields"]),
    "unnamed field": ({"data_path": "data/{}"}, ["data_path", "fields"]),
    "conversion": ({"data_path": "data/{file_index!r}"}, ["data_path", "fields"]),
    "nested field": ({"data_path": "data/{file_index:{chunk_index}}"}, ["data_path", "fields"]),
    "open brace": ({"data_path": "data/{"}, ["data_path", "fields"]),
    "no files": ({"data_path": "tables/{file_index:03d}.parquet"}, ["no file tables/"]),
    "a list": ({"data_path": ["data"]}, ["data_path"]),
    "null": ({"data_path": None}, ["data_path"]),
    "nothing": ({"data_path": ""}, ["data_path", "empty"]),
    "no name": ({"data_path": "./"}, ["data_path", "empty"]),
    "too long": ({"data_path": "a" * 290}, ["data_path"]),
    "not UTF-8": ({"data_path": "\ud800"}, ["data_path"]),
}


@pytest.mark.parametrize("fault", INFO_FAULTS)
def test_info(fault: str, tmp_path: Path) -> None:
    path = copy_case("plain", tmp_path)
    values, words = INFO_FAULTS[fault]
    edit_json(path / "meta/info.json", lambda info: info.update(values))
    refused(path, str(path), *words)


VIDEO_PATHS = [
    "../{video_key}",
    "/tmp/{video_key}",
    "videos/{video_key.__class__}",
    "{file_index:>2000000000}",
    "{video_key:03d}",
    None,
    7,
]


@pytest.mark.parametrize("video_path", VIDEO_PATHS)
def test_paths_of_videos(video_path: Any, tmp_path: Path) -> None:
    path = copy_case("hwts", tmp_path)
    edit_json(path / "meta/info.json", lambda info: info.update(video_path=video_path))
    refused(path, "info.json", "video_path")


@pytest.mark.parametrize("key", ["../../../../secret", "a\0b"])
def test_a_cameras_name_does_not_lead_out(key: str, tmp_path: Path) -> None:
    path = copy_case("hwts", tmp_path)
    edit_json(path / "meta/info.json", lambda info: info["features"].update({key: info["features"].pop(FRONT)}))
    table = pq.read_table(path / EPISODES)
    pq.write_table(table.rename_columns([n.replace(FRONT, key) for n in table.column_names]), path / EPISODES)
    refused(path, "video_path", "out of the dataset")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([64, 64], ["shape"]),
        ([64, 64, 2], ["shape"]),
        ([100_000, 100_000, 3], ["100000 x 100000"]),
        ([0, 64, 3], ["0 x 64"]),
        ([64, 64, 1], ["no colour camera"]),
        ([48, 64, 3], ["64 x 64", "48 x 64"]),
    ],
)
@pytest.mark.parametrize("case", ["plain", "hwts"])
def test_shapes_of_pictures(case: str, shape: list[int], words: list[str], tmp_path: Path) -> None:
    path = copy_case(case, tmp_path)
    edit_json(path / "meta/info.json", lambda info: info["features"][FRONT].update(shape=shape))
    refused(path, FRONT if "shape" in words or "no colour" in words[0] else str(path), *words)


def test_shapes_with_channels_first_are_understood(tmp_path: Path) -> None:
    path = copy_case("plain", tmp_path)
    names = ["channels", "height", "width"]
    edit_json(path / "meta/info.json", lambda info: info["features"][FRONT].update(shape=[3, 64, 64], names=names))
    assert only_camera(Demonstrations.load(path)).size == (64, 64)


@pytest.mark.parametrize("case", ["plain", "hwts"])
@pytest.mark.parametrize("what", ["pipe", "pointer", "missing", "folder", "empty", "noise", "truncated"])
def test_what_lies_in_a_files_place(case: str, what: str, tmp_path: Path) -> None:
    whole = copy_case(case, tmp_path)
    names = ["meta/info.json", "meta/tasks.parquet", DATA, EPISODES, *([VIDEO] if case == "hwts" else [])]
    for number, name in enumerate(names):
        path = Path(shutil.copytree(whole, tmp_path / str(number)))
        file = path / name
        content = file.read_bytes()
        file.unlink()
        if what == "pipe":
            os.mkfifo(file)
        elif what == "folder":
            file.mkdir()
        elif what != "missing":
            pointer = LFS_POINTER + b"v1\noid sha256:0\nsize 1\n"
            noise = b"\x7f" * 100
            file.write_bytes(
                {"pointer": pointer, "empty": b"", "noise": noise, "truncated": content[: len(content) // 2]}[what]
            )
        word = {"pointer": "git lfs pull", "pipe": "no regular file", "folder": "folder"}.get(what, "")
        refused(path, str(path), "there is no file" if name in (DATA, EPISODES) and what == "missing" else word)


@pytest.mark.parametrize("name", ["tasks.jsonl", "episodes.jsonl"])
@pytest.mark.parametrize("text", ["", "{}\n", "[1]\n", "{", "null\n", '{"task_index": -1, "episode_index": "a"}\n'])
def test_lines_of_version_2(name: str, text: str, tmp_path: Path) -> None:
    path = write_v21(tmp_path / "d", "image")
    (path / "meta" / name).write_text(text)
    refused(path, name if text else str(path))


TASK_TABLES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "byte strings": ({"task_index": [0, 1], "task": [b"a", b"b"]}, ["binary", "texts"]),
    "numbers": ({"task_index": [0, 1], "task": [1, 2]}, ["int64", "texts"]),
    "a null": ({"task_index": [0, 1], "task": ["a", None]}, ["row 1"]),
    "negative": ({"task_index": [-1, 1], "task": ["a", "b"]}, ["-1"]),
    "twice": ({"task_index": [0, 0], "task": ["a", "b"]}, ["same task_index"]),
    "no texts": ({"task_index": [0, 1]}, ["task_index"]),
    "no numbers": ({"task": ["a", "b"]}, ["task_index"]),
    "two texts": ({"task_index": [0, 1], "a": ["a", "b"], "b": ["a", "b"]}, ["'task'"]),
    "very long": ({"task_index": [0, 1], "task": ["a", "b" * 10_000_000]}, ["task 1", "10,000 characters"]),
    "none": ({"task_index": pa.array([], pa.int64()), "task": pa.array([], pa.string())}, ["task_index"]),
}


@pytest.mark.parametrize("fault", TASK_TABLES)
def test_tasks(fault: str, tmp_path: Path) -> None:
    path = copy_case("plain", tmp_path)
    columns, words = TASK_TABLES[fault]
    pq.write_table(pa.table(columns), path / "meta/tasks.parquet")
    refused(path, "tasks" if fault != "none" else DATA, *words)


def test_tasks_with_gaps_between_their_numbers_are_read(tmp_path: Path) -> None:
    path = copy_case("plain", tmp_path)
    pq.write_table(pa.table({"task_index": [7, 3], "task": ["seven", "three"]}), path / "meta/tasks.parquet")
    set_column(path / DATA, "task_index", [3] * 6 + [7] * 8)
    read = Demonstrations.load(path)
    assert [read.instruction(row) for row in (0, 5, 6, 13)] == ["three", "three", "seven", "seven"]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("from_timestamp", [0.0, 0.0], ["overlap", "episodes 0 and 1"]),
        ("from_timestamp", [0.0, float("nan")], ["nan"]),
        ("from_timestamp", [0.0, None], ["row 1"]),
        ("from_timestamp", ["0", "1"], ["string"]),
        ("from_timestamp", [-1.0, 0.6], ["-1 s"]),
        ("to_timestamp", [0.6, 0.5], ["0.6 s to 0.5 s"]),
        ("to_timestamp", [1.4, 1.4], ["overlap"]),
        ("file_index", [0, 7], ["file-007.mp4", "no such file"]),
        ("file_index", [0, -1], ["-1"]),
        ("chunk_index", [0, None], ["row 1"]),
    ],
)
def test_places_of_episodes_in_videos(name: str, values: list[Any], words: list[str], tmp_path: Path) -> None:
    path = copy_case("hwts", tmp_path)
    set_column(path / EPISODES, f"videos/{FRONT}/{name}", values)
    refused(path, str(path), *words)


@pytest.mark.parametrize("case", ["plain", "hwts"])
def test_episodes_that_meta_does_not_list_or_lists_twice(case: str, tmp_path: Path) -> None:
    path = copy_case(case, tmp_path)
    set_column(path / EPISODES, "episode_index", [0, 2])
    refused(path, "meta/episodes", "holds 1", "does not list")
    set_column(path / EPISODES, "episode_index", [1, 1])
    refused(path, "meta/episodes", "episode 1 is listed twice")
    set_column(path / EPISODES, "episode_index", ["0", "1"])
    refused(path, str(path / EPISODES), "'episode_index'", "string")


# ---------------------------------------------------------------- pictures


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def with_picture(path: Path, row: int, value: dict[str, Any] | None) -> None:
    set_column(path / DATA, FRONT, at(row, value)(column(path / DATA, FRONT)))


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "CMYK"])
def test_pictures_of_other_modes_are_converted_as_pillow_does(mode: str, tmp_path: Path) -> None:
    path = copy_case("plain", tmp_path)
    image = Image.fromarray(NOISE).convert("RGB" if mode == "CMYK" else "RGBA").convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    with_picture(path, 8, {"bytes": data, "path": None})
    ((_, picture),) = only_camera(Demonstrations.load(path)).decode([8])
    np.testing.assert_array_equal(picture, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


PICTURE_FAULTS: dict[str, tuple[Any, list[str]]] = {
    "16 bits": ({"bytes": encoded(Image.fromarray(np.full((64, 64), 900, np.uint16))), "path": None}, ["depth"]),
    "float": ({"bytes": encoded(Image.fromarray(np.ones((64, 64), np.float32)), "TIFF"), "path": None}, ["depth"]),
    "no picture": ({"bytes": b"hello", "path": None}, ["none of PNG"]),
    "truncated": ({"bytes": encoded(Image.fromarray(NOISE[..., :3]))[:2000], "path": None}, ["cannot be decoded"]),
    "a playlist": ({"bytes": b"%!PS-Adobe-3.0 EPSF-3.0", "path": None}, ["none of PNG"]),
    "another size": ({"bytes": encoded(Image.new("RGB", (32, 64))), "path": None}, ["64 x 32", "64 x 64"]),
    "a bomb": ({"bytes": encoded(Image.new("1", (20_000, 20_000))), "path": None}, ["cannot be decoded"]),
    "null": (None, ["no picture"]),
    "neither": ({"bytes": None, "path": None}, ["no picture"]),
    "outside": ({"bytes": None, "path": "../../secret.png"}, ["out of the dataset"]),
    "absolute": ({"bytes": None, "path": "/etc/passwd"}, ["out of the dataset"]),
    "missing file": ({"bytes": None, "path": "images/x.png"}, ["images/x.png", "no such file"]),
}


@pytest.mark.parametrize("fault", PICTURE_FAULTS)
@pytest.mark.parametrize("row", [0, 9])
def test_pictures(fault: str, row: int, tmp_path: Path) -> None:
    path = copy_case("plain", tmp_path)
    value, words = PICTURE_FAULTS[fault]
    with_picture(path, row, value)
    place = (
        []
        if fault == "missing file"
        else [str(path / DATA), FRONT, "episode 0, frame 0" if row == 0 else "episode 1, frame 3"]
    )
    refused(path, *place, *words)


@pytest.mark.parametrize("stored", ["images/any/{}.png", "frame_{:06d}.png"])
def test_pictures_in_files_of_their_own(stored: str, tmp_path: Path) -> None:
    path = copy_case("plain", tmp_path)
    pictures = column(path / DATA, FRONT)
    for row, picture in enumerate(pictures):
        episode, frame = (0, row) if row < 6 else (1, row - 6)
        name = stored.format(row if "any" in stored else frame)
        folder = path if "any" in stored else path / "images" / FRONT / f"episode_{episode:06d}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture["bytes"])
        picture.update(bytes=None, path=name)
    set_column(path / DATA, FRONT, pictures)
    expected = Demonstrations.load(copy_case("plain", tmp_path / "other")).images
    np.testing.assert_array_equal(Demonstrations.load(path).images, expected)


@pytest.mark.parametrize("values", [[1] * 14, ["a.png"] * 13 + [None], [[b"x"]] * 14])
def test_columns_of_pictures_of_other_types(values: list[Any], tmp_path: Path) -> None:
    path = copy_case("plain", tmp_path)
    set_column(path / DATA, FRONT, values)
    refused(path, str(path), "picture" if values[0] != "a.png" else "a.png")


def test_videos_that_are_not_what_info_says(tmp_path: Path) -> None:
    path = copy_case("hwts", tmp_path)
    write_video(path / VIDEO, [20] * 14, size=(48, 64))
    refused(path, str(path / VIDEO), "48 x 64", "64 x 64")
    write_video(path / VIDEO, [20] * 9)
    refused(path, str(path / VIDEO), "episode 1, frame 3", "0.960 s")


def test_a_video_with_a_hole_is_refused_where_it_is(tmp_path: Path) -> None:
    path = copy_case("hwts", tmp_path)
    content = (path / VIDEO).read_bytes()
    start = content.index(b"mdat") + 4
    (path / VIDEO).write_bytes(content[: start + 600] + bytes(400) + content[start + 1000 :])
    refused(path, str(path / VIDEO))


def test_a_playlist_in_a_videos_place_opens_nothing(tmp_path: Path) -> None:
    path = copy_case("hwts", tmp_path)
    shutil.copy(path / VIDEO, tmp_path / "elsewhere.mp4")
    (path / VIDEO).write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/elsewhere.mp4\n#EXT-X-ENDLIST\n")
    refused(path, str(path / VIDEO), "not a video")


def test_a_camera_that_info_calls_depth_is_none_of_colour(tmp_path: Path) -> None:
    path = copy_case("plain", tmp_path)
    for info in ({"is_depth_map": True}, {"video.is_depth_map": True}, {"video.pix_fmt": "gray16le"}):
        edit_json(path / "meta/info.json", lambda values, info=info: values["features"][FRONT].update(info=info))
        refused(path, FRONT, "depth")
    assert json.loads((path / "meta/info.json").read_text())["features"][FRONT]["info"]
