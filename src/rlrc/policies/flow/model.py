"""The base of pi0, pi0.5 and SmolVLA: a prefix that is read once, and an expert that denoises a chunk of actions.

The prefix (pictures, text) passes the language model, and of each layer keys and values are kept. The expert's layer of
the same number reads them at every step of denoising. Layers are run one by one, so that pruning can stream them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.inputs import FlowInputs
from rlrc.policies.flow.layers import AdaRMSNorm, Layer, Memory, Rotary, normed, rotary_of
from rlrc.policies.parts import quantizer  # noqa: F401  (registers the quantizer that builds packed layers on loading)
from rlrc.policies.parts.tokens import PictureTokens, lightened, mean_of_text, selected, stretched


@dataclass(frozen=True)
class Names:
    """Dotted names of a family's parts."""

    decoder: str
    """The list of the language model's layers."""
    expert: str
    """The list of the expert's layers."""
    expert_norm: str
    vision: str
    projector: str
    embedding: str


class Context(NamedTuple):
    """Who sees whom, and where everybody stands; the same at every step of denoising."""

    prefix_seen: torch.Tensor | None
    """Bool (N or 1, 1, P, P); None where all see all."""
    prefix_rotary: Rotary
    suffix_seen: torch.Tensor | None
    """Bool (N or 1, 1, S, P + S)."""
    suffix_rotary: Rotary
    cross_seen: torch.Tensor | None
    """Bool (N or 1, 1, 1, P)."""
    cross_rotary: Rotary
    """Positions of the suffix alone, from 0, for layers that read the prefix and nothing else."""


class Prefix(NamedTuple):
    """A prefix that was read."""

    memory: Sequence[Memory]
    context: Context
    last: torch.Tensor
    """States that enter the last layer, (N, P, hidden)."""
    there: torch.Tensor | None
    places: torch.Tensor | None
    """Those of the tokens of pictures (see `PictureTokens`)."""


