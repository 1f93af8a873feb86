"""Damaged weights of checkpoints, and their index."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from case import Case
from damage import NO_FILE, VALUES, Change, inside, remove, set_field, truncate
from policy_case import INDEX, PRUNE, SFT, VERBS_ON_WEIGHTS, WEIGHTS
from policy_case import checkpoint_case as _case
from valid import nothing


def cases() -> Iterator[Case]:
    yield from _weights()
    yield from _index()


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
LAYER = "language_model.model.layers.1.self_attn.q_proj"
Q_PROJ = f"{LAYER}.weight"
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
            yield _case(f"weights/one-{value}-{verb}", _poison(Q_PROJ, float(value)), LAYER, arguments=arguments)
    for where in (EMBED, HEAD, NORM, "projector.fc1.weight", "vision_backbone.featurizer.pos_embed"):
        yield _case(f"weights/nan-in-{where}", _poison(where, float("nan")), where.removesuffix(".weight"))
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
        yield _case(f"weights/{name}-in-one", to(dtype, Q_PROJ), LAYER)
        yield _case(f"weights/{name}-in-one-quantize", to(dtype, Q_PROJ), LAYER, arguments=VERBS_ON_WEIGHTS["quantize"])
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
        yield _case(f"weights/{kind}", reshaped(Q_PROJ, shape), LAYER)
    yield _case("weights/head-zero-rows", reshaped(HEAD, (0, 64)), "lm_head")
    yield _case("weights/embed-few-rows", reshaped(EMBED, (10, 64)), "embed_tokens")
    yield _case("weights/value-head-wrong", plus("value_head.magic", torch.zeros(3)), "value_head")
    tie = set_field(("text_config", "tie_word_embeddings"), "true")

    def tied(folder: Path, stored: bool) -> None:
        tie(folder / "config.json")
        set_field(("tie_word_embeddings",), "true")(folder / "config.json")
        _edit_weights(
            lambda tensors: {
                n: tensors[EMBED].clone() if n == HEAD else t for n, t in tensors.items() if stored or n != HEAD
            }
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
    yield _case(
        "index/no-weight_map", inside(INDEX, set_field(("weight_map",), None)), INDEX, "weight_map", base="sharded"
    )
    yield _case(
        "index/metadata-text", inside(INDEX, set_field(("metadata",), '"abc"')), expected="either", base="sharded"
    )
    names = ("../policy2/model.safetensors", "/etc/passwd", "model-00009-of-00009.safetensors", "a/b.safetensors", "..")
    for name in (*names, "pytorch_model.bin", "model\0.safetensors", "x" * 5000, "config.json"):
        change = index(lambda values, name=name: values | {"weight_map": values["weight_map"] | {first: name}})
        yield _case(f"index/names-{name[:30]!r}", change, INDEX + "|policy", base="sharded")
    yield _case(
        "index/plus-tensor",
        index(lambda v: v | {"weight_map": v["weight_map"] | {"magic": next(iter(v["weight_map"].values()))}}),
        INDEX + "|magic",
        base="sharded",
        expected="either",
    )
    for kind, change in NO_FILE.items():
        yield _case(
            f"index/shard-{kind}",
            lambda folder, change=change: change(_first_shard(folder)),
            "model-0000",
            base="sharded",
        )
    yield _case("index/shard-removed", lambda folder: _first_shard(folder).unlink(), "model-0000", base="sharded")
    yield _case("index/shard-cut", lambda folder: truncate(0.7)(_first_shard(folder)), "model-0000", base="sharded")
    yield _case("index/fine", nothing, expected="works", base="sharded")


def _first_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[0]
