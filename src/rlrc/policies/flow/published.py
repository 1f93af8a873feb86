"""Policies as LeRobot saves them: their config, their statistics, and what neither says.

config.json holds no sizes. Those of pi are read off the tensors; SmolVLA's heads are in the config of the VLM that it
names. Statistics lie in the safetensors files that the pre- and postprocessor's JSON names.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from rlrc.errors import UserError, shorten
from rlrc.policies.flow.normalisation import FIELDS, LEROBOT_KINDS, Kind
from rlrc.policies.locate import CONFIG_FILE, on_disk
from rlrc.policies.parts.schema import MAX_HORIZON, MAX_STATE, ImageSize
from rlrc.policies.parts.tokenizer import TOKENIZER_FILE
from rlrc.policies.parts.words import CameraNames, words_of
from rlrc.policies.schema import Name, Number
from rlrc.policies.shards import TensorFiles
from rlrc.progress import say
from rlrc.reading import FileModel, lies_there, read_model, validate

PREPROCESSOR_FILE, POSTPROCESSOR_FILE = "policy_preprocessor.json", "policy_postprocessor.json"
NORMALISER, UNNORMALISER = "normalizer_processor", "unnormalizer_processor"
RELATIVE = "relative_actions_processor"
STATE_PROMPT = "pi05_prepare_state_tokenizer_processor_step"
TOKENIZER_FILES = ("config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template*")
"""Files of a VLM's repository that are downloaded: its tokenizer and its config."""
KEY = "dataset"
"""Name of a folder's only set of statistics."""
STATISTIC = re.compile(r"(?:(.+?)\.)?(?:buffer\.)?(action|observation\.state)\.(\w+)")
EXAMPLES = (
    "such as vlm=FOLDER (SmolVLA), tokenizer=FOLDER,vision_heads=16 (pi0, pi05), state=padded (pi05) or "
    "cameras=front+wrist+none"
)
LACKING = "none"
"""Stands in a spec for a camera that the robot lacks."""
PREFIX = "model."
"""Stands before all names of tensors in LeRobot's files; openpi's converter puts nothing there."""
WITHOUT_TOKENIZER = "this policy cannot act; add tokenizer=FOLDER to spec"

Dimensions = Annotated[StrictInt, Field(ge=1, le=MAX_STATE)]


class FlowSpec(FileModel, extra="forbid"):
    """The words of a spec."""

    vlm: str | None = None
    """Folder or hub id of the VLM that SmolVLA is made from; its config.json and its tokenizer are read."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer."""
    vision_heads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Heads of pi's vision tower, where it is none of the published width."""
    state: Literal["real", "padded", "none"] | None = None
    """What pi05's prompt says of the state: its real dimensions, padded ones as lerobot 0.4.4 writes, or nothing."""
    cameras: CameraNames | None = None
    """The robot's name of each of the policy's cameras, or `LACKING`."""


class FeatureFields(FileModel):
    """A feature of the robot."""

    type: Name
    shape: Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(max_length=8)]


