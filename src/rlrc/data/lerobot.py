"""Writing a LeRobotDataset v3.0 folder."""

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rlrc.configs.collect import CameraDtype
from rlrc.data import format as fmt
from rlrc.data.series import ParquetSeries, VideoSeries
from rlrc.data.summaries import ImageSummary, VectorSummary
from rlrc.errors import UserError
from rlrc.files import atomic_path, write_json
from rlrc.ownership import DATASET


@contextmanager
def write_dataset(
    path: Path,
    fps: int,
    robot_type: str,
    camera_dtype: CameraDtype = "image",
    names: Mapping[str, Sequence[str]] | None = None,
) -> Iterator["DatasetWriter"]:
    """Write a dataset; the folder takes its place at `path` only when the block succeeds.

    Args:
        fps: control steps a second.
        camera_dtype: "image" stores PNG in the parquet files, lossless; "video" stores H.264, a fraction of the size.
        names: names of the dimensions of vector features, by feature key.

    Raises:
        UserError: no episode was appended.
    """
    with atomic_path(path, DATASET) as aside:
        with closing(DatasetWriter(aside, fps, robot_type, camera_dtype, names or {})) as writer:
            yield writer
        if writer.num_episodes == 0:
            raise UserError(f"{path}: a dataset needs at least one episode")
        writer.write_meta()


class DatasetWriter:
    """Appends episodes to a new dataset; made by `write_dataset()`. The first episode settles the features."""

    def __init__(
        self, root: Path, fps: int, robot_type: str, camera_dtype: CameraDtype, names: Mapping[str, Sequence[str]]
    ) -> None:
        self._root = root
        self._fps = fps
        self._robot_type = robot_type
        self._camera_dtype = camera_dtype
        self._names = names
        self._features: dict[str, dict[str, Any]] = {}
        self._summaries: dict[str, ImageSummary | VectorSummary] = {}
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._data = ParquetSeries(root)
        self._videos: dict[str, VideoSeries] = {}
        self._pool = ThreadPoolExecutor(os.cpu_count())  # Pillow lets go of the GIL while it compresses
        self.num_frames = 0

    @property
    def num_episodes(self) -> int:
        return len(self._episodes)

    def append(self, task: str, frames: Mapping[str, np.ndarray]) -> None:
        """Append an episode.

        Args:
            task: the instruction.
            frames: by feature key, arrays over T steps: uint8 (T, H, W, 3) of a camera, or float32 (T, D).

        Raises:
            UserError: the episode is empty, or its features differ from those of the first one.
        """
        length = len(next(iter(frames.values())))
        task_index = self._tasks.setdefault(task, len(self._tasks))
        columns = {**frames, **self._index_columns(length, task_index)}
        features = {key: self._feature(key, values) for key, values in columns.items()}
        if not self._features:
            self._start(features)
        if length == 0 or features != self._features or any(len(values) != length for values in columns.values()):
            shapes = {key: values.shape for key, values in frames.items()}
            raise UserError(f"episode {self.num_episodes} is empty or does not match the first one: {shapes}")

        row: dict[str, Any] = {"episode_index": self.num_episodes, "tasks": [task], "length": length}
        row |= {"dataset_from_index": self.num_frames, "dataset_to_index": self.num_frames + length}
        row |= self._data.append(self._table(columns))
        for key, video in self._videos.items():
            row |= {f"videos/{key}/{name}": value for name, value in video.append(frames[key]).items()}
        for key, summary in self._summaries.items():
            row |= {f"stats/{key}/{name}": value for name, value in summary.add(columns[key]).items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        self._episodes.append(row)
        self.num_frames += length

    def close(self) -> None:
        self._data.close()
        for video in self._videos.values():
            video.close()
        self._pool.shutdown()

    def write_meta(self) -> None:
        """Write everything below `meta/`: what the dataset holds, its tasks, its episodes and its statistics."""
        info = {
            "codebase_version": fmt.VERSION,
            "robot_type": self._robot_type,
            "total_episodes": self.num_episodes,
            "total_frames": self.num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": fmt.FILES_PER_CHUNK,
            "data_files_size_in_mb": fmt.DATA_FILE_MB,
            "video_files_size_in_mb": fmt.VIDEO_FILE_MB,
            "fps": self._fps,
            "splits": {"train": f"0:{self.num_episodes}"},
            "data_path": fmt.DATA_PATH,
            "video_path": fmt.VIDEO_PATH if self._videos else None,
            "features": self._features,
        }
        write_json(self._root / fmt.INFO_PATH, info)
        write_json(self._root / fmt.STATS_PATH, {key: summary.total() for key, summary in self._summaries.items()})
        pq.write_table(_tasks_table(list(self._tasks)), self._root / fmt.TASKS_PATH)
        episodes = self._root / fmt.EPISODES_PATH.format(chunk_index=0, file_index=0)
        episodes.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._episodes), episodes)

    def _start(self, features: dict[str, dict[str, Any]]) -> None:
        self._features = features
        for key, feature in features.items():
            self._summaries[key] = VectorSummary() if len(feature["shape"]) == 1 else ImageSummary()
            if feature["dtype"] == "video":
                self._videos[key] = VideoSeries(self._root, key, self._fps)

    def _feature(self, key: str, values: np.ndarray) -> dict[str, Any]:
        """A feature's entry in `info.json`."""
        if values.ndim == 4:
            height, width, channels = values.shape[1:]
            camera: dict[str, Any] = {"dtype": self._camera_dtype, "shape": [height, width, channels]}
            camera["names"] = ["height", "width", "channels"]
            if self._camera_dtype == "video":
                camera["info"] = _video_info(height, width, self._fps)
            return camera
        names = list(self._names[key]) if key in self._names else None
        return {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1], "names": names}

    def _index_columns(self, length: int, task_index: int) -> dict[str, np.ndarray]:
        steps = np.arange(length)
        columns = {
            "timestamp": steps / self._fps,
            "frame_index": steps,
            "episode_index": np.full(length, self.num_episodes),
            "index": self.num_frames + steps,
            "task_index": np.full(length, task_index),
        }
        return {name: columns[name].astype(dtype) for name, dtype in fmt.INDEX_COLUMNS.items()}

    def _table(self, columns: Mapping[str, np.ndarray]) -> pa.Table:
        arrays = {key: self._array(values) for key, values in columns.items() if key not in self._videos}
        return pa.table(arrays).replace_schema_metadata({"huggingface": _hub_features(self._features)})

    def _array(self, values: np.ndarray) -> pa.Array:
        if values.ndim == 4:
            images = [{"bytes": data, "path": None} for data in self._pool.map(_encode_png, values)]
            return pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        if values.ndim == 2:
            return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        return pa.array(values)


