"""Damaged and unusual checkpoints."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from case import Case, Expected
from damage import (
    JSON_FILE,
    NO_FILE,
    VALUES,
    Change,
    has_field,
    inside,
    remove,
    set_field,
    truncate,
    write,
)
from valid import TRAIN_ONE_STEP, nothing, policy_case, put, put_user_files, template

SFT = ("sft", "--policy", "policy", "--dataset", "data", "--out", "out", *TRAIN_ONE_STEP)
"""Reads all of a checkpoint: shapes, weights, tokenizer, preprocessor, statistics."""
PRUNE = ("prune", "--policy", "policy", "--ratio", "0.5", "--out", "out", "method:random")
VERBS_ON_WEIGHTS = {
    "sft": SFT,
    "prune": PRUNE,
    "quantize": ("quantize", "--policy", "policy", "--out", "out"),
    "evaluate": ("evaluate", "--policy", "policy", "--episodes", "1", "--num-envs", "1", "--num-workers", "0")
    + ("--videos", "0", "--out", "out"),
    "rl": ("rl", "--policy", "policy", "--iterations", "1", "--num-envs", "2", "--num-workers", "0")
    + ("--batch-size", "2", "--out", "out"),
    "bench": ("bench", "--policies", "policy", "--batch-sizes", "1", "--repeats", "1", "--warmup", "0", "--out", "out"),
}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

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
}
"""What may also be read: null for a default, statistics that are not needed."""


def cases() -> Iterator[Case]:
    yield from _text_files()
    yield from _config()
    yield from _preprocessor()
    yield from _statistics()
    yield from _other_json()
    yield from _weights()
    yield from _index()
    yield from _whole_folders()
    yield from _packed()


def _case(
    name: str,
    change: Change,
    *words: str,
    expected: Expected = "refused",
    arguments: tuple[str, ...] = SFT,
    base: str = "policy",
) -> Case:
    return Case(f"checkpoint/{name}", arguments, policy_case(change, base), expected, words)


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
        yield _case(f"{name}/removed", inside(name, remove), name, expected=expected, base=base)
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
                words = ("policy",)
            change = inside("config.json", set_field(keys, raw))
            yield _case(f"config/{field}={kind}", change, *words, expected="either" if right else "refused")
        if field in TEXT_FIELDS or field in TOWER_FIELDS:
            wrong = inside("config.json", set_field(keys, "3"))
            fine = field in ("head_dim", "rms_norm_eps", "num_key_value_heads")
            yield _case(f"config/{field}=3", wrong, "config.json|policy", expected="either" if fine else "refused")
        if has_field(template("policy") / "config.json", keys):
            gone = inside("config.json", set_field(keys, None))
            optional = field in ("image_sizes", "n_action_bins", "pad_to_multiple_of", "norm_stats", "prompt_template")
            optional = optional or field == "vision_towers" or field == "tower.num_register_tokens"
            yield _case(f"config/{field}-removed", gone, "config.json|policy", expected="either" if optional else "refused")
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
        "vocab-below-bins": (("text_config", "vocab_size"), "100", "vocab_size"),
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
        "bitsandbytes": (("quantization_config",), '{"quant_method": "bitsandbytes", "load_in_4bit": true}', "bitsandbytes"),
        "quantization-text": (("quantization_config",), '"abc"', "quantization_config"),
        "quantization-list": (("quantization_config",), "[]", "quantization_config"),
        "quantization-no-modules": (("quantization_config",), '{"quant_method": "rlrc"}', "quantization_config"),
        "timm-number": (("timm_model_ids",), "5", "timm_model_ids"),
    }
    for name, (keys, raw, word) in particular.items():
        expected: Expected = "either" if name in ("timm-number", "tower-unknown-key", "quantization-list") else "refused"
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
            yield _case(f"statistics/{leaf}.0={kind}", number, "config.json", leaf, expected="either" if big else "refused")
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
    yield _case("statistics/file-without-q99", _beside("dataset_statistics.json", mixed), "dataset_statistics.json", "q99")
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
            yield _case(f"lineage/{name}={kind}-inspect", change, "compression.json", expected="either", arguments=looked)
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
            yield _case(
                f"tokenizer/{field}={kind}", change, "token", expected="refused" if sure else "either"
            )
    for field in ("bos_token", "pad_token", "tokenizer_class", "model_max_length", "added_tokens_decoder"):
        for kind in ("null", "negative", "nan", "text", "empty-list", "object", "5000-digits"):
            change = inside("tokenizer_config.json", set_field((field,), VALUES[kind]))
            yield _case(f"tokenizer_config/{field}={kind}", change, "token", expected="either")
    yield _case("tokenizer/without-bos", inside("tokenizer.json", set_field(("post_processor",), "null")), "token")


def _edit_weights(edit: Any) -> Change:
    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / WEIGHTS)
        edited = edit(tensors)
        save_file({name: tensor.contiguous() for name, tensor in (edited or tensors).items()}, folder / WEIGHTS)

    return change


def _poison(name: str, value: float) -> Change:
    def edit(tensors: dict[str, Any]) -> None:
        tensors[name].view(-1)[3] = value

    return _edit_weights(edit)


EMBED = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
Q_PROJ = "language_model.model.layers.1.self_attn.q_proj.weight"
NORM = "language_model.model.layers.1.input_layernorm.weight"


def _weights() -> Iterator[Case]:
    for kind, change in NO_FILE.items():
        words = (WEIGHTS, "git lfs pull") if kind == "lfs-pointer" else ("policy",)
        yield _case(f"weights/{kind}", inside(WEIGHTS, change), *words)
    yield _case("weights/removed", inside(WEIGHTS, remove), WEIGHTS)
    for part in (0.0001, 0.01, 0.5, 0.999999):
        yield _case(f"weights/cut-at-{part}", inside(WEIGHTS, truncate(part)), WEIGHTS)
    header = {
        "length-huge": (2**63).to_bytes(8, "little"),
        "length-zero": bytes(8),
        "length-short": (7).to_bytes(8, "little"),
        "not-json": (20).to_bytes(8, "little") + b"x" * 20,
        "list": (8).to_bytes(8, "little") + b"[1,2,3] ",
        "deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    }
    for kind, start in header.items():
        yield _case(f"weights/header-{kind}", inside(WEIGHTS, _overwrite(start)), WEIGHTS)
    for verb, arguments in VERBS_ON_WEIGHTS.items():
        slow = verb == "bench"
        for value in ("nan",) if slow else ("nan", "inf", "-inf"):
            yield _case(f"weights/one-{value}-{verb}", _poison(Q_PROJ, float(value)), Q_PROJ, arguments=arguments)
    for where in (EMBED, HEAD, NORM, "projector.fc1.weight", "vision_backbone.featurizer.pos_embed"):
        yield _case(f"weights/nan-in-{where}", _poison(where, float("nan")), where)
    yield from _dtypes()
    yield from _wrong_tensors()


def _overwrite(start: bytes) -> Change:
    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.write(start)

    return change


def _dtypes() -> Iterator[Case]:
    import torch

    def to(dtype: Any, only: str = "") -> Change:
        return _edit_weights(lambda tensors: {n: t.to(dtype) if only in n else t for n, t in tensors.items()})

    for verb, arguments in VERBS_ON_WEIGHTS.items():
        if verb == "bench":
            continue
        yield _case(f"weights/float16-{verb}", to(torch.float16), expected="works", arguments=arguments)
        yield _case(f"weights/mixed-norms-{verb}", to(torch.float32, "norm"), expected="works", arguments=arguments)
    for part in ("projector", "lm_head", "vision", "embed"):
        yield _case(f"weights/mixed-{part}", to(torch.float32, part), expected="works")
    yield _case("weights/float64", to(torch.float64), expected="either")
    yield _case("weights/float32", to(torch.float32), expected="works")
    for dtype in (torch.int8, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn, torch.int32):
        name = str(dtype).removeprefix("torch.")
        yield _case(f"weights/{name}", to(dtype), "policy")
        yield _case(f"weights/{name}-in-one", to(dtype, Q_PROJ), Q_PROJ)
        yield _case(f"weights/{name}-in-one-quantize", to(dtype, Q_PROJ), Q_PROJ, arguments=VERBS_ON_WEIGHTS["quantize"])
        yield _case(f"weights/{name}-in-norm-prune", to(dtype, NORM), NORM, arguments=PRUNE)


def _wrong_tensors() -> Iterator[Case]:
    import torch

    def without(word: str) -> Change:
        return _edit_weights(lambda tensors: {name: t for name, t in tensors.items() if word not in name})

    def plus(name: str, tensor: Any) -> Change:
        return _edit_weights(lambda tensors: tensors | {name: tensor})

    def reshaped(name: str, shape: tuple[int, ...]) -> Change:
        return _edit_weights(lambda tensors: tensors | {name: torch.zeros(shape, dtype=torch.bfloat16)})

    for word in ("layers.1.", "q_proj", "lm_head", "embed_tokens", "projector", "pos_embed", "norm"):
        yield _case(f"weights/without-{word}", without(word), "policy", word.strip("."))
    yield _case("weights/none-at-all", _edit_weights(lambda tensors: {"x": torch.zeros(1)}), "policy")
    for word in ("layers.1.", "embed_tokens"):
        looked = ("inspect", "policy")
        yield _case(f"weights/without-{word}-inspect", without(word), "policy", arguments=looked)
    for extra in ("magic.weight", "language_model.model.layers.9.self_attn.q_proj.weight", "action_head.weight"):
        yield _case(f"weights/extra-{extra}", plus(extra, torch.zeros(4)), extra)
    yield _case("weights/huge-name", plus("x" * 1_000_000, torch.zeros(4)), "policy")
    inv = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    yield _case("weights/inv_freq", plus(inv, torch.ones(8)), expected="works")
    shapes: dict[str, tuple[int, ...]] = {"zero-rows": (0, 64), "one-axis": (4096,), "more-rows": (128, 64)}
    for kind, shape in (shapes | {"zero-columns": (64, 0), "scalar": ()}).items():
        yield _case(f"weights/{kind}", reshaped(Q_PROJ, shape), Q_PROJ)
    yield _case("weights/head-zero-rows", reshaped(HEAD, (0, 64)), "lm_head")
    yield _case("weights/embed-few-rows", reshaped(EMBED, (10, 64)), "embed_tokens")
    yield _case("weights/value-head-wrong", plus("value_head.magic", torch.zeros(3)), "value_head")
    tie = set_field(("text_config", "tie_word_embeddings"), "true")

    def tied(folder: Path, stored: bool) -> None:
        tie(folder / "config.json")
        set_field(("tie_word_embeddings",), "true")(folder / "config.json")
        _edit_weights(
            lambda tensors: {n: tensors[EMBED].clone() if n == HEAD else t for n, t in tensors.items() if stored or n != HEAD}
        )(folder)

    for verb, arguments in (("sft", SFT), ("prune", PRUNE), ("quantize", VERBS_ON_WEIGHTS["quantize"])):
        yield _case(f"weights/tied-{verb}", lambda p: tied(p, False), expected="works", arguments=arguments)
        yield _case(f"weights/tied-stored-{verb}", lambda p: tied(p, True), expected="works", arguments=arguments)


def _index() -> Iterator[Case]:
    def index(edit: Any) -> Change:
        def change(folder: Path) -> None:
            values = json.loads((folder / INDEX).read_text())
            (folder / INDEX).write_text(json.dumps(edit(values)))

        return change

    first = "language_model.lm_head.weight"
    for kind, raw in VALUES.items():
        yield _case(f"index/weight_map={kind}", inside(INDEX, set_field(("weight_map",), raw)), INDEX, base="sharded")
        one = inside(INDEX, set_field(("weight_map", first), raw))
        yield _case(f"index/shard={kind}", one, INDEX + "|policy", base="sharded")
    yield _case("index/no-weight_map", inside(INDEX, set_field(("weight_map",), None)), INDEX, "weight_map", base="sharded")
    yield _case("index/metadata-text", inside(INDEX, set_field(("metadata",), '"abc"')), expected="either", base="sharded")
    names = ("../policy2/model.safetensors", "/etc/passwd", "model-00009-of-00009.safetensors", "a/b.safetensors", "..")
    for name in (*names, "pytorch_model.bin", "model\0.safetensors", "x" * 5000, "config.json"):
        change = index(lambda values, name=name: values | {"weight_map": values["weight_map"] | {first: name}})
        yield _case(f"index/names-{name[:30]!r}", change, INDEX + "|policy", base="sharded")
    yield _case("index/plus-tensor", index(lambda v: v | {"weight_map": v["weight_map"] | {"magic": next(iter(v["weight_map"].values()))}}), INDEX + "|magic", base="sharded", expected="either")
    shard = "model-00001-of-00004.safetensors"
    for kind, change in NO_FILE.items():
        yield _case(f"index/shard-{kind}", lambda folder, change=change: change(_first_shard(folder)), "model-0000", base="sharded")
    yield _case("index/shard-removed", lambda folder: _first_shard(folder).unlink(), "model-0000", base="sharded")
    yield _case("index/shard-cut", lambda folder: truncate(0.7)(_first_shard(folder)), "model-0000", base="sharded")
    yield _case("index/fine", nothing, expected="works", base="sharded")
    del shard


def _first_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[0]


def _whole_folders() -> Iterator[Case]:
    import torch
    from safetensors.torch import save_file

    def pickles_only(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "pytorch_model.bin")

    def oft(*names: str) -> Change:
        def change(folder: Path) -> None:
            for name in names:
                (folder / name).write_bytes(b"PK\x03\x04")

        return change

    def adapter(keep: tuple[str, ...], config: Any) -> Change:
        def change(folder: Path) -> None:
            for path in list(folder.iterdir()):
                if path.name not in keep:
                    path.unlink()
            (folder / "adapter_config.json").write_text(json.dumps(config))
            save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")

        return change

    def foreign(name: str, values: Any) -> Change:
        def change(folder: Path) -> None:
            for path in list(folder.iterdir()):
                path.unlink()
            (folder / name).write_text(json.dumps(values))
            save_file({"model.x": torch.zeros(2, 2)}, folder / WEIGHTS)

        return change

    yield _case("folder/fine", nothing, expected="works")
    yield _case("folder/pickles-only", pickles_only, "policy", "pickle")
    for name in ("action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"):
        for verb, arguments in VERBS_ON_WEIGHTS.items():
            if verb != "bench":
                yield _case(f"folder/oft-{name}-{verb}", oft(name), name.split("--")[0] + "|OFT", arguments=arguments)
    both = oft("action_head--latest_checkpoint.pt", "proprio_projector--latest_checkpoint.pt", "vision_backbone--1_checkpoint.pt")
    yield _case("folder/oft-all", both, "action_head|OFT|proprio|vision_backbone--")
    lora = {"peft_type": "LORA", "base_model_name_or_path": "openvla/openvla-7b", "r": 32, "target_modules": ["q_proj"]}
    for name, keep in (("without-config", ()), ("with-config", ("config.json", "preprocessor_config.json"))):
        yield _case(f"folder/adapter-{name}", adapter(keep, lora), "adapter", "openvla/openvla-7b")
        for kind, raw in VALUES.items():
            edit = adapter(keep, lora | {"base_model_name_or_path": "@@"})

            def change(folder: Path, edit: Change = edit, raw: str = raw) -> None:
                edit(folder)
                path = folder / "adapter_config.json"
                path.write_text(path.read_text().replace('"@@"', raw))

            if name == "without-config":
                yield _case(f"folder/adapter-base={kind}", change, "adapter")
    itself = adapter((), lora | {"base_model_name_or_path": "policy"})
    yield _case("folder/adapter-of-itself", itself, "adapter")
    for family in ("pi0", "pi05", "smolvla", "act", "diffusion"):
        yield _case(f"folder/lerobot-{family}", foreign("config.json", {"type": family, "n_obs_steps": 1}), "config.json")
    yield _case("folder/llama", foreign("config.json", {"model_type": "llama", "hidden_size": 64}), "llama")
    yield _case("folder/gguf", lambda f: (f / WEIGHTS).rename(f / "model.gguf") and None, "policy")
    yield _case("folder/empty", _empty, "policy", "config.json|no such")

    def place(make: Any) -> Any:
        def build(root: Path) -> None:
            put_user_files(root)
            put("images", root / "data")
            make(root / "policy")

        return build

    import os

    nowhere: dict[str, Any] = {
        "missing": lambda path: None,
        "file": lambda path: path.write_text("x"),
        "pipe": lambda path: os.mkfifo(path),
        "link-to-itself": lambda path: path.symlink_to(path.name),
        "dev-zero": lambda path: path.symlink_to("/dev/zero"),
    }
    for verb, arguments in {**VERBS_ON_WEIGHTS, "inspect": ("inspect", "policy")}.items():
        for kind, make in nowhere.items():
            yield Case(f"checkpoint/folder/{kind}-{verb}", arguments, place(make), words=("policy",))


def _empty(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.unlink()


def _packed() -> Iterator[Case]:
    """Damaged packed policies (`quantization_config` of our own)."""
    arguments = ("evaluate", "--policy", "policy", "--episodes", "1", "--num-envs", "1", "--num-workers", "0")
    arguments += ("--videos", "0", "--world", "nowhere", "--out", "out")
    looked = ("inspect", "policy")
    del arguments
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
