"""Random checkpoints: the published layout to the last parameter, the same for the same seed, and alive."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fixture_cases, fixture_folder
from test_openvla_fixtures import whole_checkpoint
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

import rlrc
from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.make_random import MakeRandomConfig, make_random, write_weights
from rlrc.policies.oft.config import OFTConfig
from rlrc.policies.oft.layout import random_config
from rlrc.policies.oft.model import OFTForActionPrediction
from rlrc.policies.openvla.config import OpenVLAConfig
from rlrc.policies.openvla.layout import published_config
from rlrc.policies.openvla.model import OpenVLAForActionPrediction
from rlrc.policies.parts.llama_tokenizer import CHARACTERS, INSTRUCTIONS, llama_like_tokenizer
from rlrc.policies.prismatic.checkpoint import read_config
from rlrc.policies.prismatic.layout import image_processor
from rlrc.policies.prismatic.processor import ImageProcessor
from rlrc.policies.prismatic.published import published_parameters, published_tensors
from rlrc.policies.prismatic.vision import is_dead
from rlrc.policies.shards import TensorFiles, weight_files
from rlrc.policies.values import Observation
from rlrc.prune.child import child_of, plan_by_count
from rlrc.prune.groups import chain_of
from rlrc.prune.method import Target

PROMPT = OpenVLAConfig.prompt_template


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "tiny"
    make_random(MakeRandomConfig(preset="openvla-tiny", out_folder=folder), Path("unused"))
    return folder


@pytest.fixture(scope="module")
def policy(tiny: Path) -> Policy:
    return rlrc.load(tiny)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return llama_like_tokenizer()


# -- the published layout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", fixture_cases("openvla"))
def test_names_and_shapes_are_those_of_a_published_checkpoint(case: str, tmp_path: Path) -> None:
    folder = fixture_folder(f"openvla/{case}")
    checkpoint = whole_checkpoint(folder, tmp_path / "checkpoint")
    config = read_config(OpenVLAConfig, checkpoint)
    files = TensorFiles(checkpoint)
    assert published_tensors(OpenVLAForActionPrediction, config) == {
        name: tuple(files.outline(name).shape) for name in files
    }


@pytest.mark.parametrize("case", fixture_cases("openvla"))
def test_the_files_beside_the_weights_are_those_of_a_published_checkpoint(case: str) -> None:
    folder = fixture_folder(f"openvla/{case}") / "checkpoint"
    published = ImageProcessor.load(folder)
    assert image_processor(published.image_size, published.image_size).config == published.config
    assert set(published_config()) == set(json.loads((folder / "config.json").read_text()))


def test_openvla_7b_has_as_many_parameters_as_the_published_one() -> None:
    config = OpenVLAConfig.from_dict(published_config())
    shapes = published_tensors(OpenVLAForActionPrediction, config)
    assert published_parameters(OpenVLAForActionPrediction, config) == 7_541_237_184
    counts = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    assert sum(count for name, count in counts.items() if ".attn_pool." in name) == 15_238_352
    assert sum(count for name, count in counts.items() if ".featurizer." in name) == 303_230_976
    dead = sum(count for name, count in counts.items() if is_dead(name, config.towers))
    assert round(dead / 1e6, 2) == 43.08
    assert config.text_config.rms_norm_eps == 1e-6 and config.first_action_id == 31744


def test_openvla_oft_adds_its_networks_to_the_same_trunk() -> None:
    hidden, rows = 4096, 7 * 4096
    head = 2 * rows + rows * hidden + hidden + 2 * (2 * hidden + hidden**2 + hidden) + 2 * hidden + hidden * 7 + 7
    state = 8 * hidden + hidden + hidden**2 + hidden
    config = OFTConfig.from_dict(random_config())
    assert published_parameters(OFTForActionPrediction, config) == 7_541_237_184 + head + state


def test_a_pruned_policy_is_counted_as_papers_count() -> None:
    """LLM-Pruner's default, a quarter of layers 4 to 29, leaves 6.23 B of OpenVLA-7B; so it does without dead parts."""
    values = published_config()
    shape = {"num_attention_heads": 24, "num_key_value_heads": 24, "intermediate_size": 8256}
    layers = {"per_layer_config": dict.fromkeys(range(4, 30), shape), "head_dim": 128}
    config = OpenVLAConfig.from_dict(values | {"text_config": values["text_config"] | layers})
    config.action_head_only = True
    assert published_parameters(OpenVLAForActionPrediction, config) == 6_225_798_592


