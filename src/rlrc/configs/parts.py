"""Options that several verbs ask for in the same words: the policy and the dataset.

A verb's config inherits them as its last bases, so that they stand first in its help.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rlrc.config import Config

ActionForm = Literal["l1", "tokens", "diffusion"]
"""Forms of an OpenVLA-OFT policy's actions: numbers, action tokens, or noise that is taken away."""

OTHER_CAMERAS = (
    "where LeRobot saved the policy, spec cameras= says what your robot calls each of its cameras, and which it lacks"
)
"""The end of errors about cameras."""


class DevicePart(Config):
    """Option that says where a verb computes."""

    device: str | None = Field(default=None, pattern=r"^(cpu|cuda(:\d{1,3})?|mps)$")
    """Device to compute on: cpu, cuda, cuda:1 or mps. A GPU is used where there is one, unless you name a device."""


class SpecPart(Config):
    """Option that says what a published policy's files do not."""

    spec: str | None = Field(default=None, min_length=1, max_length=1000)
    """Facts that the files of a published policy do not say. OpenVLA-OFT: its chunk, cameras and state, as libero,
    aloha, or such as chunk=8,cameras=front+wrist,state=8. SmolVLA, pi0, pi0.5: folders of the VLM or of the tokenizer,
    such as vlm=FOLDER or tokenizer=FOLDER, and what your robot calls the policy's cameras, in the policy's order, with
    none for one that it lacks: cameras=front+wrist+none. A policy that rlrc wrote needs none."""


class ActingPart(Config):
    """Options that say how a policy acts."""

    temperature: float | None = Field(default=None, ge=0, le=100)
    """Zero takes the likeliest action. Above zero, actions are sampled, with noise that is fixed for each episode,
    frame or request. For a policy that denoises (pi0, SmolVLA) it is the scale of the noise that it starts from.
    Policies act as they were published unless you give one: at zero with tokens or an L1 head, at one from noise."""
    denoising_steps: int | None = Field(default=None, ge=1, le=1000)
    """Number of denoising steps of an action. Fewer are faster. A policy that denoises takes those that it was
    saved with (pi0, SmolVLA) or trained with (OpenVLA-OFT's diffusion) unless you give another number."""
    center_crop: bool = False
    """Cut off the rim of pictures, as OpenVLA's evaluation does where training pictures were cropped at random."""


class PolicyReadingPart(SpecPart, DevicePart):
    """Options that say how policies are read."""

    unnorm_key: str | None = Field(default=None, min_length=1, max_length=200)
    """Name of the action statistics to use, where the checkpoint holds several and names no default."""


class PolicyPathPart(Config):
    """Option that names the policy a verb reads."""

    policy: Path
    """Policy to start from: a folder, a Hugging Face hub id, or the folder of a LoRA adapter."""


class PolicyPart(PolicyReadingPart, PolicyPathPart):
    """Options that name the policy a verb reads, and say how it is read."""


class DatasetPart(Config):
    """Options that name the demonstrations a verb reads, where it can do without."""

    dataset: Path | None = None
    """Demonstrations: the folder of a LeRobotDataset, version 3.0 or 2.1."""
    cameras: tuple[str, ...] = Field(default=(), max_length=16)
    """Cameras to show to the policy, such as observation.images.front, in the order in which the policy has its own.
    They may be left out where their names are those of the policy's cameras, and where both have one camera."""
    action_key: str | None = Field(default=None, min_length=1, max_length=200)
    """Name of the column of actions. It may be left out where it is called action or actions."""
    state_key: str | None = Field(default=None, min_length=1, max_length=200)
    """Name of the column of proprioception. It may be left out where it is called observation.state or state."""
    dataset_episodes: str | None = Field(default=None, pattern=r"^\d{1,9}(:\d{1,9})?(,\d{1,9}(:\d{1,9})?)*$")
    """Episodes to use, such as 0:50 for the first fifty, or 0:50,60,70. All are used unless you name some."""


class DemonstrationsPart(DatasetPart):
    """Options that name the demonstrations a verb reads, where it needs some."""

    dataset: Path
    """Demonstrations: the folder of a LeRobotDataset, version 3.0 or 2.1."""


class StatisticsPart(DatasetPart):
    """Options that name the demonstrations a verb reads, and say how a policy's actions are normalised when it meets
    them."""

    statistics: Literal["policy", "dataset"] = "policy"
    """Statistics that normalise actions: those that the policy holds, or those of this dataset. The dataset's are
    written into the new checkpoint, under unnorm_key or else under the dataset's name."""

    @model_validator(mode="after")
    def _statistics_have_data(self) -> Self:
        if self.statistics == "dataset" and self.dataset is None:
            raise ValueError("statistics of the dataset need a dataset: give one, or leave statistics out")
        return self
