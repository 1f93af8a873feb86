"""Datasets that people have (`cases/`): what is right in each, and v2.1."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_files import (
    CASES,
    DATA,
    EPISODES,
    FRONT,
    LEVELS,
    VIDEO,
    column,
    copy_case,
    edit_json,
    only_camera,
    set_column,
    write_v21,
    write_video,
)

from rlrc.data import Demonstrations
from rlrc.errors import UserError


def levels(read: Demonstrations) -> np.ndarray:
    """The mean of each picture, in whichever order they are decoded."""
    result = np.full(len(read), np.nan)
    for row, picture in only_camera(read).decode(range(len(read))):
        assert picture.dtype == np.uint8 and picture.shape == (*only_camera(read).size, 3)
        result[row] = picture.mean()
    return result


def refused(*words: str, path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        Demonstrations.load(path, **options).images  # noqa: B018
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    for word in words:
        assert word in message, message
    return message


@pytest.mark.parametrize("name", ["plain", "nostate", "pi0libero", "rgbd", "list", "mix", "scale", "a14", "v_fps"])
def test_all_frames_are_read(name: str) -> None:
    read = Demonstrations.load(str(CASES / name))
    np.testing.assert_allclose(levels(read), LEVELS, atol=1.5 if name == "v_fps" else 0)
    np.testing.assert_array_equal(read.episode_index, [0] * 6 + [1] * 8)
    assert [read.instruction(row) for row in (5, 6)] == ["put cube on plate", "open drawer"]
    table = [pq.read_table(file) for file in sorted((CASES / name).glob("data/*/*.parquet"))]
    key = "actions" if name == "pi0libero" else "action"
    stored = np.concatenate([np.array(part[key].to_pylist(), np.float32) for part in table])
    np.testing.assert_array_equal(read.actions, stored)
    assert read.actions.shape == (14, 14 if name == "a14" else 7)
    assert (read.state is None) == (name in ("nostate", "pi0libero"))


def test_a_late_row_shows_the_nearest_frame() -> None:
    """Rows 3 and 9 come 60 ms late on a grid of 100 ms: the next frame is nearer, by 20 ms."""
    expected = LEVELS.copy()
    expected[[3, 9]] = LEVELS[[4, 10]]
    for _ in range(2):
        np.testing.assert_allclose(levels(Demonstrations.load(CASES / "hwts")), expected, atol=1.5)


def test_a_row_beyond_its_episode_never_shows_another_one(tmp_path: Path) -> None:
    path = copy_case("hwts", tmp_path)
    times = column(path / DATA, "timestamp")
    times[5] = 0.54
    set_column(path / DATA, "timestamp", np.array(times, np.float32))
    assert levels(Demonstrations.load(path))[5] == pytest.approx(60 - 10, abs=1.5)
    times[5] = 0.58  # the nearest frame, at 0.6 s, is the first of the next episode
    set_column(path / DATA, "timestamp", np.array(times, np.float32))
    refused("file-000.mp4", "episode 0, frame 5", "0.580 s", "nearest one is at 0.500 s", path=path)


def test_merged_datasets_are_read_whole() -> None:
    read = Demonstrations.load(CASES / "merged_video")

    assert len(read) == 41 and read.num_episodes == 6
    lengths = [7, 9, 5, 6, 8, 6]

    np.testing.assert_array_equal(read.episode_index, np.repeat(np.arange(6), lengths))
    step = np.concatenate([np.arange(length) for length in lengths])
    expected = 10 + 40 * read.episode_index + 3 * step
    np.testing.assert_allclose(levels(read), expected, atol=2)
    names = ["pick cube", "open drawer", "close drawer", "open drawer", "stack blocks", "pick cube"]
    assert [read.instruction(row) for row in np.cumsum([0, *lengths[:-1]])] == names


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("two", {"cameras": ("front",)}, ["front", "observation.images.wrist_image", "cameras"]),
        ("two", {"cameras": ("image", "observation.images.image")}, ["observation.images.image twice"]),
        ("rgbd", {"cameras": ("front_depth",)}, ["depth camera", FRONT]),
        ("depth", {}, ["file-000.parquet", FRONT, "episode 0, frame 0", "depth"]),
        ("plain", {"action_key": "acts"}, ["'acts'", "action_key", "action, observation.state"]),
        ("plain", {"state_key": FRONT}, ["camera", "state_key"]),
        ("plain", {"episodes": "1:3"}, ["no episode 2", "from 0 to 1"]),
        ("plain", {"episodes": "0:999999999"}, ["no episode 2"]),
        ("plain", {"episodes": [0, -1]}, ["-1"]),
        ("plain", {"episodes": "1:1"}, ["'1:1'"]),
        ("plain", {"episodes": "first"}, ["'first'"]),
        ("nan", {}, ["file-000.parquet", "'action'", "episode 0, frame 3", "dimension 2", "nan"]),
    ],
)
def test_what_is_open_or_wrong_is_one_line(name: str, options: dict[str, Any], words: list[str]) -> None:
    refused(*words, path=CASES / name, **options)


@pytest.mark.parametrize("camera", ["observation.images.wrist_image", "wrist_image"])
def test_a_camera_is_named_in_full_or_by_its_last_part(camera: str, tmp_path: Path) -> None:
    path = copy_case("two", tmp_path)
    flipped = column(path / DATA, "observation.images.image")[::-1]
    set_column(path / DATA, "observation.images.wrist_image", flipped)
    for cameras in (camera, [camera]):
        np.testing.assert_array_equal(levels(Demonstrations.load(path, cameras)), LEVELS[::-1])


def test_a_policys_cameras_are_found_by_name_or_named_in_its_order() -> None:
    image, wrist = "observation.images.image", "observation.images.wrist_image"
    read = Demonstrations.load(CASES / "two")
    assert list(read.pictures) == [image, wrist]
    for cameras, keys in (
        (["wrist_image"], [wrist]),
        (["wrist_image", "image"], [wrist, image]),
        ([wrist, "image"], [wrist, image]),
    ):
        seen = read.seen_by(cameras)
        assert list(seen) == cameras and list(seen.values()) == [read.pictures[key] for key in keys]
    named = Demonstrations.load(CASES / "two", ("wrist_image", "image"))
    assert list(named.seen_by(["hand", "front"]).values()) == [named.pictures[wrist], named.pictures[image]]
    one = Demonstrations.load(CASES / "plain")
    assert one.seen_by(["wrist"]) == {"wrist": only_camera(one)}, "a single camera is the policy's, whatever its name"


@pytest.mark.parametrize(
    ("case", "named", "policy", "words"),
    [
        (
            "two",
            (),
            ["front"],
            ["1 camera (front)", "observation.images.image, observation.images.wrist_image", "cameras"],
        ),
        (
            "two",
            (),
            ["image", "wrist"],
            ["2 cameras (image, wrist)", "'wrist' may be any of", "name them with cameras"],
        ),
        ("two", ("image",), ["image", "wrist"], ["cameras names 1 (observation.images.image)", "2 cameras"]),
        ("two", ("image", "wrist_image"), ["front"], ["cameras names 2", "1 camera (front)"]),
        (
            "two",
            ("wrist_image", "image"),
            ["image", "wrist_image"],
            ["in the policy's order", "wrist_image", "'image'"],
        ),
        (
            "plain",
            (),
            ["front", "wrist"],
            ["2 cameras (front, wrist)", "dataset has fewer (observation."],
        ),
    ],
)
def test_a_camera_that_a_dataset_lacks_is_one_line(
    case: str, named: tuple[str, ...], policy: list[str], words: list[str]
) -> None:
    read = Demonstrations.load(CASES / case, named)
    with pytest.raises(UserError) as caught:
        read.seen_by(policy)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in [str(CASES / case), *words]), message


def test_states_and_actions_can_be_named(tmp_path: Path) -> None:
    read = Demonstrations.load(CASES / "plain", action_key="observation.state", state_key="action")
    assert read.state is not None
    assert (read.actions.shape, read.state.shape) == ((14, 2), (14, 7))


@pytest.mark.parametrize(("episodes", "expected"), [("1", [1]), ([1], [1]), ("0:2", [0, 1]), ("1,0", [0, 1])])
def test_episodes_are_chosen(episodes: Any, expected: list[int]) -> None:
    read = Demonstrations.load(CASES / "v_fps", episodes=episodes)
    assert np.unique(read.episode_index).tolist() == expected
    np.testing.assert_allclose(levels(read), LEVELS[14 - len(read) :], atol=1.5)


def test_damage_in_an_episode_that_is_left_out_does_no_harm(tmp_path: Path) -> None:
    path = copy_case("nan", tmp_path)
    actions = column(path / DATA, "action")
    actions[9] = [1.0] * 7
    set_column(path / DATA, "action", actions)
    refused("episode 0", path=path, episodes="0")
    assert np.isfinite(Demonstrations.load(path, episodes="1").actions).all()


def test_few_rows_of_a_long_video_are_cheap_and_right(tmp_path: Path) -> None:
    """200 frames with a keyframe every 25: any rows, alone and in any order, are those of a whole pass."""
    path = copy_case("hwts", tmp_path)
    write_video(path / VIDEO, [20 + step for step in range(200)], rate=10, gop=25)
    table = pq.read_table(path / EPISODES).to_pydict()
    spans = [(0.0, 10.0), (10.0, 20.0)]
    for name, values in (("from_timestamp", [s[0] for s in spans]), ("to_timestamp", [s[1] for s in spans])):
        set_column(path / EPISODES, f"videos/{FRONT}/{name}", values)
    assert len(table["episode_index"]) == 2
    times = [0.0, 0.1, 3.0, 7.4, 7.5, 9.9, 0.0, 2.4, 2.5, 2.6, 5.0, 8.0, 9.8, 9.9]
    set_column(path / DATA, "timestamp", np.array(times, np.float32))
    expected = 20 + np.round(10 * (np.array(times) + np.repeat([0, 10], [6, 8])))
    read = Demonstrations.load(path)
    np.testing.assert_allclose(levels(read), expected, atol=1.5)
    for rows in ([13], [12, 3], [8, 1, 7]):
        found = {row: picture.mean() for row, picture in only_camera(read).decode(rows)}
        assert sorted(found) == sorted(rows)
        for row, mean in found.items():
            assert mean == pytest.approx(expected[row], abs=1.5)


def test_a_rate_far_below_that_of_the_rows_is_told(tmp_path: Path) -> None:
    """Frames of a video may be half a step from their row; too low a rate would take other rows' frames for its own."""
    path = copy_case("hwts", tmp_path)
    edit_json(path / "meta/info.json", lambda info: info.update(fps=2))
    with pytest.raises(UserError, match=r"info.json: fps is 2, and the timestamps of rows lie 0.1 s apart"):
        Demonstrations.load(path)


