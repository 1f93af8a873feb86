"""The valid small inputs that wrong ones are made from: made once, then copied for each case."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rlrc.errors import UserError

CAMERA = "observation.images.front"
DATA_FILE = "data/chunk-000/file-000.parquet"
EPISODES_FILE = "meta/episodes/chunk-000/file-000.parquet"
VIDEO_FILE = f"videos/{CAMERA}/chunk-000/file-000.mp4"
TASKS = ("put carrot on plate", "put the spoon on the towel")
LENGTHS = (6, 8)
FPS = 10
TRAIN_ONE_STEP = ("--steps", "1", "--batch-size", "2", "--warmup-steps", "0")

_root = Path()


def make_all(folder: Path) -> None:
    """Write every template below `folder`; `use` must be told of it afterwards."""
    use(folder)
    os.chdir(folder)
    _make_policy(folder / "policy")
    _make_sharded(folder / "policy", folder / "sharded")
    _run("quantize", folder / "packed-stage", policy=folder / "policy")
    (folder / "packed-stage" / "checkpoint").rename(folder / "packed")
    _make_dataset(folder / "images", "image")
    _make_dataset(folder / "video", "video")
    for name in ("images", "video"):
        _make_v21(folder / name, folder / f"{name}-v21")
    (folder / "recipe.yaml").write_text(RECIPE.format(policy=folder / "policy"))
    with contextlib.suppress(UserError):  # older versions ended such a run with "nothing to show yet"
        _run("run", folder / "finished", recipe=folder / "recipe.yaml")


def use(folder: Path) -> None:
    """Say where the templates lie."""
    global _root
    _root = folder


def template(name: str) -> Path:
    return _root / name


def put(name: str, target: Path) -> Path:
    """Copy a template to `target`."""
    source = template(name)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return target


def put_user_files(place: Path) -> None:
    """Write files that belong to the user and must stay as they are."""
    for name in ("user/thesis.txt", "user/photos/one.jpg", "photos/two.jpg"):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} of ten years")


def policy_case(change: Callable[[Path], None], name: str = "policy") -> Callable[[Path], None]:
    """A builder: policy and dataset, the policy changed."""

    def build(place: Path) -> None:
        put_user_files(place)
        put("images", place / "data")
        change(put(name, place / "policy"))

    return build


def data_case(change: Callable[[Path], None], name: str = "images") -> Callable[[Path], None]:
    """A builder: policy and dataset, the dataset changed."""

    def build(place: Path) -> None:
        put_user_files(place)
        put("policy", place / "policy")
        change(put(name, place / "data"))

    return build


def nothing(place: Path) -> None:
    """Change nothing."""


RECIPE = """\
name: small
base: {policy}
stages:
  - {{verb: prune, policy: base, ratio: 0.5, method: {{kind: random}}}}
  - {{verb: quantize, policy: prune}}
"""


def _run(verb: str, out: Path, **values: Any) -> None:
    from rlrc.command_line import commands

    command = commands()[verb]
    out.mkdir(exist_ok=True)
    command.function()(command.config_class()(**values), out)


def _make_policy(path: Path) -> None:
    _run("make-random", path, preset="openvla-tiny")


def _make_sharded(source: Path, path: Path) -> None:
    from safetensors.torch import load_file

    from rlrc.policies.shards import ShardWriter

    shutil.copytree(source, path)
    writer = ShardWriter(path, shard_bytes=3 * 2**20)
    for name, tensor in load_file(source / "model.safetensors").items():
        writer.add(name, tensor)
    (path / "model.safetensors").unlink()
    writer.close()


def _make_dataset(path: Path, camera_dtype: Any) -> None:
    from rlrc.data.lerobot import write_dataset

    rng = np.random.default_rng(0)
    with write_dataset(path, FPS, "toy", camera_dtype) as writer:
        for episode, (task, length) in enumerate(zip(TASKS, LENGTHS, strict=True)):
            levels = 10 + 100 * episode + 8 * np.arange(length)
            images = np.broadcast_to(levels[:, None, None, None], (length, 64, 64, 3)).astype(np.uint8)
            frames = {
                CAMERA: images.copy(),
                "observation.state": rng.normal(size=(length, 2)).astype(np.float32),
                "observation.environment_state": rng.normal(size=(length, 3)).astype(np.float32),
                "action": rng.uniform(-0.02, 0.02, (length, 7)).astype(np.float32),
            }
            writer.append(task, frames)


def _make_v21(source: Path, path: Path) -> None:
    """The same dataset as LeRobot wrote it before version 3.0: a file for each episode."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    info = json.loads((source / "meta/info.json").read_text())
    info |= {"codebase_version": "v2.1", "total_chunks": 1, "total_videos": 0}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    table = pq.read_table(source / DATA_FILE)
    (path / "data/chunk-000").mkdir(parents=True)
    (path / "meta").mkdir()
    for episode in range(len(LENGTHS)):
        part = table.filter(pc.equal(table["episode_index"], episode))
        pq.write_table(part, path / f"data/chunk-000/episode_{episode:06d}.parquet")
    if info["video_path"]:
        info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        info["total_videos"] = len(LENGTHS)
        _split_video(source / VIDEO_FILE, path / f"videos/chunk-000/{CAMERA}")
    stats = json.loads((source / "meta/stats.json").read_text())
    lines = {
        "episodes.jsonl": [
            {"episode_index": i, "tasks": [task], "length": length}
            for i, (task, length) in enumerate(zip(TASKS, LENGTHS, strict=True))
        ],
        "tasks.jsonl": [{"task_index": i, "task": task} for i, task in enumerate(TASKS)],
        "episodes_stats.jsonl": [{"episode_index": i, "stats": stats} for i in range(len(LENGTHS))],
    }
    for name, values in lines.items():
        (path / "meta" / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    (path / "meta/info.json").write_text(json.dumps(info))


def _split_video(source: Path, folder: Path) -> None:
    import av

    folder.mkdir(parents=True)
    with av.open(source) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    start = 0
    for episode, length in enumerate(LENGTHS):
        write_video(folder / f"episode_{episode:06d}.mp4", frames[start : start + length])
        start += length


def write_video(path: Path, frames: list[np.ndarray], fps: int = FPS) -> None:
    """An H.264 file of these pictures, uint8 (H, W, 3)."""
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
