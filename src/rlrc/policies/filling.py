"""Models without memory, and their weights from files: built on "meta", and given tensor after tensor."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from rlrc.errors import UserError, shorten
from rlrc.packed.layers import replace_linears
from rlrc.policies.weights import Weights

Model = TypeVar("Model", bound=torch.nn.Module)
Rows = Callable[[str], slice]
"""Rows of the stored tensor of a name that the model holds."""


def whole(name: str) -> slice:
    """All rows of a tensor."""
    return slice(None)


def empty_model(model_class: type[Model], config: Any, origin: Path) -> Model:
    """The model of `config`, packed layers included, without memory; `origin` is named in errors.

    Raises:
        UserError: no such model can be built.
    """
    try:
        with torch.device("meta"):
            model: Any = model_class(config)
        model.make_tables()
        quantization = getattr(config, "quantization_config", None)
        if quantization is not None:
            replace_linears(model, quantization["modules"], quantization["bits"], quantization["group_size"])
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    except Exception as error:  # transformers' and torch's own checks raise every kind
        raise UserError(f"{origin}: config.json describes no model that can be built ({told(error)})") from error
    return model


def outline(model: torch.nn.Module, weights: Weights, rows: Rows = whole) -> None:
    """Give each parameter the dtype of its tensor, and look at shapes; the weights stay on disk.

    Raises:
        UserError: as `fill`, but for the numbers themselves.
    """
    for name in _matched(model, weights):
        _assign(model, name, weights.outline(name, rows(name)), weights.origin(name))


def fill(
    model: torch.nn.Module,
    weights: Weights,
    rows: Rows = whole,
    wanted: Callable[[str], bool] = lambda name: True,
) -> None:
    """Give each parameter whose name is `wanted` its tensor, one by one.

    Raises:
        UserError: a tensor is missing, has another shape than config.json says, holds NaN or infinity, or belongs to no
            part of the model.
    """
    for name in _matched(model, weights):
        if wanted(name):
            _assign(model, name, weights.read(name, rows(name)), weights.origin(name))


def told(what: object) -> str:
    """An error of a library, or a dtype, in a few words."""
    return shorten(f"{type(what).__name__}: {what}") if isinstance(what, Exception) else str(what).split(".")[-1]


def _matched(model: torch.nn.Module, weights: Weights) -> Iterator[str]:
    """The names of the stored tensors that the model holds.

    Raises:
        UserError: a tensor belongs to no part of the model, or one of the model's is not stored.
    """
    known = set(model.state_dict())
    for name in weights:
        if name in known:
            yield name
        elif not weights.naming.is_dead(name):
            other = f"unexpected tensor '{shorten(name)}'; config.json describes another model than the weights"
            raise UserError(f"{weights.origin(name)}: {other}")
    missing = sorted(name for name in known if name not in weights)
    if missing:
        first = missing[0]
        raise UserError(
            f"{weights.origin(first)}: {len(missing)} tensors are missing from the weights, the first is '{first}'"
        )


def _assign(model: torch.nn.Module, name: str, tensor: torch.Tensor, origin: Path) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    current = getattr(owner, leaf)
    if current.shape != tensor.shape:
        found, expected = tuple(tensor.shape), tuple(current.shape)
        raise UserError(f"{origin}: '{name}' has shape {found} in the weights and {expected} by config.json")
    is_parameter = isinstance(current, torch.nn.Parameter)
    if not tensor.is_floating_point() if is_parameter else tensor.dtype != current.dtype:
        expected_kind = "floating-point numbers" if is_parameter else told(current.dtype)
        raise UserError(f"{origin}: '{name}' holds {told(tensor.dtype)} where {expected_kind} are expected")
    setattr(owner, leaf, torch.nn.Parameter(tensor) if is_parameter else tensor)