class LeRobotFields(FileModel):
    """config.json of a policy that LeRobot saved."""

    type: Name
    input_features: Annotated[dict[str, FeatureFields], Field(min_length=1, max_length=64)]
    output_features: dict[str, FeatureFields]
    chunk_size: Annotated[StrictInt, Field(ge=1, le=MAX_HORIZON)]
    n_action_steps: Annotated[StrictInt, Field(ge=1, le=MAX_HORIZON)]
    max_state_dim: Dimensions = 32
    max_action_dim: Dimensions = 32
    num_inference_steps: Annotated[StrictInt, Field(ge=1, le=1000)] | None = None
    num_steps: Annotated[StrictInt, Field(ge=1, le=1000)] | None = None
    tokenizer_max_length: Annotated[StrictInt, Field(ge=1, le=4096)] = 48
    min_period: Annotated[Number, Field(gt=0)] = 4e-3
    max_period: Annotated[Number, Field(gt=0)] = 4.0
    image_resolution: Annotated[list[ImageSize], Field(min_length=2, max_length=2)] | None = None
    resize_imgs_with_padding: Annotated[list[ImageSize], Field(min_length=2, max_length=2)] | None = None
    vlm_model_name: StrictStr | None = None
    attention_mode: StrictStr | None = None
    self_attn_every_n_layers: StrictInt = 2
    add_image_special_tokens: StrictBool = False
    adapt_to_pi_aloha: StrictBool = False
    use_delta_joint_actions_aloha: StrictBool = False
    use_relative_actions: StrictBool = False
    use_visual_memory: StrictBool = False
    use_proprioceptive_memory: StrictBool = False
    include_state_in_prompt: StrictBool = True
    prefix_length: StrictInt = 0
    n_obs_steps: StrictInt = 1
    dtype: Literal["bfloat16", "float32"] | None = None


class StepFields(FileModel):
    """A step of a processor."""

    registry_name: StrictStr | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    state_file: StrictStr | None = None


class PipelineFields(FileModel):
    """policy_preprocessor.json or policy_postprocessor.json."""

    steps: list[StepFields]

    def step(self, name: str) -> StepFields | None:
        """The step that LeRobot registers under this name."""
        return next((step for step in self.steps if step.registry_name == name), None)


