"""The calibration loss: how well a policy predicts the action tokens of demonstrated frames."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from rlrc.data import Demonstrations
from rlrc.data.statistics import normalise
from rlrc.errors import UserError
from rlrc.models.actions import action_statistics
from rlrc.models.policy import Policy

PROJECTED_AT_ONCE = 16
"""Pictures that pass the vision towers together; they are not differentiated, so this only bounds memory."""


class ActionLoss:
    """Mean cross-entropy over the action tokens of `samples` random frames, called with their numbers 0..samples-1.

    Pictures pass the vision towers once: only the decoder is differentiated, however often the loss is.
    """

    def __init__(self, policy: Policy, demonstrations: Demonstrations, samples: int, seed: int) -> None:
        if samples > len(demonstrations):
            raise UserError(
                f"{samples} calibration samples asked for, but the dataset holds {len(demonstrations)} frames"
            )
        chosen = np.sort(np.random.default_rng(seed).choice(len(demonstrations), samples, replace=False))
        self.model = policy.model
        inputs = policy.prepare(demonstrations.images[chosen], [demonstrations.instruction(i) for i in chosen])
        assert inputs.pixel_values is not None
        with torch.no_grad():
            pictures = inputs.pixel_values.split(PROJECTED_AT_ONCE)
            embeddings = torch.cat([self.model.project_images(pixels) for pixels in pictures])
        self.inputs = type(inputs)(inputs.input_ids, inputs.attention_mask, image_embeddings=embeddings)
        statistics = action_statistics(policy.norm_stats, policy.unnorm_key)
        tokens = policy.actions.encode(normalise(demonstrations.actions[chosen], statistics))
        self.tokens = torch.from_numpy(tokens).to(policy.device)
        self.bins = policy.actions.ids_to_bins(self.tokens)

    def __call__(self, samples: Sequence[int]) -> torch.Tensor:
        rows = list(samples)
        logits, _ = self.model.action_logits(self.inputs[rows], self.tokens[rows])
        return F.cross_entropy(logits.flatten(0, 1).float(), self.bins[rows].flatten())
