"""Options of `sft`."""

from pathlib import Path

from pydantic import Field, model_validator

from rlrc.config import Share
from rlrc.configs.learner import SupervisedConfig
from rlrc.configs.parts import ActionForm, PolicyPart, StatisticsPart
from rlrc.configs.saliency import Saliency


class SalientStates(Saliency):
    """Weigh the loss of salient states more, by the teacher's saliency of each frame."""

    every: int = Field(default=16, ge=1, le=10_000)
    """Number of neighbouring frames of an episode that share the saliency of the middle one. Each frame that is scored
    costs grid x grid passes through the teacher for every camera, and one more."""


class SftConfig(SupervisedConfig, StatisticsPart, PolicyPart):
    """Fine-tune a policy on demonstrations."""

    head: ActionForm | None = None
    """Form that an OpenVLA-OFT policy's actions get before it is trained, where they have another one: numbers (l1),
    action tokens, which rl can train, or diffusion. What the new form needs starts from random weights."""
    teacher: Path | None = None
    """Policy whose predictions are learnt beside the demonstrated actions, such as the one before pruning. It has to be
    of the same family, with the same cameras, state, chunk and statistics."""
    teacher_spec: str | None = None
    """Facts that the files of a published teacher do not say; see --spec."""
    teacher_share: Share = 0.5
    """Share of the teacher's predictions in the loss; the demonstrated actions have the rest."""

    saliency: SalientStates | None = None
    """Weigh the loss of salient states more, where the teacher's action depends most on what it sees."""

    @model_validator(mode="after")
    def _teaches(self) -> "SftConfig":
        for option in ("teacher_share", "teacher_spec", "saliency"):
            if self.teacher is None and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option} needs a teacher")
        return self