@dataclass(frozen=True)
class Published:
    """A folder as LeRobot saves it."""

    folder: Path
    fields: LeRobotFields
    spec: FlowSpec
    preprocessor: PipelineFields
    shapes: dict[str, tuple[int, ...]]
    """Shapes of its tensors, by the model's names."""

    def require(self, holds: bool, told: str) -> None:
        """
        Raises:
            UserError: something does not hold.
        """
        if not holds:
            raise UserError(f"{self.folder / CONFIG_FILE}: {told}")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            UserError: it is not there.
        """
        if name not in self.shapes:
            raise UserError(f"{self.folder}: tensor '{shorten(name)}' is missing, which says how large the policy is")
        return self.shapes[name]

    def layers(self, prefix: str) -> int:
        """The number of layers under a dotted name."""
        numbers = [
            int(name.removeprefix(f"{prefix}.").partition(".")[0])
            for name in self.shapes
            if name.startswith(f"{prefix}.")
        ]
        return max(numbers, default=-1) + 1

    def stack(self, prefix: str, layers: int) -> dict[str, int]:
        """Widths of a stack of layers, off its first one."""
        return {
            "hidden_size": self.shape(f"{prefix}.0.self_attn.q_proj.weight")[1],
            "intermediate_size": self.shape(f"{prefix}.0.mlp.gate_proj.weight")[0],
            "num_hidden_layers": layers,
        }

    def vision(self, prefix: str, heads: int) -> dict[str, Any]:
        """`vision_config` of the tower under a dotted name."""
        width, _, patch, _ = self.shape(f"{prefix}.embeddings.patch_embedding.weight")
        side = round(self.shape(f"{prefix}.embeddings.position_embedding.weight")[0] ** 0.5)
        return {
            "hidden_size": width,
            "intermediate_size": self.shape(f"{prefix}.encoder.layers.0.mlp.fc1.weight")[0],
            "num_hidden_layers": self.layers(f"{prefix}.encoder.layers"),
            "num_attention_heads": heads,
            "image_size": side * patch,
            "patch_size": patch,
        }

    def robot(self) -> dict[str, Any]:
        """Fields of our config about the robot: cameras, state, actions, statistics."""
        fields = self.fields
        cameras = self._cameras()
        state, action = fields.input_features.get("observation.state"), fields.output_features.get("action")
        self.require(action is not None and len(action.shape) == 1, "output_features have no 'action' of one axis")
        assert action is not None
        state_dim = 0 if state is None else state.shape[0]
        self.require(
            not (fields.adapt_to_pi_aloha or fields.use_delta_joint_actions_aloha),
            "it converts an ALOHA's joints (adapt_to_pi_aloha), which rlrc does not",
        )
        relative = self.preprocessor.step(RELATIVE)
        self.require(
            not fields.use_relative_actions and (relative is None or relative.config.get("enabled") is False),
            "its actions are relative to the state (use_relative_actions), which rlrc does not convert",
        )
        self.require(
            not (fields.use_visual_memory or fields.use_proprioceptive_memory),
            "it remembers what it saw (use_visual_memory, use_proprioceptive_memory); rlrc shows one moment at a time",
        )
        self.require(
            fields.include_state_in_prompt or self.spec.state == "none",
            "its prompt has no state (include_state_in_prompt); add state=none to spec",
        )
        self.require(fields.n_obs_steps == 1, f"n_obs_steps is {fields.n_obs_steps}; rlrc shows one moment at a time")
        self.require(
            fields.max_state_dim == fields.max_action_dim,
            f"max_state_dim {fields.max_state_dim} and max_action_dim {fields.max_action_dim} differ",
        )
        kinds, statistics = self._statistics(state_dim)
        return {
            "cameras": cameras,
            "state_dim": state_dim,
            "action_dim": action.shape[0],
            "padded_dim": fields.max_action_dim,
            "horizon": fields.chunk_size,
            "execute": fields.n_action_steps,
            "num_steps": fields.num_inference_steps or fields.num_steps or 10,
            "max_prompt_tokens": fields.tokenizer_max_length,
            "min_period": fields.min_period,
            "max_period": fields.max_period,
            "normalisation": kinds,
            "norm_stats": statistics,
            "dtype": fields.dtype,
        }

    def _cameras(self) -> list[str]:
        """The robot's names of the cameras that the policy sees; those that it lacks are not seen."""
        visual = [name for name, feature in self.fields.input_features.items() if feature.type == "VISUAL"]
        own = [name.removeprefix("observation.images.") for name in visual]
        own = [name for name in own if not name.startswith("empty_camera_")]
        self.require(bool(own), "input_features name no picture (type VISUAL)")
        if self.spec.cameras is None:
            return own
        self.require(
            len(self.spec.cameras) == len(own),
            f"it has {len(own)} cameras ({shorten(', '.join(own))}), and spec names {len(self.spec.cameras)}; give the "
            f"robot's name of each in this order, and {LACKING} for one that it lacks",
        )
        names = [name for name in self.spec.cameras if name != LACKING]
        self.require(bool(names) and len(set(names)) == len(names), "spec must name one camera or more, each once")
        return names

    def _statistics(self, state_dim: int) -> tuple[dict[str, Kind], dict[str, Any]]:
        """The kinds of normalisation, and sets of statistics by name."""
        post = read_model(self.folder / POSTPROCESSOR_FILE, PipelineFields)
        found: dict[str, dict[str, Any]] = {}
        kinds: dict[str, Kind] = {}
        for pipeline, path, step_name, feature in (
            (self.preprocessor, self.folder / PREPROCESSOR_FILE, NORMALISER, "observation.state"),
            (post, self.folder / POSTPROCESSOR_FILE, UNNORMALISER, "action"),
        ):
            step = pipeline.step(step_name)
            if step is None:
                raise UserError(f"{path}: there is no step '{step_name}', which would name the statistics")
            pictures = (step.config.get("norm_map") or {}).get("VISUAL", "IDENTITY")
            if pictures != "IDENTITY":
                raise UserError(
                    f"{path}: pictures are normalised by {shorten(repr(pictures))}; rlrc knows IDENTITY alone"
                )
            entry, kind = _kind_of(step, feature, path)
            kinds[entry] = kind
            needed = kind != "identity" and (entry == "action" or state_dim)
            if needed and step.state_file is not None:  # a policy that was trained on no robot yet has none
                self._collect(found, step, path, feature, kind)
        return kinds, found

    def _collect(
        self, found: dict[str, dict[str, Any]], step: StepFields, path: Path, feature: str, kind: Kind
    ) -> None:
        """Add a feature's statistics of each set in a step's file."""
        assert step.state_file is not None
        if Path(step.state_file).name != step.state_file:
            raise UserError(f"{path}: its step '{step.registry_name}' names no file of statistics beside it")
        files = TensorFiles(self.folder, [self.folder / step.state_file])
        there = False
        for name in files:
            match = STATISTIC.fullmatch(name)
            if match is None or match[2] != feature:
                continue
            entry = found.setdefault(match[1] or KEY, {}).setdefault("action" if feature == "action" else "proprio", {})
            if match[3] in {statistic for pair in FIELDS.values() for statistic in pair}:
                entry[match[3]] = files.read(name).double().flatten().tolist()
                there = there or match[3] == FIELDS[kind][0]
        if not there:
            raise UserError(
                f"{self.folder / step.state_file}: it holds no '{FIELDS[kind][0]}' of '{feature}', so that {feature} "
                "would pass without being normalised; put the statistics of the policy's dataset there"
            )


