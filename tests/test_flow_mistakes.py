"""Mistakes that a loader of flow-matching policies can make and that nobody notices: well-formed and wrong.

The list is that of ../shared/reference/flow_policies.md. Each mistake is made here, and has to change the velocity by
about what the fixture says, so that the right way is told from the wrong one; what a folder lacks has to be refused.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flow_fixtures import SETS, FlowSet, differs
from safetensors.torch import load_file, save_file

import rlrc
from rlrc.errors import UserError
from rlrc.policies.flow import layers, model
from rlrc.policies.flow.inputs import FlowInputs
from rlrc.policies.flow.published import POSTPROCESSOR_FILE, PREPROCESSOR_FILE
from rlrc.policies.parts.tokens import PictureTokens

OF_FAMILY = {name.partition("/")[0]: name for name in SETS}


def flow_set(family: str, scratch: Path) -> FlowSet:
    if family not in OF_FAMILY:
        pytest.skip(f"reference tensors not found: ../shared/fixtures has no {family}")
    return FlowSet(OF_FAMILY[family], scratch)


@pytest.fixture(params=["pi0", "pi05", "smolvla"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> FlowSet:
    return flow_set(request.param, tmp_path)


def without_newline(case: FlowSet, patch: pytest.MonkeyPatch) -> None:
    case.policy.processor._prompt = lambda text, state: text


def not_normalised(case: FlowSet, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(case.policy, "normalised_state", lambda observation: observation.state)


def other_base(case: FlowSet, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layers, "ROTARY_BASE", 100_000)


def text_unscaled(case: FlowSet, patch: pytest.MonkeyPatch) -> None:
    embedding, width = case.policy.model.get_input_embeddings(), case.policy.model.config.text_config.hidden_size
    with torch.no_grad():
        embedding.weight /= width**0.5


def pictures_scaled_otherwise(case: FlowSet, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(type(case.policy.model), "picture_scale", not case.policy.model.picture_scale)


def pictures_in_zero_to_one(case: FlowSet, patch: pytest.MonkeyPatch) -> None:
    project = case.policy.model.project_images

    def mistaken(inputs: FlowInputs) -> PictureTokens:
        assert inputs.pixel_values is not None
        return project(replace(inputs, pixel_values=(inputs.pixel_values + 1) / 2))

    patch.setattr(case.policy.model, "project_images", mistaken)


def other_place(case: FlowSet, patch: pytest.MonkeyPatch) -> None:
    case.policy.processor._place = "centre"


def causal(case: FlowSet, patch: pytest.MonkeyPatch) -> None:
    ours = case.policy.model.seen_in_suffix

    def seen(device: torch.device) -> torch.Tensor:
        length = case.policy.model.suffix_length
        there = ours(device)
        whole = torch.ones(length, length, dtype=torch.bool) if there is None else there
        return whole.tril()

    patch.setattr(case.policy.model, "seen_in_suffix", seen)


def cross_positions_go_on(case: FlowSet, patch: pytest.MonkeyPatch) -> None:
    ours = model.FlowModel.context

    def context(self: Any, hidden: torch.Tensor, there: Any, places: Any) -> Any:
        found = ours(self, hidden, there, places)
        return found._replace(cross_rotary=found.suffix_rotary)

    patch.setattr(model.FlowModel, "context", context)


MISTAKES: dict[tuple[str, str], Callable[[FlowSet, pytest.MonkeyPatch], None]] = {
    ("pi0", "prompt without its newline"): without_newline,
    ("pi0", "state not normalised"): not_normalised,
    ("pi0", "pictures left in [0, 1]"): pictures_in_zero_to_one,
    ("pi0", "picture features multiplied by sqrt(width)"): pictures_scaled_otherwise,
    ("pi0", "text embeddings not multiplied by sqrt(width)"): text_unscaled,
    ("pi0", "action tokens causal among themselves"): causal,
    ("pi05", "pictures left in [0, 1]"): pictures_in_zero_to_one,
    ("pi05", "picture features multiplied by sqrt(width)"): pictures_scaled_otherwise,
    ("pi05", "text embeddings not multiplied by sqrt(width)"): text_unscaled,
    ("pi05", "action tokens causal among themselves"): causal,
    ("smolvla", "prompt without its newline"): without_newline,
    ("smolvla", "state not normalised"): not_normalised,
    ("smolvla", "pictures left in [0, 1]"): pictures_in_zero_to_one,
    ("smolvla", "picture features not multiplied by sqrt(hidden)"): pictures_scaled_otherwise,
    ("smolvla", "text embeddings not multiplied by sqrt(hidden)"): text_unscaled,
    ("smolvla", "rotary base 100000 (the VLM's own) instead of 10000"): other_base,
    ("smolvla", "padding centred instead of left and top"): other_place,
    ("smolvla", "expert positions not restarted at 0 in cross-attention layers"): cross_positions_go_on,
}


@pytest.mark.parametrize(("family", "mistake"), MISTAKES)
def test_a_mistake_changes_what_the_fixture_says(
    family: str, mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = flow_set(family, tmp_path)
    right = case.velocity(case.look())
    MISTAKES[family, mistake](case, monkeypatch)
    expected = case.meta["sensitivity"]["values"][mistake]
    assert differs(case.velocity(case.look()), right) == pytest.approx(expected, abs=0.005, rel=0.02)


@torch.no_grad()
def test_an_absent_camera_shown_black(tmp_path: Path) -> None:
    case = flow_set("pi0", tmp_path)
    black = case.look({})
    black.images["right_wrist_0_rgb"][:] = 0  # type: ignore[index]
    mistake = "absent camera shown as a black picture instead of masked"
    expected = case.meta["sensitivity"]["values"][mistake]
    found = differs(case.velocity(black), case.velocity(case.look()))
    assert found == pytest.approx(expected, abs=0.005, rel=0.02)


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def state_file(folder: Path, name: str) -> Path:
    steps = json.loads((folder / name).read_text())["steps"]
    return folder / next(step["state_file"] for step in steps if "state_file" in step)


def without_statistics(folder: Path, feature: str, file: str) -> None:
    path = state_file(folder, file)
    save_file({name: tensor for name, tensor in load_file(path).items() if not name.startswith(feature)}, path)


def test_statistics_under_other_names_are_refused(case: FlowSet) -> None:
    folder = case.copy("other")
    without_statistics(folder, "action.", POSTPROCESSOR_FILE)
    with pytest.raises(UserError, match=r"holds no '\w+' of 'action', so that action would pass without being norm"):
        case.load(folder)


def test_the_number_in_the_name_of_a_state_file_may_be_another(case: FlowSet) -> None:
    folder = case.copy("renamed")
    path = state_file(folder, PREPROCESSOR_FILE)
    path.rename(folder / "statistics_9.safetensors")

    def rename(values: dict[str, Any]) -> None:
        for step in values["steps"]:
            if "state_file" in step:
                step["state_file"] = "statistics_9.safetensors"

    change_json(folder / PREPROCESSOR_FILE, rename)
    assert case.load(folder).norm_stats == case.policy.norm_stats


def test_statistics_of_several_robots_are_asked_for(case: FlowSet) -> None:
    """smolvla_base holds `so100.buffer.action.mean`, which LeRobot does not find."""
    folder = case.copy("robots")
    for name in (PREPROCESSOR_FILE, POSTPROCESSOR_FILE):
        path = state_file(folder, name)
        tensors = {
            f"{robot}.buffer.{key}": tensor.clone()
            for key, tensor in load_file(path).items()
            for robot in ("so100", "so101")
        }
        save_file(tensors, path)
    asked = rlrc.load(folder, spec=case.spec)
    with pytest.raises(
        UserError, match=r"choose an unnorm_key: the checkpoint holds statistics for so10[01], so10[01]"
    ):
        asked.act(case.look())
    chosen = rlrc.load(folder, "so100", spec=case.spec)
    assert torch.equal(case.velocity(case.look(), policy=chosen), case.velocity(case.look()))


def test_both_styles_of_keys_load(case: FlowSet) -> None:
    folder = case.copy("plain")
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    loaded = case.load(folder)
    assert torch.equal(case.velocity(case.look(), policy=loaded), case.velocity(case.look()))


def test_statistics_in_the_weights_are_refused(case: FlowSet) -> None:
    folder = case.copy("old")
    tensors = load_file(folder / "model.safetensors")
    tensors["normalize_inputs.buffer_observation_state.mean"] = torch.zeros(6)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="as LeRobot saved them before processors"):
        case.load(folder)


def test_a_policy_that_no_robot_has_trained_yet_takes_the_statistics_of_a_dataset(case: FlowSet) -> None:
    """LeRobot saves its base policies with normalisers that name no file."""
    folder = case.copy("base")
    for name in (PREPROCESSOR_FILE, POSTPROCESSOR_FILE):
        state_file(folder, name).unlink()
        change_json(folder / name, lambda values: [step.pop("state_file", None) for step in values["steps"]])
    policy = case.load(folder)
    with pytest.raises(UserError, match="without which it cannot act; prune and sft take those of your demonstrations"):
        policy.act(case.look())
    policy.adopt(case.policy.norm_stats["dataset"], "mine")
    assert torch.equal(case.velocity(case.look(), policy=policy), case.velocity(case.look()))
    policy.save(folder.parent / "saved")
    assert rlrc.load(folder.parent / "saved").norm_stats == {"mine": case.policy.norm_stats["dataset"]}


def test_a_policy_that_normalises_nothing_acts(case: FlowSet) -> None:
    folder = case.copy("identity")

    def nothing(values: dict[str, Any]) -> None:
        for step in values["steps"]:
            if "state_file" in step:
                step["config"]["norm_map"] |= {"STATE": "IDENTITY", "ACTION": "IDENTITY"}
                del step["state_file"]

    for name in (PREPROCESSOR_FILE, POSTPROCESSOR_FILE):
        change_json(folder / name, nothing)
    policy, actions = case.load(folder), np.array([[0.25, -3.0]], np.float32)
    np.testing.assert_array_equal(policy.to_physical(actions), actions)
    assert policy.act(case.look(), temperature=0).shape == (2, policy.spec.horizon, len(policy.spec.action))
    with pytest.raises(UserError, match="holds no action statistics"):
        rlrc.load(folder, "so100", spec=case.spec)


def test_weights_of_mixed_precision_have_the_dtype_of_the_config(case: FlowSet) -> None:
    folder = case.copy("mixed")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    first, *_ = sorted(tensors)
    save_file(tensors | {first: tensors[first].float()}, folder / "model.safetensors")
    change_json(folder / "config.json", lambda values: values.pop("dtype", None))
    assert case.load(folder).model.dtype == torch.float32
    change_json(folder / "config.json", lambda values: values.update(dtype="bfloat16"))
    assert case.load(folder).model.dtype == torch.bfloat16


def test_lerobots_adapters_are_merged_as_peft_merges_them(case: FlowSet, tmp_path: Path) -> None:
    """peft wraps LeRobot's policy, which holds the model as `model`."""
    peft = pytest.importorskip("peft")
    base, folder = case.folder / "checkpoint", tmp_path / "adapter"
    policy, lerobots = case.load(), torch.nn.Module()
    lerobots.add_module("model", policy.model)
    layers = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=r".*expert.*\.(q|v)_proj", modules_to_save=["action_out_proj"]
    )
    wrapped = peft.PeftModel(lerobots, layers)
    torch.manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter.data)
    wrapped.save_pretrained(folder)
    change_json(folder / "adapter_config.json", lambda values: values.update(base_model_name_or_path=str(base)))
    merged = wrapped.merge_and_unload().state_dict()
    loaded, before = case.load(folder).model.state_dict(), case.policy.model.state_dict()
    assert {f"model.{name}" for name in loaded} == set(merged)
    assert sum(not torch.equal(loaded[name], before[name]) for name in loaded) >= 5
    for name in loaded:
        torch.testing.assert_close(loaded[name], merged[f"model.{name}"], atol=1e-5, rtol=1e-5)


