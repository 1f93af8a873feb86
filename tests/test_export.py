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


@pytest.fixture
def case(tmp_path: Path) -> FlowSet:
    return FlowSet("smolvla/cross4", tmp_path)


def exported(case: FlowSet, policy: Path, name: str) -> Path:
    out = case.scratch / name
    out.mkdir()
    export(ExportConfig(policy=policy, vlm=case.spec.removeprefix("vlm=")), out)
    return out / "lerobot"


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


def test_fewer_layers_compute_in_lerobot_what_they_compute_here(case: FlowSet) -> None:
    """LeRobot 0.4.4 gave the recorded chunk for such a folder (benchmarks/lerobot_export)."""
    folder = exported(case, pruned(case, method=Depth(keep=KEPT)), "cut")
    again = case.load(folder)
    assert len(again.stacks()[0].layers) == 2
    (chunk,) = again._denoise(again.prepare(case.look()), case.cases["in.noise"], 10)
    recorded = load_file(FIXTURES / "lerobot.safetensors")
    torch.testing.assert_close(chunk[..., :7], recorded["chunk"], **WIDE)
    actions = torch.from_numpy(again.to_physical(chunk[..., :7].numpy()))
    torch.testing.assert_close(actions, recorded["actions"], **WIDE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": Random(), "ratio": 0.5, "protect": (0,)}, "holds a language model of one shape, and these differ"),
        ({"method": Depth(keep=(0, 2, 3))}, "in every second layer, from layer 1 on; here they are layers \\[2\\]"),
        ({"method": Random(), "ratio": 0.5, "stacks": ("expert",)}, "holds an expert of one shape, and these differ"),
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
    with pytest.raises(UserError, match=r"has 15 heads, 5 key-value heads of 64.*name its own VLM with --vlm"):
        export(ExportConfig(policy=case.scratch / "saved"), tmp_path)
    assert rlrc.load(case.scratch / "saved").spec == case.policy.spec
    shutil.rmtree(case.scratch / "saved")
