"""VLA-Cache (Xu et al., arXiv 2502.02175, and its published code): what does not move need not be read again.

Between two pictures of an episode most patches stay as they are. Of those (cosine of raw pixels at least `similarity`)
the ones that the instruction attends to are read anyway. The others leave the prompt at a few layers, the first share
of them, which follows from how concentrated that layer's attention was; their keys and values are those of the action
before. Decoding is unchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from rlrc.configs.evaluate import VlaCacheConfig
from rlrc.errors import UserError
from rlrc.policies.parts.decoding import Decoding
from rlrc.policies.values import Generators, Observation, Sampler


def patch_similarity(before: np.ndarray, now: np.ndarray, grid: int) -> torch.Tensor:
    """Cosine of the raw pixels of each patch, float32 (grid * grid,), of two pictures uint8 (H, W, 3).

    In the published code's order of operations: many patches are equal but for the last bits, and are ranked.
    """
    first, second = (_patches(picture, grid) for picture in (before, now))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return torch.from_numpy((first * second).sum(axis=1) / np.maximum(norms, 1e-8))


def _patches(picture: np.ndarray, grid: int) -> np.ndarray:
    side = picture.shape[0] // grid
    rows = picture.reshape(grid, side, grid, side, 3).swapaxes(1, 2)
    return rows.reshape(grid**2, -1).astype(np.float32)


def static_patches(similarity: torch.Tensor, threshold: float, most: int) -> torch.Tensor:
    """Numbers of the patches that did not change, the most similar first."""
    order = similarity.argsort(descending=True, stable=True)
    return order[similarity[order] >= threshold][:most]


def text_to_vision(attention: torch.Tensor, text: slice, patches: int) -> torch.Tensor:
    """Return how much the rows `text` of a layer's head-mean attention (T, T) look at each patch (patches,)."""
    return attention[text, 1 : patches + 1].mean(0)


def reusable_positions(static: torch.Tensor, relevant: torch.Tensor) -> torch.Tensor:
    """Positions in the prompt, ascending, of static patches that are not relevant; BOS comes before the patches."""
    return static[~torch.isin(static, relevant)].sort().values + 1


def entropy(attention: torch.Tensor) -> float:
    """Mean over rows of the entropy of a head-mean attention (rows, T), each row taken as a distribution."""
    rows = attention / attention.sum(-1, keepdim=True)
    return float(torch.special.entr(rows).sum(-1).mean())


def reused_shares(entropies: Sequence[float], growth: float) -> list[float]:
    """Return the share of each layer: 1 where attention is most concentrated, 0 where it is least; rises are damped."""
    low, high = min(entropies), max(entropies)
    shares: list[float] = []
    for value in entropies:
        share = 1 - (value - low) / (high - low) if high > low else 0.0
        if shares and share > shares[-1]:
            share = shares[-1] + growth * (share - shares[-1])
        shares.append(share)
    return shares


@dataclass
class Seen:
    """The things that one action leaves for the next of the same episode."""

    picture: np.ndarray
    instruction: str
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    entropies: list[float]
    attended: torch.Tensor
    """Attention of the instruction to each patch, (patches,)."""