BAD: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "no cameras": ("config.json", lambda v: v["input_features"].clear(), "input_features"),
    "aloha": ("config.json", lambda v: v.update(adapt_to_pi_aloha=True), "adapt_to_pi_aloha"),
    "relative": ("config.json", lambda v: v.update(use_relative_actions=True), "relative to the state"),
    "relative step": (
        PREPROCESSOR_FILE,
        lambda v: v["steps"].insert(0, {"registry_name": "relative_actions_processor", "config": {"enabled": True}}),
        "relative to the state",
    ),
    "memory": ("config.json", lambda v: v.update(use_visual_memory=True), "remembers what it saw"),
    "prompt": ("config.json", lambda v: v.update(include_state_in_prompt=False), "add state=none to spec"),
    "chunk": ("config.json", lambda v: v.update(chunk_size=0), "chunk_size"),
    "execute": ("config.json", lambda v: v.update(n_action_steps=99), "execute 99 is above horizon 10"),
    "periods": ("config.json", lambda v: v.update(min_period=4.0, max_period=4.0), "min_period 4 is not below"),
    "no steps": (PREPROCESSOR_FILE, lambda v: v.update(steps=[]), "there is no step 'normalizer_processor'"),
    "mode": (
        POSTPROCESSOR_FILE,
        lambda v: v["steps"][0]["config"]["norm_map"].update(ACTION="ROBUST"),
        "norm_map.ACTION is 'ROBUST'",
    ),
    "pictures": (
        PREPROCESSOR_FILE,
        lambda v: next(s for s in v["steps"] if "state_file" in s)["config"]["norm_map"].update(VISUAL="MEAN_STD"),
        "pictures are normalised by 'MEAN_STD'",
    ),
    "moments": ("config.json", lambda v: v.update(n_obs_steps=2), "n_obs_steps is 2"),
    "widths": ("config.json", lambda v: v.update(max_state_dim=31), "max_state_dim 31 and max_action_dim 32 differ"),
    "path": (
        POSTPROCESSOR_FILE,
        lambda v: v["steps"][0].update(state_file="../x.safetensors"),
        "names no file of stat",
    ),
    "no file": (POSTPROCESSOR_FILE, lambda v: v["steps"][0].update(state_file="x.safetensors"), "x.safetensors"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_folders(case: FlowSet, kind: str) -> None:
    name, change, message = BAD[kind]
    folder = case.copy("bad")
    change_json(folder / name, change)
    with pytest.raises(UserError, match=message) as error:
        case.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["pi0", "smolvla"])