def test_towers_lose_in_the_count_what_they_lose_in_memory(policy: Policy) -> None:
    plan = plan_by_count(policy, ("vision",), Target(0.5))
    child = child_of(policy, chain_of(policy, ("vision",)), plan)
    held = [sum(tensor.numel() for tensor in one.model.parameters()) for one in (policy, child)]
    assert policy.published_parameters - child.published_parameters == held[0] - held[1] > 0


def test_towers_of_our_own_hold_nothing_dead(tiny_policy: Policy) -> None:
    config = tiny_policy.model.config
    assert not [name for name in published_tensors(OpenVLAForActionPrediction, config) if is_dead(name, config.towers)]


# -- the weights -------------------------------------------------------------------------------------------------------


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = TensorFiles(folder)
    return {name: files.read(name) for name in files}


def test_weights_depend_on_the_seed_and_on_nothing_else(tiny: Path, tmp_path: Path) -> None:
    shapes = published_tensors(OpenVLAForActionPrediction, read_config(OpenVLAConfig, tiny))
    for name, seed in (("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        write_weights(dict(reversed(shapes.items())), seed, tmp_path / name, shard_bytes=2**20)
    assert len(weight_files(tiny)) == 1 and len(weight_files(tmp_path / "same")) > 3
    first, same, other = tensors(tiny), tensors(tmp_path / "same"), tensors(tmp_path / "other")
    assert first.keys() == same.keys() == other.keys() == shapes.keys()
    for name, tensor in first.items():
        assert tensor.dtype == torch.bfloat16 and tuple(tensor.shape) == shapes[name]
        assert torch.equal(tensor, same[name]), name
        constant = name.endswith(".bias") or tensor.ndim == 1
        assert torch.equal(tensor, other[name]) == constant, name
        assert tensor.float().std() > 0 or constant, name


def test_no_two_tensors_are_alike(tiny: Path) -> None:
    weights = tensors(tiny)
    starts = [tuple(weights[name].flatten()[:4].tolist()) for name in weights if weights[name].ndim > 1]
    assert len(set(starts)) == len(starts)


def test_different_pictures_and_instructions_give_different_actions(policy: Policy) -> None:
    squares = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    pictures = squares.repeat(28, axis=1).repeat(28, axis=2)
    instructions = ["put carrot on plate", "open the middle drawer", "pick coke can", "fold the towel"]
    by_picture = policy.act(pictures, instructions[:1] * 4)
    by_instruction = policy.act(pictures[:1].repeat(4, axis=0), instructions)
    for actions in (by_picture, by_instruction):
        assert len(np.unique(actions, axis=0)) == 4
    statistics = policy.norm_stats["bridge_orig"]["action"]
    assert (by_picture[:, :6] >= np.array(statistics["q01"][:6], np.float32)).all()
    assert (by_picture[:, :6] <= np.array(statistics["q99"][:6], np.float32)).all()


def test_a_random_openvla_oft_looks_with_both_cameras(tmp_path: Path) -> None:
    make_random(MakeRandomConfig(preset="openvla-oft-tiny", out_folder=tmp_path / "oft"), Path("unused"))
    policy = rlrc.load(tmp_path / "oft")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 1, 56, 56, 3), np.uint8)
    state = np.zeros((1, 8), np.float32)

    def chunk(front: int, wrist: int) -> np.ndarray:
        images = {"front": pictures[front], "wrist": pictures[wrist]}
        inputs = policy.prepare(Observation(images, ["put carrot on plate"], state))
        return policy.to_physical(policy.sample(inputs).actions.numpy())

    assert chunk(0, 0).shape == (1, 8, 7)
    assert len(np.unique([chunk(0, 0), chunk(0, 1), chunk(1, 0), chunk(1, 1)], axis=0)) == 4