def test_hd_needs_no_memory_for_all_its_frames() -> None:
    """29 GiB if it were all decoded; three far frames of 5000 are had in less than 1 GiB."""
    script = (
        "import resource, sys\nfrom rlrc.data import Demonstrations\n"
        f"read = Demonstrations.load({str(CASES / 'hd')!r})\n"
        "(pictures,) = read.pictures.values()\n"
        "rows = [row for row, picture in pictures.decode([4999, 0, 2500]) if picture.shape == (1080, 1920, 3)]\n"
        "assert sorted(rows) == [0, 2500, 4999] and len(read) == 5000\n"
    )
    limit = 3 * 2**30
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr


def test_the_identity_of_pictures_tells_them_apart(tmp_path: Path) -> None:
    for name in ("plain", "hwts"):
        path = copy_case(name, tmp_path)
        read = Demonstrations.load(path)
        same = only_camera(Demonstrations.load(path)).identity()
        assert only_camera(read).identity() == same
        assert (
            only_camera(read.select([1])).identity()
            == only_camera(Demonstrations.load(path, episodes="1")).identity()
            != same
        )
        file = path / (DATA if name == "plain" else VIDEO)
        file.write_bytes(file.read_bytes())  # of another time
        assert only_camera(Demonstrations.load(path)).identity() != same
    two = [Demonstrations.load(CASES / "two", cameras=[camera]) for camera in ("image", "wrist_image")]
    assert only_camera(two[0]).identity() != only_camera(two[1]).identity()


