"""Which folders are policies, what beside the weights is read of them, and what may be written over."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import set_field

import rlrc
from rlrc.errors import UserError
from rlrc.policies.checkpoint import outline
from rlrc.policies.contract import Policy
from rlrc.policies.device import resolve_device
from rlrc.policies.locate import on_disk
from rlrc.policies.registry import family, recognise

IMAGES = np.zeros((2, 96, 96, 3), np.uint8)
INSTRUCTIONS = ["put carrot on plate", "put red cube on plate"]


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "policy"))


# -- families and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "action_head--150000_checkpoint.pt",
        "proprio_projector--latest_checkpoint.pt",
        "noisy_action_projector--5_checkpoint.pt",
        "vision_backbone--150000_checkpoint.pt",
    ],
)
def test_openvla_oft_is_told_by_its_side_files(name: str, folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"")
    assert recognise(folder) is family("openvla")
    (folder / name).write_bytes(b"")
    assert recognise(folder) is family("openvla-oft")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "groot"}, "a LeRobot policy of type 'groot'"),
        ({"type": "act"}, "a LeRobot policy of type 'act'"),
        ({"type": "new"}, "a policy of type 'new'"),
        ({"model_type": "paligemma"}, "model_type is 'paligemma'"),
        ({"model_type": ["x"] * 1000}, "model_type is"),
        ({}, "model_type is None"),
    ],
)
def test_other_families_are_told_by_name(config: dict[str, Any], message: str, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as raised:
        outline(folder)
    assert len(str(raised.value)) < 300 + len(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no such checkpoint folder"),
        ("/nowhere/at/all", "no such checkpoint folder"),
        ("a\0b", "no such checkpoint folder"),
        ("x" * 5000, "cannot be read"),
        ("policy/nothing", "no such checkpoint folder"),
        ("policy/config.json", "this is a file"),
        (5, "named by a path or a hub id"),
        (None, "named by a path or a hub id"),
    ],
)
def test_names_that_are_no_checkpoint(name: Any, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UserError, match=message):
        on_disk(name)
    assert on_disk("policy") == on_disk(Path("policy"))


def test_a_stages_folder_names_the_checkpoint_in_it(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder, tmp_path / "stage" / "checkpoint")
    with pytest.raises(UserError, match=r"the policy lies in .*stage/checkpoint"):
        rlrc.load(str(tmp_path / "stage"))


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "meta", "cuda:-1", "cpu:x"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(UserError, match=f"device '{name}'"):
        resolve_device(name)


def test_the_device_is_a_gpu_where_there_is_one() -> None:
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


# -- tokenizers and processors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("tokenizer.json", "model", None, "this tokenizer cannot be read"),
        ("tokenizer.json", "model", {"type": "Foo"}, "this tokenizer cannot be read"),
        ("tokenizer.json", "added_tokens", 5, "this tokenizer cannot be read"),
        ("tokenizer.json", "post_processor.single.0.SpecialToken.id", "nobody", "this tokenizer cannot be read"),
        ("tokenizer.json", "post_processor", None, "does not begin a prompt with a BOS token"),
        ("tokenizer.json", "model.vocab.put", 10**6, "gives ids up to 1000000"),
        ("tokenizer_config.json", "added_tokens_decoder", {"x": 5}, "this tokenizer cannot be read"),
        ("tokenizer_config.json", "bos_token", None, "does not begin a prompt with a BOS token"),
    ],
)
def test_damaged_tokenizers(
    name: str, field: str, value: Any, message: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also those that make the Rust code behind them panic, of which nothing is printed."""
    set_field(folder, name, field, value)
    with pytest.raises(UserError, match=message):
        outline(folder)
    assert "panicked" not in capfd.readouterr().err


def test_code_that_published_files_name_is_neither_run_nor_written(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor, AutoTokenizer

    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        set_field(folder, name, "auto_map", {"AutoProcessor": "gone.Gone", "AutoTokenizer": ["gone.Gone", None]})
        set_field(folder, name, "processor_class", "PrismaticProcessor")
    rlrc.load(folder).save(tmp_path / "saved")
    assert not [path.name for path in (tmp_path / "saved").glob("*.json") if "auto_map" in path.read_text()]
    expected = outline(folder).processor.tokenizer("put carrot")["input_ids"]
    for auto in (AutoTokenizer, AutoProcessor):
        assert auto.from_pretrained(tmp_path / "saved")("put carrot")["input_ids"] == expected


# -- acting ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "instructions", "temperature", "message"),
    [
        (IMAGES.astype(np.float32), INSTRUCTIONS, 0.0, "must be uint8"),
        (IMAGES.tolist(), INSTRUCTIONS, 0.0, "must be uint8"),
        (IMAGES[0], INSTRUCTIONS, 0.0, r"shape \(batch, height, width, 3\)"),
        (IMAGES[..., :2], INSTRUCTIONS, 0.0, r"shape \(batch, height, width, 3\)"),
        (IMAGES[:0], INSTRUCTIONS, 0.0, "hold no pictures"),
        (IMAGES[:0], [], 0.0, "at least one"),
        (IMAGES[:, :0], INSTRUCTIONS, 0.0, "hold no pictures"),
        (IMAGES, INSTRUCTIONS[:1], 0.0, "2 images came with 1 instructions"),
        (IMAGES, "go", 0.0, "must be a list of texts"),
        (IMAGES, None, 0.0, "instructions are missing"),
        (IMAGES, 5, 0.0, "must be a list of texts"),
        (IMAGES, [1, 2], 0.0, "must be texts"),
        (IMAGES, ["\ud800", "x"], 0.0, "no text that a tokenizer takes"),
        (IMAGES, INSTRUCTIONS, -1.0, "at least 0"),
        (IMAGES, INSTRUCTIONS, float("nan"), "at least 0"),
        (IMAGES, INSTRUCTIONS, float("inf"), "at least 0"),
        (IMAGES, INSTRUCTIONS, "hot", "must be a number"),
    ],
)
def test_what_cannot_be_acted_on(
    images: Any, instructions: Any, temperature: Any, message: str, tiny_policy: Policy
) -> None:
    with pytest.raises(UserError, match=message):
        tiny_policy.act(images, instructions, temperature)


def test_each_row_has_a_generator_of_its_own_or_none_has(tiny_policy: Policy) -> None:
    with pytest.raises(UserError, match="2 rows came with 1 generators"):
        tiny_policy.act(IMAGES, INSTRUCTIONS, 1.0, [torch.Generator()])


# -- saving ------------------------------------------------------------------------------------------------------------


def test_only_an_earlier_checkpoint_is_written_over(tiny_policy: Policy, tmp_path: Path) -> None:
    tiny_policy.save(tmp_path / "new")
    tiny_policy.save(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    tiny_policy.save(tmp_path / "empty")
    (tmp_path / "new" / "photo.jpg").write_bytes(b"mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for name in ("new", "photos", "file", "link", "dangling"):
        with pytest.raises(UserError, match=r"rlrc did not write|this is a link|holds something else"):
            tiny_policy.save(tmp_path / name)
    assert sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()) == before