@torch.no_grad()
def test_transformers_loads_it_and_gives_the_same_logits(tiny: Path) -> None:
    auto, ours = AutoModelForImageTextToText.from_pretrained(tiny), rlrc.load(tiny, full_head=True).model
    assert auto.dtype == torch.bfloat16
    ids, pixels = torch.arange(1, 9)[None], torch.ones(1, 6, 56, 56)
    logits = auto(ids, pixel_values=pixels).logits
    assert logits.shape == (1, 8 + 16, 32064)
    assert torch.equal(logits, ours(ids, pixel_values=pixels).logits)


def test_its_lineage_and_card_say_that_it_is_random(tiny: Path, policy: Policy) -> None:
    assert policy.lineage["stages"] == [{"verb": "make-random", "config": {"preset": "openvla-tiny", "seed": 0}}]
    assert "drawn at random" in (tiny / "README.md").read_text()


def test_only_its_own_result_is_replaced(policy: Policy, tmp_path: Path) -> None:
    config = MakeRandomConfig(preset="openvla-tiny", seed=1)
    out = tmp_path / "out"
    out.mkdir()
    for seed in (1, 2):
        measured = make_random(config.model_copy(update={"seed": seed}), out)
        assert measured["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert json.loads((out / "compression.json").read_text())["stages"][0]["config"]["seed"] == 2

    policy.save(tmp_path / "derived", stage={"verb": "prune", "config": {}})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").touch()
    for folder in (tmp_path / "derived", tmp_path / "notes", tmp_path / "notes" / "diary.txt"):
        with pytest.raises(UserError, match="holds something else"):
            make_random(config, folder)


@pytest.mark.parametrize("arguments", [["here"], ["--out", "here"]])
def test_the_command_line_takes_the_folder_in_both_ways(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlrc import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rlrc", "make-random", "--preset", "openvla-tiny", *arguments, "--json"])
    cli.main()
    measured = json.loads(capsys.readouterr().out)
    config = read_config(OpenVLAConfig, Path("here"))
    assert measured["parameters"] == published_parameters(OpenVLAForActionPrediction, config)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


# -- the tokenizer -----------------------------------------------------------------------------------------------------


def test_llama_2s_ids_are_where_they_matter(tokenizer: PreTrainedTokenizerFast) -> None:
    known = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x00>": 3, "<0x0A>": 13, "<0xFF>": 258, "▁": 29871, "<PAD>": 32000}
    known |= {"e": 29872, "l": 29880, "k": 29895, ".": 29889, ",": 29892, ":": 29901, "?": 29973}
    assert tokenizer.convert_tokens_to_ids(list(known)) == list(known.values())
    assert len(tokenizer) == 32001 and len(set(tokenizer.get_vocab().values())) == 32001
    specials = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert specials == (0, 1, 2, 32000)
    assert len(CHARACTERS) == 27


def test_prompts_are_as_long_as_with_the_real_one(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [PROMPT.format(instruction=line) for line in INSTRUCTIONS.strip().splitlines()]
    rows = tokenizer(prompts)["input_ids"]
    assert all(row[0] == 1 and row[-1] == 29901 and row[-3] == 13 for row in rows)  # "\nOut:"
    lengths = [len(row) + 1 for row in rows]  # the loader adds 29871
    assert 20 <= np.mean(lengths) <= 30 and max(lengths) < 40
    assert tokenizer.batch_decode(rows, skip_special_tokens=True) == prompts


@pytest.mark.parametrize(
    "text", ["<unused_31800>", "xylophone, 17 of them!", "héllo 机器人\t", " a  b ", "<0x41>", "▁", "\n\n"]
)
def test_any_text_survives_and_never_gives_an_action(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 1 and not any(31744 <= token < 32000 for token in ids)
    assert not any(piece.startswith("<unused_") for piece in tokenizer.convert_ids_to_tokens(ids))
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("▁", " ")


def test_a_loaded_tokenizer_and_the_loader_add_what_openvla_needs(
    policy: Policy, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = policy.processor.prompt_ids("Put Carrot on Plate")
    assert ids == [*tokenizer(PROMPT.format(instruction="put carrot on plate"))["input_ids"], 29871]
    pieces = ["▁In", ":", "▁What", "▁action", "▁should", "▁the", "▁robot", "▁take", "▁to", "▁put", "▁carrot", "▁on"]
    pieces = ["<s>", *pieces, "▁plate", "?", "<0x0A>", "Out", ":", "▁"]
    assert tokenizer.convert_ids_to_tokens(ids) == pieces
