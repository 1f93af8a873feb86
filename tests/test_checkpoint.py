"""What is saved loads again, anywhere, with equal logits; what is damaged is refused in one line."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh import fresh
from safetensors.torch import load_file, save_file

import rlrc
from rlrc.configs.prune import Depth
from rlrc.configs.train import Shape, TowerShape
from rlrc.errors import UserError
from rlrc.packed.layers import QuantizedLinear, quantization_config
from rlrc.policies.contract import Policy
from rlrc.policies.openvla.tiny import new_policy
from rlrc.policies.shards import ShardWriter
from rlrc.prune import PruneConfig
from rlrc.recover.critic import Critic
from rlrc.stage import contents_of, standalone

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
INSTRUCTIONS = ["put carrot on plate", "put red cube on the big plate"]

FRESH = """
import json, sys, numpy as np, torch, rlrc
images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
instructions = {instructions!r}
policy = rlrc.load(sys.argv[1])
if sys.argv[2] == "auto":
    from transformers import AutoModelForImageTextToText
    policy.model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype="auto").eval()
inputs = policy.prepare(policy.observation(images, instructions))
tokens = policy.sample(inputs).latent["tokens"][:, 0]
with torch.no_grad():
    print(json.dumps(policy.model.action_logits(inputs, tokens)[0].float().tolist()))
