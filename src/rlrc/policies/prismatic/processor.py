"""Turns a camera picture and an instruction into the model's inputs, by the checkpoint's own files.

Pictures: resized (bicubic, antialiased; Pillow, as the original does), scaled to [0, 1], normalised once a tower and
stacked to 3 channels a tower, all read from `preprocessor_config.json`. Prompts: the config's template, the
checkpoint's tokenizer, left-padded with BOS kept at index 0.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from rlrc.errors import UserError, shorten
from rlrc.files import write_json
from rlrc.pixels import resize
from rlrc.policies.device import moved
from rlrc.policies.parts.observed import require_pictures, require_texts
from rlrc.policies.parts.tokenizer import token_ids
from rlrc.policies.prismatic.config import PrismaticConfig
from rlrc.policies.prismatic.inputs import PrismaticInputs
from rlrc.policies.prismatic.schema import PreprocessorFields
from rlrc.policies.values import Observation
from rlrc.reading import read_object, require_finite, validate

PREPROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class ImageProcessor:
    """Normalisation and size for each tower; `config` is the parsed `preprocessor_config.json`."""

    config: dict[str, Any]
    center_crop: bool = False
    """Cut off the rim after resizing, as OpenVLA's evaluation does where training pictures were cropped at random."""

    @classmethod
    def for_size(cls, image_size: int, towers: int) -> "ImageProcessor":
        """A processor that scales pictures to [-1, 1] for each of `towers` towers."""
        half = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "inplace": False}
        return cls(
            {
                "image_processor_type": "PrismaticImageProcessor",
                "image_resize_strategy": "resize-naive",
                "input_sizes": [[3, image_size, image_size]] * towers,
                "interpolations": ["bicubic"] * towers,
                "tvf_normalize_params": [half] * towers,
                "use_fused_vision_backbone": towers > 1,
            }
        )

    @classmethod
    def load(cls, folder: Path) -> "ImageProcessor":
        """Read `preprocessor_config.json`.

        Raises:
            UserError: it is missing or damaged, or a field is out of range.
        """
        path = folder / PREPROCESSOR_FILE
        config = read_object(path)
        require_finite(config, str(path))
        validate(config, PreprocessorFields, str(path))
        config.pop("auto_map", None)  # it names code that is neither run nor written
        return cls(config)

    def require_sizes(self, sizes: Sequence[int], folder: Path) -> None:
        """Check that the pictures have the sizes (pixels a side) that the vision towers read, one each.

        Args:
            folder: where the file lies, for the error.

        Raises:
            UserError: they have not.
        """
        given = [size[-1] for size in self.config["input_sizes"]]
        if given != list(sizes):
            raise UserError(
                f"{folder / PREPROCESSOR_FILE}: 'input_sizes' are pictures of {given} pixels a side, and the vision "
                f"towers of config.json read {list(sizes)}"
            )

    def save(self, folder: Path) -> None:
        write_json(folder / PREPROCESSOR_FILE, self.config)

    @property
    def image_size(self) -> int:
        """Side in pixels of the first tower's picture."""
        return self.config["input_sizes"][0][-1]

    @property
    def one_size(self) -> tuple[int, int] | None:
        """Height and width that all towers see, to which pictures may be brought beforehand; None where they differ."""
        height, width = self.config["input_sizes"][0][1:]
        same = all(list(size[1:]) == [height, width] for size in self.config["input_sizes"])
        return (height, width) if same else None

    def __call__(self, images: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        """Pictures uint8 (B, H, W, 3) to pixel values float32 (B, 3 * towers, size, size) on `device`.

        They are resized on the processor, as the original does, travel as bytes, and are normalised on the device.

        Raises:
            UserError: wrong dtype or shape.
        """
        require_pictures(images)
        planes = {tuple(size): moved(self._planes(images, size), device) for size in self.config["input_sizes"]}
        kinds = list(zip(self.config["input_sizes"], self.config["tvf_normalize_params"], strict=True))
        towers: list[torch.Tensor] = []
        for place, (size, norm) in enumerate(kinds):
            twin = kinds.index((size, norm))
            towers.append(towers[twin] if twin < place else _normalised(planes[tuple(size)], norm))
        return torch.cat(towers, dim=1)

    def _planes(self, images: np.ndarray, size: list[int]) -> torch.Tensor:
        """Pictures in the size of one tower, uint8 (B, 3, height, width)."""
        resized = _resize(images, *size[1:])
        if self.center_crop:
            resized = crop_center(resized)
        # Planes first, as bytes: what follows then runs through memory in order, several times as fast.
        return torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()


def _normalised(planes: torch.Tensor, norm: dict[str, Any]) -> torch.Tensor:
    mean, std = (_by_channel(tuple(norm[name]), planes.device) for name in ("mean", "std"))
    return planes.float().div_(255).sub_(mean).div_(std)


@functools.cache
def _by_channel(numbers: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """A number for each channel (3, 1, 1), brought to the device once."""
    return torch.tensor(numbers, device=device).view(3, 1, 1)


def _resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
    if images.shape[1:3] == (height, width):
        return np.ascontiguousarray(images)
    return np.stack([resize(image, (height, width)) for image in images])


def crop_center(images: np.ndarray, area: float = 0.9) -> np.ndarray:
    """The central `area` of pictures uint8 (B, H, W, 3), drawn at their full size again (bilinear).

    Pillow's pixel centres and box are where TensorFlow's `crop_and_resize`, which OpenVLA uses here, puts its corners.
    """
    height, width = images.shape[1:3]
    rim = (1 - area**0.5) / 2
    box = (rim * width, rim * height, (1 - rim) * width, (1 - rim) * height)
    cropped = [Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box) for image in images]
    return np.stack([np.asarray(image) for image in cropped])


class Processor:
    """Image processor and tokenizer of one checkpoint."""

    def __init__(
        self, images: ImageProcessor, tokenizer: PreTrainedTokenizerBase | None, config: PrismaticConfig
    ) -> None:
        self.images = images
        self.tokenizer = tokenizer
        self.config = config
        self._prompt_ids: dict[str, list[int]] = {}

    def save(self, folder: Path) -> None:
        self.images.save(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def __call__(
        self, observation: Observation, cameras: Sequence[str], device: torch.device | str = "cpu"
    ) -> PrismaticInputs:
        """Pictures of the cameras, in this order, and instructions to a left-padded batch on `device`.

        Raises:
            UserError: a camera is missing, or its pictures or the instructions have a wrong type, shape or number.
        """
        require_texts(observation.instruction)
        pixels = []
        for name in cameras:
            if name not in observation.images:
                there = ", ".join(observation.images) or "none"
                raise UserError(f"the policy sees the camera '{name}', which is not there (cameras: {shorten(there)})")
            if not np.all(observation.present.get(name, True)):
                raise UserError(f"the camera '{name}' is missing in some rows, and the policy cannot do without it")
            pixels.append(self.images(observation.images[name], device))
            if len(pixels[-1]) != len(observation.instruction):
                raise UserError(
                    f"{len(pixels[-1])} images came with {len(observation.instruction)} instructions; give one to each"
                )
        return replace(self.prompts(observation.instruction).to(device), pixel_values=torch.cat(pixels, dim=1))

    def prompts(self, instructions: Sequence[str]) -> PrismaticInputs:
        """B instructions to a left-padded batch without pictures."""
        require_texts(instructions)
        rows = [self.prompt_ids(instruction) for instruction in instructions]
        length = max(len(row) for row in rows)
        input_ids = torch.full((len(rows), length), self.config.pad_token_id or 0)
        attention_mask = torch.ones_like(input_ids)
        for index, row in enumerate(rows):
            # BOS stays in front of the picture; padding sits between the picture and the rest of the prompt.
            input_ids[index, 0] = row[0]
            input_ids[index, length - len(row) + 1 :] = torch.tensor(row[1:])
            attention_mask[index, 1 : length - len(row) + 1] = 0
        return PrismaticInputs(input_ids, None if all(len(row) == length for row in rows) else attention_mask)

    def prompt_ids(self, instruction: str) -> list[int]:
        """Token ids of the prompt, BOS first; ends in `prompt_end_token_id` where the config has one."""
        if self.tokenizer is None:
            raise UserError("the checkpoint has no tokenizer.json: put the tokenizer's files beside its config.json")
        if instruction not in self._prompt_ids:
            prompt = self.config.prompt_template.format(instruction=instruction.lower())
            ids = token_ids(self.tokenizer, prompt)
            end = self.config.prompt_end_token_id
            self._prompt_ids[instruction] = ids if end is None or ids[-1] == end else [*ids, end]
        return self._prompt_ids[instruction]
