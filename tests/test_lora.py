"""A LoRA adapter's folder is a policy: merged as peft merges it, and refused in one line where that cannot be done."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import REMOVED, set_field
from safetensors.torch import load_file, save_file

import rlrc
from rlrc.configs.prune import PruneConfig
from rlrc.configs.quantize import QuantizeConfig
from rlrc.errors import UserError
from rlrc.policies.checkpoint import outline
from rlrc.prune import prune
from rlrc.stage import standalone

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
QUERY = "language_model.model.layers.0.self_attn.q_proj"
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
INSTRUCTIONS = ["put carrot on plate", "put red cube on plate"]


def adapted(base: Path, folder: Path, dtype: torch.dtype | None = None, **config: Any) -> dict[str, torch.Tensor]:
    """Let peft write an adapter of random numbers to `folder`; returns the weights as peft merges them."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    policy = rlrc.load(base, dtype=dtype)
    model = peft.get_peft_model(policy.model, peft.LoraConfig(r=4, lora_alpha=7, **config))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
        elif "modules_to_save" in name:
            parameter.data.add_(0.01)
    model.save_pretrained(folder)
    set_field(folder, CONFIG, "base_model_name_or_path", str(base))
    merged: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return merged


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear"},
        {
            "target_modules": ["q_proj", "up_proj", "down_proj"],
            "use_rslora": True,
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 6},
            "alpha_pattern": {"q_proj": 3},
        },
        {"target_modules": ["embed_tokens", "patch_embed.proj", "lm_head", "qkv"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["projector.fc1", "lm_head"], "fan_in_fan_out": True},
    ],
    ids=["all-linear", "patterns", "embeddings-and-convolutions", "modules-to-save"],
)
def test_merged_as_peft_does(config: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path) -> None:
    merged = adapted(tiny_checkpoint, tmp_path / "adapter", **config)
    loaded, base = (rlrc.load(path).model.state_dict() for path in (tmp_path / "adapter", tiny_checkpoint))
    assert loaded.keys() == merged.keys()
    assert sum(not torch.equal(loaded[name], base[name]) for name in base) >= 3
    for name in merged:
        torch.testing.assert_close(loaded[name], merged[name], atol=1e-6, rtol=1e-5)