class FlowModel(PreTrainedModel, ABC):
    """Families say what stands in the prefix and in the suffix, and who sees whom."""

    config_class = FlowConfig
    config: FlowConfig
    names: ClassVar[Names]
    norms: ClassVar[tuple[str, str]]
    """Kinds of norms of the language model and of the expert."""
    picture_scale: ClassVar[bool] = False
    """True where pictures are multiplied by the square root of the width, as text is."""
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["Layer", "VisionLayer"]  # noqa: RUF012

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        self.build(config)
        self.post_init()

    @abstractmethod
    def build(self, config: FlowConfig) -> None:
        """Build all modules under their published names."""

    def make_tables(self) -> None:
        """Nothing is computed from the config and kept."""

    def set_attn_implementation(self, attn_implementation: str) -> None:  # type: ignore[override]
        """ "sdpa", or "eager", whose backward pass is faster on a processor."""
        if attn_implementation not in ("sdpa", "eager"):
            raise ValueError(f"there are the kernels 'sdpa' and 'eager', and not '{attn_implementation}'")
        self.config._attn_implementation = attn_implementation

    def get_input_embeddings(self) -> nn.Module:
        return self.get_submodule(self.names.embedding)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AdaRMSNorm):
            nn.init.zeros_(module.dense.weight)
            nn.init.zeros_(module.dense.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    # -- layers --------------------------------------------------------------------------------------------------------

    def new_decoder_layer(self, index: int) -> Layer:
        """A layer of the language model, of the shape that the config gives it."""
        text = self.config.text_config
        return Layer(self.config, text.per_layer_config[index], self.norms[0], reads=index < text.num_hidden_layers - 1)

    def new_expert_layer(self, index: int) -> Layer:
        """A layer of the expert, of the shape that the config gives it."""
        text, shape = self.config.text_config.per_layer_config[index], self.config.expert_config.per_layer_config[index]
        crosses = index in (self.config.cross_layers or ())
        return Layer(
            self.config,
            shape,
            self.norms[1],
            memory_width=text.num_key_value_heads * text.head_dim if crosses else 0,
        )

    def layers(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        """Layers of the language model and of the expert, for `build`."""
        numbers = range(self.config.text_config.num_hidden_layers)
        return (
            nn.ModuleList(self.new_decoder_layer(index) for index in numbers),
            nn.ModuleList(self.new_expert_layer(index) for index in numbers),
        )

    @property
    def decoder(self) -> Any:
        return self.get_submodule(self.names.decoder)

    @property
    def expert(self) -> Any:
        return self.get_submodule(self.names.expert)

    # -- the prefix ----------------------------------------------------------------------------------------------------

    def project_images(self, inputs: FlowInputs) -> PictureTokens:
        """The pixels of `inputs` to embeddings of the pictures' tokens (N, C * P, hidden)."""
        pixels, mask = inputs.pixel_values, inputs.camera_mask
        assert pixels is not None, "inputs need pixel_values or image_embeddings"
        pictures = pixels.flatten(0, 1).to(self.dtype)
        if mask is not None and pixels.device.type == "cpu":  # on a GPU the choice would have to be read back
            there = mask.flatten()
            made = self.tokens_from(self.get_submodule(self.names.vision)(pictures[there]))
            tokens = made.scattered(there)
        else:
            tokens = self.tokens_from(self.get_submodule(self.names.vision)(pictures))
        if self.config.reduction is not None and self.config.reduction.kind == "select":
            text = mean_of_text(self.get_input_embeddings()(inputs.input_ids), inputs.text_mask)
            text = text.repeat_interleave(pixels.shape[1], dim=0)
            tokens = selected(tokens.embeddings, text, self.config.reduction.count)
        return tokens.by_row(len(pixels))

    def tokens_from(self, features: torch.Tensor) -> PictureTokens:
        """Features of the vision tower (B, patches, width) to embeddings (B, P, hidden)."""
        fewer = lightened(features, self.config.reduction)
        return fewer._replace(embeddings=self.get_submodule(self.names.projector)(fewer.embeddings))

    def images_of(self, inputs: FlowInputs) -> PictureTokens:
        """The embeddings of the pictures' tokens, computed unless they were before."""
        if inputs.image_embeddings is None:
            return self.project_images(inputs)
        return PictureTokens(inputs.image_embeddings, inputs.image_places)

    def embed_prefix(self, inputs: FlowInputs) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Embeddings (N, P, hidden); bool (N, P), false where nothing stands, None where all is there; and the places
        of the tokens of pictures (see `PictureTokens`)."""
        scale = math.sqrt(self.config.text_config.hidden_size)
        seen_images, places = self.images_of(inputs)
        images = seen_images.to(self.dtype)
        text = self.get_input_embeddings()(inputs.input_ids).to(self.dtype) * scale
        behind = self.behind_text(inputs)
        parts = [images * scale if self.picture_scale else images, text, *behind]
        embeddings = torch.cat(parts, dim=1)
        if inputs.camera_mask is None and inputs.text_mask is None:
            return embeddings, None, places
        cameras, words = inputs.camera_mask, inputs.text_mask
        seen = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
        if cameras is not None:
            seen = cameras.repeat_interleave(images.shape[1] // cameras.shape[1], dim=1)
        words = torch.ones_like(inputs.input_ids, dtype=torch.bool) if words is None else words
        rest = words.new_ones(len(words), sum(part.shape[1] for part in behind))
        return embeddings, torch.cat([seen, words, rest], dim=1), places

    def behind_text(self, inputs: FlowInputs) -> list[torch.Tensor]:
        """Embeddings (N, T, hidden) that stand behind the text."""
        return []

    def read_prefix(self, inputs: FlowInputs) -> Prefix:
        """Read pictures and text, once for all steps of denoising."""
        hidden, there, places = self.embed_prefix(inputs)
        context = self.context(hidden, there, places)
        memory = []
        for layer in self.decoder:
            last = hidden
            hidden, kept = self.remember(layer, hidden, context)
            memory.append(kept)
        return Prefix(memory, context, last, there, places)

    def repeat(self, prefix: Prefix, times: int) -> Prefix:
        """Each row of a prefix several times in a row."""

        def again(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.repeat_interleave(times, dim=0)

        last = again(prefix.last)
        there, places = (None if tensor is None else again(tensor) for tensor in (prefix.there, prefix.places))
        memory = [(again(keys), again(values)) for keys, values in prefix.memory]
        return Prefix(memory, self.context(last, there, places), last, there, places)

    def remember(self, layer: Layer, hidden: torch.Tensor, context: Context) -> tuple[torch.Tensor, Memory]:
        """What leaves a layer of the language model, and the keys and values that the expert reads of it."""
        entering, gate = normed(layer.input_layernorm, hidden, None)
        memory = layer.self_attn.memory(entering, context.prefix_rotary)
        if not layer.reads:
            return hidden, memory
        attended = layer.self_attn(entering, memory, context.prefix_rotary, context.prefix_seen)
        return layer.finish(hidden, attended, gate, None), memory

    def critic_state(self, prefix: Prefix, state: torch.Tensor | None) -> torch.Tensor:
        """What a critic reads, (N, `critic_width`), which depends on no action: the mean of what enters the language
        model's last layer, as pi_RL's critic of pi0.5 reads what leaves it."""
        if prefix.there is None:
            return prefix.last.mean(dim=1)
        there = prefix.there[..., None].to(prefix.last.dtype)
        return (prefix.last * there).sum(dim=1) / there.sum(dim=1)

    @property
    def critic_width(self) -> int:
        """Width of `critic_state`."""
        return self.config.text_config.hidden_size

    # -- who sees whom -------------------------------------------------------------------------------------------------

    @property
    def suffix_length(self) -> int:
        """Positions of the expert."""
        return self.config.horizon

    def seen_in_prefix(self, length: int, device: torch.device) -> torch.Tensor | None:
        """Bool (P, P), true where a position may see another; None where all see all."""
        return None

    def seen_in_suffix(self, device: torch.device) -> torch.Tensor | None:
        """Bool (S, S)."""
        return None

    def context(self, hidden: torch.Tensor, there: torch.Tensor | None, places: torch.Tensor | None) -> Context:
        """Masks and positions for a prefix (N, P, hidden).

        What is not there is seen by nobody and takes no position.
        """
        length, device, dtype = hidden.shape[1], hidden.device, hidden.dtype
        head_dim = self.config.text_config.head_dim
        suffix = torch.arange(self.suffix_length, device=device)[None]
        picture = self.config.patches_of_picture, self.config.tokens_of_picture
        if there is None:
            positions, cameras = torch.arange(length, device=device)[None], None
        else:
            positions = (there.cumsum(dim=1) - 1).clamp(min=0)
            cameras = None if places is None else there[:, : places.shape[1] : picture[1]]
        positions = stretched(positions, places, 0, picture, cameras)
        count = positions[:, -1:] + 1  # padding stands where the last word does
        within, among = self.seen_in_prefix(length, device), self.seen_in_suffix(device)
        prefix_seen = None if within is None else within[None, None]
        cross_seen = suffix_seen = None
        if there is not None:
            # A position sees itself even where nothing stands: a softmax over nothing would be NaN.
            itself = torch.eye(length, dtype=torch.bool, device=device)
            cross_seen = there[:, None, None]
            prefix_seen = (cross_seen if prefix_seen is None else cross_seen & prefix_seen) | itself
        if there is not None or among is not None:
            queries = self.suffix_length
            among = torch.ones(queries, queries, dtype=torch.bool, device=device) if among is None else among
            first = torch.ones(1, 1, 1, length, dtype=torch.bool, device=device) if cross_seen is None else cross_seen
            rows = len(first)
            suffix_seen = torch.cat(
                [first.expand(rows, 1, queries, length), among[None, None].expand(rows, -1, -1, -1)], dim=3
            )
        return Context(
            prefix_seen,
            rotary_of(positions, head_dim, dtype),
            suffix_seen,
            rotary_of(suffix + count, head_dim, dtype),
            cross_seen,
            rotary_of(suffix, head_dim, dtype),
        )

    # -- the suffix ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def suffix(
        self, noisy: torch.Tensor, times: torch.Tensor, state: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The expert's inputs (N, S, width) for noisy chunks (N, H, padded_dim) at times (N,), and a condition
        (N, width) of its norms where they have one."""

    def read_memory(
        self,
        layer: Layer,
        hidden: torch.Tensor,
        memory: Memory,
        context: Context,
        condition: torch.Tensor | None,
    ) -> torch.Tensor:
        """What leaves a layer of the expert, which reads the memory of the language model's layer of its number."""
        entering, gate = normed(layer.input_layernorm, hidden, condition)
        if layer.crosses:
            memory = layer.self_attn.memory_of(memory)
            attended = layer.self_attn(entering, memory, context.cross_rotary, context.cross_seen)
        else:
            own = layer.self_attn.memory(entering, context.suffix_rotary)
            keys, values = (torch.cat(pair, dim=2) for pair in zip(memory, own, strict=True))
            attended = layer.self_attn(entering, (keys, values), context.suffix_rotary, context.suffix_seen)
        return layer.finish(hidden, attended, gate, condition)

    def expert_states(
        self, prefix: Prefix, noisy: torch.Tensor, times: torch.Tensor, state: torch.Tensor | None
    ) -> torch.Tensor:
        """The expert's final states (N, S, width) of chunks at times (N,)."""
        hidden, condition = self.suffix(noisy.to(self.dtype), times, state)
        for layer, memory in zip(self.expert, prefix.memory, strict=True):
            hidden = self.read_memory(layer, hidden, memory, prefix.context, condition)
        return self.final_norm(hidden, condition)

    def final_norm(self, hidden: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        return normed(self.get_submodule(self.names.expert_norm), hidden, condition)[0]

    def velocity_of(self, states: torch.Tensor) -> torch.Tensor:
        """Velocities float32 (N, H, padded_dim) from the expert's final states."""
        return self.get_submodule("action_out_proj")(states[:, -self.config.horizon :]).float()

    def velocity(
        self, prefix: Prefix, noisy: torch.Tensor, times: torch.Tensor, state: torch.Tensor | None
    ) -> torch.Tensor:
        """d x / d t of chunks (N, H, padded_dim) at times (N,): noise minus action."""
        return self.velocity_of(self.expert_states(prefix, noisy, times, state))

    def time_embedding(self, times: torch.Tensor) -> torch.Tensor:
        """Sines and cosines of times (N,) over the expert's width, (N, width) in the model's dtype.

        Periods grow geometrically from `min_period` to `max_period`. They are float64, as in openpi; in float32 they
        would change velocities by 1e-4.
        """
        config, half = self.config, self.config.expert_config.hidden_size // 2
        kind = torch.float32 if times.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        share = torch.linspace(0, 1, half, dtype=kind, device=times.device)
        periods = config.min_period * (config.max_period / config.min_period) ** share
        angles = 2 * math.pi * times.to(kind)[:, None] / periods
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(self.dtype)


def step_times(numbers: torch.Tensor, steps: int) -> torch.Tensor:
    """Times of denoising steps (N,) counted from 0: 1 at the first, then down in equal steps."""
    kind = torch.float32 if numbers.device.type == "mps" else torch.float64
    return 1 - numbers.to(kind) / steps
