"""`export`: what LeRobot reads of it, what LeRobot gave for it, and what its classes cannot hold."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from flow_fixtures import WIDE, FlowSet
from safetensors.torch import load_file
from small_policies import CASES, make

import rlrc
from rlrc.configs.export import ExportConfig
from rlrc.configs.prune import Depth, PruneConfig, Random
from rlrc.errors import UserError
from rlrc.policies.export import export
from rlrc.policies.flow.published import POSTPROCESSOR_FILE, PREPROCESSOR_FILE
from rlrc.prune import prune

FIXTURES = Path(__file__).parent / "fixtures" / "smolvla"
KEPT = (0, 3)
NARROW: dict[str, Any] = {"method": Random(), "ratio": 0.5, "protect": (0,)}
"""Half of the heads and channels of layers 1 to 3, those of the expert too."""


@pytest.fixture
def case(tmp_path: Path) -> FlowSet:
    return FlowSet("smolvla/cross4", tmp_path)


def exported(case: FlowSet, policy: Path, name: str) -> Path:
    out = case.scratch / name
    out.mkdir()
    written = export(ExportConfig(policy=policy, vlm=str(vlm_of(case))), out)
    (case.scratch / f"{name}.json").write_text(json.dumps(written))
    return out / "lerobot"


def vlm_of(case: FlowSet) -> Path:
    return Path(case.spec.removeprefix("vlm="))


def pruned(case: FlowSet, **options: Any) -> Path:
    case.policy.save(case.scratch / "saved")
    prune(PruneConfig(policy=case.scratch / "saved", device="cpu", **options), case.scratch / "pruned")
    return case.scratch / "pruned" / "checkpoint"


def test_the_folder_is_the_one_that_it_came_from(case: FlowSet) -> None:
    """But for the numbers that nothing reads, and for fields that LeRobot has a default for."""
    case.policy.save(case.scratch / "saved")
    folder, original = exported(case, case.scratch / "saved", "whole"), case.folder / "checkpoint"
    tensors, published = load_file(folder / "model.safetensors"), load_file(original / "model.safetensors")
    assert tensors.keys() == published.keys()
    dead = {f"model.{name}" for name in case.policy.layout.dead(case.policy.model.config)}
    for name, tensor in published.items():
        assert tensors[name].shape == tensor.shape
        assert torch.equal(tensors[name], tensor) or (name in dead and not tensors[name].any())
    for name in ("config.json", PREPROCESSOR_FILE, POSTPROCESSOR_FILE):
        ours, theirs = (json.loads((place / name).read_text()) for place in (folder, original))
        if name != "config.json":
            assert [step["registry_name"] for step in ours["steps"]] == [s["registry_name"] for s in theirs["steps"]]
            assert [step.get("state_file") for step in ours["steps"]] == [s.get("state_file") for s in theirs["steps"]]
            continue
        assert ours.keys() <= theirs.keys()
        of_features = {"input_features", "vlm_model_name"}  # sizes of pictures, and where the VLM lies
        assert {key: theirs[key] for key in ours.keys() - of_features} == {
            key: ours[key] for key in ours.keys() - of_features
        }
        assert ours["input_features"].keys() == theirs["input_features"].keys()
    for place in (PREPROCESSOR_FILE, POSTPROCESSOR_FILE):
        name = next(s["state_file"] for s in json.loads((folder / place).read_text())["steps"] if "state_file" in s)
        ours, theirs = load_file(folder / name), load_file(original / name)
        assert all(torch.equal(tensor, theirs[key].float()) for key, tensor in ours.items())


def test_cameras_keep_their_names(case: FlowSet) -> None:
    """LIBERO's datasets name theirs without LeRobot's usual prefix."""
    folder = case.copy("renamed")
    config = json.loads((folder / "config.json").read_text())
    features = config["input_features"]
    first = next(name for name in features if name.startswith("observation.images."))
    features["observation.image"] = features.pop(first)
    (folder / "config.json").write_text(json.dumps(config))
    case.load(folder).save(case.scratch / "saved")
    written = json.loads((exported(case, case.scratch / "saved", "whole") / "config.json").read_text())
    assert written["input_features"].keys() == features.keys()


@pytest.mark.parametrize("stacks", [None, ("expert",), ("decoder",)])
def test_smaller_layers_are_filled_up_with_zeros_and_act_as_before(
    case: FlowSet, stacks: tuple[Any, ...] | None
) -> None:
    narrow = rlrc.load(pruned(case, **NARROW, stacks=stacks))
    folder = exported(case, case.scratch / "pruned" / "checkpoint", "narrow")
    again = rlrc.load(folder)
    shapes = [layer.per_layer_config for layer in (again.model.config.text_config, again.model.config.expert_config)]
    for layers in shapes:
        assert len({(layer.num_attention_heads, layer.intermediate_size) for layer in layers}) == 1
    chunks = [policy._denoise(policy.prepare(case.look()), case.cases["in.noise"], 10)[0] for policy in (narrow, again)]
    torch.testing.assert_close(*chunks, atol=1e-5, rtol=1e-5)
    more = [sum(tensor.numel() for tensor in policy.model.state_dict().values()) for policy in (again, narrow)]
    assert more[0] - more[1] == json.loads((case.scratch / "narrow.json").read_text())["zeros"] > 0


def test_what_is_uniform_already_gets_a_vlm_of_its_size(case: FlowSet) -> None:
    """Every language layer keeps one of two groups; the expert alone has channels that LeRobot derives."""
    folder = exported(case, pruned(case, method=Random(), ratio=0.5), "narrow")
    fields = json.loads((folder / "config.json").read_text())
    vlm = Path(fields["vlm_model_name"])
    assert vlm == (folder / "vlm").resolve()
    text, whole = (json.loads((place / "config.json").read_text())["text_config"] for place in (vlm, vlm_of(case)))
    assert text == whole | {"num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 48}
    assert (vlm / "tokenizer.json").read_bytes() == (vlm_of(case) / "tokenizer.json").read_bytes()
    saved = load_file(folder / "model.safetensors")
    expert = "model.vlm_with_expert.lm_expert.layers.1"
    assert saved[f"{expert}.self_attn.k_proj.weight"].shape == (8, 8)
    assert saved[f"{expert}.mlp.gate_proj.weight"].shape[0] == 256


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ({"method": Depth(keep=KEPT)}, "lerobot_0"),
        ({"method": Random(), "ratio": 0.5}, "lerobot_1"),
        (NARROW, "lerobot_2"),
    ],
)
def test_smaller_policies_compute_in_lerobot_what_they_compute_here(
    case: FlowSet, options: dict[str, Any], recorded: str
) -> None:
    """LeRobot 0.4.4 gave the recorded chunks for such folders (benchmarks/lerobot_export)."""
    again = rlrc.load(exported(case, pruned(case, **options), "cut"))
    (chunk,) = again._denoise(again.prepare(case.look()), case.cases["in.noise"], 10)
    theirs = load_file(FIXTURES / f"{recorded}.safetensors")
    torch.testing.assert_close(chunk[..., :7], theirs["chunk"], **WIDE)
    actions = torch.from_numpy(again.to_physical(chunk[..., :7].numpy()))
    torch.testing.assert_close(actions, theirs["actions"], **WIDE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": Depth(keep=(0, 2, 3))}, "in every second layer, from layer 1 on; here they are layers \\[2\\]"),
        ({"method": Random(), "ratio": 0.5, "stacks": ("vision",)}, "published vision tower, and this one is pruned"),
    ],
)
def test_shapes_that_lerobot_cannot_hold(case: FlowSet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        exported(case, pruned(case, **options), "cut")
    assert not (case.scratch / "cut" / "lerobot").exists()


def test_policies_that_lerobot_does_not_know(case: FlowSet, tmp_path: Path) -> None:
    for name, message in (("openvla", "LeRobot has no class"), ("pi0", "of the published shape alone")):
        make(CASES[name]).save(tmp_path / name)
        with pytest.raises(UserError, match=message):
            export(ExportConfig(policy=tmp_path / name), tmp_path)
    case.policy.save(case.scratch / "saved")
    with pytest.raises(UserError, match=r"this VLM has heads of 64 and a width of 960.*name that one with --vlm"):
        export(ExportConfig(policy=case.scratch / "saved"), tmp_path)
    assert rlrc.load(case.scratch / "saved").spec == case.policy.spec
    shutil.rmtree(case.scratch / "saved")


def test_biases_are_refused(case: FlowSet, tmp_path: Path) -> None:
    """FLAP leaves some, and LeRobot's layers have none."""
    case.policy.model.config.text_config.output_bias = True
    with pytest.raises(UserError, match="holds a language model without biases, and FLAP gave this one some"):
        case.policy.exported(tmp_path, str(vlm_of(case)))
