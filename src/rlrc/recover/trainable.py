"""Which parameters of a policy are trained."""

import re

import torch
from peft import LoraConfig, LoraModel
from torch import nn
from torch.nn.utils import parametrize

from rlrc.configs.learner import LearnerConfig
from rlrc.policies.contract import Policy
from rlrc.recover.straight_through import adapt

LINEARS = r"\.\d+\.(self_attn|mlp)\.\w+_proj"
"""The matrices of a layer, behind the name of the list of layers."""


def choose_trainable(policy: Policy, config: LearnerConfig) -> LoraModel | None:
    """Let the chosen parameters require gradients, the others not; returns peft's adapters where there are any.

    What a family has beside vision and language, such as the head that makes actions, is always trained. Layers that
    stand for packed ones get adapters of their own, within their rounding.
    """
    model, parts = policy.model, policy.parts
    model.requires_grad_(config.lora is None)
    adapters = None
    if config.lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            adapters = _adapt(policy, config)
    elif config.train == "decoder":
        for part in ("vision", "projector"):
            model.get_submodule(parts[part]).requires_grad_(False)
    for part in parts.keys() - {"vision", "projector", "decoder", "expert", "embedding", "head"}:
        model.get_submodule(parts[part]).requires_grad_(True)
    return adapters


def _adapt(policy: Policy, config: LearnerConfig) -> LoraModel | None:
    """Give each matrix of the layers its adapter."""
    assert config.lora is not None
    root = policy.stacks()[0].prefix.partition(".")[0]
    within = policy.model.get_submodule(root)
    layers = {name: layer for name, layer in within.named_modules() if re.fullmatch(linears(policy, root), name)}
    packed = {name for name, layer in layers.items() if parametrize.is_parametrized(layer)}
    adapters = None
    if dense := "|".join(re.escape(name) for name in layers if name not in packed):
        peft_config = LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=f"({dense})")
        adapters = LoraModel(within, peft_config, "default")
    for name in sorted(packed):  # after peft, which lets nothing but its own adapters be trained
        adapt(layers[name], config.lora)
    return adapters


def linears(policy: Policy, within: str = "") -> str:
    """A pattern of the names of the matrices in all layers, without the name of the module `within` which they lie."""
    prefixes = (re.escape(stack.prefix.removeprefix(f"{within}.")) for stack in policy.stacks())
    return f"({'|'.join(prefixes)}){LINEARS}"


def zeros_of(parameters: dict[str, nn.Parameter], linears: str) -> dict[str, torch.Tensor]:
    """Return where the layers' matrices are zero, by name; those without zeros are left out."""
    matrices = {name: parameter for name, parameter in parameters.items() if re.search(linears, name)}
    return {name: zeros for name, matrix in matrices.items() if (zeros := matrix.detach() == 0).any()}
