"""Datasets on disk, ours and LeRobot's, and their statistics."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from rlrc.data import Demonstrations
from rlrc.data import format as fmt
from rlrc.data.lerobot import CameraDtype, write_dataset
from rlrc.data.statistics import norm_stats
from rlrc.errors import UserError
from rlrc.policies.statistics import action_statistics, normalise, unnormalise

REFERENCE = Path(__file__).parent / "lerobot_reference"
LENGTHS = (4, 5, 6)
TASKS = ("put cube on plate", "open drawer", "put cube on plate")


def smooth_pictures(length: int, episode: int, side: int = 64) -> np.ndarray:
    """Moving gradients, uint8 (T, S, S, 3), that a video codec can keep."""
    y, x = np.mgrid[:side, :side]
    frames = [(128 + 60 * np.sin((x + 9 * t) / 15 + episode), 30 * episode + y, 20 * t + 0 * x) for t in range(length)]
    return np.stack([np.stack(channels, axis=-1) for channels in frames]).astype(np.uint8)


def toy_episode(episode: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(episode)
    length = LENGTHS[episode]
    return {
        fmt.FRONT_IMAGE: smooth_pictures(length, episode),
        fmt.STATE: generator.normal(size=(length, 5)).astype(np.float32),
        fmt.ENVIRONMENT_STATE: generator.normal(size=(length, 3)).astype(np.float32),
        fmt.ACTION: generator.normal(size=(length, 7)).astype(np.float32),
    }


def write_toy(path: Path, camera: CameraDtype = "image") -> Path:
    with write_dataset(path, 5, "toy", camera, {fmt.ACTION: "abcdefg"}) as writer:
        for episode, task in enumerate(TASKS):
            writer.append(task, toy_episode(episode))
    return path


def toy_column(key: str) -> np.ndarray:
    return np.concatenate([toy_episode(episode)[key] for episode in range(3)])


def edit_info(path: Path, **values: Any) -> None:
    info = json.loads((path / fmt.INFO_PATH).read_text())
    (path / fmt.INFO_PATH).write_text(json.dumps(info | values))


@pytest.mark.parametrize("camera", ["image", "video"])
def test_round_trip(tmp_path: Path, camera: CameraDtype) -> None:
    read = Demonstrations.load(write_toy(tmp_path / "d", camera))
    difference = np.abs(read.images.astype(int) - toy_column(fmt.FRONT_IMAGE))
    assert read.images.dtype == np.uint8
    assert difference.max() == 0 if camera == "image" else difference.mean() < 3
    np.testing.assert_array_equal(read.state, toy_column(fmt.STATE))
    np.testing.assert_array_equal(read.environment_state, toy_column(fmt.ENVIRONMENT_STATE))
    np.testing.assert_array_equal(read.actions, toy_column(fmt.ACTION))
    assert read.tasks == ["put cube on plate", "open drawer"]
    assert (len(read), read.num_episodes, read.fps) == (15, 3, 5)
    assert [read.instruction(index) for index in (3, 4, 9)] == list(TASKS)


@pytest.mark.parametrize("camera", ["image", "video"])
def test_reads_what_lerobot_writes(camera: str) -> None:
    """Levels, states and actions as told in lerobot_reference/README.md."""
    read = Demonstrations.load(REFERENCE / camera)
    episode, step = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 2, 3])
    np.testing.assert_array_equal(read.episode_index, episode)
    np.testing.assert_array_equal(read.state, np.stack([episode, step], axis=1))
    np.testing.assert_allclose(read.actions, np.arange(7) / 10 + (10 * episode + step)[:, None], rtol=1e-6)
    levels = np.broadcast_to((100 * episode + 20 * step)[:, None, None, None], (7, 64, 64, 3))
    np.testing.assert_allclose(read.images.astype(int), levels, atol=0 if camera == "image" else 3)
    assert read.instruction(2) == "put cube on plate"
    assert read.instruction(3) == "open drawer"


@pytest.mark.parametrize("camera", ["image", "video"])
def test_writes_the_files_and_schemas_that_lerobot_writes(tmp_path: Path, camera: CameraDtype) -> None:
    ours, theirs = write_toy(tmp_path / "d", camera), REFERENCE / camera
    files = {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    assert {path.relative_to(ours) for path in ours.rglob("*") if path.is_file()} == files

    our_info, their_info = (json.loads((root / fmt.INFO_PATH).read_text()) for root in (ours, theirs))
    assert our_info.keys() == their_info.keys()
    same = set(their_info) - {"robot_type", "total_episodes", "total_frames", "splits", "features"}
    assert {key: our_info[key] for key in same} == {key: their_info[key] for key in same}
    assert our_info["features"].keys() - their_info["features"].keys() == {fmt.ENVIRONMENT_STATE}
    for key in their_info["features"].keys() - {fmt.STATE}:
        ignored = {"video.codec": None} if camera == "video" else {}
        our_feature, their_feature = our_info["features"][key], their_info["features"][key]
        assert our_feature.get("info", {}) | ignored == their_feature.get("info", {}) | ignored
        assert {**our_feature, "info": 0} == {**their_feature, "info": 0}

    for file in files:
        if file.suffix != ".parquet" or file.name == "tasks.parquet":
            continue
        mine, reference = pq.read_schema(ours / file), pq.read_schema(theirs / file)
        extra = {name for name in mine.names if fmt.ENVIRONMENT_STATE in name}
        assert set(mine.names) - extra == set(reference.names)
        for name in set(reference.names) - {fmt.STATE}:
            assert mine.field(name).type == reference.field(name).type, name
        if file.parts[0] == "data":
            hub = [json.loads(schema.metadata[b"huggingface"])["info"]["features"] for schema in (mine, reference)]
            assert hub[0].keys() - hub[1].keys() == {fmt.ENVIRONMENT_STATE}
            assert pq.ParquetFile(ours / file).num_row_groups == 3

    our_stats, their_stats = (json.loads((root / fmt.STATS_PATH).read_text()) for root in (ours, theirs))
    for key, theirs_of in their_stats.items():
        assert our_stats[key].keys() == theirs_of.keys()
        if key != fmt.STATE:
            assert {n: np.shape(v) for n, v in our_stats[key].items()} == {n: np.shape(v) for n, v in theirs_of.items()}


def test_tasks_are_a_frame_indexed_by_task(tmp_path: Path) -> None:
    table = pq.read_table(write_toy(tmp_path / "d") / fmt.TASKS_PATH)
    assert table.to_pydict() == {"task_index": [0, 1], "task": ["put cube on plate", "open drawer"]}
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_episodes_tell_where_their_rows_and_frames_are(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "d", "video")
    rows = pq.read_table(path / fmt.EPISODES_PATH.format(chunk_index=0, file_index=0)).to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [(0, 4), (4, 9), (9, 15)]
    starts = [row[f"videos/{fmt.FRONT_IMAGE}/from_timestamp"] for row in rows]
    assert starts == [0, 0.8, 1.8]
    video = fmt.VIDEO_PATH.format(video_key=fmt.FRONT_IMAGE, chunk_index=0, file_index=0)
    with av.open(path / video) as container:
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx(np.arange(15) / 5)


@pytest.mark.parametrize("camera", ["image", "video"])
def test_a_full_file_is_followed_by_another(
    tmp_path: Path, camera: CameraDtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fmt, "DATA_FILE_MB", 1e-6)
    monkeypatch.setattr(fmt, "VIDEO_FILE_MB", 0)
    monkeypatch.setattr(fmt, "FILES_PER_CHUNK", 2)
    path = write_toy(tmp_path / "d", camera)
    assert sorted(p.relative_to(path / "data").as_posix() for p in (path / "data").glob("*/*")) == [
        "chunk-000/file-000.parquet", "chunk-000/file-001.parquet", "chunk-001/file-000.parquet"
    ]  # fmt: skip
    assert len(list(path.glob("videos/*/*/*"))) == (3 if camera == "video" else 0)
    read = Demonstrations.load(path)
    np.testing.assert_array_equal(read.actions, toy_column(fmt.ACTION))
    np.testing.assert_allclose(read.images.astype(int).mean((1, 2)), toy_column(fmt.FRONT_IMAGE).mean((1, 2)), atol=3)


def test_episodes_shorter_than_the_video_encoder_looks_ahead(tmp_path: Path) -> None:
    pictures = smooth_pictures(3, 0)
    with write_dataset(tmp_path / "d", 5, "toy", "video") as writer:
        for frame in range(3):
            numbers = {fmt.STATE: np.zeros((1, 5), np.float32), fmt.ACTION: np.zeros((1, 7), np.float32)}
            writer.append("wait", {fmt.FRONT_IMAGE: pictures[frame : frame + 1], **numbers})
    read = Demonstrations.load(tmp_path / "d").images
    np.testing.assert_allclose(read.astype(int).mean((1, 2)), pictures.mean((1, 2)), atol=3)


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), write_dataset(tmp_path / "d", 5, "toy") as writer:
        writer.append("task", toy_episode(0))
        raise RuntimeError
    with pytest.raises(UserError, match="at least one episode"), write_dataset(tmp_path / "d", 5, "toy"):
        pass
    assert not list(tmp_path.iterdir())


def test_episodes_that_do_not_match_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not match"), write_dataset(tmp_path / "d", 5, "toy") as writer:
        writer.append("task", toy_episode(0))
        writer.append("task", {**toy_episode(1), fmt.STATE: np.zeros((5, 4), np.float32)})
    with pytest.raises(UserError, match="even sides"), write_dataset(tmp_path / "d", 5, "toy", "video") as writer:
        writer.append("task", {**toy_episode(0), fmt.FRONT_IMAGE: np.zeros((4, 63, 63, 3), np.uint8)})


def test_select_and_first_episodes(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "d")
    whole = Demonstrations.load(path)
    part = whole.select([2, 0])
    np.testing.assert_array_equal(
        part.actions, np.concatenate([toy_episode(0)[fmt.ACTION], toy_episode(2)[fmt.ACTION]])
    )
    assert (len(part), part.num_episodes, part.sha256) == (10, 2, whole.sha256)
    first = Demonstrations.load(path, episodes="0:2")
    np.testing.assert_array_equal(first.images, whole.select([0, 1]).images)
    with pytest.raises(UserError, match="no episode 7"):
        whole.select([1, 7])


def test_the_hash_tells_datasets_apart(tmp_path: Path) -> None:
    a, b = (Demonstrations.load(write_toy(tmp_path / name)) for name in "ab")
    assert a.sha256 == b.sha256
    edit_info(tmp_path / "b", robot_type="other")
    assert Demonstrations.load(tmp_path / "b").sha256 != a.sha256


# ---------------------------------------------------------------- statistics


def test_summaries_are_those_of_numpy(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "d")
    stats = json.loads((path / fmt.STATS_PATH).read_text())
    for key, values, shape in (
        (fmt.ACTION, toy_column(fmt.ACTION), (7,)),
        (fmt.FRONT_IMAGE, toy_column(fmt.FRONT_IMAGE).reshape(-1, 3) / 255, (3, 1, 1)),
    ):
        quantiles = np.quantile(
            values, [0.01, 0.5, 0.99], axis=0, method="inverted_cdf" if len(shape) == 3 else "linear"
        )
        expected = dict(zip(("q01", "q50", "q99"), quantiles, strict=True))
        expected |= {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        for name, value in expected.items():
            np.testing.assert_allclose(stats[key][name], value.reshape(shape), rtol=1e-5, atol=1e-7, err_msg=name)
        assert stats[key]["count"] == [15]
    rows = pq.read_table(path / fmt.EPISODES_PATH.format(chunk_index=0, file_index=0)).to_pylist()
    np.testing.assert_allclose(rows[1][f"stats/{fmt.ACTION}/mean"], toy_episode(1)[fmt.ACTION].mean(0), rtol=1e-5)


def test_norm_stats_are_openvlas(tmp_path: Path) -> None:
    demonstrations = Demonstrations.load(write_toy(tmp_path / "d"))
    demonstrations.actions[:, 6] = np.sign(demonstrations.actions[:, 6])
    stats = norm_stats(demonstrations, "toy")
    assert json.loads(json.dumps(stats)) == stats
    entry = stats["toy"]
    assert (entry["num_trajectories"], entry["num_transitions"]) == (3, 15)
    assert entry["action"]["mask"] == [True] * 6 + [False]
    assert entry["proprio"].keys() == entry["action"].keys() - {"mask"}
    np.testing.assert_allclose(
        entry["action"]["q99"][:6], np.quantile(toy_column(fmt.ACTION)[:, :6], 0.99, axis=0), rtol=1e-6
    )


def test_a_last_dimension_beyond_one_is_normalised_like_the_others(tmp_path: Path) -> None:
    demonstrations = Demonstrations.load(write_toy(tmp_path / "d"))
    assert np.abs(demonstrations.actions[:, 6]).max() > 1
    assert norm_stats(demonstrations, "toy")["toy"]["action"]["mask"] == [True] * 7


def test_normalised_actions_come_back() -> None:
    low, high = np.linspace(-3, -1, 7), np.linspace(1, 2, 7)
    entry = {"q01": low.tolist(), "q99": high.tolist(), "mask": [True] * 6 + [False]}
    stats = action_statistics({"toy": {"action": entry}}, "toy")
    actions = np.random.default_rng(0).uniform(low, high, (50, 7))
    actions[:, 6] = np.where(actions[:, 6] > 0, 1.0, -1.0)
    scaled = normalise(actions, stats)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[3, 2], 2 * (actions[3, 2] - low[2]) / (high[2] - low[2]) - 1, rtol=1e-5)
    np.testing.assert_array_equal(scaled[:, 6], actions[:, 6])
    back = unnormalise(scaled, stats)
    np.testing.assert_allclose(back, actions, atol=1e-6)
    np.testing.assert_array_equal(normalise(10 * high, stats)[:6], np.ones(6))
