"""Turns observations into the inputs of a flow-matching policy, by the conventions of its family."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rlrc.errors import UserError, shorten
from rlrc.policies.flow.config import FlowConfig
from rlrc.policies.flow.inputs import FlowInputs
from rlrc.policies.flow.pictures import Place, letterboxed
from rlrc.policies.parts.observed import require_texts
from rlrc.policies.parts.tokenizer import token_ids
from rlrc.policies.values import Observation

Prompt = Callable[[str, np.ndarray | None], str]
"""Makes a prompt of an instruction and a row's normalised state (S,), of which most families read nothing here."""


def with_newline(instruction: str, state: np.ndarray | None = None) -> str:
    """The prompt of pi0 and SmolVLA: the instruction as it is, and a newline behind it."""
    return instruction if instruction.endswith("\n") else f"{instruction}\n"


class FlowProcessor:
    """Pictures, prompts and state of one checkpoint."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, config: FlowConfig, prompt: Prompt, place: Place
    ) -> None:
        self.tokenizer = tokenizer
        self._config, self._prompt, self._place = config, prompt, place
        self._ids: dict[str, list[int]] = {}

    def save(self, folder: Path) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def __call__(
        self, observation: Observation, state: np.ndarray | None, device: torch.device | str = "cpu"
    ) -> FlowInputs:
        """
        Args:
            state: normalised, float32 (B, S); None where the policy reads none.

        Raises:
            UserError: a camera is missing, or pictures or instructions have a wrong type, shape or number.
        """
        config, there = self._config, self._cameras_there(observation)
        prompts = self.prompts(observation.instruction, state)
        rows, size = len(prompts), config.vision_config.image_size
        pixels = torch.full((rows, there.shape[1], 3, size, size), -1.0, device=device)
        for place, name in enumerate(config.cameras or ()):
            if name not in observation.images:
                continue
            pixels[:, place] = letterboxed(observation.images[name], size, self._place, device)
        inputs = replace(prompts.to(device), pixel_values=pixels)
        if not there.all():
            inputs = replace(inputs, camera_mask=torch.from_numpy(there).to(device))
        if state is None or config.state_in_prompt is not None:
            return inputs
        padded = np.zeros((rows, config.padded_dim), np.float32)
        padded[:, : state.shape[1]] = state
        return replace(inputs, state=torch.from_numpy(padded).to(device))

    def require_rows(self, observation: Observation) -> None:
        """
        Raises:
            UserError: a camera has not as many pictures as there are instructions.
        """
        rows = len(observation.instruction)
        for name in self._config.cameras or ():
            images = observation.images.get(name)
            if isinstance(images, np.ndarray) and images.ndim == 4 and len(images) != rows:
                raise UserError(f"{len(images)} images came with {rows} instructions; give one to each")

    def prompts(self, instructions: Sequence[str], state: np.ndarray | None = None) -> FlowInputs:
        """B instructions to right-padded ids, without pictures.

        Raises:
            UserError: they are no texts, or there are more tokens than the policy reads.
        """
        require_texts(instructions)
        rows = [self.ids_of(text, None if state is None else state[row]) for row, text in enumerate(instructions)]
        length = max(len(row) for row in rows)
        ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = True
        return FlowInputs(ids, None if mask.all() else mask)

    def ids_of(self, instruction: str, state: np.ndarray | None = None) -> list[int]:
        """Token ids of one prompt, without padding.

        Raises:
            UserError: there is no tokenizer, or the prompt is longer than those that the policy was trained on.
        """
        if self.tokenizer is None:
            raise UserError(
                "the checkpoint has no tokenizer.json: put the tokenizer's files beside its config.json, or, where "
                "LeRobot saved it, name their folder with spec"
            )
        prompt = self._prompt(instruction, state)
        if prompt not in self._ids:
            ids = token_ids(self.tokenizer, prompt)
            most = self._config.max_prompt_tokens
            if not 0 < len(ids) <= most:
                raise UserError(
                    f"the instruction {shorten(repr(instruction))} makes {len(ids)} tokens, and the policy reads 1 to "
                    f"{most}; shorten it"
                )
            if self._config.state_in_prompt is not None:
                return ids  # each state makes a prompt of its own, so that nothing is worth keeping
            self._ids[prompt] = ids
        return self._ids[prompt]

    def _cameras_there(self, observation: Observation) -> np.ndarray:
        """Return which rows have which cameras, bool (B, C)."""
        rows, columns = len(observation.instruction), []
        for name in self._config.cameras or ():
            present = observation.present.get(name)
            column = np.ones(rows, bool) if present is None else np.asarray(present, bool)
            if column.shape != (rows,):
                raise UserError(f"present['{name}'] must be {rows} booleans, one a row; its shape is {column.shape}")
            if name not in observation.images and column.any():
                there = ", ".join(observation.images) or "none"
                raise UserError(
                    f"the policy sees the camera '{name}', which is not there (cameras: {shorten(there)}); say that "
                    "rows lack it with `present`"
                )
            columns.append(column)
        return np.stack(columns, axis=1)
