"""The verb `convert-libero`: LIBERO's published demonstrations as policies here learn from them.

    rlrc convert-libero --source data/libero_spatial --out runs/demos

Reads either LIBERO's own HDF5 files (one a task, also as OpenVLA's scripts have rendered them again) or one of the
LeRobotDatasets made from them. Conventions are those of OpenVLA's LIBERO data: pictures upright and mirrored, gripper 1
open and 0 closed (LIBERO: -1 and +1), no steps in which nothing is commanded.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rlrc.configs.convert_libero import ConvertLiberoConfig
from rlrc.data import format as fmt
from rlrc.data.demonstrations import Demonstrations
from rlrc.data.frames import decode_rows
from rlrc.data.lerobot import write_dataset
from rlrc.envs.libero.render import as_openvla_sees
from rlrc.envs.libero.simulation import CONTROL_HZ
from rlrc.envs.libero.tasks import instruction
from rlrc.envs.libero.world import ACTION, STATE
from rlrc.errors import UserError
from rlrc.progress import bar

NO_OP = 1e-4
"""Norm of the six motions below which an action that leaves the gripper as it is does nothing; OpenVLA's threshold."""


IN_HDF5 = {"front": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
"""Names of the cameras in LIBERO's files."""

Episode = tuple[str, dict[str, np.ndarray]]
"""An instruction, and arrays over steps by feature key."""


def convert_libero(config: ConvertLiberoConfig, out: Path) -> dict[str, Any]:
    """Write `out/dataset`, whole or not at all.

    Returns:
        How many episodes and frames there are, and how many frames were dropped because they command nothing.

    Raises:
        UserError: the source is missing, malformed, or needs h5py and it is not installed.
    """
    dropped = 0
    names = {key: [dim.name for dim in dims] for key, dims in ((fmt.ACTION, ACTION), (fmt.STATE, STATE))}
    episodes = _lerobot(config) if (config.source / fmt.INFO_PATH).exists() else _hdf5(config)
    with (
        write_dataset(out / "dataset", round(CONTROL_HZ), "libero", config.camera, names) as dataset,
        bar(f"converting {config.source.name}") as progress,
    ):
        for task, frames in episodes:
            moving = ~no_ops(frames[fmt.ACTION])
            dropped += int((~moving).sum())
            kept = {key: values[moving] for key, values in frames.items()}
            kept[fmt.ACTION] = np.column_stack([kept[fmt.ACTION][:, :6], opening(kept[fmt.ACTION][:, 6])])
            dataset.append(task, kept)
            progress.advance()
    return {"episodes": dataset.num_episodes, "frames": dataset.num_frames, "no_ops_dropped": dropped}


def no_ops(actions: np.ndarray) -> np.ndarray:
    """Return which of an episode's actions (T,7) do nothing, bool (T,): no motion, and the gripper as in the last kept
    one."""
    still = np.linalg.norm(actions[:, :6], axis=1) < NO_OP
    idle = np.zeros(len(actions), bool)
    gripper: float | None = None
    for step, action in enumerate(actions):
        idle[step] = still[step] and gripper in (None, action[6])
        if not idle[step]:
            gripper = action[6]
    return idle


def opening(gripper: np.ndarray) -> np.ndarray:
    """LIBERO's gripper command (-1 opens, +1 closes) as OpenVLA's data have it: 1 opens, 0 closes, float32."""
    return (1.0 - np.clip(gripper, 0.0, 1.0)).astype(np.float32)


def _hdf5(config: ConvertLiberoConfig) -> Iterator[Episode]:
    files = sorted(config.source.glob("*.hdf5")) if config.source.is_dir() else [config.source]
    if not files or not files[0].exists():
        raise UserError(f"{config.source}: there are neither HDF5 files (*.hdf5) nor a LeRobotDataset")
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{files[0]}: reading HDF5 needs h5py: pip install -c constraints.txt h5py") from error
    for path in files:
        task = instruction(path.stem.removesuffix("_demo"))
        try:
            with h5py.File(path) as file:
                for name in sorted(file["data"], key=lambda name: int(name.removeprefix("demo_"))):
                    yield task, _read_demo(file["data"][name], config)
        except (KeyError, ValueError, OSError) as error:
            raise UserError(f"{path}: not a file of LIBERO demonstrations ({error})") from error


def _read_demo(demo: Any, config: ConvertLiberoConfig) -> dict[str, np.ndarray]:
    seen, size = demo["obs"], config.image_size
    images = {
        fmt.IMAGES + camera: np.stack([as_openvla_sees(pixels, size) for pixels in seen[IN_HDF5[camera]][()]])
        for camera in config.cameras
    }
    state = [seen["ee_pos"][()], seen["ee_ori"][()], seen["gripper_states"][()]]
    return {
        **images,
        fmt.STATE: np.concatenate(state, axis=1).astype(np.float32),
        fmt.ACTION: demo["actions"][()].astype(np.float32),
    }


def _lerobot(config: ConvertLiberoConfig) -> Iterator[Episode]:
    """LeRobotDatasets of LIBERO hold pictures that are turned already, and the gripper as LIBERO commands it."""
    keys = {"front": config.image_key, "wrist": config.wrist_image_key}
    recorded = Demonstrations.load(config.source, [keys[camera] for camera in config.cameras])
    if recorded.state is None or recorded.actions.shape[1] != len(ACTION):
        dimensions = "no state" if recorded.state is None else f"actions of {recorded.actions.shape[1]} dimensions"
        raise UserError(f"{config.source}: LIBERO's demonstrations have a state and 7-D actions; this has {dimensions}")
    cameras = dict(zip(config.cameras, recorded.pictures.values(), strict=True))
    size = config.image_size, config.image_size
    resized = partial(_resized, size=config.image_size)
    starts = np.flatnonzero(np.diff(recorded.episode_index, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(recorded)], strict=True):
        rows = np.arange(start, stop)
        images = {fmt.IMAGES + camera: decode_rows(one, rows, size, resized) for camera, one in cameras.items()}
        states = {fmt.STATE: recorded.state[start:stop], fmt.ACTION: recorded.actions[start:stop]}
        yield recorded.instruction(int(start)), images | states


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))