def test_a_family_that_reads_the_state_needs_one(family: str, tmp_path: Path) -> None:
    case, folder = flow_set(family, tmp_path), tmp_path / "own"
    case.policy.save(folder)
    change_json(folder / "config.json", lambda values: values.update(state_dim=0))
    with pytest.raises(UserError, match=r"config.json: 'state_dim': Input should be greater than or equal to 1"):
        rlrc.load(folder)


@pytest.mark.parametrize(
    ("family", "spec", "message"),
    [
        ("pi0", None, "nothing says how many heads; add vision_heads= to spec"),
        ("pi0", "vision_heads=5", "vision_heads=5 does not divide 32"),
        ("pi0", "vision_heads=2,state=real", "belongs to pi05"),
        ("pi0", "heads=2", "heads"),
        ("pi0", "libero", "'libero' is no word=value"),
        ("smolvla", "vlm=/nowhere", "no such checkpoint folder"),
        ("smolvla", None, "its queries have 48 rows, and the VLM says 15 heads of 64"),
    ],
)
def test_bad_specs(family: str, spec: str | None, message: str, tmp_path: Path) -> None:
    case = flow_set(family, tmp_path)
    with pytest.raises(UserError, match=message):
        rlrc.load(case.folder / "checkpoint", spec=spec)


