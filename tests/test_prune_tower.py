"""One vision tower in place of two: what is left computes what both towers do with the mean of one of them."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_policies import SHAPE, look
from test_prune_vision import made
from transformers import AutoModelForImageTextToText
from two_cameras import two_cameras

import rlrc
from rlrc.configs.export import ExportConfig
from rlrc.configs.make_random import MakeRandomConfig
from rlrc.configs.prune import PruneConfig, Random, Tokens, Tower
from rlrc.configs.quantize import QuantizeConfig
from rlrc.data import Demonstrations
from rlrc.data.samples import observe
from rlrc.errors import UserError
from rlrc.inspect import describe
from rlrc.policies.contract import Policy
from rlrc.policies.export import export
from rlrc.policies.make_random import make_random
from rlrc.policies.values import Sampler
from rlrc.prune import prune
from rlrc.quantize import quantize

WIDTHS = (16, 24)
"""Features of both towers, which differ so that none can be taken for the other."""
FIRST, SECOND = SHAPE.towers
UNLIKE = SHAPE.model_copy(update={"towers": (FIRST, SECOND.model_copy(update={"hidden_size": WIDTHS[1]}))})
SAMPLES, SEED = 6, 0
COLUMNS = (slice(0, WIDTHS[0]), slice(WIDTHS[0], sum(WIDTHS)))
"""Features of each tower among those of both."""
TOWERS = ("featurizer", "fused_featurizer")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_cameras(tmp_path_factory.mktemp("two-cameras") / "dataset")


def saved(name: str, folder: Path) -> Path:
    """A policy whose towers differ in width, and in how their pictures are normalised."""
    made(name, UNLIKE).save(folder)
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text())
    values["tvf_normalize_params"][1] = {"mean": [0.3, 0.4, 0.6], "std": [0.2, 0.3, 0.4]}
    path.write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module", params=["openvla", "oft", "film"])
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(request.param, tmp_path_factory.mktemp(request.param))


def asked(policy: Path, dataset: Path | None, method: Any, **options: Any) -> PruneConfig:
    cameras = rlrc.load(policy, device="cpu").spec.cameras
    given = {"cameras": [f"observation.images.{camera}" for camera in cameras]} if dataset else {}
    return PruneConfig(
        policy=policy, dataset=dataset, method=method, samples=SAMPLES, seed=SEED, device="cpu", **given | options
    )


def cut(policy: Path, dataset: Path | None, out: Path, keep: Any, **options: Any) -> Policy:
    prune(asked(policy, dataset, Tower(keep=keep, **options)), out)
    return rlrc.load(out / "checkpoint", device="cpu")


def taken(policy: Policy) -> torch.Tensor:
    """Normalised actions in front of noise."""
    pictures = look(policy, 2)
    state = np.full((2, 8), 0.3, np.float32)
    inputs = policy.prepare(policy.observation(pictures.images, pictures.instruction, state))
    predicted, _ = policy.predict(inputs, torch.zeros(2, policy.spec.horizon, 7))
    return torch.cat([predicted.flatten(), policy.sample(inputs, Sampler(0.0)).actions.flatten()])


def mean_features(policy: Policy, dataset: Path) -> torch.Tensor:
    """The mean features of both towers over the patches of the calibration frames, one frame after another."""
    demonstrations = Demonstrations.load(dataset)
    seen = []
    for row in demonstrations.draw(SAMPLES, SEED):
        inputs = policy.prepare(observe(demonstrations, np.array([row]), policy))
        pictures, condition = policy.model.pictures_of(inputs)
        with torch.no_grad():
            seen.append(policy.model.vision_backbone(pictures, condition))
    return torch.cat(seen).flatten(0, 1).double().mean(0).float()


@contextmanager
def without(policy: Policy, columns: slice, instead: Any) -> Iterator[None]:
    """The policy of both towers, of which one gives the same features (width,) whatever it sees."""

    def replaced(module: torch.nn.Module, args: Any, features: torch.Tensor) -> torch.Tensor:
        features = features.clone()
        features[..., columns] = instead
        return features

    handle = policy.model.vision_backbone.register_forward_hook(replaced)
    yield
    handle.remove()


@pytest.mark.parametrize("keep", [0, 1])
def test_a_cut_policy_is_the_one_with_the_mean_of_what_left(
    keep: int, dense: Path, dataset: Path, tmp_path: Path
) -> None:
    one, both = cut(dense, dataset, tmp_path, keep), rlrc.load(dense, device="cpu")
    gone = COLUMNS[1 - keep]
    with torch.no_grad(), without(both, gone, mean_features(both, dataset)[gone]):
        expected = taken(both)
    torch.testing.assert_close(taken(one), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, taken(both), rtol=1e-3, atol=1e-3)
    if keep == 0:
        one.model = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint", dtype="auto").eval()
        torch.testing.assert_close(taken(one), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by", ["pool", "shuffle", "select"])
def test_it_is_with_fewer_tokens_too(by: Any, dense: Path, dataset: Path, tmp_path: Path) -> None:
    prune(asked(dense, None, Tokens(by=by), ratio=0.75), tmp_path / "fewer")
    fewer = tmp_path / "fewer" / "checkpoint"
    one, both = cut(fewer, dataset, tmp_path / "one", 1), rlrc.load(fewer, device="cpu")
    gone = COLUMNS[0]
    with torch.no_grad(), without(both, gone, mean_features(both, dataset)[gone]):
        torch.testing.assert_close(taken(one), taken(both), rtol=1e-4, atol=1e-5)


def test_without_compensation_nothing_is_left(dense: Path, tmp_path: Path) -> None:
    one, both = cut(dense, None, tmp_path, 1, bias_compensation=False), rlrc.load(dense, device="cpu")
    with torch.no_grad(), without(both, COLUMNS[0], 0):
        torch.testing.assert_close(taken(one), taken(both), rtol=1e-4, atol=1e-5)


def test_what_was_measured_is_used_again(dense: Path, dataset: Path, tmp_path: Path) -> None:
    first = cut(dense, dataset, tmp_path / "first", 0)
    again = asked(dense, dataset, Tower(keep=0), measured=tmp_path / "first" / "measured.safetensors")
    prune(again, tmp_path / "again")
    second = rlrc.load(tmp_path / "again" / "checkpoint", device="cpu").model.state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.model.state_dict().items())
    with pytest.raises(UserError, match="was measured with another method"):
        prune(again.model_copy(update={"method": Tower(keep=1)}), tmp_path / "other")


def test_the_tower_that_stays_is_pruned_and_packed(dense: Path, dataset: Path, tmp_path: Path) -> None:
    one = cut(dense, dataset, tmp_path / "one", 1)
    assert [stack.name for stack in one.vision_stacks()] == ["vision"]
    assert one.lineage["stages"][-1]["kept"] == {"tower": 1}
    described, before = describe(one), describe(rlrc.load(dense, device="cpu"))
    rows = one.model.projector.fc1.out_features
    assert before["parameters"]["projector"] - described["parameters"]["projector"] == WIDTHS[0] * rows
    kept = rlrc.load(dense, device="cpu").model.vision_backbone.fused_featurizer
    assert described["parameters"]["vision"] == sum(parameter.numel() for parameter in kept.parameters())
    for stacks in (("vision",), None):
        source = tmp_path / ("one" if stacks else "vision") / "checkpoint"
        prune(asked(source, dataset, Random(), ratio=0.5, stacks=stacks), tmp_path / ("vision" if stacks else "both"))
    parts = ("vision", "decoder", "projector")
    quantize(QuantizeConfig(policy=tmp_path / "both" / "checkpoint", parts=parts, device="cpu"), tmp_path / "int4")
    packed = rlrc.load(tmp_path / "int4" / "checkpoint", device="cpu")
    assert {layer.mlp.fc1.out_features for layer in packed.vision_stacks()[0].layers} == {16}
    assert {part for part in parts if describe(packed)["bytes"][part] < described["bytes"][part]} == set(parts)
    assert taken(packed).isfinite().all()
    card = (tmp_path / "one" / "checkpoint" / "README.md").read_text()
    assert "### `rlrc prune`" in card and "'kind': 'tower', 'keep': 1" in card


@pytest.mark.parametrize("preset", ["openvla-tiny", "openvla-oft-tiny"])
@pytest.mark.parametrize("keep", [0, 1])
def test_published_layouts_keep_their_names_and_counts(preset: Any, keep: int, tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    make_random(MakeRandomConfig(preset=preset), folder)
    both, one = rlrc.load(folder, device="cpu"), cut(folder, None, tmp_path / "one", keep, bias_compensation=False)
    stored = load_file(folder / "model.safetensors")
    kept, gone = (f"vision_backbone.{name}." for name in (TOWERS[keep], TOWERS[1 - keep]))
    fewer = sum(tensor.numel() for name, tensor in stored.items() if name.startswith(gone))
    columns = stored["projector.fc1.weight"].numel() // 2  # towers of that preset are equally wide
    assert both.published_parameters - one.published_parameters == fewer + columns
    names = {name.removeprefix(kept) for name in both.model.state_dict() if name.startswith(kept)}
    left = {name for name in one.model.state_dict() if name.startswith("vision_backbone.")}
    assert left == {f"vision_backbone.{TOWERS[0]}.{name}" for name in names}
    before, after = (
        json.loads((home / "preprocessor_config.json").read_text()) for home in (folder, tmp_path / "one/checkpoint")
    )
    config = json.loads((tmp_path / "one/checkpoint/config.json").read_text())
    for values, fields in ((config, ("timm_model_ids", "image_sizes")), (after, ("means", "stds", "input_sizes"))):
        assert {len(values[field]) for field in fields} == {1} and values["use_fused_vision_backbone"] is False
    assert after["tvf_normalize_params"] == [before["tvf_normalize_params"][keep]]


def test_options_that_cannot_be_are_refused(dataset: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"dataset": None}, "leaves the mean of what goes as a bias, which is measured on a dataset"),
        ({"dataset": None, "token_ids": tmp_path / "ids.safetensors"}, "token_ids hold no pictures"),
        ({"stacks": ("vision",)}, "tower changes no layer; leave stacks out"),
        ({"protect": (0,)}, "tower changes no layer; leave protect out"),
        ({"ratio": 0.5}, "the method says itself how much goes"),
    ):
        given: dict[str, Any] = {"dataset": dataset} | options
        with pytest.raises(ValueError, match=message):
            PruneConfig(policy=tmp_path, method=Tower(keep=0), **given)


def test_policies_that_cannot_be_cut_are_refused(dataset: Path, tmp_path: Path) -> None:
    whole = saved("openvla", tmp_path / "whole")
    cut(whole, dataset, tmp_path / "one", 0)
    quantize(QuantizeConfig(policy=whole, parts=("vision",), device="cpu"), tmp_path / "packed")
    made("pi0").save(tmp_path / "pi0")
    for folder, message in (
        (tmp_path / "one" / "checkpoint", "tower: the policy has one vision tower alone"),
        (tmp_path / "packed" / "checkpoint", "tower: the policy is quantized"),
        (tmp_path / "pi0", "tower: policies of the family pi0 have one vision tower"),
    ):
        with pytest.raises(UserError, match=rf"^{re.escape(str(folder))}: {message}"):
            prune(asked(folder, dataset, Tower(keep=1)), tmp_path / "no")
    assert not (tmp_path / "no" / "checkpoint").exists()
    with pytest.raises(UserError, match="LeRobot has no class"):
        export(ExportConfig(policy=tmp_path / "one" / "checkpoint"), tmp_path / "no")


def test_damaged_files_are_refused(dataset: Path, tmp_path: Path) -> None:
    cut(saved("openvla", tmp_path / "whole"), dataset, tmp_path, 0)
    path = tmp_path / "checkpoint" / "config.json"
    text = path.read_text()
    assert f'"projector_size": {4 * sum(WIDTHS)}' in text
    for size, message in (
        ("0", "projector_size"),
        ('"wide"', "projector_size"),
        ("8", "'projector.fc1.bias' has shape"),
    ):
        path.write_text(text.replace(f'"projector_size": {4 * sum(WIDTHS)}', f'"projector_size": {size}'))
        with pytest.raises(UserError, match=message):
            rlrc.load(path.parent, device="cpu")
