"""What is known about a dataset's numbers: OpenVLA's normalisation statistics and LeRobot's summaries."""

from typing import Any

import numpy as np

from rlrc.data.demonstrations import Demonstrations


def norm_stats(demonstrations: Demonstrations, unnorm_key: str) -> dict[str, Any]:
    """Statistics in the form of OpenVLA's `config.norm_stats` and `dataset_statistics.json`, ready for JSON.

    The mask names the dimensions to normalise: all but the gripper, the last one, whose commands are within [-1, 1]
    as they are.
    """
    mask = [True] * (demonstrations.actions.shape[1] - 1) + [False]
    return {
        unnorm_key: {
            "action": {**_moments(demonstrations.actions), "mask": mask},
            "proprio": _moments(demonstrations.state),
            "num_transitions": len(demonstrations),
            "num_trajectories": demonstrations.num_episodes,
        }
    }


def _moments(values: np.ndarray) -> dict[str, list[float]]:
    values = values.astype(np.float64)
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    numbers = {"mean": values.mean(0), "std": values.std(0), "max": values.max(0), "min": values.min(0)}
    return {name: number.tolist() for name, number in {**numbers, "q01": q01, "q99": q99}.items()}
