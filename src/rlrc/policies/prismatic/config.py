"""The shape of a policy on the Prismatic trunk, as its `config.json` holds it.

Published OpenVLA checkpoints name their vision towers by timm model ids and leave the shapes out; ours write them down
(`vision_towers`), so that a tower of any size is described by its own file.
"""

from typing import Any

from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from rlrc.errors import UserError
from rlrc.policies.parts.config import DecoderConfig, VisionTowerConfig
from rlrc.policies.parts.llama_tokenizer import PROMPT
from rlrc.policies.parts.tokens import TokenReduction
from rlrc.policies.prismatic.schema import ConfigFields

DINOV2_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "patch_size": 14,
    "num_register_tokens": 4,
    "class_token": True,
    "layer_scale": True,
}
SIGLIP_SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "patch_size": 14,
}
TIMM_TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": DINOV2_LARGE,
    "vit_so400m_patch14_siglip_224": SIGLIP_SO400M,
}


class PrismaticConfig(PreTrainedConfig):
    """Vision towers, a projector and Llama, at any size; the fields of published OpenVLA checkpoints keep their names.

    `prompt_end_token_id` is appended to every prompt that does not end in it (Llama's lone space, 29871, for the
    published models; None where a tokenizer needs no such token). `action_head_only` says that `lm_head` holds the rows
    of the action ids alone, all that acting reads; None, as in published configs, that nobody has decided yet.
    `visual_tokens` has the fields of a `TokenReduction`. `projector_size` is the width behind the projector's first
    layer; None, as in published configs, is four times the width of the towers' features together.
    """

    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=DecoderConfig, model_type="llama")}  # noqa: RUF012

    text_config: Any = None
    vision_towers: list[dict] | None = None
    timm_model_ids: list[str] | None = None
    image_sizes: list[int] | None = None
    norm_stats: dict | None = None
    n_action_bins: int = 256
    action_dim: int = 7
    pad_to_multiple_of: int = 64
    pad_token_id: int | None = 32000
    visual_tokens: dict[str, Any] | None = None
    projector_size: int | None = None
    prompt_template: str = PROMPT
    prompt_end_token_id: int | None = 29871
    default_unnorm_key: str | None = None
    action_head_only: bool | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.image_sizes is None:
            self.image_sizes = (
                [224, 224] if self.vision_towers is None else [t["image_size"] for t in self.vision_towers]
            )
        if self.vision_towers is None and self.timm_model_ids is None:
            self.timm_model_ids = list(TIMM_TOWERS)

    @classmethod
    def fields(cls) -> type[ConfigFields]:
        """The schema of its config.json."""
        return ConfigFields

    @property
    def towers(self) -> list[VisionTowerConfig]:
        """Shapes of the vision towers, in the order in which their features are concatenated.

        Raises:
            UserError: neither `vision_towers` nor a known `timm_model_ids` gives them, or these have other sizes.
        """
        if self.vision_towers is not None:
            return [VisionTowerConfig(**tower) for tower in self.vision_towers]
        unknown = [name for name in self.timm_model_ids or [] if name not in TIMM_TOWERS]
        if unknown:
            raise UserError(
                f"config.json: shapes of vision tower {unknown[0]!r} are unknown; add 'vision_towers' to the config "
                f"(known timm_model_ids: {', '.join(TIMM_TOWERS)})"
            )
        names, sizes = self.timm_model_ids or [], self.image_sizes or []
        if len(names) != len(sizes):
            raise UserError(f"config.json: image_sizes has {len(sizes)} entries and timm_model_ids has {len(names)}")
        return [
            VisionTowerConfig(**TIMM_TOWERS[name], image_size=size) for name, size in zip(names, sizes, strict=True)
        ]

    @property
    def features(self) -> int:
        """Width of the features of all towers together."""
        return sum(tower.hidden_size for tower in self.towers)

    @property
    def reduction(self) -> TokenReduction | None:
        """This tells how fewer tokens are made of each picture; None where all of them stay."""
        return None if self.visual_tokens is None else TokenReduction(**self.visual_tokens)

    @property
    def tokens_of_picture(self) -> int:
        """Tokens that one picture becomes."""
        return self.patches_of_picture if self.reduction is None else self.reduction.count

    @property
    def patches_of_picture(self) -> int:
        """Patches that the towers see in one picture."""
        return self.towers[0].num_patches

    @property
    def patches_of_token(self) -> int:
        """Patches whose features the projector reads side by side."""
        return 1 if self.reduction is None else self.reduction.patches_of_token(self.patches_of_picture)

    @property
    def first_action_id(self) -> int:
        return self.action_vocab_end - self.n_action_bins

    @property
    def action_ids(self) -> slice:
        """The ids of the action bins, which are also their rows in a full `lm_head`."""
        return slice(self.first_action_id, self.action_vocab_end)

    @property
    def action_vocab_end(self) -> int:
        """One past the last action id: the vocabulary before padding (32000 for Llama-2's 32064)."""
        return self.text_config.vocab_size - self.pad_to_multiple_of
