"""What only some families offer, or refuse. What others lack they refuse in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from rlrc.errors import UserError
from rlrc.policies.parts.towers import JoinedTowers
from rlrc.policies.values import Exported, LanguageModel, Likelihood, PolicySpec, Sampler, Stack, VisionPass

if TYPE_CHECKING:
    from rlrc.configs.evaluate import VlaCacheConfig


class Offers:
    """A part of the contract; see `Policy`."""

    spec: PolicySpec
    exploration: Literal["flow-sde", "flow-noise"] | None = None
    """Kind of random denoising steps that PPO samples a policy with unless told otherwise; None of one with tokens."""
    masks_cameras: bool = False
    """True where rows may lack a camera (`Observation.present`), which the policy then does not see."""
    continues_chunks: bool = False
    """True where a chunk can go on from the one that is being carried out (`Observation.previous`)."""
    no_likelihood: str | None = None
    """The reason why PPO cannot train the policy; None where it can."""

    def likelihood(self, inputs: Any, latent: dict[str, torch.Tensor], sampler: Sampler) -> Likelihood:
        """The log-probabilities of what the policy did; differentiable.

        Raises:
            UserError: the policy has no likelihood, so that PPO cannot train it.
        """
        raise UserError(self.no_likelihood or "the policy has no likelihood")

    def require_readable(self, instructions: Sequence[str]) -> None:
        """Check that none of these is longer than the policy reads.

        Raises:
            UserError: one is, or there is no tokenizer to tell.
        """

    def crop_pictures(self) -> None:
        """Cut off the rim of pictures from now on, as evaluation does where training pictures were cropped at random.

        Raises:
            UserError: the family has no such crop.
        """
        raise UserError(f"pictures cannot be cropped for {self.spec.family}")

    def learn_from(self, noise_draws: int) -> None:
        """Learn each frame from this many noises and times from now on.

        Raises:
            UserError: the policy does not learn from noise.
        """
        raise UserError(f"noise_draws: policies of the family {self.spec.family} do not learn from noise so")

    def denoise_in(self, steps: int) -> None:
        """Take this many denoising steps from now on.

        Raises:
            UserError: the policy does not denoise, or not in that many.
        """
        raise UserError(f"denoising_steps: policies of the family {self.spec.family} take no such number")

    def with_noise_network(self, seed: int) -> torch.nn.Module:
        """Make the network that gives the deviations of random denoising steps ("flow-noise"). It is trained beside the
        policy, and nothing of it is saved.

        Raises:
            UserError: the policy does not denoise by such steps.
        """
        raise UserError(f"exploration flow-noise: policies of the family {self.spec.family} do not denoise so")

    def with_head(self, head: str, seed: int) -> Any:
        """The policy with its actions in another form, to be trained; this one is used up.

        Args:
            seed: of the weights that only the new form has.

        Raises:
            UserError: the family has one form of actions.
        """
        raise UserError(f"head {head}: policies of the family {self.spec.family} have one form of actions")

    def with_vla_cache(self, config: VlaCacheConfig) -> Any:
        """An actor that reads again only what moved since the last picture.

        Raises:
            UserError: the family has none.
        """
        raise UserError(f"VLA-Cache is not there for {self.spec.family}")

    def exported(self, folder: Path, vlm: str | None = None) -> Exported:
        """The policy as LeRobot saves one.

        Args:
            folder: where it will be written.
            vlm: folder or hub id of the VLM that it is made from, where LeRobot reads sizes from that.

        Raises:
            UserError: LeRobot has no class for the policy, or its class cannot hold the policy's shape.
        """
        raise UserError(f"LeRobot has no class for policies of the family {self.spec.family}")

    def vision_stacks(self) -> Sequence[Stack]:
        """The layers of the vision tower, where pruning may make them smaller."""
        return ()

    def vision_pass(self, inputs: Any) -> VisionPass:
        """The pictures of N rows before the layers of `vision_stacks`.

        Raises:
            UserError: the family has no such layers.
        """
        raise UserError(f"stacks vision: towers of the family {self.spec.family} cannot be pruned")

    def joined_towers(self) -> JoinedTowers:
        """Tell which two vision towers see the pictures together, of which one may go.

        Raises:
            UserError: the policy has one tower alone, or is quantized.
        """
        raise UserError(f"tower: policies of the family {self.spec.family} have one vision tower, which has to stay")

    @property
    def language_model(self) -> LanguageModel | None:
        """What stands around the language model's layers; None where it does not write text."""
        return None