"""


def logits(policy: Policy) -> torch.Tensor:
    inputs = policy.prepare(policy.observation(IMAGES, INSTRUCTIONS))
    with torch.no_grad():
        return policy.model.action_logits(inputs, policy.sample(inputs).latent["tokens"][:, 0])[0].float()


def fresh_logits(path: Path, how: str) -> torch.Tensor:
    code = FRESH.format(instructions=INSTRUCTIONS)
    return torch.tensor(json.loads(fresh(code, path, how)))


def per_layer_policy() -> Policy:
    """A random policy whose three layers have three shapes."""
    tower = TowerShape(hidden_size=16, num_attention_heads=2, intermediate_size=32, stem_channels=(4, 8))
    shape = Shape(patch_size=32, towers=(tower, tower), hidden_size=40, num_hidden_layers=3, intermediate_size=40)
    policy = new_policy(shape, INSTRUCTIONS, None)
    config = policy.model.config
    config.text_config.per_layer_config = {
        1: {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 4},
        2: {"num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 16},
    }
    torch.manual_seed(1)
    policy.model = type(policy.model)(config).eval()
    return policy


def quantized(policy: Policy) -> Policy:
    names = [
        name
        for name, module in policy.model.language_model.named_modules(prefix="language_model")
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    ]
    for name in names:
        policy.model.set_submodule(name, QuantizedLinear.from_linear(policy.model.get_submodule(name), 4, 32))
    policy.model.config.quantization_config = quantization_config(4, 32, names)
    return policy


@pytest.mark.parametrize("how", ["rlrc", "auto"])
@pytest.mark.parametrize("kind", ["dense", "per-layer", "per-layer-4bit"])
def test_fresh_process_gives_equal_logits(kind: str, how: str, tiny_policy: Policy, tmp_path: Path) -> None:
    policy = tiny_policy if kind == "dense" else per_layer_policy()
    policy = quantized(policy) if kind.endswith("4bit") else policy
    policy.save(tmp_path / "saved")
    torch.testing.assert_close(fresh_logits(tmp_path / "saved", how), logits(policy), atol=1e-5, rtol=1e-5)


def test_a_loaded_policy_can_be_copied(tiny_checkpoint: Path) -> None:
    policy = rlrc.load(tiny_checkpoint)
    assert torch.equal(logits(copy.deepcopy(policy)), logits(policy))


def test_bf16_keeps_dtype_and_size(tiny_policy: Policy, tmp_path: Path) -> None:
    tiny_policy.save(tmp_path / "bf16", dtype=torch.bfloat16)
    loaded = rlrc.load(tmp_path / "bf16")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.act(IMAGES, INSTRUCTIONS).dtype == np.float32
    for name, tensor in tiny_policy.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor.to(torch.bfloat16)), name
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "bf16" / "model.safetensors").values())
    assert f"{stored:,} bytes of weights" in (tmp_path / "bf16" / "README.md").read_text()


def test_the_critic_of_old_checkpoints_stays_there(tiny_policy: Policy, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = damaged(tmp_path, tiny_checkpoint)
    state = load_file(folder / "model.safetensors")
    critic = {f"value_head.{name}": tensor for name, tensor in Critic(40).state_dict().items()}
    assert len(critic) == 5
    save_file(state | critic, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = rlrc.load(folder)
    assert loaded.model.state_dict().keys() == state.keys()
    assert torch.equal(logits(loaded), logits(tiny_policy))
    assert torch.equal(fresh_logits(folder, "auto"), fresh_logits(tiny_checkpoint, "auto"))
    loaded.save(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == state.keys()
    save_file(state | {"value_head.magic": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"unexpected tensor 'value_head\.magic'"):
        rlrc.load(folder)


def test_lineage_names_the_parent(tiny_checkpoint: Path, tmp_path: Path) -> None:
    policy = rlrc.load(tiny_checkpoint)
    policy.save(tmp_path / "child", stage={"verb": "prune", "config": {"ratio": 0.9}, "metrics": {}})
    lineage = json.loads((tmp_path / "child" / "compression.json").read_text())
    assert [stage["verb"] for stage in lineage["stages"]] == ["prune"]
    assert lineage["parent"]["sha256"].keys() == {"model.safetensors"}
    grandchild = rlrc.load(tmp_path / "child")
    grandchild.save(tmp_path / "grandchild", stage={"verb": "sft", "config": {}})
    lineage = json.loads((tmp_path / "grandchild" / "compression.json").read_text())
    assert [stage["verb"] for stage in lineage["stages"]] == ["prune", "sft"]


def test_the_head_keeps_its_action_rows_unless_all_are_asked_for(tmp_path: Path) -> None:
    policy = per_layer_policy()
    policy.model.config.action_head_only = False
    torch.manual_seed(2)
    policy.model = type(policy.model)(policy.model.config).eval()
    policy.save(tmp_path / "published")
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    del config["action_head_only"]  # as published checkpoints: undecided
    (tmp_path / "published" / "config.json").write_text(json.dumps(config))

    rows, whole = rlrc.load(tmp_path / "published"), rlrc.load(tmp_path / "published", full_head=True)
    assert rows.model.language_model.lm_head.weight.shape == (256, 40)
    assert whole.model.language_model.lm_head.weight.shape == (config["text_config"]["vocab_size"], 40)
    assert torch.equal(logits(rows), logits(whole))
    inputs = rows.prepare(rows.observation(IMAGES, INSTRUCTIONS))
    with torch.no_grad():
        every, some = (
            p.model(inputs.input_ids, inputs.attention_mask, inputs.pixel_values).logits for p in (whole, rows)
        )
    torch.testing.assert_close(some, every[..., rows.model.config.action_ids])
    with pytest.raises(UserError, match="load the checkpoint with full_head"):
        rows.model(inputs.input_ids, labels=inputs.input_ids)

    whole.save(tmp_path / "whole")
    assert rlrc.load(tmp_path / "whole").model.language_model.lm_head.out_features > 256  # decided, so it stays
    rows.save(tmp_path / "rows")
    with pytest.raises(UserError, match="holds the action rows alone"):
        rlrc.load(tmp_path / "rows", full_head=True)


def test_a_layer_that_config_does_not_know_is_not_passed_over(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Only the block that is never read may be there in vain; others would mean that config.json is another model's."""
    folder = damaged(tmp_path, tiny_checkpoint)
    state = load_file(folder / "model.safetensors")
    save_file(
        state | {"vision_backbone.featurizer.blocks.2.norm1.weight": torch.zeros(1)}, folder / "model.safetensors"
    )
    rlrc.load(folder)
    save_file(
        state | {"vision_backbone.featurizer.blocks.3.norm1.weight": torch.zeros(1)}, folder / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"unexpected tensor.*blocks\.3"):
        rlrc.load(folder)


@pytest.mark.parametrize("shard_bytes", [1, 50_000])
def test_sharded_checkpoints_load_anywhere(
    shard_bytes: int, tiny_policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardWriter.__init__, "__defaults__", (shard_bytes,))
    tiny_policy.save(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tiny_policy.model.state_dict())
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) == len(set(index["weight_map"].values())) > 1
    expected = logits(tiny_policy)
    assert torch.equal(logits(rlrc.load(tmp_path / "saved")), expected)
    torch.testing.assert_close(fresh_logits(tmp_path / "saved", "auto"), expected, atol=1e-5, rtol=1e-5)
    (tmp_path / "saved" / min(index["weight_map"].values())).unlink()
    with pytest.raises(UserError, match="does not exist; download the checkpoint again"):
        rlrc.load(tmp_path / "saved")


