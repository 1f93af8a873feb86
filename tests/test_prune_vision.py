"""Pruning of vision towers: importance is that of the whole policy's loss, and what is cut computes what it should."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_policies import FLOW, SHAPE, TWO, look
from test_sensitivity import STATISTICS
from two_cameras import two_cameras

import rlrc
from rlrc.configs.prune import Depth, Flap, LlmPruner, Magnitude, Method, PruneConfig, Random, StateSaliency, Wanda
from rlrc.configs.quantize import QuantizeConfig
from rlrc.configs.train import OFTOptions, Shape
from rlrc.data import Demonstrations
from rlrc.data.samples import chunks, observe
from rlrc.policies.contract import Policy
from rlrc.policies.registry import new_policy
from rlrc.policies.values import Sampler
from rlrc.prune import prune
from rlrc.quantize import quantize

FAMILIES: dict[str, tuple[str, Any]] = {
    "pi0": ("pi0", FLOW),
    "pi05": ("pi05", FLOW),
    "smolvla": ("smolvla", FLOW),
    "openvla": ("openvla", None),
    "oft": ("openvla-oft", OFTOptions(horizon=3, cameras=TWO)),
    "film": ("openvla-oft", OFTOptions(horizon=3, cameras=TWO)),
}
"""The last one's towers are modulated by the instruction."""
METHODS: dict[str, Method] = {
    "llm-pruner": LlmPruner(),
    "random": Random(),
    "flap": Flap(),
    "wanda": Wanda(),
    "magnitude": Magnitude(),
    "depth": Depth(),
    "gates": Depth(rank="gates"),
}
WHOLE_LAYERS = ("depth", "gates")
"""Methods that take what modulates a tower, too."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_cameras(tmp_path_factory.mktemp("two-cameras") / "dataset")


@pytest.fixture(scope="module", params=FAMILIES)
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    made(request.param).save(folder)
    return folder


def made(name: str, shape: Shape = SHAPE) -> Policy:
    """A policy of FAMILIES with random weights that all matter."""
    texts = ["put carrot on plate", "put red cube on plate"]
    family, options = FAMILIES[name]
    policy = new_policy(family, shape, texts, STATISTICS, 1, options)
    if name == "film":
        policy = policy.rebuilt(type(policy.model.config)(**policy.model.config.to_dict() | {"film": True}))
        policy.model.to_empty(device="cpu").make_tables()
        policy.model.apply(policy.model._init_weights)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


def asked(policy: Path, dataset: Path, **options: Any) -> PruneConfig:
    reads = rlrc.load(policy, device="cpu").spec.cameras
    given = {"cameras": [f"observation.images.{camera}" for camera in reads]}
    options = given | {"dataset": dataset, "stacks": ("vision",), "samples": 6} | options
    return PruneConfig(policy=policy, device="cpu", **options)


def half(policy: Policy) -> float:
    """The share of a tower's linear layers that goes with half of its heads and channels; what modulates stays."""
    return 0.31 if getattr(policy.model.config, "film", False) else 0.5


def towers(policy: Policy) -> list[tuple[str, Any]]:
    """The layers of all towers, each with the name of its stack."""
    return [(stack.name, layer) for stack in policy.vision_stacks() for layer in stack.layers]


