"""The tensors of a checkpoint: those that people have load, and what is wrong with others is one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import WEIGHTS, add_tensor, change_tensors, set_field
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rlrc
from rlrc.configs.prune import PruneConfig
from rlrc.configs.quantize import QuantizeConfig
from rlrc.errors import UserError
from rlrc.policies.checkpoint import outline
from rlrc.policies.prismatic.checkpoint import EMBEDDING, HEAD
from rlrc.policies.shards import require_finite_tensor
from rlrc.prune import prune
from rlrc.quantize import quantize

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
INSTRUCTIONS = ["put carrot on plate", "put red cube on plate"]
QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "policy"))


def cast(folder: Path, dtype: torch.dtype, part: str = "") -> None:
    """Store the floating-point tensors that have `part` in their names in another dtype."""
    change_tensors(folder, lambda name, tensor: tensor.to(dtype) if part in name else tensor)


# -- what people have --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["norm", "projector", "lm_head"])
@pytest.mark.parametrize("said", ["bfloat16", "float32", None])
def test_mixed_dtypes_become_one_as_in_transformers(part: str, said: str | None, folder: Path) -> None:
    """The config's, or that of the first floating-point tensor in the file."""
    cast(folder, torch.bfloat16)
    cast(folder, torch.float32, part)
    set_field(folder, "config.json", "dtype", said)
    policy = rlrc.load(folder)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        first = file.get_tensor(next(iter(file.keys()))).dtype
    expected = first if said is None else getattr(torch, said)
    assert {tensor.dtype for tensor in policy.model.state_dict().values()} == {expected}
    assert np.isfinite(policy.act(IMAGES, INSTRUCTIONS)).all()


def test_mixed_dtypes_pass_through_prune_and_quantize(folder: Path, tmp_path: Path) -> None:
    cast(folder, torch.bfloat16)
    cast(folder, torch.float32, "norm")
    set_field(folder, "config.json", "dtype", "bfloat16")
    method = {"kind": "magnitude"}
    prune(PruneConfig.parse({"policy": folder, "method": method, "ratio": 0.5}, "test"), tmp_path / "pruned")
    quantize(QuantizeConfig(policy=tmp_path / "pruned" / "checkpoint"), tmp_path / "packed")
    stored = load_file(tmp_path / "packed" / "checkpoint" / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16, torch.uint8}
    assert np.isfinite(rlrc.load(tmp_path / "packed" / "checkpoint").act(IMAGES, INSTRUCTIONS)).all()


def test_a_float16_checkpoint_acts_and_packs(folder: Path, tmp_path: Path) -> None:
    expected = rlrc.load(folder).act(IMAGES, INSTRUCTIONS)
    cast(folder, torch.float16)
    set_field(folder, "config.json", "dtype", "float16")
    policy = rlrc.load(folder)
    assert policy.model.dtype == torch.float16
    np.testing.assert_allclose(policy.act(IMAGES, INSTRUCTIONS), expected, atol=0.05)
    quantize(QuantizeConfig(policy=folder, bits=8), tmp_path / "packed")
    assert np.isfinite(rlrc.load(tmp_path / "packed" / "checkpoint").act(IMAGES, INSTRUCTIONS)).all()


def test_a_stored_table_of_rotary_frequencies_is_passed_over(folder: Path) -> None:
    expected = rlrc.load(folder).act(IMAGES, INSTRUCTIONS)
    add_tensor(folder, "language_model.model.layers.0.self_attn.rotary_emb.inv_freq", torch.zeros(2))
    add_tensor(folder, "language_model.model.rotary_emb.inv_freq", torch.zeros(2))
    assert np.array_equal(rlrc.load(folder).act(IMAGES, INSTRUCTIONS), expected)


