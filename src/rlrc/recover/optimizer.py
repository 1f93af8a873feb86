"""The optimizers of training: AdamW, or Muon for the weight matrices of the layers and AdamW for everything else."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from rlrc.recover.muon import Muon
from rlrc.recover.straight_through import matrix_of

NOT_MUON = ("lm_head", "action_head.fc2", "auxiliary", "critic")
"""Layers that read a result off the last hidden state: their outputs have meanings of their own, as embeddings have."""


def optimizers(
    parameters: dict[str, nn.Parameter],
    modules: Iterable[nn.Module],
    kind: Literal["adamw", "muon"],
    learning_rate: float,
    weight_decay: float,
    learning_rates: dict[str, float],
) -> list[torch.optim.Optimizer]:
    """AdamW, and with `kind` "muon" Muon beside it, each with its parameters in groups that know their `peak_lr`.

    Muon makes every update of a matrix orthogonal, so that rare directions move as far as common ones. It takes AdamW's
    learning rate and weight decay.

    Args:
        parameters: what is trained, by name.
        modules: the modules they belong to; weight decay is for their weight matrices and kernels only.
        learning_rates: the rates of parameters whose names start with the key, in place of `learning_rate`.
    """
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    weights = {id(matrix_of(layer)) for layer in layers}
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rate = next((rate for prefix, rate in learning_rates.items() if name.startswith(prefix)), learning_rate)
        is_weight = id(parameter) in weights
        by_muon = kind == "muon" and is_weight and parameter.ndim == 2 and not any(part in name for part in NOT_MUON)
        groups.setdefault((by_muon, rate, weight_decay if is_weight else 0.0), []).append(parameter)

    def grouped(of_muon: bool) -> list[dict[str, object]]:
        return [
            {"params": members, "peak_lr": rate, "lr": rate, "weight_decay": decay}
            for (by_muon, rate, decay), members in groups.items()
            if by_muon == of_muon
        ]

    chosen: list[torch.optim.Optimizer] = []
    if adamw := grouped(False):
        chosen.append(torch.optim.AdamW(adamw, fused=True))
    if muon := grouped(True):
        chosen.append(Muon(muon))
    return chosen