class VlaCache:
    """An actor around a policy: it acts picture by picture, each row of a batch with a memory of its own.

    Args:
        policy: an `OpenVLAPolicy`, whose file imports this one.

    Raises:
        UserError: the decoder has no layer `attention_layer`, or the policy makes fewer tokens of its patches.
    """

    def __init__(self, policy: Any, config: VlaCacheConfig | None = None) -> None:
        self.policy, self.spec, self.device = policy, policy.spec, policy.device
        self.config = config or VlaCacheConfig()
        layers = len(policy.model.language_model.model.layers)
        if policy.model.config.reduction is not None:
            raise UserError("vla_cache: it reuses single patches, and this policy makes fewer tokens of them")
        if self.config.attention_layer >= layers - 1:
            raise UserError(
                f"vla_cache: attention_layer {self.config.attention_layer} is not among the first {layers - 1} layers"
            )
        self._seen: dict[int, Seen] = {}

    def reset(self) -> None:
        """Forget what earlier episodes have left."""
        self._seen = {}

    def act(self, observation: Observation, temperature: float = 0.0, generator: Generators = None) -> np.ndarray:
        """Chunks of one action in physical units, float32 (N, 1, D)."""
        generators = generator if isinstance(generator, Sequence) else [generator] * len(observation)
        rows = [
            self._act_once(number, observation[[number]], Sampler(temperature), generators[number])
            for number in range(len(observation))
        ]
        return np.concatenate(rows)

    def _act_once(self, number: int, observation: Observation, sampler: Sampler, generator: Any) -> np.ndarray:
        policy = self.policy
        image, instruction = observation.images[policy.spec.cameras[0]][0], observation.instruction[0]
        patches = policy.model.config.towers[0].num_patches
        picture = np.asarray(Image.fromarray(image).resize((policy.image_size, policy.image_size)))
        seen = self._seen.get(number)
        if seen is not None and seen.instruction != instruction:
            seen = None
        reusable = None if seen is None else self._reusable(seen, picture, patches)
        runs: list[CachedDecoding] = []

        def decode(
            decoder: Any, mask: torch.Tensor | None, positions: torch.Tensor, capacity: int, gone: int
        ) -> Decoding:
            runs.append(CachedDecoding(decoder, mask, positions, capacity, self.config, patches, seen, reusable))
            return runs[-1]

        sample = policy.sample(policy.prepare(observation), sampler, generator, decode)
        self._seen[number] = runs[0].memory(picture, instruction)
        return policy.to_physical(sample.actions.cpu().numpy())

    def _reusable(self, seen: Seen, picture: np.ndarray, patches: int) -> torch.Tensor:
        similarity = patch_similarity(seen.picture, picture, round(patches**0.5))
        static = static_patches(similarity, self.config.similarity, self.config.static_patches)
        relevant = seen.attended.topk(min(self.config.relevant_patches, patches)).indices.cpu()
        return reusable_positions(static, relevant)


class CachedDecoding(Decoding):
    """One sequence whose prompt loses reusable positions at some layers; their keys and values are last time's."""

    def __init__(
        self,
        decoder: Any,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        capacity: int,
        config: VlaCacheConfig,
        patches: int,
        seen: Seen | None,
        reusable: torch.Tensor | None,
    ) -> None:
        super().__init__(decoder, mask, positions, capacity)
        self._config, self._patches, self._before = config, patches, seen
        self._read = torch.arange(positions.shape[1], device=positions.device)
        self._reusable = None if reusable is None else reusable.to(positions.device)
        self._shares = [] if seen is None else reused_shares(seen.entropies, config.growth)
        self._entropies: list[float] = []
        self._attended: torch.Tensor

    def memory(self, picture: np.ndarray, instruction: str) -> Seen:
        """Return what the next action needs of this one."""
        prompt = slice(0, self._prompt_length)
        keys, values = ([tensor[:, :, prompt] for tensor in tensors] for tensors in (self._keys, self._values))
        return Seen(picture, instruction, keys, values, self._entropies, self._attended)

    def _pass(
        self,
        index: int,
        hidden: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        start: int,
        only_last: bool,
    ) -> torch.Tensor:
        if start == 0:
            if self._reusable is not None and index in self._config.layers and index < len(self._shares):
                reused = self._reusable[: int(self._shares[index] * len(self._reusable))]
                stays = ~torch.isin(self._read, reused)
                hidden, self._read = hidden[:, stays], self._read[stays]
            rotary = rotary[0][:, self._read], rotary[1][:, self._read]
        return super()._pass(index, hidden, rotary, start, only_last)

    def _remember(
        self, index: int, keys: torch.Tensor, values: torch.Tensor, start: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if start:
            return super()._remember(index, keys, values, start)
        self._take_memory(keys, values)
        for new, tensors, before in (
            (keys, self._keys, self._before.keys if self._before else None),
            (values, self._values, self._before.values if self._before else None),
        ):
            if before is not None:
                tensors[index][:, :, : self._length] = before[index]
            tensors[index][:, :, self._read] = new
        return self._keys[index][:, :, : self._length], self._values[index][:, :, : self._length]

    def _attend(self, index: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        if queries.shape[2] == 1:  # a token that is added, or the last layer's only row: they see everything
            return super()._attend(index, queries, keys, values)
        shared = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(shared, dim=1), values.repeat_interleave(shared, dim=1)
        scores = queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5
        later = self._read[:, None] < torch.arange(self._length, device=queries.device)
        attention = scores.masked_fill(later, -torch.inf).float().softmax(dim=-1)
        mean = attention[0].mean(0)
        self._entropies.append(entropy(mean))
        if index == self._config.attention_layer:
            text = slice(self._patches + 1 - self._prompt_length, None)  # the prompt's end, of which nothing left
            self._attended = text_to_vision(mean, text, self._patches)
        return attention.to(values.dtype) @ values