@pytest.mark.parametrize("where", ["tie_word_embeddings", "text_config.tie_word_embeddings"])
@pytest.mark.parametrize("stored", [True, False])
def test_a_head_that_is_tied_to_the_embeddings(stored: bool, where: str, folder: Path, tmp_path: Path) -> None:
    rows = outline(folder).model.config.action_ids
    embedding = load_file(folder / WEIGHTS)[EMBEDDING]
    change_tensors(folder, lambda name, tensor: None if name == HEAD else tensor)
    if stored:
        add_tensor(folder, HEAD, embedding.clone())
    set_field(folder, "config.json", "action_head_only", None)
    set_field(folder, "config.json", where, True)
    policy = rlrc.load(folder)
    assert torch.equal(policy.model.language_model.lm_head.weight, embedding[rows])
    policy.save(tmp_path / "saved")
    assert not json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"]
    assert np.array_equal(rlrc.load(tmp_path / "saved").act(IMAGES, INSTRUCTIONS), policy.act(IMAGES, INSTRUCTIONS))
    whole = rlrc.load(folder, full_head=True)
    assert torch.equal(whole.model.language_model.lm_head.weight, embedding)


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to(torch.int32), "holds int32 where floating-point numbers are expected"),
        (lambda t: t.to(torch.float8_e4m3fn), "has dtype F8_E4M3, which rlrc does not read"),
        (lambda t: t.to(torch.complex64), "has dtype C64"),
        (lambda t: t.to(torch.uint32), "has dtype U32"),
        (lambda t: t[:0].clone(), r"has shape \(0, 40\)"),
        (lambda t: t[0, 0].clone(), r"has shape \(\)"),
        (lambda t: t.flatten().clone(), "has shape"),
    ],
)
@pytest.mark.parametrize("name", [QUERY, HEAD])
def test_tensors_that_are_not_what_they_should_be(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str, folder: Path
) -> None:
    change_tensors(folder, lambda other, tensor: change(tensor) if other == name else tensor)
    with pytest.raises(UserError, match=message) as raised:
        outline(folder)
    assert name in str(raised.value) and str(folder) in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_number_that_is_not_finite_is_found(value: float, dtype: torch.dtype) -> None:
    tensor = torch.randn(257, 33).to(dtype)
    require_finite_tensor("x", tensor, "here")
    require_finite_tensor("x", torch.empty(0, 3, dtype=dtype), "here")
    for place in (0, 4000, tensor.numel() - 1):
        broken = tensor.clone()
        broken.view(-1)[place] = value
        with pytest.raises(UserError, match="here: 'x' holds NaN or infinity"):
            require_finite_tensor("x", broken, "here")


@pytest.mark.parametrize("name", [QUERY, HEAD, "projector.fc1.bias", "vision_backbone.featurizer.pos_embed"])
def test_weights_that_are_not_finite_are_refused_in_every_verb(name: str, folder: Path, tmp_path: Path) -> None:
    change_tensors(
        folder, lambda other, tensor: tensor.index_fill(-1, torch.tensor(0), torch.nan) if other == name else tensor
    )
    depth = {"policy": folder, "method": {"kind": "depth", "keep": [0]}}
    verbs: list[Callable[[], Any]] = [
        lambda: rlrc.load(folder),
        lambda: quantize(QuantizeConfig(policy=folder), tmp_path / "out"),
        lambda: prune(PruneConfig.parse(depth, "test"), tmp_path / "out"),
    ]
    for verb in verbs:
        with pytest.raises(UserError, match=f"'{name}' holds NaN or infinity"):
            verb()
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_dtype_that_cannot_hold_the_weights_is_refused(folder: Path) -> None:
    change_tensors(folder, lambda name, tensor: tensor + 1e6 if name == QUERY else tensor)
    with pytest.raises(UserError, match=r"q_proj.weight' holds NaN or infinity"):
        rlrc.load(folder, dtype=torch.float16)


# -- the index ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The weights in two files with an index."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, weight_map = sorted(state), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin", "..", 5, None])
def test_an_index_names_safetensors_files_beside_it(file: Any, sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"][QUERY] = file
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index.json: 'weight_map"):
        outline(sharded)


@pytest.mark.parametrize(
    "content", [{}, {"metadata": {}}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": None}]
)
def test_an_index_has_a_weight_map(content: Any, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"index.json: .*weight_map"):
        outline(sharded)


def test_an_index_says_what_the_files_hold(sharded: Path) -> None:
    outline(sharded)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    moved = {**index["weight_map"], QUERY: index["weight_map"]["vision_backbone.featurizer.pos_embed"]}
    omitted = {name: file for name, file in index["weight_map"].items() if name != QUERY}
    added = {**index["weight_map"], "stray": index["weight_map"][QUERY]}
    for weight_map, name in ((moved, QUERY), (omitted, QUERY), (added, "stray")):
        (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match=f"tensor '{name}'"):
            outline(sharded)


def test_a_tensor_in_two_files_is_refused(sharded: Path) -> None:
    first, second = sorted(sharded.glob("model-*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: tensor}, second)
    with pytest.raises(UserError, match=f"tensor '{name}' is in {first.name} as well"):
        outline(sharded)
