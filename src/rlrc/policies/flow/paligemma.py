"""The parts that pi0 and pi0.5 share: PaliGemma (SigLIP and Gemma), and a Gemma expert."""

from torch import nn

from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.layers import NORMS
from rlrc.policies.flow.model import FlowModel, Names
from rlrc.policies.flow.vision import Holder, VisionTower

ROOT = "paligemma_with_expert"
PALIGEMMA = f"{ROOT}.paligemma.model"


class PaliGemmaModel(FlowModel):
    """Pictures and text see each other; the expert sees them, and itself."""

    names = Names(
        decoder=f"{PALIGEMMA}.language_model.layers",
        expert=f"{ROOT}.gemma_expert.model.layers",
        expert_norm=f"{ROOT}.gemma_expert.model.norm",
        vision=f"{PALIGEMMA}.vision_tower.vision_model",
        projector=f"{PALIGEMMA}.multi_modal_projector.linear",
        embedding=f"{ROOT}.paligemma.lm_head",
    )

    def build(self, config: FlowConfig) -> None:
        text, expert, vision = config.text_config, config.expert_config, config.vision_config
        decoder, layers = self.layers()
        projector = nn.Linear(config.patches_of_token * vision.hidden_size, text.hidden_size)
        norm = NORMS[self.norms[1]](expert.hidden_size, expert.rms_norm_eps)
        self.paligemma_with_expert = Holder(
            paligemma=Holder(
                model=Holder(
                    vision_tower=Holder(vision_model=VisionTower(vision)),
                    multi_modal_projector=Holder(linear=projector),
                    language_model=Holder(layers=decoder),
                ),
                # The head is tied to the embedding, and the files have it under the head's name.
                lm_head=nn.Embedding(text.vocab_size, text.hidden_size),
            ),
            gemma_expert=Holder(model=Holder(layers=layers, norm=norm)),
        )
        self.action_in_proj = nn.Linear(config.padded_dim, expert.hidden_size)
        self.action_out_proj = nn.Linear(expert.hidden_size, config.padded_dim)
