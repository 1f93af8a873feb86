"""The published folder of SmolVLA: heads and tokenizer are those of the VLM that it names."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictInt

from rlrc.errors import UserError
from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.dead import Shapes, dead_in_last_layer
from rlrc.policies.flow.published import TOKENIZER_FILES, Published
from rlrc.policies.flow.random_layout import TINY, TINY_VOCABULARY, random_layout, resized
from rlrc.policies.folder import Published as RandomPolicy
from rlrc.policies.locate import CONFIG_FILE, on_disk
from rlrc.policies.parts.schema import Count, Epsilon
from rlrc.policies.smolvla.model import ROOT, SmolVLAModel
from rlrc.reading import FileModel, read_model


class TextFields(FileModel):
    """`text_config` of the VLM."""

    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count | None = None
    hidden_size: Count
    intermediate_size: Count | None = None
    rms_norm_eps: Epsilon = 1e-5


class VisionHeadsFields(FileModel):
    """`vision_config` of the VLM."""

    num_attention_heads: Count
    layer_norm_eps: Epsilon = 1e-6


class VlmFields(FileModel):
    """config.json of the VLM."""

    text_config: TextFields
    vision_config: VisionHeadsFields
    scale_factor: Annotated[StrictInt, Field(ge=1, le=64)]


ROBOT = (6, 6)
"""Numbers of the state and of an action of a random policy."""
PUBLISHED_VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
KNOWN = {
    PUBLISHED_VLM: VlmFields(
        text_config=TextFields(
            num_attention_heads=15, num_key_value_heads=5, head_dim=64, hidden_size=960, intermediate_size=2560
        ),
        vision_config=VisionHeadsFields(num_attention_heads=12),
        scale_factor=4,
    )
}
"""What the config of the published VLM says; so the policy can be read where the hub is out of reach."""


class SmolVLALayout:
    """See `flow.checkpoint.Layout`."""

    needs_bos = False

    def config(self, published: Published) -> dict[str, Any]:
        names, fields = SmolVLAModel.names, published.fields
        published.require(
            fields.attention_mode in (None, "cross_attn") and fields.self_attn_every_n_layers == 2,
            "rlrc reads SmolVLA with attention_mode 'cross_attn' and self_attn_every_n_layers 2",
        )
        published.require(not fields.add_image_special_tokens, "rlrc reads SmolVLA without add_image_special_tokens")
        published.require(fields.prefix_length <= 0, "rlrc reads SmolVLA without a fixed prefix_length")
        published.require(published.spec.state is None, "spec state= belongs to pi05; SmolVLA reads it as numbers")
        published.require(
            fields.input_features.get("observation.state") is not None,
            "input_features have no 'observation.state', which SmolVLA reads",
        )
        vlm = _vlm(published)
        text = vlm.text_config
        head_dim = text.head_dim or text.hidden_size // text.num_attention_heads
        layers = published.layers(names.expert)
        heads = {
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "head_dim": head_dim,
            "rms_norm_eps": text.rms_norm_eps,
            "vocab_size": published.shape(f"{names.embedding}.weight")[0],
        }
        rows = published.shape(f"{names.decoder}.0.self_attn.q_proj.weight")[0]
        published.require(
            rows == text.num_attention_heads * head_dim,
            f"its queries have {rows} rows, and the VLM says {text.num_attention_heads} heads of {head_dim}; name "
            "another VLM in spec (vlm=FOLDER)",
        )
        vision = published.vision(names.vision, published.spec.vision_heads or vlm.vision_config.num_attention_heads)
        size = fields.resize_imgs_with_padding
        published.require(
            size == [vision["image_size"]] * 2,
            f"resize_imgs_with_padding is {size}, and the vision tower reads pictures of {vision['image_size']} pixels",
        )
        return {
            "text_config": published.stack(names.decoder, layers) | heads,
            "expert_config": published.stack(names.expert, layers) | heads,
            "vision_config": vision | {"layer_norm_eps": vlm.vision_config.layer_norm_eps},
            "pixel_shuffle": vlm.scale_factor,
            "cross_layers": [layer for layer in range(layers) if layer % 2],
        }

    def named_tokenizer(self, published: Published) -> str | None:
        return published.spec.tokenizer or published.spec.vlm

    def dead(self, config: FlowConfig) -> Shapes:
        text = config.text_config
        dead = dead_in_last_layer(SmolVLAModel.names, text)
        return dead | {f"{ROOT}.vlm.lm_head.weight": (text.vocab_size, text.hidden_size)}

    def alias(self, name: str, known: set[str]) -> str:
        return name


def _vlm(published: Published) -> VlmFields:
    """The config of the VLM: of the spec, or the one that config.json names."""
    spec, named = published.spec.vlm, published.fields.vlm_model_name
    name = spec or named
    if name is None:
        raise UserError(f"{published.folder / CONFIG_FILE}: no vlm_model_name; name the VLM in spec (vlm=FOLDER)")
    try:
        return read_vlm(name)
    except UserError as error:
        told = "" if spec is not None else "; put the VLM's config.json and tokenizer in a folder: spec vlm=FOLDER"
        raise UserError(f"{published.folder}: the VLM that it is made from cannot be read ({error}){told}") from error


def read_vlm(name: str) -> VlmFields:
    """The config of a VLM, from a folder, the hub, or the table of those that are known."""
    if name in KNOWN and not Path(name).is_dir():
        return KNOWN[name]
    return read_model(on_disk(name, TOKENIZER_FILES) / CONFIG_FILE, VlmFields)


def publish(preset: str) -> RandomPolicy:
    """The files and the shapes of "smolvla" or "smolvla-tiny", as rlrc saves them."""
    heads = {"num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "rms_norm_eps": 1e-5}
    layers = heads | {"num_hidden_layers": 16, "vocab_size": 49_280}
    values: dict[str, Any] = {
        "text_config": layers | {"hidden_size": 960, "intermediate_size": 2560},
        "expert_config": layers | {"hidden_size": 720, "intermediate_size": 2048},
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        "cameras": ["camera1", "camera2", "camera3"],
        "horizon": 50,
        "execute": 50,
        "pixel_shuffle": 4,
    }
    if preset.endswith("-tiny"):
        small = {field: dict(sizes) for field, sizes in TINY.items()}
        few = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
        small["text_config"] |= few
        small["expert_config"] |= few | {"vocab_size": TINY_VOCABULARY}
        small["vision_config"] |= {"image_size": 64}
        values = resized(values, small)
    values["cross_layers"] = list(range(1, values["text_config"]["num_hidden_layers"], 2))
    return random_layout(SmolVLAModel, SmolVLALayout(), values, ROBOT)