# ---------------------------------------------------------------- v2.1


@pytest.mark.parametrize("dtype", ["video", "image"])
@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
def test_version_2_is_read(dtype: str, version: str, tmp_path: Path) -> None:
    read = Demonstrations.load(write_v21(tmp_path / "d", dtype, version))
    plain = Demonstrations.load(CASES / "plain")
    np.testing.assert_array_equal(read.actions, plain.actions)
    np.testing.assert_array_equal(read.episode_index, plain.episode_index)
    np.testing.assert_allclose(levels(read), LEVELS, atol=1.5 if dtype == "video" else 0)
    assert [read.instruction(row) for row in range(14)] == [plain.instruction(row) for row in range(14)]


def test_version_2_needs_only_the_files_of_the_episodes_that_are_named(tmp_path: Path) -> None:
    path = write_v21(tmp_path / "d", chunks_size=1)
    (path / "data/chunk-000/episode_000000.parquet").unlink()
    refused("episode_000000.parquet", "no such file", path=path)
    np.testing.assert_allclose(levels(Demonstrations.load(path, episodes="1")), LEVELS[6:], atol=1.5)
    (path / f"videos/chunk-001/{FRONT}/episode_000001.mp4").unlink()
    refused("episode_000001.mp4", "no such file", path=path, episodes="1")