def by_head(layer: Any, sums: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a layer's attention matrices have, summed over the rows and columns of each head."""
    if hasattr(layer, "attn"):
        rows, columns = sums["attn.qkv.weight"].sum(1).view(3, -1).sum(0), sums["attn.proj.weight"].sum(0)
    else:
        rows = sum(sums[f"self_attn.{name}_proj.weight"].sum(1) for name in "qkv")  # type: ignore[assignment]
        columns = sums["self_attn.out_proj.weight"].sum(0)
    return (rows + columns).view(-1, attention(layer).head_dim).sum(1)


def attention(layer: Any) -> Any:
    return layer.attn if hasattr(layer, "attn") else layer.self_attn


def output(layer: Any) -> Any:
    return layer.attn.proj if hasattr(layer, "attn") else layer.self_attn.out_proj


def test_importance_is_that_of_the_policys_own_loss(dense: Path, dataset: Path, tmp_path: Path) -> None:
    """Against one backward pass through the whole policy."""
    config = asked(dense, dataset, ratio=0.5)
    prune(config, tmp_path)
    measured = load_file(tmp_path / "measured.safetensors")
    policy, demonstrations = rlrc.load(dense, device="cpu"), Demonstrations.load(dataset)
    rows = demonstrations.draw(6, config.seed)
    actions, padded = chunks(demonstrations, rows, policy)
    inputs = policy.prepare(observe(demonstrations, rows, policy))
    for parameter in policy.model.parameters():
        parameter.requires_grad_(True)
    errors = policy.errors(*policy.predict(inputs, actions, torch.Generator().manual_seed(config.seed)))
    errors[~padded].mean().backward()
    for index, (stack, layer) in enumerate(towers(policy)):
        saliency = {name: (p * p.grad).abs() for name, p in layer.named_parameters() if p.grad is not None}
        channels = saliency["mlp.fc1.weight"].sum(1) + saliency["mlp.fc2.weight"].sum(0)
        torch.testing.assert_close(measured[f"{stack}.{index}.channels"], channels.detach(), rtol=1e-3, atol=1e-6)
        heads = by_head(layer, saliency).detach()
        torch.testing.assert_close(measured[f"{stack}.{index}.heads"], heads, rtol=1e-3, atol=1e-6)


def test_a_cut_tower_is_the_dense_one_without_the_outputs_of_what_left(
    dense: Path, dataset: Path, tmp_path: Path
) -> None:
    result = prune(asked(dense, dataset, ratio=0.5), tmp_path)
    policy, cut = rlrc.load(dense, device="cpu"), rlrc.load(tmp_path / "checkpoint", device="cpu")
    kept = cut.lineage["stages"][-1]["kept"]
    with torch.no_grad():
        for index, (stack, layer) in enumerate(towers(policy)):
            for kind, matrix, width in (
                ("heads", output(layer), attention(layer).head_dim),
                ("channels", layer.mlp.fc2, 1),
            ):
                units = matrix.in_features // width
                gone = torch.ones(units, dtype=torch.bool)
                gone[kept[stack][kind][str(index)]] = False
                assert gone.sum() == units // 2
                matrix.weight[:, gone.repeat_interleave(width)] = 0
    observation = look(cut, 2)
    state = np.zeros((2, 8), np.float32)
    for one, other in ((policy, cut), (rlrc.load(tmp_path / "checkpoint", device="cpu"), cut)):
        given = [
            p.sample(p.prepare(p.observation(observation.images, observation.instruction, state)), Sampler(0.0)).actions
            for p in (one, other)
        ]
        torch.testing.assert_close(given[0], given[1], rtol=1e-4, atol=1e-5)
    assert result["metrics"]["removed"] == pytest.approx(half(cut), abs=0.01)
    text = [(layer.mlp.gate_proj.out_features) for layer in cut.stacks()[0].layers if hasattr(layer, "mlp")]
    assert text == [(layer.mlp.gate_proj.out_features) for layer in policy.stacks()[0].layers if hasattr(layer, "mlp")]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_prunes_towers(dense: Path, dataset: Path, method: str, tmp_path: Path) -> None:
    result = prune(asked(dense, dataset, ratio=0.5, method=METHODS[method]), tmp_path)
    policy, whole = rlrc.load(tmp_path / "checkpoint", device="cpu"), rlrc.load(dense, device="cpu")
    metrics = result["metrics"]
    less = metrics["zeros"] if method in ("wanda", "magnitude") else metrics["removed"]
    assert less == pytest.approx(0.5 if method in WHOLE_LAYERS else half(whole), abs=0.12)
    assert len(towers(policy)) == len(towers(whole)) // (2 if isinstance(METHODS[method], Depth) else 1)
    for stack, before in zip(policy.stacks(), whole.stacks(), strict=True):
        for layer, old in zip(stack.layers, before.layers, strict=True):
            assert all(torch.equal(t, old.state_dict()[name]) for name, t in layer.state_dict().items())
    state = np.zeros((1, 8), np.float32)
    assert np.isfinite(policy.act(look(policy, 1).images, ["put carrot on plate"], state=state)).all()


def test_a_cut_policy_is_cut_and_packed_again(dense: Path, dataset: Path, tmp_path: Path) -> None:
    prune(asked(dense, dataset, ratio=0.5, method=Random()), tmp_path / "vision")
    again = asked(tmp_path / "vision" / "checkpoint", dataset, ratio=0.5, stacks=None, method=Random())
    prune(again, tmp_path / "both")
    quantize(
        QuantizeConfig(policy=tmp_path / "both" / "checkpoint", parts=("vision", "decoder"), device="cpu"),
        tmp_path / "int4",
    )
    policy = rlrc.load(tmp_path / "int4" / "checkpoint", device="cpu")
    assert {layer.mlp.fc1.out_features for _, layer in towers(policy)} == {16}
    state = np.zeros((1, 8), np.float32)
    assert np.isfinite(policy.act(look(policy, 1).images, ["put carrot on plate"], state=state)).all()


def test_what_cannot_be_is_refused(dense: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vision is pruned by a command of its own"):
        PruneConfig(policy=dense, dataset=dataset, ratio=0.5, stacks=("vision", "decoder"))
    with pytest.raises(ValueError, match="token_ids hold no pictures"):
        PruneConfig(policy=dense, token_ids=tmp_path / "ids.safetensors", ratio=0.5, stacks=("vision",))
    with pytest.raises(ValueError, match="weights states for the language model"):
        asked(dense, dataset, ratio=0.5, method=StateSaliency(grid=1))
    assert not (tmp_path / "checkpoint").exists()