def test_a_bf16_base_keeps_its_dtype(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rlrc.load(tiny_checkpoint).save(tmp_path / "base", dtype=torch.bfloat16)
    merged = adapted(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj", "fc1"])
    loaded = rlrc.load(tmp_path / "adapter").model.state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.bfloat16}
    for name in merged:
        torch.testing.assert_close(loaded[name], merged[name], atol=0, rtol=2**-7)


@pytest.fixture
def adapter(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """An adapter of the query and key projections, written by hand, beside a copy of its base."""
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    folder = tmp_path / "adapter"
    folder.mkdir()
    torch.manual_seed(1)
    tensors = {}
    for leaf in ("q_proj", "k_proj"):
        name = PREFIX + QUERY.replace("q_proj", leaf)
        tensors |= {f"{name}.lora_A.weight": torch.randn(4, 40), f"{name}.lora_B.weight": torch.randn(40, 4)}
    save_file(tensors, folder / ADAPTER)
    config = {"peft_type": "LORA", "base_model_name_or_path": "../base", "r": 4, "lora_alpha": 8, "bias": "none"}
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def test_the_formula(adapter: Path) -> None:
    factors, base = load_file(adapter / ADAPTER), load_file(adapter.parent / "base" / "model.safetensors")
    a, b = (factors[f"{PREFIX}{QUERY}.lora_{which}.weight"] for which in "AB")
    expected = base[f"{QUERY}.weight"] + 2.0 * b @ a
    torch.testing.assert_close(rlrc.load(adapter).model.get_submodule(QUERY).weight.data, expected)


@pytest.mark.parametrize("where", ["absolute", "beside", "working directory", "hub"])
def test_where_the_base_is_found(where: str, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = adapter.parent / "base"
    named = {"absolute": str(base), "beside": "../base", "working directory": "base", "hub": "openvla/openvla-7b"}[
        where
    ]
    set_field(adapter, CONFIG, "base_model_name_or_path", named)
    monkeypatch.chdir(adapter.parent)
    if where == "hub":
        monkeypatch.setattr("rlrc.policies.locate._download", lambda hub_id, wanted: base)
    policy = outline(adapter)
    assert policy.weights is not None
    assert [path.name for path in policy.weights.paths] == ["model.safetensors", ADAPTER]


def test_its_own_files_come_before_those_of_the_base(adapter: Path) -> None:
    config = json.loads((adapter.parent / "base" / "config.json").read_text())
    stats = config.pop("norm_stats")["tabletop"]
    (adapter / "config.json").write_text(json.dumps({**config, "norm_stats": {"own": stats}}))
    (adapter / "dataset_statistics.json").write_text(json.dumps({"finetuned": stats}))
    assert outline(adapter, unnorm_key="finetuned").norm_stats == {"own": stats, "finetuned": stats}


def test_pruning_streams_the_merged_weights(adapter: Path, tmp_path: Path) -> None:
    """An adapter is pruned to the same bits as the policy that was merged and saved before."""
    rlrc.load(adapter).save(tmp_path / "merged")
    for name, policy in (("whole", tmp_path / "merged"), ("streamed", adapter)):
        prune(
            PruneConfig.parse({"policy": policy, "method": {"kind": "magnitude"}, "ratio": 0.5}, "test"),
            tmp_path / name,
        )
    whole, streamed = (load_file(tmp_path / n / "checkpoint" / "model.safetensors") for n in ("whole", "streamed"))
    assert whole.keys() == streamed.keys() and all(torch.equal(whole[name], streamed[name]) for name in whole)
    lineage = json.loads((tmp_path / "streamed" / "checkpoint" / "compression.json").read_text())
    assert lineage["parent"]["sha256"].keys() == {"model.safetensors", ADAPTER}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("base_model_name_or_path", "../nowhere", "LoRA adapter for the base '../nowhere'.*merge"),
        ("base_model_name_or_path", ".", "LoRA adapter for the base"),
        ("base_model_name_or_path", 5, "'base_model_name_or_path'"),
        ("base_model_name_or_path", None, "'base_model_name_or_path'"),
        ("peft_type", "IA3", "'peft_type'"),
        ("peft_type", REMOVED, "missing key 'peft_type'"),
        ("use_dora", True, "'use_dora' is set"),
        ("bias", "all", "'bias'"),
        ("lora_bias", True, "'lora_bias' is set"),
        ("layer_replication", [[0, 2]], "'layer_replication' is set"),
        ("init_lora_weights", "pissa", "'pissa' changed the base"),
        ("r", 0, "'r'"),
        ("r", 8, "gives it rank 8"),
        ("lora_alpha", "x", "'lora_alpha'"),
        ("lora_alpha", float("nan"), "lora_alpha"),
        ("rank_pattern", {"(a+)+$": 4}, "no plain name"),
        ("rank_pattern", {"q_proj": 2}, "gives it rank 2"),
    ],
)
def test_adapters_that_cannot_be_merged(field: str, value: Any, message: str, adapter: Path) -> None:
    set_field(adapter, CONFIG, field, value)
    with pytest.raises(UserError, match=message) as raised:
        outline(adapter)
    assert "\n" not in str(raised.value) and str(adapter) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (f"{QUERY}.lora_A.weight", None, "without its 'lora_A.weight'"),
        (f"{QUERY}.lora_B.weight", None, "without its 'lora_B.weight'"),
        (f"{QUERY}.lora_A.weight", torch.randn(4, 41), "does not fit the base"),
        (f"{QUERY}.lora_B.weight", torch.randn(0, 4), "does not fit the base"),
        (f"{QUERY}.lora_A.weight", torch.randn(3, 40), "gives it rank 4"),
        (f"{QUERY}.lora_A.weight", torch.ones(4, 40, dtype=torch.int32), "does not fit the base"),
        (f"{QUERY}.lora_magnitude_vector", torch.ones(40), "none that rlrc can merge"),
        ("projector.fc1.bias", torch.ones(3), "does not fit the base"),
        ("projector.nowhere.weight", torch.ones(3), "does not have"),
    ],
)
def test_factors_that_do_not_fit(name: str, tensor: torch.Tensor | None, message: str, adapter: Path) -> None:
    tensors = load_file(adapter / ADAPTER)
    tensors.pop(PREFIX + name, None)
    save_file(tensors if tensor is None else tensors | {PREFIX + name: tensor}, adapter / ADAPTER)
    with pytest.raises(UserError, match=message):
        outline(adapter)


def test_nan_in_a_factor_is_found(adapter: Path) -> None:
    tensors = load_file(adapter / ADAPTER)
    tensors[f"{PREFIX}{QUERY}.lora_B.weight"][3, 2] = torch.nan
    save_file(tensors, adapter / ADAPTER)
    with pytest.raises(UserError, match=f"'{QUERY}.weight' holds NaN"):
        rlrc.load(adapter)


def test_an_adapter_without_safetensors_or_beside_whole_weights(adapter: Path) -> None:
    shutil.copy(adapter.parent / "base" / "model.safetensors", adapter)
    with pytest.raises(UserError, match="both whole weights and a LoRA adapter"):
        outline(adapter)
    (adapter / "model.safetensors").unlink()
    (adapter / ADAPTER).rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"a pickled adapter_model.bin is never loaded"):
        outline(adapter)


def test_the_adapter_that_openvla_oft_leaves_is_none_of_openvlas(adapter: Path) -> None:
    inside = adapter.parent / "oft" / "lora_adapter"
    shutil.copytree(adapter, inside)
    (inside.parent / "action_head--150000_checkpoint.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"merged into the weights of .*oft; name that folder"):
        outline(inside)


def test_a_stage_knows_the_base(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Another base is another input, and a base may not lie where the stage writes."""
    base = shutil.copytree(tiny_checkpoint, tmp_path / "runs" / "base")
    set_field(adapter, CONFIG, "base_model_name_or_path", str(base))
    config = QuantizeConfig(policy=adapter)
    before = standalone("quantize", config, tmp_path / "out").fingerprint
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, base / "model.safetensors")
    assert standalone("quantize", config, tmp_path / "out").fingerprint != before
    with pytest.raises(UserError, match="is read, and it lies in"):
        standalone("quantize", config, tmp_path / "runs")
