"""A flow-matching policy as LeRobot saves one: the way back from `published.py`."""

from typing import Any

import torch
import torch.nn.functional as F

from rlrc.errors import UserError
from rlrc.policies.flow.normalisation import FIELDS, LEROBOT_KINDS
from rlrc.policies.flow.published import NORMALISER, POSTPROCESSOR_FILE, PREFIX, PREPROCESSOR_FILE, UNNORMALISER
from rlrc.policies.statistics import chosen
from rlrc.policies.values import Exported

KINDS = {kind: name for name, kind in LEROBOT_KINDS.items()}
STATISTICS = {statistic for pair in FIELDS.values() for statistic in pair}


def exported(
    policy: Any, held: Any, family: dict[str, Any], prompt_steps: list[dict[str, Any]], tokenizer: str
) -> Exported:
    """The files of a LeRobot policy folder.

    Args:
        held: config of the shape that LeRobot's class holds; layers that are smaller are filled up with zeros.
        family: fields of its config.json that the family has beside those of all.
        prompt_steps: steps of the preprocessor before the tokenizer.
        tokenizer: folder or hub id of the tokenizer.

    Raises:
        UserError: it has no statistics in use.
    """
    config = policy.model.config
    features = _features(config)
    inputs, outputs = (
        {name: feature for name, feature in features.items() if (name == "action") == end} for end in (0, 1)
    )
    mapping = {"VISUAL": "IDENTITY"} | {
        word: KINDS[config.normalisation[entry]] for word, entry in (("STATE", "state"), ("ACTION", "action"))
    }
    values = {
        "type": policy.family,
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": outputs,
        "normalization_mapping": mapping,
        "chunk_size": config.horizon,
        "n_action_steps": config.execute,
        "max_state_dim": config.padded_dim,
        "max_action_dim": config.padded_dim,
        "tokenizer_max_length": config.max_prompt_tokens,
        "min_period": config.min_period,
        "max_period": config.max_period,
        "empty_cameras": 0,
        "push_to_hub": False,
        "device": "cpu",
    }
    tokens = {
        "max_length": config.max_prompt_tokens,
        "task_key": "task",
        "padding_side": "right",
        "padding": "max_length",
        "truncation": True,
        "tokenizer_name": tokenizer,
    }
    before = [_step("rename_observations_processor", {"rename_map": {}}), _step("to_batch_processor", {})]
    prompt = [*prompt_steps, _step("tokenizer_processor", tokens)]
    device = _step("device_processor", {"device": "cpu", "float_dtype": None})
    normaliser = _step(NORMALISER, {"eps": 1e-8, "features": features, "norm_map": mapping})
    in_prompt = config.state_in_prompt is not None
    steps = [*before, normaliser, *prompt, device] if in_prompt else [*before, *prompt, device, normaliser]
    number = steps.index(normaliser)
    normaliser["state_file"] = f"policy_preprocessor_step_{number}_{NORMALISER}.safetensors"
    back = _step(UNNORMALISER, {"eps": 1e-8, "features": outputs, "norm_map": mapping})
    back["state_file"] = f"policy_postprocessor_step_0_{UNNORMALISER}.safetensors"
    tensors = _statistics(policy)
    files = {
        "config.json": values | family,
        PREPROCESSOR_FILE: {"name": "policy_preprocessor", "steps": steps},
        POSTPROCESSOR_FILE: {"name": "policy_postprocessor", "steps": [back, device]},
    }
    weights, zeros = _weights(policy, held)
    return Exported(files, {step["state_file"]: tensors for step in (normaliser, back)}, weights, zeros)


def refuse_parts(policy: Any) -> None:
    """
    Raises:
        UserError: the policy is quantized, its vision tower is pruned, or its pictures have fewer tokens.
    """
    config = policy.model.config
    if getattr(config, "quantization_config", None) is not None:
        raise UserError("LeRobot reads no packed weights; export the policy that was quantized")
    if any("vision" in (stage.get("config", {}).get("stacks") or ()) for stage in policy.lineage["stages"]):
        raise UserError("LeRobot's class builds the published vision tower, and this one is pruned; serve it with rlrc")
    if config.reduction is not None:
        raise UserError("LeRobot's class reads all tokens of a picture, and this policy fewer; serve it with rlrc")


def uniform(stack: Any, told: str) -> dict[str, int]:
    """The shape that all layers of a stack have.

    Raises:
        UserError: they differ.
    """
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    refuse_biases(stack, told)
    shapes = {tuple(getattr(shape, name) for name in names) for shape in stack.per_layer_config}
    if len(shapes) > 1:
        raise UserError(
            f"LeRobot's class holds {told} of one shape, and these differ, as pruning of heads and channels leaves "
            "them; prune by depth, or serve the policy with rlrc"
        )
    return dict(zip(names, shapes.pop(), strict=True))


def refuse_biases(stack: Any, told: str) -> None:
    """
    Raises:
        UserError: the layers of a stack have biases, as FLAP leaves them.
    """
    if stack.output_bias:
        raise UserError(f"LeRobot's class holds {told} without biases, and FLAP gave this one some; serve it with rlrc")


def _features(config: Any) -> dict[str, Any]:
    size = config.vision_config.image_size
    names = [name if name.startswith("observation.") else f"observation.images.{name}" for name in config.cameras]
    features: dict[str, Any] = {name: {"type": "VISUAL", "shape": [3, size, size]} for name in names}
    if config.state_dim:
        features["observation.state"] = {"type": "STATE", "shape": [config.state_dim]}
    return features | {"action": {"type": "ACTION", "shape": [config.action_dim]}}


def _statistics(policy: Any) -> dict[str, torch.Tensor]:
    _, entries = chosen(policy.norm_stats, policy.unnorm_key)
    names = {"action": "action", "proprio": "observation.state"}
    return {
        f"{names[entry]}.{statistic}": torch.tensor(numbers, dtype=torch.float32)
        for entry, found in entries.items()
        if entry in names
        for statistic, numbers in found.items()
        if statistic in STATISTICS and numbers is not None
    }


def _weights(policy: Any, held: Any) -> tuple[dict[str, torch.Tensor], int]:
    """All tensors of LeRobot's class, and how many zeros fill up smaller layers.

    Heads and channels are the outer part of a dimension, so that more of them stand behind those that are there. What
    nothing reads is zeros too, and is not counted.
    """
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in type(policy.model)(held).state_dict().items()}
    state, tensors = policy.model.state_dict(), {}
    for name, shape in shapes.items():
        missing = [wanted - there for wanted, there in zip(shape, state[name].shape, strict=True)]
        tensors[name] = F.pad(state[name], [number for end in reversed(missing) for number in (0, end)])
    zeros = sum(tensor.numel() - state[name].numel() for name, tensor in tensors.items())
    dead = policy.layout.dead(held)
    tensors |= {name: torch.zeros(shape, dtype=policy.model.dtype) for name, shape in dead.items()}
    return {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}, zeros


def _step(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"registry_name": name, "config": config}