def test_no_dead_vision_weights_are_kept(tiny_policy: Policy) -> None:
    towers = tiny_policy.model.config.towers
    built = [len(tower.blocks) for tower in tiny_policy.model.vision_backbone.children()]
    assert built == [tower.num_hidden_layers - 1 for tower in towers]


def damaged(tmp_path: Path, source: Path) -> Path:
    shutil.copytree(source, tmp_path / "damaged")
    return tmp_path / "damaged"


def test_truncated_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = damaged(tmp_path, tiny_checkpoint)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="damaged or cut off"):
        rlrc.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("projector.fc1.bias"), "1 tensors are missing.*projector.fc1.bias"),
        (lambda state: state.update(stray=torch.zeros(1)), "unexpected tensor 'stray'"),
        (lambda state: state.update({"projector.fc1.bias": torch.zeros(3)}), r"'projector.fc1.bias' has shape \(3,\)"),
    ],
)
def test_weights_that_do_not_fit(change: object, message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = damaged(tmp_path, tiny_checkpoint)
    state = load_file(folder / "model.safetensors")
    change(state)  # type: ignore[operator]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=message):
        rlrc.load(folder)


@pytest.mark.parametrize(
    ("path", "message"), [("runs/nothing/here", "no such checkpoint folder"), ("/nowhere", "no such checkpoint folder")]
)
def test_missing_checkpoint(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rlrc.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava"}, "model_type is 'llava'; rlrc reads openvla"),
        ({"text_config": {"model_type": "mistral"}}, "the language model is a 'mistral', rlrc reads 'llama'"),
        ({"vision_towers": None, "timm_model_ids": ["vit_huge"]}, "shapes of vision tower 'vit_huge' are unknown"),
    ],
)
def test_unknown_architectures(change: dict, message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = damaged(tmp_path, tiny_checkpoint)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        rlrc.load(folder)


def test_pickled_weights_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = damaged(tmp_path, tiny_checkpoint)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="never loaded"):
        rlrc.load(folder)


def test_unknown_unnorm_key(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"unknown unnorm_key 'bridge'.*tabletop"):
        rlrc.load(tiny_checkpoint, unnorm_key="bridge")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.float32), "must be uint8"),
        (IMAGES[0], r"shape \(batch, height, width, 3\)"),
        (IMAGES[:1], "1 images came with 2 instructions"),
    ],
)
def test_wrong_images(images: np.ndarray, message: str, tiny_policy: Policy) -> None:
    with pytest.raises(UserError, match=message):
        tiny_policy.act(images, INSTRUCTIONS)


@pytest.mark.parametrize(
    "imports",
    [
        "import rlrc; from transformers.models.llama.modeling_llama import LlamaDecoderLayer",
        "import rlrc; from transformers import PreTrainedModel",
        "import transformers; from transformers import AutoModelForImageTextToText; import rlrc",
        "from rlrc.policies.openvla.config import OpenVLAConfig",
        "from rlrc.packed.layers import QuantizedLinear",
    ],
)
def test_auto_classes_know_us_whatever_is_imported_first(imports: str, tiny_checkpoint: Path) -> None:
    code = f"""{imports}
from transformers import AutoConfig, AutoModelForImageTextToText as Auto
print(type(Auto.from_config(AutoConfig.from_pretrained({str(tiny_checkpoint)!r}))).__name__)"""
    assert fresh(code).strip() == "OpenVLAForActionPrediction"


def test_a_policy_by_its_hub_id(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs take what `rlrc.load` takes; what identifies the policy are the files that were downloaded."""
    monkeypatch.setattr("rlrc.policies.locate._download", lambda hub_id, wanted: tiny_checkpoint)
    by_id, by_path = (
        standalone("prune", PruneConfig(policy=policy, method=Depth(keep=(0,))), tmp_path)
        for policy in (Path("openvla/openvla-7b"), tiny_checkpoint)
    )
    assert by_id.fingerprint == by_path.fingerprint
    assert contents_of("teacher", Path("openvla/openvla-7b")) == tiny_checkpoint
    assert len(by_id.run(restart=False)["layers"]) == 1
