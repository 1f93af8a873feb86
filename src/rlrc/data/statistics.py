"""OpenVLA's normalisation statistics of a dataset, and checks that a policy and a dataset fit each other."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlrc.data.demonstrations import Demonstrations
from rlrc.data.format import STATE_KEYS
from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.statistics import Entry
from rlrc.progress import say

OUTSIDE_SHARE = 0.03
"""Share of all numbers above which a warning tells that they lie outside; quantiles of the same data leave out 2 %."""
OUTSIDE_SHARE_OF_DIMENSION = 0.10
"""The same for the numbers of a single dimension."""


class StatisticsChoice(Protocol):
    """The options of a verb that are about statistics (see `configs/parts.py`)."""

    @property
    def statistics(self) -> str: ...
    @property
    def unnorm_key(self) -> str | None: ...


def policy_key(config: StatisticsChoice) -> str | None:
    """The statistics to read a policy with: `unnorm_key`, unless it names those that a dataset's are kept under."""
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


def adopt_statistics(policy: Policy, demonstrations: Demonstrations, config: StatisticsChoice) -> None:
    """Let `policy` normalise actions by the statistics that `config` asks for, and check that they fit.

    `statistics: dataset` computes those of the demonstrations, keeps them in the policy's config under `unnorm_key`, or
    else under the name of the dataset's folder, and makes them the policy's own. `statistics: policy` leaves the policy
    as it is and prints a warning where more than a few per cent of the actions or states lie outside of them.

    Raises:
        UserError: the numbers of dimensions differ, or the policy holds other statistics of that name.
    """
    if config.statistics == "policy":
        require_fit(policy, demonstrations)
        _warn(policy, "action labels", demonstrations.actions, "action", demonstrations.path)
        if policy.spec.state and demonstrations.state is not None:
            _warn(policy, "states", demonstrations.state, "proprio", demonstrations.path)
        return
    key = config.unnorm_key or demonstrations.path.resolve().name
    entry = norm_stats(demonstrations, key)
    known = policy.norm_stats or {}
    if key in known and known[key] != entry[key]:
        raise UserError(
            f"{demonstrations.path}: the policy holds other statistics under '{key}'; name those of this dataset with "
            "unnorm_key"
        )
    policy.adopt(entry[key], key)
    require_fit(policy, demonstrations)
    say(f"actions are normalised by the statistics of {demonstrations.path}, which are kept as '{key}'")


def require_fit(policy: Policy, demonstrations: Demonstrations) -> None:
    """Check that the demonstrations hold what the policy sees, and that states and actions have its dimensions.

    Raises:
        UserError: a camera or the state is missing, dimensions differ, an instruction is longer than the policy reads,
            or the policy has no statistics to use.
    """
    here, there = demonstrations.actions.shape[1], len(policy.spec.action)
    if here != there:
        raise UserError(f"{demonstrations.path}: actions have {here} dimensions, and the policy's have {there}")
    if there := len(policy.spec.state):
        if demonstrations.state is None:
            raise UserError(
                f"{demonstrations.path}: the policy reads a state of {there} dimensions, and no feature is called "
                f"{' nor '.join(STATE_KEYS)}; name the state with state_key"
            )
        here = demonstrations.state.shape[1]
        if here != there:
            raise UserError(f"{demonstrations.path}: the state has {here} dimensions, and the policy's has {there}")
    demonstrations.seen_by(policy.spec.cameras)
    policy.require_readable(demonstrations.tasks)
    _ = policy.action_statistics()


def _warn(policy: Policy, what: str, values: np.ndarray, entry: Entry, path: Path) -> None:
    outside = policy.outside(values, entry)
    shares = outside.mean(axis=0)
    if outside.mean() > OUTSIDE_SHARE or shares.max() > OUTSIDE_SHARE_OF_DIMENSION:
        most = [f"{n} ({shares[n]:.0%})" for n in np.argsort(-shares, kind="stable") if shares[n] > OUTSIDE_SHARE]
        where, clipped = ("outside", " and are clipped") if policy.clips else ("far outside", "")
        say(
            f"warning: {outside.mean():.1%} of the {what} in {path} lie {where} the policy's statistics{clipped}, in "
            f"dimensions {', '.join(most)}; --statistics dataset uses the dataset's own"
        )


def _moments(values: np.ndarray) -> dict[str, list[float]]:
    values = values.astype(np.float64)
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    numbers = {"mean": values.mean(0), "std": values.std(0), "max": values.max(0), "min": values.min(0)}
    return {name: number.tolist() for name, number in {**numbers, "q01": q01, "q99": q99}.items()}
