"""Damaged JSON files of checkpoints."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from case import Case, Expected
from damage import (
    JSON_FILE,
    VALUES,
    Change,
    has_field,
    inside,
    remove,
    set_field,
)
from policy_case import INDEX, PRUNE, SFT, VERBS_ON_WEIGHTS
from policy_case import checkpoint_case as _case
from valid import nothing, template

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
TEXT_FIELDS = {name: ("text_config", name) for name in SIZES} | {
    name: ("text_config", name) for name in ("num_key_value_heads", "head_dim", "rms_norm_eps")
}
TOWER_FIELDS = {
    f"tower.{name}": ("vision_towers", 0, name)
    for name in (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
        "num_register_tokens",
    )
}
TOP_FIELDS = {
    name: (name,)
    for name in ("text_config", "vision_towers", "image_sizes", "n_action_bins", "pad_to_multiple_of", "norm_stats")
} | {"model_type": ("model_type",), "prompt_template": ("prompt_template",)}
USED_FIELDS: dict[str, tuple[str | int, ...]] = TEXT_FIELDS | TOWER_FIELDS | TOP_FIELDS
OTHER_FIELDS = ("pad_token_id", "llm_max_length", "torch_dtype", "transformers_version", "arch_specifier", "auto_map")

RIGHT_SOMEWHERE = {
    ("num_key_value_heads", "null"),
    ("head_dim", "null"),
    ("tower.num_register_tokens", "zero"),
    ("vision_towers", "null"),
    ("image_sizes", "null"),
    ("image_sizes", "empty-list"),
    ("norm_stats", "object"),
    ("norm_stats", "null"),
    ("prompt_template", "null"),
    ("rms_norm_eps", "fraction"),
    ("rms_norm_eps", "zero"),
    ("pad_to_multiple_of", "zero"),
}
"""Fields and kinds of values that rlrc may also read: a null that stands for a default, statistics that are not
needed."""


def cases() -> Iterator[Case]:
    yield from _text_files()
    yield from _config()
    yield from _preprocessor()
    yield from _statistics()
    yield from _other_json()
    yield from _packed()


def _text_files() -> Iterator[Case]:
    files = {
        "config.json": "policy",
        "preprocessor_config.json": "policy",
        "tokenizer.json": "policy",
        "tokenizer_config.json": "policy",
        "compression.json": "policy",
        INDEX: "sharded",
    }
    for name, base in files.items():
        for kind, change in JSON_FILE.items():
            words = (name, "git lfs pull") if kind == "lfs-pointer" else (name,)
            yield _case(f"{name}/{kind}", inside(name, change), *words, base=base)
        optional = name in ("compression.json", "tokenizer_config.json")
        expected: Expected = "either" if optional else "refused"
        yield _case(
            f"{name}/removed", inside(name, remove), "token" if optional else name, expected=expected, base=base
        )
    for kind, change in JSON_FILE.items():
        statistics = inside("dataset_statistics.json", lambda path, change=change: _add(path, change))
        yield _case(f"dataset_statistics.json/{kind}", statistics, "dataset_statistics.json")
        yield _case(f"generation_config.json/{kind}", inside("generation_config.json", change), expected="either")
        special = inside("special_tokens_map.json", lambda path, change=change: _add(path, change))
        yield _case(f"special_tokens_map.json/{kind}", special, "special_tokens_map.json", expected="either")


def _add(path: Path, change: Change) -> None:
    """Change a file that the template lacks."""
    if not path.exists():
        path.write_text('{"bos_token": "<s>"}')
    change(path)


def _config() -> Iterator[Case]:
    for field, keys in USED_FIELDS.items():
        leaf = str(keys[-1])
        for kind, raw in VALUES.items():
            right = (field, kind) in RIGHT_SOMEWHERE or (kind == "true" and "num" in field)
            shape = kind in ("fraction", "true") or kind.startswith("huge") or "size" in leaf or "num" in leaf
            words = ("config.json", "config.json" if shape and kind in ("zero", "true") else leaf)
            if right:
                words = ("policy|checkpoint",)
            change = inside("config.json", set_field(keys, raw))
            yield _case(f"config/{field}={kind}", change, *words, expected="either" if right else "refused")
        if field in (*TEXT_FIELDS, *TOWER_FIELDS) and field != "tower.num_hidden_layers":  # the policy's has 3
            wrong = inside("config.json", set_field(keys, "3"))
            fine = field in ("head_dim", "rms_norm_eps", "num_key_value_heads")
            yield _case(f"config/{field}=3", wrong, "config.json|policy", expected="either" if fine else "refused")
        if has_field(template("policy") / "config.json", keys):
            gone = inside("config.json", set_field(keys, None))
            optional = field in ("image_sizes", "n_action_bins", "pad_to_multiple_of", "norm_stats", "prompt_template")
            optional = optional or field in ("vision_towers", "tower.num_register_tokens")
            # transformers leaves out what is LlamaConfig's default, here 32 heads of 2 channels.
            optional = optional or field == "num_attention_heads"
            yield _case(
                f"config/{field}-removed", gone, "config.json|policy", expected="either" if optional else "refused"
            )
    for field in OTHER_FIELDS:
        for kind, raw in VALUES.items():
            change = inside("config.json", set_field((field,), raw))
            yield _case(f"config/{field}={kind}", change, "config.json|policy", expected="either")
    yield from _particular_config()


def _particular_config() -> Iterator[Case]:
    particular: dict[str, tuple[tuple[str | int, ...], str, str]] = {
        "rms_norm_eps-negative-small": (("text_config", "rms_norm_eps"), "-1e-6", "rms_norm_eps"),
        "rope_theta-zero": (("text_config", "rope_theta"), "0", "rope"),
        "rope_theta-negative": (("text_config", "rope_theta"), "-1e4", "rope"),
        "rope_theta-nan": (("text_config", "rope_theta"), "NaN", "rope"),
        "rope_scaling-list": (("text_config", "rope_scaling"), "[]", "rope"),
        "rope_scaling-unknown": (("text_config", "rope_scaling"), '{"type": "magic", "factor": 2}', "rope"),
        "rope_parameters-text": (("text_config", "rope_parameters"), '"abc"', "rope"),
        "hidden_act-unknown": (("text_config", "hidden_act"), '"magic"', "hidden_act"),
        "per_layer_config-list": (("text_config", "per_layer_config"), "[1]", "per_layer_config"),
        "per_layer_config-text": (("text_config", "per_layer_config"), '"abc"', "per_layer_config"),
        "layers-100000": (("text_config", "num_hidden_layers"), "100000", "num_hidden_layers|config.json"),
        "vocab-billion": (("text_config", "vocab_size"), "1000000000", "vocab_size|config.json"),
        "vocab-below-bins": (("text_config", "vocab_size"), "100", "vocab"),
        "decoder-qwen": (("text_config", "model_type"), '"qwen2"', "qwen2"),
        "image-100000": (("vision_towers", 0, "image_size"), "100000", "image_size|config.json"),
        "stem-negative": (("vision_towers", 0, "stem_channels"), "[-1, 0]", "stem_channels"),
        "stem-text": (("vision_towers", 0, "stem_channels"), '"abc"', "stem_channels"),
        "layer_norm_eps-nan": (("vision_towers", 0, "layer_norm_eps"), "NaN", "layer_norm_eps"),
        "towers-numbers": (("vision_towers",), "[1, 2]", "vision_towers"),
        "towers-three-texts": (("vision_towers",), '["a", "b"]', "vision_towers"),
        "tower-unknown-key": (("vision_towers", 0, "magic"), "1", "config.json|policy"),
        "template-without-place": (("prompt_template",), '"In: what?"', "prompt_template"),
        "template-wide": (("prompt_template",), '"{instruction:>2000000000}"', "prompt_template"),
        "template-other-field": (("prompt_template",), '"{instruction} {robot}"', "prompt_template"),
        "template-attribute": (("prompt_template",), '"{instruction.__class__.__mro__}"', "prompt_template"),
        "template-open": (("prompt_template",), '"{instruction"', "prompt_template"),
        "template-number": (("prompt_template",), '"{0} {instruction}"', "prompt_template"),
        "end-token-text": (("prompt_end_token_id",), '"abc"', "prompt_end_token_id"),
        "end-token-beyond": (("prompt_end_token_id",), "99999999", "prompt_end_token_id"),
        "end-token-negative": (("prompt_end_token_id",), "-5", "prompt_end_token_id"),
        "action_dim-text": (("action_dim",), '"abc"', "action_dim"),
        "action_dim-14": (("action_dim",), "14", "action_dim|dimensions"),
        "action_dim-zero": (("action_dim",), "0", "action_dim"),
        "n_action_bins-odd": (("n_action_bins",), "100", "n_action_bins|config.json"),
        "default-key-number": (("default_unnorm_key",), "5", "default_unnorm_key"),
        "default-key-unknown": (("default_unnorm_key",), '"nobody"', "nobody"),
        "head-only-text": (("action_head_only",), '"abc"', "action_head_only"),
        "model_type-pi0": (("model_type",), '"pi0"', "pi0"),
        "model_type-smolvla": (("model_type",), '"smolvla"', "smolvla"),
        "model_type-huge-text": (("model_type",), '"' + "x" * 100_000 + '"', "model_type"),
        "bitsandbytes": (
            ("quantization_config",),
            '{"quant_method": "bitsandbytes", "load_in_4bit": true}',
            "bitsandbytes",
        ),
        "quantization-text": (("quantization_config",), '"abc"', "quantization_config"),
        "quantization-list": (("quantization_config",), "[]", "quantization_config"),
        "quantization-no-modules": (("quantization_config",), '{"quant_method": "rlrc"}', "quantization_config"),
        "timm-number": (("timm_model_ids",), "5", "timm_model_ids"),
    }
    for name, (keys, raw, word) in particular.items():
        expected: Expected = (
            "either"
            if name in ("timm-number", "tower-unknown-key", "quantization-list", "n_action_bins-odd")
            else "refused"
        )
        yield _case(f"config/{name}", inside("config.json", set_field(keys, raw)), word, expected=expected)
    auto_map = '{"AutoConfig": "configuration_prismatic.OpenVLAConfig"}'
    yield _case("config/auto_map", inside("config.json", set_field(("auto_map",), auto_map)), expected="works")
    key_with_lines = '{"a\\nb\\u001b[31m": {"action": 1}}'
    change = inside("config.json", set_field(("norm_stats",), key_with_lines))
    yield _case("config/norm_stats-control-characters", change, "norm_stats|statistics|config.json")


def _preprocessor() -> Iterator[Case]:
    fields: dict[str, tuple[str | int, ...]] = {
        "input_sizes": ("input_sizes",),
        "input_sizes.0": ("input_sizes", 0),
        "input_sizes.0.1": ("input_sizes", 0, 1),
        "tvf_normalize_params": ("tvf_normalize_params",),
        "tvf_normalize_params.0": ("tvf_normalize_params", 0),
        "mean": ("tvf_normalize_params", 0, "mean"),
        "std": ("tvf_normalize_params", 0, "std"),
        "std.0": ("tvf_normalize_params", 0, "std", 0),
        "image_resize_strategy": ("image_resize_strategy",),
    }
    fine = {("std.0", "fraction"), ("std.0", "huge"), ("std.0", "huge-integer"), ("std.0", "true")}
    for field, keys in fields.items():
        for kind, raw in VALUES.items():
            expected: Expected = "either" if (field, kind) in fine else "refused"
            change = inside("preprocessor_config.json", set_field(keys, raw))
            leaf = field.split(".")[0]
            yield _case(f"preprocessor/{field}={kind}", change, "preprocessor_config", leaf, expected=expected)
        if isinstance(keys[-1], str):
            change = inside("preprocessor_config.json", set_field(keys, None))
            yield _case(f"preprocessor/{field}-removed", change, "preprocessor_config", field)
    other = {
        "other-size": (("input_sizes",), "[[3, 28, 28], [3, 28, 28]]"),
        "one-tower": (("input_sizes",), "[[3, 56, 56]]"),
        "three-towers": (("input_sizes",), "[[3, 56, 56], [3, 56, 56], [3, 56, 56]]"),
        "four-channels": (("input_sizes",), "[[4, 56, 56], [4, 56, 56]]"),
        "100000-pixels": (("input_sizes",), "[[3, 100000, 100000], [3, 100000, 100000]]"),
    }
    for name, (keys, raw) in other.items():
        change = inside("preprocessor_config.json", set_field(keys, raw))
        yield _case(f"preprocessor/{name}", change, "preprocessor_config", "input_sizes")
    for field in ("interpolations", "tvf_resize_params", "use_fused_vision_backbone", "means", "image_processor_type"):
        for kind in ("null", "nan", "text", "deep", "5000-digits"):
            change = inside("preprocessor_config.json", set_field((field,), VALUES[kind]))
            yield _case(f"preprocessor/{field}={kind}", change, "preprocessor_config", expected="either")


def _statistics() -> Iterator[Case]:
    """Action statistics, in config.json and in dataset_statistics.json."""
    action = ("norm_stats", "bridge_orig", "action")
    for leaf in ("q01", "q99", "mask"):
        for kind, raw in VALUES.items():
            expected: Expected = "either" if leaf == "mask" and kind == "null" else "refused"
            change = inside("config.json", set_field((*action, leaf), raw))
            yield _case(f"statistics/{leaf}={kind}", change, "config.json", leaf, expected=expected)
            if leaf == "mask" or kind in ("zero", "negative", "fraction", "true"):
                continue
            number = inside("config.json", set_field((*action, leaf, 0), raw))
            big = kind.startswith("huge")
            yield _case(
                f"statistics/{leaf}.0={kind}", number, "config.json", leaf, expected="either" if big else "refused"
            )
    for leaf in ("q01", "q99"):
        gone = inside("config.json", set_field((*action, leaf), None))
        yield _case(f"statistics/{leaf}-removed", gone, "config.json", leaf)
    yield _case("statistics/mask-removed", inside("config.json", set_field((*action, "mask"), None)), expected="works")
    for kind, raw in VALUES.items():
        for depth, keys in (("action", action), ("key", action[:2])):
            yield _case(f"statistics/{depth}={kind}", inside("config.json", set_field(keys, raw)), "config.json")
    high_low = inside("config.json", set_field((*action, "q01"), "[1, 1, 1, 1, 1, 1, 1]"))
    yield _case("statistics/q01-above-q99", high_low, "q01")
    for size in (1, 6, 8, 14):
        both = [set_field((*action, leaf), str([value] * size)) for leaf, value in (("q01", -1.0), ("q99", 1.0))]
        mask = set_field((*action, "mask"), str([True] * size).lower())

        def change(path: Path, edits: Any = (*both, mask)) -> None:
            for edit in edits:
                edit(path)

        yield _case(f"statistics/{size}-dimensions", inside("config.json", change), str(size))
        yield _case(f"statistics/q01-{size}-dimensions", inside("config.json", both[0]), "q01|q99")
    mixed = json.dumps({"bridge_orig": {"action": {"q01": [-1] * 7}}})
    yield _case(
        "statistics/file-without-q99", _beside("dataset_statistics.json", mixed), "dataset_statistics.json", "q99"
    )
    two = json.loads((template("policy") / "config.json").read_text())["norm_stats"]
    other = json.dumps({"other": two["bridge_orig"]})
    several = _beside("dataset_statistics.json", other)
    yield _case("statistics/several-keys", several, "unnorm", "bridge_orig", "other")
    for verb, arguments in (("sft", SFT), ("quantize", VERBS_ON_WEIGHTS["quantize"]), ("prune", PRUNE)):
        named = _with_option(arguments, "--unnorm-key", "other")
        yield _case(f"statistics/several-keys-named-{verb}", several, expected="works", arguments=named)
        unknown = _with_option(arguments, "--unnorm-key", "nobody")
        yield _case(f"statistics/unknown-key-{verb}", several, "nobody", arguments=unknown)


def _with_option(arguments: tuple[str, ...], *option: str) -> tuple[str, ...]:
    """The option goes in front: a subcommand such as method:random must stay last."""
    return (arguments[0], *option, *arguments[1:])


def _beside(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text) and None


def _other_json() -> Iterator[Case]:
    for keys in (("stages",), ("stages", 0), ("stages", 0, "verb"), ("rlrc_version",)):
        for kind in ("null", "negative", "text", "empty-list", "object", "deep", "nan"):
            name = ".".join(str(key) for key in keys)
            change = inside("compression.json", set_field(keys, VALUES[kind]))
            yield _case(f"lineage/{name}={kind}", change, "compression.json", expected="either")
            looked = ("inspect", "policy")
            yield _case(
                f"lineage/{name}={kind}-inspect", change, "compression.json", expected="either", arguments=looked
            )
    fields: dict[str, tuple[str | int, ...]] = {
        "model": ("model",),
        "vocab": ("model", "vocab"),
        "merges": ("model", "merges"),
        "post_processor": ("post_processor",),
        "added_tokens": ("added_tokens",),
        "normalizer": ("normalizer",),
        "pre_tokenizer": ("pre_tokenizer",),
    }
    for field, keys in fields.items():
        for kind in ("null", "negative", "text", "empty-list", "object"):
            change = inside("tokenizer.json", set_field(keys, VALUES[kind]))
            sure = field in ("model", "vocab", "post_processor") and kind in ("negative", "text", "null")
            yield _case(f"tokenizer/{field}={kind}", change, "token", expected="refused" if sure else "either")
    for field in ("bos_token", "pad_token", "tokenizer_class", "model_max_length", "added_tokens_decoder"):
        for kind in ("null", "negative", "nan", "text", "empty-list", "object", "5000-digits"):
            change = inside("tokenizer_config.json", set_field((field,), VALUES[kind]))
            yield _case(f"tokenizer_config/{field}={kind}", change, "token", expected="either")
    yield _case("tokenizer/without-bos", inside("tokenizer.json", set_field(("post_processor",), "null")), "token")


def _packed() -> Iterator[Case]:
    """Damaged packed policies (`quantization_config` of our own)."""
    looked = ("inspect", "policy")
    for field in ("bits", "group_size", "modules", "quant_method"):
        for kind, raw in VALUES.items():
            change = inside("config.json", set_field(("quantization_config", field), raw))
            yield _case(f"packed/{field}={kind}", change, "config.json|policy", base="packed", arguments=looked)
        gone = inside("config.json", set_field(("quantization_config", field), None))
        yield _case(f"packed/{field}-removed", gone, "config.json|policy", base="packed", arguments=looked)
    other = inside("config.json", set_field(("quantization_config", "modules"), '["no.such.layer"]'))
    yield _case("packed/unknown-module", other, "no.such.layer", base="packed", arguments=looked)
    yield _case("packed/fine", nothing, expected="works", base="packed", arguments=looked)
    yield _case("packed/quantized-again", nothing, "quantized", base="packed", arguments=VERBS_ON_WEIGHTS["quantize"])
    yield _case("packed/pruned", nothing, "policy", base="packed", arguments=PRUNE, expected="either")
    yield _case("packed/sft", nothing, "policy", base="packed", expected="either")
