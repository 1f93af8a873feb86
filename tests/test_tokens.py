"""Fewer tokens of a picture: they are the means that they should be, and every family acts and is pruned with them."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from small_policies import CASES, look, make

import rlrc
from rlrc.configs.evaluate import VlaCacheConfig
from rlrc.configs.export import ExportConfig
from rlrc.configs.prune import PruneConfig, Tokens
from rlrc.errors import UserError
from rlrc.policies.export import export
from rlrc.policies.parts.tokens import (
    TokenReduction,
    lightened,
    mean_of_text,
    merged,
    pooled,
    selected,
    shuffled,
    stretched,
    window_places,
)
from rlrc.policies.values import Sampler
from rlrc.prune import prune

Kind = Literal["pool", "shuffle", "merge", "select"]
KINDS: tuple[Kind, ...] = ("pool", "shuffle", "merge", "select")
IN_WINDOWS = ("pool", "shuffle")
FAMILIES = ("openvla", "oft-l1", "pi0", "pi05", "smolvla")


def features(rows: int, patches: int, width: int = 5) -> torch.Tensor:
    return torch.randn(rows, patches, width, generator=torch.Generator().manual_seed(3))


def test_pooling_is_the_mean_over_windows() -> None:
    x = features(2, 36)
    square = x.numpy().reshape(2, 6, 6, 5)
    for side in (1, 2, 3):
        by = 6 // side
        expected = square.reshape(2, side, by, side, by, 5).mean(axis=(2, 4)).reshape(2, side * side, 5)
        np.testing.assert_allclose(pooled(x, side * side).numpy(), expected, atol=1e-6)


def test_shuffling_keeps_every_patch_in_the_token_of_its_window() -> None:
    x = features(2, 36)
    for side in (1, 2, 3):
        by, found = 6 // side, shuffled(x, side * side)
        assert found.shape == (2, side * side, by * by * 5)
        for row, column in np.ndindex(6, 6):
            token, place = row // by * side + column // by, row % by * by + column % by
            assert torch.equal(found[:, token, 5 * place : 5 * place + 5], x[:, 6 * row + column])


def test_a_window_stands_in_its_middle() -> None:
    assert window_places(16, 4, torch.device("cpu")).tolist() == [2, 4, 10, 12]  # of [0, 1, 4, 5]: 2.5, and so on
    assert window_places(9, 9, torch.device("cpu")).tolist() == list(range(9))
    assert window_places(36, 4, torch.device("cpu")).tolist() == [7, 10, 25, 28]


def test_tokens_stand_where_their_patches_stood() -> None:
    """Two cameras of four patches, of which two stay, behind one token and before three."""
    positions = torch.arange(8)[None]
    places = torch.tensor([[0, 3, 1, 2], [1, 2, 2, 3]])
    assert stretched(positions, places, 1, (4, 2)).tolist() == [
        [0, 1, 4, 6, 7, 9, 10, 11],
        [0, 2, 3, 7, 8, 9, 10, 11],
    ]
    # The first row lacks the first camera, so that the second stands in its place, and what is behind is nearer.
    there = torch.tensor([[False, True], [True, True]])
    seen = torch.tensor([[1, 0, 0, 1, 1, 1, 1, 1], [1] * 8])
    found = stretched(seen.cumsum(dim=1) - 1, places, 1, (4, 2), there)
    assert found[:, [0, 3, 4, 5, 6, 7]].tolist() == [[0, 2, 3, 5, 6, 7], [0, 7, 8, 9, 10, 11]]
    assert stretched(positions, None, 1, (4, 2)) is positions


def merged_plainly(tokens: np.ndarray, count: int) -> tuple[np.ndarray, list[int]]:
    """Token merging of one picture, with lists: each token is the list of the patches that it is the mean of. Of each
    list the first patch is given too."""
    groups = [[patch] for patch in range(len(tokens))]
    while len(groups) > count:
        means = [tokens[group].mean(axis=0) for group in groups]
        unit = [mean / np.linalg.norm(mean) for mean in means]
        others = range(1, len(groups), 2)
        nearest = {one: max(others, key=lambda other: unit[one] @ unit[other]) for one in range(0, len(groups), 2)}
        ranking = sorted(nearest, key=lambda one: -(unit[one] @ unit[nearest[one]]))
        gone = set(ranking[: min(len(groups) - count, len(groups) // 2)])
        for one in gone:
            groups[nearest[one]] = groups[nearest[one]] + groups[one]
        groups = [group for number, group in enumerate(groups) if number not in gone]
    return np.array([tokens[group].mean(axis=0) for group in groups]), [group[0] for group in groups]


@pytest.mark.parametrize("count", [36, 35, 20, 9, 2, 1])
def test_merging_agrees_with_a_plain_form_of_it(count: int) -> None:
    x = features(3, 36)
    found = merged(x, count)
    for row in range(3):
        tokens, places = merged_plainly(x[row].double().numpy(), count)
        np.testing.assert_allclose(found.embeddings[row].numpy(), tokens, atol=1e-5)
        assert found.places is not None and found.places[row].tolist() == places


def test_what_is_alike_is_merged_first() -> None:
    """Four patches that are each there twice: four tokens hold everything."""
    x = features(1, 4).repeat_interleave(2, dim=1)
    torch.testing.assert_close(merged(x, 4).embeddings, x[:, ::2])


def test_selection_takes_what_points_where_the_text_points() -> None:
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    tokens = torch.tensor([[[0.0, 5.0], [2.0, 0.1], [1.0, 1.0]]]).repeat(2, 1, 1)
    found, places = selected(tokens, text, 2)
    assert places is not None and places.tolist() == [[1, 2], [0, 2]]
    assert found.tolist() == tokens[[0, 0, 1, 1], [1, 2, 0, 2]].unflatten(0, (2, 2)).tolist()
    mask = torch.tensor([[1, 0, 1]])
    assert mean_of_text(tokens[:1], mask).tolist() == tokens[0, [0, 2]].mean(dim=0, keepdim=True).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass(kind: Kind) -> None:
    x = features(2, 16).requires_grad_()
    less = selected(x, x[:, 0], 4) if kind == "select" else lightened(x, TokenReduction(kind, 4))
    less.embeddings.square().sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(-1) > 0).sum() == (8 if kind == "select" else 32)


def lighter(name: str, kind: Kind, folder: Path, **options: Any) -> Any:
    """A policy whose pictures, 2 x 2 patches, become one token where windows do and three else."""
    whole = make(CASES[name])
    whole.save(folder / "whole")
    ratio = 0.75 if kind in IN_WINDOWS else 0.25
    prune(
        PruneConfig(policy=folder / "whole", method=Tokens(by=kind), ratio=ratio, device="cpu", **options),
        folder / "less",
    )
    return rlrc.load(folder / "less" / "checkpoint", device="cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_acts_with_fewer_tokens(name: str, kind: Kind, tmp_path: Path) -> None:
    policy, whole = lighter(name, kind, tmp_path), rlrc.load(tmp_path / "whole", device="cpu")
    tokens = len(policy.spec.cameras) * (1 if kind in IN_WINDOWS else 3)
    inputs = policy.prepare(look(policy))
    assert policy.num_patches == tokens == policy.features(policy.encode(inputs)).shape[1]
    assert whole.num_patches == 4 * len(policy.spec.cameras)
    assert policy.stages(inputs)["prefill"].positions == whole.stages(inputs)["prefill"].positions - (
        whole.num_patches - tokens
    )
    together = policy.sample(inputs, Sampler(0.0)).actions
    for row in range(3):
        alone = policy.sample(policy.prepare(look(policy)[[row]]), Sampler(0.0)).actions
        torch.testing.assert_close(together[[row]], alone, atol=1e-4, rtol=1e-4)
    assert not torch.equal(together, whole.sample(whole.prepare(look(whole)), Sampler(0.0)).actions)
    assert policy.lineage["stages"][-1]["kept"] == {"tokens_before": 4, "tokens": tokens // len(policy.spec.cameras)}
    expected = {name: tensor.shape for name, tensor in whole.model.state_dict().items()}
    if kind == "shuffle":
        reader = f"{whole.feature_reader}.weight"
        rows, width = expected[reader]
        expected[reader] = torch.Size((rows, 4 * width))
    assert expected == {name: tensor.shape for name, tensor in policy.model.state_dict().items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_with_all_tokens_selected_nothing_changes(name: str, tmp_path: Path) -> None:
    """Its tokens have places, and these are what position ids were anyway."""
    whole, same = make(CASES[name]), make(CASES[name])
    same.model.config.visual_tokens = {"kind": "select", "count": 4}
    looked = look(whole)
    for rows in ([0], [0, 1, 2]):
        inputs = whole.prepare(looked[rows])
        encoded = same.encode(inputs)
        assert encoded.image_places is not None and whole.encode(inputs).image_places is None
        expected = whole.sample(inputs, Sampler(0.0)).actions
        for seen in (inputs, encoded):
            torch.testing.assert_close(same.sample(seen, Sampler(0.0)).actions, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_left_out_is_as_if_nobody_could_see_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that selects two of four patches, against the whole one where the others are masked."""
    whole, less = make(CASES[name]), make(CASES[name])
    less.model.config.visual_tokens = {"kind": "select", "count": 2}
    inputs = whole.prepare(look(whole)[[0]])
    seen = less.encode(inputs)
    assert seen.image_places is not None
    cameras = len(whole.spec.cameras)
    stays = torch.zeros(cameras, 4, dtype=torch.bool)
    stays[torch.arange(cameras)[:, None], seen.image_places.view(cameras, 2)] = True
    if hasattr(whole.model, "context"):
        ours = whole.model.context

        def context(hidden: torch.Tensor, there: Any, places: Any) -> Any:
            everywhere = ours(hidden, there, places)
            there = torch.ones(hidden.shape[:2], dtype=torch.bool)
            there[0, : stays.numel()] = stays.flatten()
            rotary = {"prefix_rotary": everywhere.prefix_rotary, "suffix_rotary": everywhere.suffix_rotary}
            return ours(hidden, there, places)._replace(**rotary)

        monkeypatch.setattr(whole.model, "context", context)
        expected, found = (policy.sample(inputs, Sampler(0.0)).actions for policy in (whole, less))
    else:
        sequence = whole.model.sequence(inputs)
        mask = torch.ones(sequence.embeddings.shape[:2], dtype=torch.long)
        mask[0, 1 : 1 + stays.numel()] = stays.flatten()
        expected = last_states(whole, sequence._replace(mask=mask))
        found = last_states(less, less.model.sequence(inputs))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def last_states(policy: Any, sequence: Any) -> torch.Tensor:
    """What an action is read from."""
    if policy.spec.family == "openvla-oft":
        return policy.model.action_states(sequence)
    embeddings, mask, positions = sequence
    decoder = policy.model.language_model.model
    return decoder(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions).last_hidden_state[:, -1]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shuffled_policy_begins_as_the_pooled_one_and_can_learn_more(name: str, tmp_path: Path) -> None:
    pool, shuffle = (lighter(name, kind, tmp_path / kind) for kind in IN_WINDOWS)
    inputs = pool.prepare(look(pool))
    with torch.no_grad():
        pooled_features, found = (policy.features(policy.encode(inputs)) for policy in (pool, shuffle))
    torch.testing.assert_close(found, pooled_features, atol=1e-4, rtol=1e-4)
    one, other = (policy.sample(inputs, Sampler(0.0)).actions for policy in (pool, shuffle))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    weight = shuffle.model.get_submodule(shuffle.feature_reader).weight
    with torch.no_grad():  # a layer that knows the places can tell them apart
        weight[:, weight.shape[1] // 4 :] = 0
        first_patches = shuffle.features(shuffle.encode(inputs))
    assert not torch.allclose(first_patches, pooled_features, atol=1e-3)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    policy = lighter("openvla", "merge", tmp_path)
    less = tmp_path / "less" / "checkpoint"
    for folder, ratio, by, message in (
        (tmp_path / "whole", 0.5, "pool", r"windows of 2 x 2 tokens take a ratio of 0\.75, and not 0\.5"),
        (tmp_path / "whole", 0.5, "shuffle", r"windows of 2 x 2 tokens take a ratio of 0\.75, and not 0\.5"),
        (tmp_path / "whole", 0.1, "merge", r"a ratio of 0\.1 takes none of 4"),
        (tmp_path / "whole", 1.0, "merge", "a ratio of 1 leaves none of 4"),
        (less, 0.5, "pool", "3 tokens are no square"),
        (less, 0.34, "merge", "its pictures have fewer tokens already"),
    ):
        with pytest.raises(UserError, match=message):
            prune(PruneConfig(policy=folder, method=Tokens(by=by), ratio=ratio, device="cpu"), tmp_path / "no")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="it reuses single patches, and this policy makes fewer tokens"):
        policy.with_vla_cache(VlaCacheConfig(attention_layer=0))
    with pytest.raises(ValueError, match="tokens changes no layer; leave stacks out"):
        PruneConfig(policy=less, method=Tokens(), ratio=0.75, stacks=("vision",))
    assert not (tmp_path / "no" / "checkpoint").exists()
    lighter("smolvla", "select", tmp_path / "smolvla")
    with pytest.raises(UserError, match="LeRobot's class reads all tokens of a picture"):
        export(ExportConfig(policy=tmp_path / "smolvla" / "less" / "checkpoint"), tmp_path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    lighter("openvla", "pool", tmp_path)
    path = tmp_path / "less" / "checkpoint" / "config.json"
    for count, message in ((3, "4 tokens are no square whose windows make 3"), (9, "9 of 4 tokens cannot stay")):
        text = path.read_text()
        path.write_text(text.replace('"count": 1', f'"count": {count}'))
        with pytest.raises(UserError, match=message):
            rlrc.load(path.parent, device="cpu")
        path.write_text(text)