def _kind_of(step: StepFields, feature: str, path: Path) -> tuple[str, Kind]:
    entry, word = ("action", "ACTION") if feature == "action" else ("state", "STATE")
    name = (step.config.get("norm_map") or {}).get(word)
    if name not in LEROBOT_KINDS:
        raise UserError(f"{path}: norm_map.{word} is {shorten(repr(name))}; rlrc knows {', '.join(LEROBOT_KINDS)}")
    return entry, LEROBOT_KINDS[name]


def read_flow_spec(text: str | None) -> FlowSpec:
    """
    Raises:
        UserError: a word is unknown, given twice or out of range.
    """
    if text is None:
        return FlowSpec()
    where = f"spec '{shorten(text)}'"
    return validate(words_of(text.split(","), where, EXAMPLES), FlowSpec, where)


def read_published(folder: Path, shapes: dict[str, tuple[int, ...]], spec: str | None) -> Published:
    """
    Args:
        shapes: of its tensors, by the model's names.

    Raises:
        UserError: a file is missing or damaged.
    """
    fields = read_model(folder / CONFIG_FILE, LeRobotFields)
    preprocessor = read_model(folder / PREPROCESSOR_FILE, PipelineFields)
    old = next((name for name in shapes if name.startswith(("normalize_inputs.", "unnormalize_outputs."))), None)
    if old is not None:
        raise UserError(
            f"{folder}: its weights hold statistics ('{shorten(old)}'), as LeRobot saved them before processors; "
            "migrate it with LeRobot's migrate_policy_normalization.py"
        )
    return Published(folder, fields, read_flow_spec(spec), preprocessor, shapes)


def tokenizer_folder(published: Published, named: str | None) -> Path | None:
    """The folder of the tokenizer: that of the spec, or the one that the preprocessor names, from the hub.

    None where the hub does not give it, which is told: the policy can then be changed and cannot act.

    Raises:
        UserError: the spec names a folder that is not there or has no tokenizer.
    """
    if named is not None:
        place = on_disk(named, TOKENIZER_FILES)
        if not lies_there(place / TOKENIZER_FILE):
            if named == published.spec.tokenizer:
                raise UserError(f"tokenizer={named}: there is no {TOKENIZER_FILE} in it")
            say(f"{named}: there is no {TOKENIZER_FILE} in it, without which {WITHOUT_TOKENIZER}")
        return place
    step = published.preprocessor.step("tokenizer_processor")
    name = None if step is None else step.config.get("tokenizer_name")
    if not isinstance(name, str):
        return None
    try:
        return on_disk(name, TOKENIZER_FILES)
    except UserError as error:
        say(f"{published.folder}: without a tokenizer {WITHOUT_TOKENIZER} ({error})")
        return None
