"""The JSON files of a checkpoint: what is wrong is one line that names file and field, before anything is built."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import REMOVED, set_field

import rlrc
from rlrc.configs.prune import PruneConfig
from rlrc.configs.quantize import QuantizeConfig
from rlrc.errors import UserError
from rlrc.policies.checkpoint import outline
from rlrc.prune import prune
from rlrc.quantize import quantize

NAN, INFINITY = float("nan"), float("inf")
LAYER = "text_config.per_layer_config"
STATISTICS = "norm_stats.tabletop.action"
PACKED = {"quant_method": "rlrc", "bits": 4, "group_size": 32, "modules": ["projector.fc1"]}


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "policy"))


def one_line(path: Path) -> str:
    """The error of opening the policy, which must be one short line that names its folder."""
    with pytest.raises(UserError) as raised:
        outline(path)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 600 + len(str(path)) and str(path) in message
    return message


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("text_config.num_hidden_layers", [0, -1, 10**9, 1.5, "3", None, True]),
        ("text_config.num_attention_heads", [0, 3, 10**9]),
        ("text_config.num_key_value_heads", [0, 3, 20]),
        ("text_config.hidden_size", [0, 10**9]),
        ("text_config.intermediate_size", [0, 10**9]),
        ("text_config.head_dim", [0, 3, 10**9]),
        ("text_config.vocab_size", [0, 100, 10**12]),
        ("text_config.rms_norm_eps", [-1, 0, NAN, INFINITY, "x"]),
        ("text_config.rope_parameters.rope_theta", [0, -1, NAN]),
        ("text_config.rope_theta", [0, -1, INFINITY]),
        ("text_config.max_position_embeddings", [0, 10**15]),
        ("text_config.pad_token_id", [-1, 10**6, "x"]),
        ("text_config.torch_dtype", ["int8", 5]),
        ("text_config.hidden_act", [5]),
        (LAYER, [[], {"9": {}}, {"x": {}}]),
        (f"{LAYER}.0", [{"num_attention_heads": 0}, {"hidden_size": 5}, {"num_key_value_heads": 3}]),
        ("text_config", [None, [], 5]),
        ("n_action_bins", [0, 1, 10**9, "x"]),
        ("action_dim", [0, -1, 10**9]),
        ("pad_to_multiple_of", [-1, 10**9]),
        ("pad_token_id", [-1, 10**9]),
        ("prompt_end_token_id", [-1, 10**9]),
        ("num_labels", [10**9]),
        ("image_sizes", [[], [100_000, 100_000], [64, 96], 5]),
        ("vision_towers", [[], {}, 5, [1], [{}]]),
        ("vision_towers.0.num_hidden_layers", [0, 1, 10**9]),
        ("vision_towers.0.num_attention_heads", [0, 3]),
        ("vision_towers.0.image_size", [100_000, 97]),
        ("vision_towers.0.patch_size", [0, 31]),
        ("vision_towers.0.stem_channels", [[0], [4] * 20]),
        ("norm_stats", [[], 5, {"tabletop": 5}]),
        ("default_unnorm_key", [5]),
        ("dtype", ["int8", "x"]),
        ("quantization_config", [5, {**PACKED, "bits": 5}, {**PACKED, "group_size": 0}, {"quant_method": "rlrc"}]),
        ("quantization_config.modules", [[], ["projector.fc1"] * 2, 5]),
        ("action_head_only", ["x"]),
        ("tie_word_embeddings", ["x"]),
    ],
)
def test_fields_have_types_and_ranges(field: str, values: list[Any], folder: Path) -> None:
    whole = (folder / "config.json").read_text()
    for value in values:
        if field.startswith("quantization_config."):
            set_field(folder, "config.json", "quantization_config", PACKED)
        set_field(folder, "config.json", field, value)
        message = one_line(folder)
        assert "config.json" in message and field.rsplit(".", 1)[-1] in message, (value, message)
        (folder / "config.json").write_text(whole)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text_config.num_hidden_layers", 2, "unexpected tensor 'language_model.model.layers.2"),
        ("text_config.num_hidden_layers", 4, "tensors are missing"),
        ("text_config.hidden_act", "nope", "unknown activation"),
        ("text_config.rope_parameters", {"rope_type": "bogus"}, "unknown kind .bogus."),
        ("text_config.rope_parameters", {"rope_type": "yarn", "factor": 0}, "not finite"),
        ("vision_towers.0.hidden_size", 32, "has shape"),
        ("to_dict", 1, "'to_dict' is no field"),
        ("id2label", 5, "transformers refuses this config"),
        ("quantization_config", {"quant_method": "bitsandbytes"}, "quantized by 'bitsandbytes'"),
        ("quantization_config", {**PACKED, "modules": ["nope"]}, "names 'nope'"),
        ("quantization_config", PACKED, "unexpected tensor 'projector.fc1.weight'"),
        ("action_dim", 14, "has 7 dimensions, and the policy's action_dim is 14"),
        ("default_unnorm_key", "bridge", "unknown unnorm_key 'bridge'.*tabletop"),
        (f"{STATISTICS}.q01", [NAN] * 7, "q01.0' is nan"),
        (f"{STATISTICS}.q01", [1.0] * 7, "q01 lies above q99 in dimension 0"),
        (f"{STATISTICS}.q01", REMOVED, "missing key 'q01'"),
        (f"{STATISTICS}.q99", [1.0] * 14, "q99 has 14 entries and q01 has 7"),
        (f"{STATISTICS}.q99", [1e300] * 7, "which is no action"),
        (f"{STATISTICS}.mask", [True], "mask has 1 entries"),
        (f"{STATISTICS}.mask", "x", "'mask'"),
    ],
)
def test_what_does_not_belong_together_is_told(field: str, value: Any, message: str, folder: Path) -> None:
    set_field(folder, "config.json", field, value)
    with pytest.raises(UserError, match=message):
        outline(folder)
    one_line(folder)


@pytest.mark.parametrize(
    "template",
    [
        *("no field", "{x}", "{}", "{0}", "{", 5, None),
        *(f"{{instruction{rest}}}" for rest in (".__class__", "[0]", "!r", ":>2000000000")),
    ],
)
def test_a_prompt_takes_the_instruction_alone(template: Any, folder: Path) -> None:
    set_field(folder, "config.json", "prompt_template", template)
    assert "prompt_template" in one_line(folder)


def test_braces_of_an_instruction_stay_as_they_are(folder: Path) -> None:
    set_field(folder, "config.json", "prompt_template", "{{put}} {instruction}")
    policy = outline(folder)
    words = policy.processor.tokenizer("{put} {x.__class__}")["input_ids"]
    assert policy.processor.prompt_ids("{x.__class__}") == words


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_sizes", [[3, 96, 96]]),
        ("input_sizes", [[3, 224, 224]] * 2),
        ("input_sizes", [[1, 96, 96]] * 2),
        ("input_sizes", [[3, 100_000, 100_000]] * 2),
        ("input_sizes", 5),
        ("tvf_normalize_params", []),
        ("tvf_normalize_params.0.std", [0, 0, 0]),
        ("tvf_normalize_params.0.std", [NAN] * 3),
        ("tvf_normalize_params.0.std", [1]),
        ("tvf_normalize_params.0.mean", [INFINITY] * 3),
        ("image_resize_strategy", "letterbox"),
        ("image_resize_strategy", REMOVED),
    ],
)
def test_pictures_are_prepared_as_the_towers_read_them(field: str, value: Any, folder: Path) -> None:
    set_field(folder, "preprocessor_config.json", field, value)
    assert f"preprocessor_config.json: {'missing key ' * (value is REMOVED)}" in one_line(folder)


@pytest.mark.parametrize("content", ['{"a": 5}', '{"stages": 5}', '{"stages": [5]}', '{"stages": [{}]}', "[]"])
def test_a_damaged_lineage_is_told(content: str, folder: Path) -> None:
    (folder / "compression.json").write_text(content)
    assert "compression.json" in one_line(folder)


JSON_FILES = ("config.json", "preprocessor_config.json", "dataset_statistics.json", "compression.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
DAMAGE = {
    "empty": b"",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "not UTF-8": b'{"a": "\xff"}',
    "not an object": b"[]",
    "too deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "cut off": b'{"a": ',
}


@pytest.mark.parametrize("damage", [*DAMAGE, "pipe", "folder"])
@pytest.mark.parametrize("name", [*JSON_FILES, *TOKENIZER_FILES, "model.safetensors"])
def test_every_file_is_read_through_one_door(name: str, damage: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    if damage == "pipe":
        os.mkfifo(folder / name)
    elif damage == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(DAMAGE[damage])
    message = one_line(folder)
    assert name in message and ("git lfs pull" in message) == (damage == "git-lfs")


def test_statistics_of_another_robot_are_refused(folder: Path) -> None:
    wide = {"q01": [-1.0] * 14, "q99": [1.0] * 14}
    (folder / "dataset_statistics.json").write_text(json.dumps({"aloha": {"action": wide}}))
    assert "aloha" in outline(folder).norm_stats
    with pytest.raises(UserError, match=r"dataset_statistics.json: norm_stats.aloha.action has 14 dimensions"):
        outline(folder, unnorm_key="aloha")
    set_field(folder, "config.json", "action_dim", 14)
    set_field(folder, "config.json", "norm_stats", {})
    assert outline(folder).action_statistics()["low"].shape == (14,)


def test_hundreds_of_statistics_are_not_all_listed(folder: Path) -> None:
    stats = json.loads((folder / "config.json").read_text())["norm_stats"]["tabletop"]
    set_field(folder, "config.json", "norm_stats", {f"robot-{i}": stats for i in range(500)})
    with pytest.raises(UserError, match="unknown unnorm_key 'nobody'") as raised:
        outline(folder, unnorm_key="nobody")
    assert len(str(raised.value)) < 400 + len(str(folder))
    images = np.zeros((1, 96, 96, 3), np.uint8)
    with pytest.raises(UserError, match="choose an unnorm_key"):
        rlrc.load(folder).act(images, ["put carrot on plate"])


def test_the_statistics_in_use_become_the_default_of_what_is_saved(folder: Path, tmp_path: Path) -> None:
    stats = json.loads((folder / "config.json").read_text())["norm_stats"]["tabletop"]
    set_field(folder, "config.json", "norm_stats", {"first": stats, "second": stats})
    rlrc.load(folder, unnorm_key="second").save(tmp_path / "saved")
    depth = {"policy": folder, "unnorm_key": "second", "method": {"kind": "depth", "keep": [0]}}
    prune(PruneConfig.parse(depth, "test"), tmp_path / "prune")
    quantize(QuantizeConfig(policy=folder, unnorm_key="second"), tmp_path / "quantize")
    for name in ("saved", "prune/checkpoint", "quantize/checkpoint"):
        assert outline(tmp_path / name).unnorm_key == "second"
