"""VLA-Cache: its selection against the published code's tensors, its reuse against plain acting."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fixture_folder
from safetensors.torch import load_file

from rlrc.configs.evaluate import VlaCacheConfig
from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.openvla import vla_cache as cache
from rlrc.policies.openvla.vla_cache import VlaCache
from rlrc.policies.parts.decoding import Decoding
from rlrc.policies.values import Observation

CONFIG = VlaCacheConfig(attention_layer=0, layers=(1, 2), static_patches=9, relevant_patches=2)
INSTRUCTION = ["put carrot on plate"]


@pytest.fixture(scope="module")
def fixture() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    folder = fixture_folder("vla_cache")
    return load_file(folder / "cases.safetensors"), json.loads((folder / "meta.json").read_text())


def test_static_patches(fixture: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> None:
    cases, meta = fixture
    before, now = cases["frame_prev"].numpy(), cases["frame_cur"].numpy()
    similarity = cache.patch_similarity(before, now, meta["config"]["grid"])
    tolerance = meta["tolerance"]["similarity"]["atol"]
    torch.testing.assert_close(similarity, cases["expected.patch_similarity"], rtol=0, atol=tolerance)
    for name, expected in cases.items():
        if name.startswith("expected.static."):
            most, threshold = name.removeprefix("expected.static.top").split(".th")
            assert torch.equal(cache.static_patches(similarity, float(threshold), int(most)), expected)


def test_relevant_and_reusable_patches(fixture: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> None:
    cases, _ = fixture
    attended = cache.text_to_vision(cases["attention_layer15"][0].mean(0), slice(257, 292), 256)
    torch.testing.assert_close(attended, cases["expected.text_to_vision"], rtol=0, atol=1e-5)
    for most in (30, 100, 120):
        relevant = attended.topk(most).indices
        if f"expected.top_attention.top{most}" in cases:
            assert torch.equal(relevant, cases[f"expected.top_attention.top{most}"])
        reusable = cache.reusable_positions(cases["expected.static.top130.th0.996"], relevant)
        assert torch.equal(reusable, cases[f"expected.reusable.static130.top{most}"])


@pytest.mark.parametrize(("growth", "name"), [(0.55, "reuse"), (1.0, "reuse_plain"), (0.8, "reuse_growth0.8")])
def test_shares_by_layer(fixture: tuple[dict[str, torch.Tensor], dict[str, Any]], growth: float, name: str) -> None:
    cases, _ = fixture
    entropies = [cache.entropy(layer.mean(0)) for layer in cases["schedule.attentions"][:-1]]
    shares = torch.tensor(cache.reused_shares(entropies, growth))
    torch.testing.assert_close(shares, cases[f"schedule.expected.{name}"], rtol=0, atol=1e-5)


def seen(image: np.ndarray, instruction: list[str] = INSTRUCTION) -> Observation:
    return Observation({"front": image}, instruction)


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of the prompt each layer has read, in the order of the calls."""
    rows: list[int] = []
    original = Decoding._pass

    def counted(self: Decoding, index: int, hidden: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if hidden.shape[1] > 1:
            rows.append(hidden.shape[1])
        return original(self, index, hidden, *args, **options)

    monkeypatch.setattr(Decoding, "_pass", counted)
    return rows


def test_the_same_picture_again_gives_the_same_action_from_fewer_rows(
    tiny_policy: Policy, rows_read: list[int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
    expected = tiny_policy.act(image, INSTRUCTION)
    plain = list(rows_read)
    rows_read.clear()
    cached = VlaCache(tiny_policy, CONFIG)
    np.testing.assert_allclose(cached.act(seen(image))[:, 0], expected, atol=1e-6)
    assert rows_read == plain  # nothing is known yet
    rows_read.clear()
    np.testing.assert_allclose(cached.act(seen(image))[:, 0], expected, atol=1e-6)
    assert rows_read[0] == plain[0] and sum(rows_read) < sum(plain)


def test_what_was_seen_is_forgotten(tiny_policy: Policy, rows_read: list[int]) -> None:
    """At the start of an episode, and with another instruction."""
    image = np.zeros((1, 96, 96, 3), np.uint8) + 50
    cached = VlaCache(tiny_policy, CONFIG)
    for before in (cached.reset, lambda: None):
        cached.act(seen(image))
        before()
        rows_read.clear()
        cached.act(seen(image, INSTRUCTION if before == cached.reset else ["put red cube on plate"]))
        assert len(set(rows_read)) == 1


def test_a_changed_patch_is_read_again(tiny_policy: Policy) -> None:
    """All of the picture changes: nothing is static, so the action is that of the plain policy."""
    first, second = np.random.default_rng(0).integers(0, 256, (2, 1, 96, 96, 3), dtype=np.uint8)
    cached = VlaCache(tiny_policy, CONFIG)
    cached.act(seen(first))
    np.testing.assert_allclose(cached.act(seen(second))[:, 0], tiny_policy.act(second, INSTRUCTION), atol=1e-6)


def test_a_layer_that_is_not_there_is_refused(tiny_policy: Policy) -> None:
    with pytest.raises(UserError, match="attention_layer 15 is not among the first 2 layers"):
        VlaCache(tiny_policy)
