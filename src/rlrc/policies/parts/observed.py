"""Checks of what a policy is shown, the same for all families."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlrc.errors import UserError, shorten
from rlrc.policies.values import Observation, Previous


def require_pictures(images: Any) -> None:
    """
    Raises:
        UserError: these are no pictures uint8 (B, H, W, 3).
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise UserError(f"images must be uint8 arrays of values 0-255, got {getattr(images, 'dtype', type(images))}")
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"images must have shape (batch, height, width, 3), got {images.shape}")
    if not images.size:
        raise UserError(f"images hold no pictures: their shape is {images.shape}")


def require_texts(instructions: Any) -> None:
    """
    Raises:
        UserError: these are no texts, or there are none.
    """
    if isinstance(instructions, str | bytes) or not isinstance(instructions, Sequence | np.ndarray):
        raise UserError("instructions must be a list of texts, one for each picture")
    wrong = next((item for item in instructions if not isinstance(item, str)), None)
    if wrong is not None or not len(instructions):
        raise UserError(f"instructions must be texts, and at least one; got {shorten(repr(wrong))}")


def state_of(observation: Observation, count: int) -> np.ndarray:
    """The state of an observation, float64 (N, count) in physical units.

    Raises:
        UserError: it is missing, has another type or shape, or holds NaN or infinity.
    """
    state = observation.state
    if state is None:
        raise UserError(f"the policy reads a state of {count} numbers, which is not there")
    if not isinstance(state, np.ndarray) or state.dtype.kind != "f" or state.shape != (len(observation), count):
        found = getattr(state, "shape", type(state).__name__)
        raise UserError(f"the state must be floating-point numbers of shape {(len(observation), count)}, not {found}")
    if not np.isfinite(state).all():
        raise UserError("the state holds NaN or infinity")
    return state.astype(np.float64)


def require_previous(previous: Previous, shape: tuple[int, int, int]) -> None:
    """
    Args:
        shape: (N, H, D) of the policy's chunks.

    Raises:
        UserError: these are no chunks of that shape, or what is left of them holds NaN or infinity.
    """
    actions, (rows, horizon, _) = previous.actions, shape
    if not isinstance(actions, np.ndarray) or actions.dtype.kind != "f" or actions.shape != shape:
        found = getattr(actions, "shape", type(actions).__name__)
        raise UserError(f"the previous actions must be floating-point numbers of shape {shape}, not {found}")
    for name, numbers, most in (("left", previous.left, horizon), ("delay", previous.delay, None)):
        if not isinstance(numbers, np.ndarray) or numbers.dtype.kind not in "iu" or numbers.shape != (rows,):
            raise UserError(f"'{name}' of the previous actions must be {rows} whole numbers, one a row")
        if (numbers < 0).any() or (most is not None and (numbers > most).any()):
            raise UserError(f"'{name}' of the previous actions must be from 0 on" + f" to {most}" * (most is not None))
    there = np.arange(horizon) < previous.left[:, None]
    if not np.isfinite(actions[there]).all():
        raise UserError("the previous actions hold NaN or infinity")
