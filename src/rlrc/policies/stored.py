"""The base of all families: a policy whose model, tokenizer and statistics lie in a folder of safetensors files."""

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from transformers import PreTrainedTokenizerBase

from rlrc.policies.contract import Policy
from rlrc.policies.filling import empty_model, fill
from rlrc.policies.graphs import Graphs
from rlrc.policies.saving import extend_lineage, write_policy
from rlrc.policies.values import PolicySpec
from rlrc.policies.weights import Weights

BUCKET = 16
"""Prompts in a CUDA graph have a multiple of this many tokens."""


class Reader(Protocol):
    """A family's way to turn observations into inputs; its files lie beside the weights."""

    tokenizer: PreTrainedTokenizerBase | None

    def save(self, folder: Path) -> None: ...


class StoredPolicy(Policy):
    """What reading, saving and changing have in common.

    `unnorm_key` chooses the action statistics; it may be left out where the checkpoint has one set, or names a default.
    """

    model_class: ClassVar[type[torch.nn.Module]]
    processor: Any
    """A `Reader`."""

    def __init__(
        self,
        model: Any,
        processor: Reader,
        unnorm_key: str | None = None,
        lineage: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.unnorm_key = unnorm_key or model.config.default_unnorm_key
        self.lineage = lineage or {"stages": []}
        self.weights: Weights | None = None
        self.graphs = Graphs(model)
        self.spec = self.describe()
        if self.unnorm_key is not None or len(self.norm_stats or ()) == 1:
            _ = self.action_statistics()  # what is wrong with them fails here, not at the first action

    @abstractmethod
    def describe(self) -> PolicySpec:
        """Describe what the policy sees and does, from its config."""

    def encode(self, inputs: Any) -> Any:
        images = self.model.images_of(inputs)
        return replace(inputs, pixel_values=None, image_embeddings=images.embeddings, image_places=images.places)

    def features(self, inputs: Any) -> torch.Tensor:
        assert inputs.image_embeddings is not None, "encode them first"
        embeddings: torch.Tensor = inputs.image_embeddings
        return embeddings

    @property
    def num_patches(self) -> int:
        return len(self.spec.cameras) * int(self.model.config.tokens_of_picture)

    # -- reading -------------------------------------------------------------------------------------------------------

    def fill(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        assert self.weights is not None
        fill(self.model, self.weights, self.rows_of, wanted)

    def stored(self, name: str) -> torch.Tensor:
        assert self.weights is not None
        return self.weights.read(name, self.rows_of(name))

    def rows_of(self, name: str) -> slice:
        """The rows of the stored tensor of a name that the model holds."""
        return slice(None)

    def rebuilt(self, config: Any) -> Self:
        origin = self.source or Path()
        model = empty_model(self.model_class, config, origin).eval().to(self.model.dtype)
        policy = type(self)(model, self.processor, self.unnorm_key, self.lineage)
        policy.weights = self.weights
        return policy

    # -- acting --------------------------------------------------------------------------------------------------------

    def do(
        self,
        action: Callable[..., tuple[torch.Tensor, ...]],
        inputs: Any,
        drawn: torch.Tensor | None,
        key: Hashable,
    ) -> tuple[torch.Tensor, ...]:
        """Return `action(inputs, drawn)`, which is computed as one CUDA graph where the policy `records`.

        For that, prompts are padded to a multiple of BUCKET tokens, so that few graphs serve all instructions.

        Args:
            action: what the policy does. It does not wait for the GPU.
            drawn: random numbers; None where nothing is left to chance.
            key: what `action` depends on besides its arguments.
        """
        if not self.records:
            return action(inputs, drawn)
        length = inputs.input_ids.shape[1]
        tensors = inputs.padded(length + -length % BUCKET).tensors()

        def act(tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
            fields = dict(tensors)
            drawn = fields.pop("drawn", None)
            return action(type(inputs)(**fields), drawn)

        return self.graphs.run(act, key, tensors if drawn is None else tensors | {"drawn": drawn})

    @property
    def records(self) -> bool:
        # What autocast casts is kept somewhere else at each call, so it cannot be recorded.
        return self.device.type == "cuda" and not self.eager and not torch.is_autocast_enabled("cuda")

    @property
    def can_read_instructions(self) -> bool:
        return self.processor.tokenizer is not None

    @property
    def unknown_word(self) -> str | None:
        tokenizer = self.processor.tokenizer
        return None if tokenizer is None else tokenizer.unk_token

    # -- normalisation -------------------------------------------------------------------------------------------------

    @property
    def norm_stats(self) -> dict[str, Any] | None:
        return self.model.config.norm_stats

    def adopt(self, statistics: dict[str, Any], key: str) -> None:
        self.model.config.norm_stats = {**(self.norm_stats or {}), key: statistics}
        self.model.config.default_unnorm_key = self.unnorm_key = key

    # -- changing ------------------------------------------------------------------------------------------------------

    def save(
        self,
        path: str | Path,
        stage: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        tensors: Iterable[tuple[str, torch.Tensor]] | None = None,
    ) -> None:
        if len(self.norm_stats or ()) > 1:  # those in use become the checkpoint's default
            self.model.config.default_unnorm_key = self.unnorm_key
        files = () if self.weights is None else self.weights.paths
        lineage = extend_lineage(self.lineage, self.source, files, stage)
        write_policy(Path(path), self.model, self.processor, self.spec, lineage, dtype, tensors)
