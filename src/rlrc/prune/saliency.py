"""A criterion that knows the robot's task: Taylor importance over the states and action dimensions that matter.

The paper names it as future work. The saliency of a state (SQIL, arXiv 2505.15304) is what blurring the picture here
or there changes in the action: SIS(s) = mean over grid cells k of |pi(s) - pi(blur(s, k))|^2 / 2, pi being the mean of
each dimension's distribution over its bins, in [-1, 1]. The most salient states count more in the calibration loss, and
each action dimension by its share of the saliency of all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from rlrc.configs.prune import StateSaliency
from rlrc.configs.saliency import Saliency
from rlrc.errors import UserError
from rlrc.policies.values import Observation, States
from rlrc.progress import say, track
from rlrc.prune.calibrate import Frames
from rlrc.prune.criteria import LlmPrunerMethod
from rlrc.prune.measured import Measured
from rlrc.prune.method import Source


class StateSaliencyMethod(LlmPrunerMethod[StateSaliency]):
    """Robot-aware: LLM-Pruner's Taylor importance, weighted by state saliency."""

    def measure(self, source: Source) -> Measured:
        """
        Raises:
            UserError: the calibration samples are token ids: no pictures, no states.
        """
        if source.frames is None:
            raise UserError("state-saliency needs demonstrations: it blurs their pictures")
        sis = state_saliency(source, source.frames, self.config.grid)
        weights = self.weights(sis)
        say(
            "saliency of the action dimensions: "
            + ", ".join(f"{share:.2f}" for share in weights.mean(dim=(0, 1)).tolist())
        )
        weighted = source.frames.weighted(weights)
        return super().measure(source.with_frames(weighted))

    def weights(self, sis: torch.Tensor) -> torch.Tensor:
        """Saliency (N, H, D) to weights in the loss (N, H, D), 1 on average."""
        of_dimension = sis.mean(dim=(0, 1))
        states = weights_of_states(sis.flatten(1).sum(dim=1), self.config)
        dimensions = of_dimension / of_dimension.mean() if of_dimension.sum() > 0 else torch.ones(sis.shape[2])
        weights = (states[:, None, None] * dimensions).expand(sis.shape)
        return weights / weights.mean()


def state_saliency(source: Source, frames: Frames, grid: int) -> torch.Tensor:
    """SIS of each number of each frame's chunk, (N, H, D)."""
    clean = frames.calibration()
    blurred = [frames.embed(observation).states for observation in blurred_everywhere(frames.observation, grid)]
    frames.let_vision_go()
    stacked = replace(clean.repeated(len(blurred) + 1), states=States.cat([clean.states, *blurred]))
    stream, states = replace(source, calibration=stacked).stream, stacked.states
    for index in track(range(len(source.blocks)), "saliency"):
        states = stream.step(source.blocks[index], states)
    policy = frames.policy

    def read(rows: slice) -> torch.Tensor:
        context = {name: tensor[rows] for name, tensor in stacked.context.items()}
        return policy.mean_actions(policy.read(states.rows(rows), context))

    with torch.no_grad():
        actions = torch.cat([read(rows) for rows in stream.batches()])
    own, *others = actions.split(len(frames))
    return saliency_of(own, others)


def saliency_of(own: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
    """SIS of each number of actions (N, H, D): what they change to when the pictures are blurred here or there."""
    return torch.stack([(own - other).square() / 2 for other in others]).mean(dim=0)


def weights_of_states(sis: torch.Tensor, options: Saliency) -> torch.Tensor:
    """The weight of each state, whose saliency is (N,): that of a salient one for the top share, else 1."""
    salient = max(1, round(options.top_share * len(sis)))
    return torch.where(sis >= sis.topk(salient).values[-1], options.weight, 1.0)


def blurred_everywhere(observation: Observation, grid: int) -> Iterator[Observation]:
    """The observation with one cell of one camera's pictures blurred, for each camera and cell."""
    for camera, images in observation.images.items():
        smooth = smoothed(images)
        for cell in range(grid**2):
            yield replace(observation, images={**observation.images, camera: blur(images, smooth, grid, cell)})


def blur(images: np.ndarray, smooth: np.ndarray, grid: int, cell: int) -> np.ndarray:
    """Pictures uint8 (N, H, W, 3), which become their smoothed ones around one cell of a `grid` x `grid`; cells count
    row by row."""
    height, width = images.shape[1:3]
    row, column = divmod(cell, grid)
    y = (np.arange(height) + 0.5) / height * grid - (row + 0.5)
    x = (np.arange(width) + 0.5) / width * grid - (column + 0.5)
    mask = np.exp(-2 * (y[:, None] ** 2 + x[None, :] ** 2))[None, :, :, None]  # a deviation of half a cell
    return np.rint(images.astype(np.float32) * (1 - mask) + smooth * mask).astype(np.uint8)


def smoothed(images: np.ndarray) -> np.ndarray:
    """Pictures uint8 (N, H, W, 3) without anything smaller than a sixteenth of them, float32."""
    height, width = images.shape[1:3]
    return _smooth(_smooth(images.astype(np.float32), 1, height / 16), 2, width / 16)


def _smooth(pictures: np.ndarray, axis: int, deviation: float) -> np.ndarray:
    """A Gaussian filter along one axis of float32 pictures, cut off at four deviations; the rim is mirrored."""
    radius = int(4 * deviation + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    padding = [(radius, radius) if number == axis else (0, 0) for number in range(pictures.ndim)]
    lines = np.moveaxis(np.pad(pictures, padding, mode="symmetric"), axis, -1)
    rows = torch.from_numpy(np.ascontiguousarray(lines)).double().flatten(0, -2)[:, None]
    filtered = F.conv1d(rows, torch.from_numpy(kernel / kernel.sum())[None, None])
    return np.moveaxis(filtered.view(*lines.shape[:-1], -1).float().numpy(), -1, axis)
