"""The choices within a dataset: cameras, the columns of actions and state, and episodes."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlrc.configs.parts import OTHER_CAMERAS
from rlrc.data import format as fmt
from rlrc.data.info import Info
from rlrc.errors import UserError, shorten

_EPISODES = re.compile(r"\d{1,9}(:\d{1,9})?(,\d{1,9}(:\d{1,9})?)*", re.ASCII)


def choose_cameras(info: Info, cameras: Sequence[str], where: Path) -> list[str]:
    """The feature keys of the cameras to read.

    Args:
        cameras: the key of each, or the last part of its key ("front"); none: all that see colours.

    Raises:
        UserError: there is no such camera, it measures depth, or one is named twice.
    """
    colour, depth = _cameras(info)
    if not cameras and not colour:
        raise UserError(f"{where}: {_known(colour, depth)}; a policy needs one to see")
    chosen = [_find_camera(name, colour, depth, where) for name in cameras] or colour
    if twice := [key for key in chosen if chosen.count(key) > 1]:
        raise UserError(f"{where}: cameras names {twice[0]} twice")
    return chosen


def match_cameras(policy: Sequence[str], dataset: Sequence[str], named: bool, where: Path) -> dict[str, str]:
    """The dataset's camera that each of a policy's cameras is.

    Cameras that the user has named are in the policy's order. Without that, a policy with one camera sees the only one
    that there is; others are found by their names, as a key ("observation.images.wrist") or its last part ("wrist").

    Args:
        policy: names of the policy's cameras.
        dataset: feature keys of the dataset's cameras that were read.
        named: whether the user has named these.

    Raises:
        UserError: the dataset has none of that name or several, or other cameras were named than the policy has.
    """
    sees = f"the policy sees {len(policy)} {'camera' if len(policy) == 1 else 'cameras'} ({shorten(', '.join(policy))})"
    if named or len(policy) == len(dataset) == 1:
        if len(policy) != len(dataset):
            raise UserError(
                f"{where}: cameras names {len(dataset)} ({shorten(', '.join(dataset))}), and {sees}; {OTHER_CAMERAS}"
            )
        for name, key in zip(policy, dataset, strict=True):
            if any(_is_called(key, other) for other in policy if other != name) and not _is_called(key, name):
                raise UserError(f"{where}: cameras are in the policy's order, and {key} stands for '{shorten(name)}'")
        return dict(zip(policy, dataset, strict=True))
    if len(dataset) < len(policy):
        raise UserError(f"{where}: {sees}, and the dataset has fewer ({shorten(', '.join(dataset))}); {OTHER_CAMERAS}")
    found = {}
    for name in policy:
        keys = [key for key in dataset if key == name] or [key for key in dataset if _is_called(key, name)]
        if len(keys) != 1:
            raise UserError(
                f"{where}: {sees}, and '{shorten(name)}' may be any of {shorten(', '.join(keys or dataset))}; "
                "name them with cameras, in this order"
            )
        found[name] = keys[0]
    return found


def _find_camera(name: str, colour: Sequence[str], depth: Sequence[str], where: Path) -> str:
    known = _known(colour, depth)
    for keys in ([name], [key for key in (*colour, *depth) if _is_called(key, name)]):
        found = [key for key in keys if key in colour or key in depth]
        if len(found) > 1:
            raise UserError(
                f"{where}: '{shorten(name)}' in cameras may be {shorten(' or '.join(found))}; name it in full"
            )
        if found and found[0] in depth:
            raise UserError(f"{where}: {found[0]} is a depth camera, and a policy sees colour; {known}")
        if found:
            return found[0]
    raise UserError(f"{where}: there is no camera '{shorten(name)}' (option cameras); {known}")


def _cameras(info: Info) -> tuple[list[str], list[str]]:
    """Keys of the cameras that see colours, and of those that measure depth."""
    colour = [key for key, feature in info.features.items() if feature.is_camera and not feature.is_depth(key)]
    depth = [key for key, feature in info.features.items() if feature.is_camera and feature.is_depth(key)]
    return colour, depth


def _known(colour: Sequence[str], depth: Sequence[str]) -> str:
    if colour:
        return f"its colour cameras are {shorten(', '.join(colour))}"
    return "it has no colour camera" + (f" (only depth: {shorten(', '.join(depth))})" if depth else "")


def _is_called(key: str, name: str) -> bool:
    return key == name or key.split(".")[-1] == name


def choose_actions(info: Info, key: str | None, where: Path) -> str:
    """The feature key of actions.

    Raises:
        UserError: there are none of that name, or the choice is open.
    """
    found = _choose_vector(info, key, fmt.ACTION_KEYS, "action_key", where)
    if found is None:
        names = " nor ".join(fmt.ACTION_KEYS)
        raise UserError(f"{where}: no feature is called {names}; name the actions with action_key ({_vectors(info)})")
    return found


def choose_state(info: Info, key: str | None, where: Path) -> str | None:
    """The feature key of proprioception, or None where the dataset has none.

    Raises:
        UserError: there is none of that name, or the choice is open.
    """
    return _choose_vector(info, key, fmt.STATE_KEYS, "state_key", where)


def choose_episodes(episodes: str | Sequence[int] | None, present: np.ndarray, where: Path) -> np.ndarray:
    """Return which of the episodes `present`, ascending int64 (E,), are asked for: bool (E,).

    Args:
        episodes: numbers, or a text such as "0:50,60" for the first fifty and number 60; None: all.

    Raises:
        UserError: the text is malformed, or an episode is asked for that is not there.
    """
    if episodes is None:
        return np.ones(len(present), bool)
    chosen = np.zeros(len(present), bool)
    for first, stop in _intervals(episodes):
        left, right = np.searchsorted(present, [first, stop])
        if right - left < stop - first:
            here = present[left:right]
            gaps = np.flatnonzero(here != first + np.arange(len(here)))
            missing = first + (int(gaps[0]) if len(gaps) else len(here))
            raise UserError(
                f"{where} has no episode {missing} (option dataset_episodes); it holds {len(present):,} episodes, "
                f"from {present[0]} to {present[-1]}"
            )
        chosen[left:right] = True
    if not chosen.any():
        raise UserError(f"{where}: dataset_episodes names no episode")
    return chosen


def _intervals(episodes: str | Sequence[int]) -> list[tuple[int, int]]:
    """First episode and one past the last of each part."""
    if not isinstance(episodes, str):
        if wrong := [number for number in episodes if not 0 <= number < 10**9]:
            raise UserError(f"dataset_episodes: {wrong[0]} is no number of an episode")
        return [(int(number), int(number) + 1) for number in episodes]
    if not _EPISODES.fullmatch(episodes):
        raise UserError(f"dataset_episodes: '{shorten(episodes)}' is not of the form 0:50 or 0:50,60,70")
    intervals = []
    for part in episodes.split(","):
        first, _, stop = part.partition(":")
        interval = int(first), int(stop) if stop else int(first) + 1
        if interval[0] >= interval[1]:
            raise UserError(f"dataset_episodes: '{part}' holds no episode, since its end is not after its start")
        intervals.append(interval)
    return intervals


def _choose_vector(info: Info, key: str | None, usual: Sequence[str], option: str, where: Path) -> str | None:
    if key is not None:
        if key not in info.features:
            raise UserError(f"{where}: there is no feature '{shorten(key)}' (option {option}; {_vectors(info)})")
        if info.features[key].is_camera:
            raise UserError(
                f"{where}: {shorten(key)} is a camera, and {option} names a feature of numbers ({_vectors(info)})"
            )
        return key
    found = [name for name in usual if name in info.features]
    if len(found) > 1:
        raise UserError(f"{where}: features {' and '.join(found)} are both there; name the right one with {option}")
    return found[0] if found else None


def _vectors(info: Info) -> str:
    keys = [
        key
        for key, f in info.features.items()
        if not f.is_camera and f.dtype != "string" and key not in fmt.INDEX_COLUMNS
    ]
    return f"features of numbers: {shorten(', '.join(keys)) or 'none'}"
