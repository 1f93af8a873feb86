"""Small datasets to read and to damage: those of `cases/`, and a v2.1 one that is written here, field by field."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlrc.data import Demonstrations
from rlrc.data.pictures import Pictures

CASES = Path(__file__).parent / "cases" / "datasets"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
FRONT = "observation.images.front"
VIDEO = f"videos/{FRONT}/chunk-000/file-000.mp4"
LENGTHS = (6, 8)


def copy_case(name: str, to: Path) -> Path:
    """A copy of a dataset of `cases/` that may be damaged."""
    return Path(shutil.copytree(CASES / name, to / name))


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def set_column(path: Path, name: str, values: Any) -> None:
    """Replace a column of a parquet file by `values`, an arrow array or a list."""
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(values)), path)


def column(path: Path, name: str) -> list[Any]:
    values: list[Any] = pq.read_table(path)[name].to_pylist()
    return values


def only_camera(read: Demonstrations) -> Pictures:
    """The pictures of a dataset's only camera."""
    (pictures,) = read.pictures.values()
    return pictures


def level(episode: int, step: int) -> int:
    """The grey level of a picture in `cases/`."""
    return min(255, 10 + 100 * episode + 8 * step)


LEVELS = np.array([level(episode, step) for episode in range(2) for step in range(LENGTHS[episode])])


def write_video(path: Path, levels: list[int], rate: int = 10, size: tuple[int, int] = (64, 64), gop: int = 2) -> None:
    """Flat grey pictures as H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=rate, options={"crf": "10", "g": str(gop)})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for value in levels:
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_v21(root: Path, dtype: str = "video", version: str = "v2.1", chunks_size: int = 1000) -> Path:
    """What `plain` holds, laid out as lerobot's v2.1 does: `create_empty_dataset_info`, `write_episode`, `write_task`,
    `write_episode_stats` of lerobot/common/datasets/utils.py, and a parquet file (and a video) an episode."""
    plain = pq.read_table(CASES / "plain" / DATA)
    info = json.loads((CASES / "plain" / "meta/info.json").read_text())
    features = info["features"]
    features[FRONT] |= {"dtype": dtype, "names": ["height", "width", "channels"]}
    start = 0
    lines: dict[str, list[Any]] = {"episodes": [], "tasks": [], "episodes_stats": []}
    for episode, (length, task) in enumerate(zip(LENGTHS, ("put cube on plate", "open drawer"), strict=True)):
        table = plain.slice(start, length)
        chunk = f"chunk-{episode // chunks_size:03d}"
        if dtype == "video":
            table = table.drop_columns([FRONT])
            levels = [level(episode, step) for step in range(length)]
            write_video(root / "videos" / chunk / FRONT / f"episode_{episode:06d}.mp4", levels)
        (root / "data" / chunk).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / "data" / chunk / f"episode_{episode:06d}.parquet")
        lines["episodes"].append({"episode_index": episode, "tasks": [task], "length": length})
        lines["tasks"].append({"task_index": episode, "task": task})
        lines["episodes_stats"].append({"episode_index": episode, "stats": {"action": {"count": [length]}}})
        start += length
    (root / "meta").mkdir()
    for name, rows in lines.items():
        (root / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    new = {
        "codebase_version": version,
        "robot_type": "toy",
        "total_episodes": 2,
        "total_frames": start,
        "total_tasks": 2,
        "total_videos": 2 if dtype == "video" else 0,
        "total_chunks": 1,
        "chunks_size": chunks_size,
        "fps": 10,
        "splits": {"train": "0:2"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        if dtype == "video"
        else None,
        "features": features,
    }
    (root / "meta" / "info.json").write_text(json.dumps(new))
    return root
