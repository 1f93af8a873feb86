"""The same episode as two policies play it, side by side in one film."""

import tempfile
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rlrc.episodes import HEADLINE, Episode, video_path
from rlrc.report.summary import PolicyRow
from rlrc.video import read_video, write_video

STRIP = 32  # px above the pictures, for names
GAP = 8  # px between them
BACKGROUND, TEXT, WON, LOST = (17, 20, 24), (235, 237, 240), (88, 190, 120), (232, 104, 96)


@dataclass(frozen=True)
class Film:
    """A film as a data URI, with a caption that says what happens in it."""

    source: str
    caption: str


def side_by_side(left: PolicyRow, right: PolicyRow) -> list[Film]:
    """A film for every episode of which both policies were filmed."""
    names = (left.name, right.name)
    return [
        Film(_data_uri(_joined(panels), fps), caption) for caption, panels, fps in panels_of_pairs(left, right, names)
    ]


def panels_of_pairs(
    left: PolicyRow, right: PolicyRow, names: tuple[str, str]
) -> list[tuple[str, list[np.ndarray], float]]:
    """Every episode of which both policies were filmed: a caption, both films with a headline, frames a second."""
    others = {episode.key: episode for episode in right.episodes}
    pairs = []
    for ours in left.episodes:
        paths = [_find(row, ours) for row in (left, right)]
        if ours.key not in others or None in paths:
            continue
        episodes = (ours, others[ours.key])
        (left_frames, fps), (right_frames, _) = (read_video(path) for path in paths if path is not None)
        frames = (left_frames, right_frames)
        panels = [_panel(*panel) for panel in zip(frames, names, episodes, strict=True)]
        outcome = ", ".join(f"{name} {_word(episode)}" for name, episode in zip(names, episodes, strict=True))
        pairs.append((f"{ours.condition.upper()} episode {ours.episode_id}: {outcome}", panels, fps))
    return pairs


def _find(row: PolicyRow, episode: Episode) -> Path | None:
    paths = (video_path(folder, episode.condition, episode.episode_id) for folder in row.evaluations)
    return next((path for path in paths if path.exists()), None)


def _word(episode: Episode) -> str:
    return "succeeds" if getattr(episode, HEADLINE) else "fails"


def _panel(frames: np.ndarray, name: str, episode: Episode) -> np.ndarray:
    """Frames uint8 (T, H, W, 3) below a strip with the policy's name and a mark that says how the episode ends."""
    strip = Image.new("RGB", (frames.shape[2], STRIP), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size=15)
    middle = STRIP // 2
    draw.text((8, middle), name, TEXT, font, anchor="lm")
    colour = WON if getattr(episode, HEADLINE) else LOST
    draw.text((frames.shape[2] - 8, middle), _word(episode), colour, font, anchor="rm")
    head = np.broadcast_to(np.asarray(strip), (len(frames), STRIP, frames.shape[2], 3))
    return np.concatenate([head, frames], axis=1)


def _joined(panels: list[np.ndarray]) -> np.ndarray:
    """Panels of equal height next to each other; the shorter one stands still at its end."""
    length = max(len(panel) for panel in panels)
    panels = [panel[np.minimum(np.arange(length), len(panel) - 1)] for panel in panels]
    gap = np.full((length, panels[0].shape[1], GAP, 3), BACKGROUND, np.uint8)
    return np.concatenate([panels[0], gap, panels[1]], axis=2)


def _data_uri(frames: np.ndarray, fps: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "film.mp4", frames, fps)
        return "data:video/mp4;base64," + b64encode((Path(folder) / "film.mp4").read_bytes()).decode()