def test_a_tokenizer_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = flow_set("pi05", tmp_path)
    folder, heads = case.folder / "checkpoint", case.spec.partition(",")[2]
    with pytest.raises(UserError, match=r"^tokenizer=.*: there is no tokenizer.json in it$"):
        rlrc.load(folder, spec=f"tokenizer={tmp_path},{heads}")
    rlrc.load(folder, spec=heads)
    assert "without a tokenizer this policy cannot act; add tokenizer=FOLDER to spec" in capsys.readouterr().err


def test_a_vlm_without_a_tokenizer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = flow_set("smolvla", tmp_path)
    (Path(case.spec.removeprefix("vlm=")) / "tokenizer.json").unlink()
    assert not case.load().can_read_instructions
    assert "there is no tokenizer.json in it, without which this policy cannot act" in capsys.readouterr().err


def test_pi05_tells_the_state_as_the_spec_says(tmp_path: Path) -> None:
    case = flow_set("pi05", tmp_path)
    state = np.array([2.0, -1.5, 0.12], np.float32)
    prompts = {told: case.load(more=f",state={told}").processor._prompt("a_b\n", state) for told in ("real", "padded")}
    assert prompts["real"] == "Task: a b, State: 255 -1 143;\nAction: "
    assert prompts["padded"] == f"Task: a b, State: 255 -1 143{' 128' * 29};\nAction: "
    silent = case.load(more=",state=none")
    assert not silent.spec.state and silent.processor._prompt("a_b", None) == "a_b\n"


def test_a_prompt_that_is_too_long_is_refused_and_not_cut(case: FlowSet) -> None:
    with pytest.raises(UserError, match=r"makes \d+ tokens, and the policy reads 1 to"):
        case.policy.processor.prompts(["put " * 300], np.zeros((1, 8), np.float32))
