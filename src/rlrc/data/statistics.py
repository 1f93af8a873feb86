"""OpenVLA's normalisation statistics of a dataset, and checks that a policy and a dataset's numbers fit each other."""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rlrc.data.demonstrations import Demonstrations
from rlrc.errors import UserError
from rlrc.progress import say

if TYPE_CHECKING:
    from rlrc.models.policy import Policy

CLIPPED_SHARE = 0.03
"""Share of all labels above which a warning tells that they are clipped; quantiles of the same data leave out 2 %."""
CLIPPED_SHARE_OF_DIMENSION = 0.10
"""The same for the labels of a single dimension."""


class StatisticsChoice(Protocol):
    """The options of a verb that are about statistics (see `configs/parts.py`)."""

    @property
    def statistics(self) -> str: ...
    @property
    def unnorm_key(self) -> str | None: ...


def policy_key(config: StatisticsChoice) -> str | None:
    """Return the key of the statistics to read a policy with: `unnorm_key`, unless it is the name for those of a
    dataset."""
    return config.unnorm_key if config.statistics == "policy" else None


def norm_stats(demonstrations: Demonstrations, unnorm_key: str) -> dict[str, Any]:
    """Statistics in the form of OpenVLA's `config.norm_stats` and `dataset_statistics.json`, ready for JSON.

    The mask names the dimensions to normalise. OpenVLA leaves out the last one, the gripper, because its commands are
    within [-1, 1] as they are. So the last dimension is left out where all its values are within [-1, 1]; elsewhere it
    would be clipped, and is normalised like the others. Without a state there is no `proprio`.
    """
    actions = demonstrations.actions
    as_it_is = bool(np.abs(actions[:, -1]).max() <= 1)
    stats: dict[str, Any] = {"action": {**_moments(actions), "mask": [True] * (actions.shape[1] - 1) + [not as_it_is]}}
    if demonstrations.state is not None:
        stats["proprio"] = _moments(demonstrations.state)
    counts = {"num_transitions": len(demonstrations), "num_trajectories": demonstrations.num_episodes}
    return {unnorm_key: {**stats, **counts}}


def adopt_statistics(policy: "Policy", demonstrations: Demonstrations, config: StatisticsChoice) -> None:
    """Let `policy` normalise actions by the statistics that `config` asks for, and check that they fit.

    `statistics: dataset` computes those of the demonstrations, keeps them in the policy's config under `unnorm_key`, or
    else under the name of the dataset's folder, and makes them the policy's own. `statistics: policy` leaves the policy
    as it is and prints a warning where they clip more than a few per cent of the labels.

    Raises:
        UserError: the numbers of dimensions differ, or the policy holds other statistics of that name.
    """
    if config.statistics == "policy":
        require_fit(policy, demonstrations)
        _warn_of_clipping(policy, demonstrations)
        return
    key = config.unnorm_key or demonstrations.path.resolve().name
    entry = norm_stats(demonstrations, key)
    known = policy.norm_stats or {}
    if key in known and known[key] != entry[key]:
        raise UserError(
            f"{demonstrations.path}: the policy holds other statistics under '{key}'; name those of this dataset with "
            "unnorm_key"
        )
    policy.model.config.norm_stats = {**known, **entry}
    policy.model.config.default_unnorm_key = policy.unnorm_key = key
    require_fit(policy, demonstrations)
    say(f"actions are normalised by the statistics of {demonstrations.path}, which are kept as '{key}'")


def require_fit(policy: "Policy", demonstrations: Demonstrations) -> None:
    """Check that demonstrated actions have the dimensions of the policy and of its statistics.

    Raises:
        UserError: they differ, or the policy has no statistics to use.
    """
    from rlrc.models.actions import action_statistics

    here = demonstrations.actions.shape[1]
    known = len(action_statistics(policy.norm_stats, policy.unnorm_key)["q01"])
    for there, what in ((policy.model.config.action_dim, "the policy's"), (known, "those of the policy's statistics")):
        if here != there:
            raise UserError(f"{demonstrations.path}: actions have {here} dimensions, and {what} have {there}")


def clipped(actions: np.ndarray, stats: dict[str, np.ndarray], bins: int) -> np.ndarray:
    """Return which labels of actions (T, D) lie outside what `stats` can say by more than half a bin, bool (T, D)."""
    low, high = stats["q01"], stats["q99"]
    scaled = np.where(stats["mask"], 2 * (actions - low) / (high - low + 1e-8) - 1, actions)
    return np.abs(scaled) > 1 + 1 / bins


def _warn_of_clipping(policy: "Policy", demonstrations: Demonstrations) -> None:
    from rlrc.models.actions import action_statistics

    stats = action_statistics(policy.norm_stats, policy.unnorm_key)
    outside = clipped(demonstrations.actions, stats, policy.actions.n_bins)
    shares = outside.mean(axis=0)
    if outside.mean() > CLIPPED_SHARE or shares.max() > CLIPPED_SHARE_OF_DIMENSION:
        most = [f"{n} ({shares[n]:.0%})" for n in np.argsort(-shares, kind="stable") if shares[n] > CLIPPED_SHARE]
        say(
            f"warning: {outside.mean():.1%} of the action labels in {demonstrations.path} lie outside the policy's "
            f"statistics and are clipped, in dimensions {', '.join(most)}; --statistics dataset uses the dataset's own"
        )


def _moments(values: np.ndarray) -> dict[str, list[float]]:
    values = values.astype(np.float64)
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    numbers = {"mean": values.mean(0), "std": values.std(0), "max": values.max(0), "min": values.min(0)}
    return {name: number.tolist() for name, number in {**numbers, "q01": q01, "q99": q99}.items()}
