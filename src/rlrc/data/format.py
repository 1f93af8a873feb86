"""The names of LeRobotDataset v3.0 and v2.1: where their files are and what their columns are called.

In v3.0 many episodes share a file, and `meta/episodes` says where each one lies. In v2.0 and v2.1 every episode has
files of its own. The `lerobot` package reads and writes the same, but it pins torchvision and older torch releases than
ours, so reading (all of them) and writing (v3.0) are done here, with pyarrow and PyAV. Format:
https://huggingface.co/docs/lerobot/lerobot-dataset-v3.
"""

import numpy as np

VERSION = "v3.0"

IMAGES = "observation.images."
FRONT_IMAGE = f"{IMAGES}front"
STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
ACTION = "action"

STATE_KEYS = (STATE, "state")
"""Names of proprioception in published datasets."""
ACTION_KEYS = (ACTION, "actions")
"""Names of actions in published datasets."""

INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

V2_TASKS_PATH = "meta/tasks.jsonl"
V2_EPISODES_PATH = "meta/episodes.jsonl"
V2_DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"

VERSIONS = {VERSION: DATA_PATH, "v2.1": V2_DATA_PATH, "v2.0": V2_DATA_PATH}
"""The versions that are read, and where each has its tables unless `info.json` says otherwise."""

FILES_PER_CHUNK = 1000
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200

INDEX_COLUMNS = {
    "timestamp": np.float32,
    "frame_index": np.int64,
    "episode_index": np.int64,
    "index": np.int64,
    "task_index": np.int64,
}
"""Columns that every dataset has: seconds and steps since the episode began, the episode, the row, the task."""

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
