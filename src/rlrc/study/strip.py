"""A short strip of the first and the last policy playing the same episodes, as a WebP film that any page shows."""

from pathlib import Path

import numpy as np
from PIL import Image

from rlrc.files import atomic_path
from rlrc.report.films import panels_of_pairs
from rlrc.study.evidence import Evidence

SHOWN = ("dense", "rl-4bit")
SIDE = 160  # px of a picture
OF_EACH = 2  # episodes in and out of distribution: the first ones, whatever happens in them
END_FRAMES = 4  # the last frame is shown that often, so that one sees how it ends
LAST_STEP = 26  # what happens afterwards is standing still, nearly always


def write_strip(evidence: Evidence, path: Path) -> Path | None:
    """Write the strip: one column for each episode, the dense policy above, the compressed one below.

    Returns:
        The path, or None if either policy was not filmed.
    """
    if not set(SHOWN) <= evidence.policies.keys():
        return None
    above, below = (evidence.policies[label] for label in SHOWN)
    by_condition: dict[str, list[list[np.ndarray]]] = {}
    for caption, panels, _ in panels_of_pairs(above, below, SHOWN):
        by_condition.setdefault(caption.split()[0], []).append(panels)
    pairs = [pair for group in by_condition.values() for pair in group[:OF_EACH]]
    if not pairs:
        return None
    columns = [np.concatenate([_shrink(panel) for panel in pair], axis=1) for pair in pairs]
    frames = np.concatenate(columns, axis=2)
    frames = np.concatenate([frames, np.repeat(frames[-1:], END_FRAMES, axis=0)])
    images = [Image.fromarray(frame) for frame in frames]
    with atomic_path(path) as aside:
        images[0].save(aside, "WEBP", save_all=True, append_images=images[1:], duration=200, loop=0, method=6)
    return path


def _shrink(panel: np.ndarray) -> np.ndarray:
    """Frames uint8 (T, H, W, 3) up to LAST_STEP, SIDE wide."""
    frames = panel[: LAST_STEP + 1]
    size = (SIDE, round(frames.shape[1] * SIDE / frames.shape[2]))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames])
