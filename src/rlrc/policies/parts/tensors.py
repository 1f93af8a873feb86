"""Dataclasses of tensors, some of which may be absent."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Self

import torch


class TensorFields:
    """Base of frozen dataclasses whose fields are tensors or None."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that are there, by the names of their fields."""
        this: Any = self
        named = {field.name: getattr(self, field.name) for field in fields(this)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same with each tensor that is there changed."""
        this: Any = self
        changed: Self = replace(this, **{name: function(tensor) for name, tensor in self.tensors().items()})
        return changed