def _encode_png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _video_info(height: int, width: int, fps: int) -> dict[str, Any]:
    stream = {"height": height, "width": width, "codec": "h264", "pix_fmt": "yuv420p", "is_depth_map": False}
    stream |= {"fps": fps, "channels": 3}
    return {f"video.{name}": value for name, value in stream.items()} | {"has_audio": False}


def _hub_features(features: Mapping[str, dict[str, Any]]) -> str:
    """The schema as the `datasets` library reads it from a parquet file; it makes the Hub show pictures as pictures."""
    hub: dict[str, Any] = {}
    for key, feature in features.items():
        value = {"dtype": feature["dtype"], "_type": "Value"}
        if feature["dtype"] == "image":
            hub[key] = {"_type": "Image"}
        elif feature["dtype"] != "video":
            scalar = key in fmt.INDEX_COLUMNS
            hub[key] = value if scalar else {"feature": value, "length": feature["shape"][0], "_type": "Sequence"}
    return json.dumps({"info": {"features": hub}})


def _tasks_table(tasks: list[str]) -> pa.Table:
    """The tasks as pandas writes a frame indexed by task; readers look a task up by its row's position."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": tasks})
    types = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
        for name, (kind, dtype) in types.items()
    ]
    metadata = {"index_columns": ["task"], "column_indexes": [], "columns": columns}
    return table.replace_schema_metadata({"pandas": json.dumps(metadata)})
