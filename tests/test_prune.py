"""Pruning: what leaves, what stays, and that the cut policy computes what the zeroed one does."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from llama_source import apply, coupled_groups, source_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter
from small_policies import CASES, make
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

import rlrc
from rlrc.configs.prune import Depth, Flap, LlmPruner, Magnitude, StateSaliency, Wanda
from rlrc.data import Demonstrations
from rlrc.data.lerobot import write_dataset
from rlrc.data.samples import chunks, observe
from rlrc.errors import UserError
from rlrc.policies.checkpoint import outline
from rlrc.policies.contract import Policy
from rlrc.policies.groups import DECODER, Group, Member
from rlrc.prune import PruneConfig, measured, prune, stream
from rlrc.prune.allocate import Rounding, choose
from rlrc.prune.calibrate import Frames
from rlrc.prune.flap import _rank_everything
from rlrc.prune.groups import blocks_of, chain_of, describe
from rlrc.prune.groups import coupled_groups as groups_of
from rlrc.prune.measured import SavedSums
from rlrc.prune.method import Source, Target
from rlrc.prune.methods import method_of
from rlrc.prune.saliency import StateSaliencyMethod, _smooth, blur, smoothed, state_saliency
from rlrc.prune.stream import StoredBlocks, Stream
from rlrc.prune.structured import plan_cut
from rlrc.quantize import QuantizeConfig, quantize


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of six frames of noise."""
    rng = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("noise") / "dataset"
    with write_dataset(path, fps=5, robot_type="none") as writer:
        for task in ("put carrot on plate", "put red cube on plate"):
            images = rng.integers(0, 256, (6, 96, 96, 3), dtype=np.uint8)
            actions = rng.uniform(-0.05, 0.05, (6, 7)).astype(np.float32)
            state = np.zeros((6, 1), np.float32)
            writer.append(task, {"observation.images.front": images, "observation.state": state, "action": actions})
    return path


@pytest.fixture(scope="module")
def frames(dataset: Path) -> Demonstrations:
    return Demonstrations.load(dataset)


def llama(**changes: Any) -> LlamaForCausalLM:
    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3}
    config = LlamaConfig(**{**shape, "num_attention_heads": 8, "head_dim": 4, "max_position_embeddings": 64, **changes})
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def heads(units: int, layer: int = 0, head_dim: int = 4) -> Group:
    return Group(layer, "heads", units, (Member(DECODER, "self_attn.q_proj", 0, head_dim, 4 * units),), 100)


def channels(units: int, layer: int = 0) -> Group:
    return Group(layer, "channels", units, (Member(DECODER, "mlp.gate_proj", 0, 1, 5),), 10)


def sizes(groups: list[Group], ratio: float | None = None, **options: Any) -> list[int]:
    """How many units stay, with scores 0, 1, 2... in every group."""
    given = {"protected": frozenset(), "scope": "local", "overall": None, "rounding": Rounding(), **options}
    scores = [torch.arange(float(group.units)) for group in groups]
    return [len(units) for units in choose(groups, scores, ratio=ratio, **given)]


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_value_heads", [8, 2])
@pytest.mark.parametrize("biased", [False, True])
def test_groups_own_all_linear_parameters(key_value_heads: int, biased: bool) -> None:
    model = llama(num_key_value_heads=key_value_heads, attention_bias=biased, mlp_bias=biased)
    groups = coupled_groups(model)
    assert [group.units for group in groups[:2]] == [key_value_heads, 40]
    owned = sum(group.units * group.unit_parameters for group in groups)
    linears = [m for layer in model.model.layers for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    output_biases = 3 * 2 * 32 if biased else 0  # of o and down: they belong to the layer's output, which stays
    assert owned == sum(p.numel() for linear in linears for p in linear.parameters()) - output_biases


def test_describe_names_every_matrix_once_for_layers_of_one_shape() -> None:
    text = describe(coupled_groups(llama(num_key_value_heads=2)))
    assert text.splitlines()[:2] == [
        "decoder layers 0-2: 2 key-value heads (each with its 4 query heads) of 1,280 parameters; one takes",
        "    self_attn.q_proj  16 rows",
    ]
    assert text.count("_proj") == 7


# -- criteria ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", ["vectorize", "param_first", "param_second", "param_mix"])
def test_grouped_query_scores_match_the_formula_written_out(importance: str) -> None:
    """The independent implementation keeps all gradients and loops over units, as the paper's formulas read."""
    model = llama(num_key_value_heads=2)
    ids = torch.randint(50, (5, 9))

    def loss(samples: Any) -> torch.Tensor:
        rows = ids[list(samples)]
        return model(rows, labels=rows, use_cache=False).loss

    source = source_of(model, ids)
    found = method_of(LlmPruner(importance=importance)).measure(source)

    weights = {name: p for name, p in model.named_parameters() if "_proj" in name}
    names = list(weights)
    g = dict(zip(names, torch.autograd.grad(loss(range(5)), list(weights.values())), strict=True))
    square = {name: torch.zeros_like(p) for name, p in weights.items()}
    for sample in range(5):
        for name, grad in zip(names, torch.autograd.grad(loss([sample]), list(weights.values())), strict=True):
            square[name] += grad**2 / 5
    for group in source.groups:
        expected = []
        for unit in range(group.units):
            total = 0.0
            for member in group.members:
                name = f"model.layers.{group.layer}.{member.name}.weight"
                for channel in range(unit * member.width, (unit + 1) * member.width):
                    w, grad, f = (t[name].detach().select(member.axis, channel) for t in (weights, g, square))
                    s = {
                        "vectorize": (w * grad).sum(),
                        "param_first": w * grad,
                        "param_second": w * f * w,
                        "param_mix": w * grad - 0.5 * w * f * w,
                    }[importance]
                    total += float(s.abs().sum())
            expected.append(total)
        scores = found[f"{group.layer}.{group.kind}"]
        torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-7)


def test_reductions_of_a_coupled_group() -> None:
    model = llama()
    mlp = model.model.layers[0].mlp
    gate, up = mlp.gate_proj.weight.detach().square().sum(1), mlp.up_proj.weight.detach().square().sum(1)
    down = mlp.down_proj.weight.detach().square().sum(0)
    expected = {
        "sum": gate + up + down,
        "mean": (gate + up + down) / 3,
        "max": torch.maximum(torch.maximum(gate, up), down),
        "prod": gate * up * down,
        "first": gate,
    }
    for reduction, scores in expected.items():
        criterion = method_of(LlmPruner(importance="magnitude_l2", reduction=reduction))
        torch.testing.assert_close(criterion.measure(source_of(model))["0.channels"], scores)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_scores_do_not_depend_on_how_samples_are_batched(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(50, (5, 9))
    expected = method_of(LlmPruner()).measure(source_of(llama(), ids))
    monkeypatch.setattr(stream, "TOKENS_AT_ONCE", size * ids.shape[1])
    found = method_of(LlmPruner()).measure(source_of(llama(), ids))
    for name, scores in expected.items():
        torch.testing.assert_close(found[name], scores, rtol=1e-4, atol=1e-8)


class Killed(Exception):
    pass


@pytest.mark.parametrize("options", [LlmPruner(importance="param_mix"), Flap(), Wanda(), Depth()])
def test_a_measurement_that_was_cut_off_goes_on(options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer's sums are kept; the run is killed after two of three layers, and then never reads them again."""
    monkeypatch.setattr(measured, "SAVE_EVERY", 0.0)
    ids, method = torch.randint(50, (5, 9)), method_of(options)
    expected = method.measure(source_of(llama(), ids, ratio=0.5))

    class Dying(SavedSums):
        def save(self, done: int, tensors: Any) -> None:
            super().save(done, tensors)
            if done == 2:
                raise Killed

    with pytest.raises(Killed):
        method.measure(replace(source_of(llama(), ids, ratio=0.5), saved=Dying(tmp_path, {"a": 1})))
    other = SavedSums(tmp_path, {"a": 2})
    assert other.load() == (0, {})
    resumed = method.measure(replace(source_of(llama(), ids, ratio=0.5), saved=SavedSums(tmp_path, {"a": 1})))
    assert resumed.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(resumed[name], tensor), name


def test_measurements_serve_other_ratios_and_no_other_data(
    tiny_checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    config = PruneConfig(policy=tiny_checkpoint, dataset=dataset, ratio=0.5, samples=4)
    prune(config, tmp_path / "first")
    again = config.model_copy(update={"ratio": 0.9, "measured": tmp_path / "first" / "measured.safetensors"})
    found = prune(again, tmp_path / "again")
    assert found == prune(config.model_copy(update={"ratio": 0.9}), tmp_path / "anew")
    with pytest.raises(UserError, match="measured with another samples"):
        prune(again.model_copy(update={"samples": 5}), tmp_path / "out")
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    words = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(words | {"prompt_template": "do {instruction}"}))
    with pytest.raises(UserError, match="measured with another policy"):
        prune(again.model_copy(update={"policy": other}), tmp_path / "out")


def test_nan_weights_are_refused(tiny_policy: Policy, tmp_path: Path) -> None:
    tiny_policy.model.language_model.model.layers[1].mlp.up_proj.weight.data[3, 3] = torch.nan
    tiny_policy.save(tmp_path / "broken")
    for method in (LlmPruner(importance="magnitude_l1"), Magnitude(), Depth(keep=(1,))):
        config = PruneConfig(policy=tmp_path / "broken", method=method, ratio=0.5 if method.needs_target else None)
        with pytest.raises(UserError, match=r"layers.1.mlp.up_proj.weight' holds NaN"):
            prune(config, tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_the_calibration_loss_is_that_of_the_tokens_the_policy_would_be_taught(
    tiny_policy: Policy, tiny_checkpoint: Path, frames: Demonstrations
) -> None:
    drawn = draw(tiny_checkpoint, frames, 12)
    tokens = tiny_policy.tokens_of(drawn.actions)
    decoded = tiny_policy.to_physical(tiny_policy.actions.decode(tokens.numpy()))
    scale = np.array([0.05] * 3 + [0.5] * 3 + [1.0])
    assert (np.abs(decoded - frames.actions) <= scale * (1 / 255 + 1e-6)).all()

    calibration = drawn.calibration()
    assert tiny_policy.weights is not None
    flow, states = Stream(calibration), calibration.states
    for block in StoredBlocks(tiny_policy.weights, chain_of(tiny_policy)):
        states = flow.step(block, states)
    instructions = [frames.instruction(i) for i in range(12)]
    inputs = tiny_policy.prepare(tiny_policy.observation(frames.images, instructions))
    with torch.no_grad():
        logits, _ = tiny_policy.model.action_logits(inputs, tokens)
        expected = F.cross_entropy(logits.flatten(0, 1), tiny_policy.actions.ids_to_bins(tokens).flatten())
        torch.testing.assert_close(calibration.loss(states, slice(0, 12)), expected, rtol=1e-4, atol=1e-5)
        parts = sum(calibration.loss(states.rows(rows), rows) for rows in (slice(0, 5), slice(5, 12)))
        torch.testing.assert_close(parts, expected, rtol=1e-4, atol=1e-5)


def draw(checkpoint: Path, frames: Demonstrations, samples: int) -> Frames:
    return Frames.draw(outline(checkpoint), frames, samples, seed=0)


def test_flap_prunes_a_compensated_model_again(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    """With nothing more to prune, the biases of the first time stay as they were."""
    config = PruneConfig(policy=tiny_checkpoint, dataset=dataset, ratio=0.5, samples=4, method=Flap())
    prune(config, tmp_path / "first")
    prune(config.model_copy(update={"policy": tmp_path / "first" / "checkpoint", "ratio": 0.0}), tmp_path / "again")
    first, again = (rlrc.load(tmp_path / run / "checkpoint").model.state_dict() for run in ("first", "again"))
    biases = [name for name in first if "_proj.bias" in name]
    assert len(biases) == 6 and any(first[name].any() for name in biases)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_flap_leaves_protected_layers_whole(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    options = {"ratio": 0.5, "samples": 4, "protect": (0,), "round_to": 7, "round_direction": "down"}
    prune(PruneConfig(policy=tiny_checkpoint, dataset=dataset, method=Flap(), **options), tmp_path)
    before, after = (
        rlrc.load(path).model.language_model.model.layers[0].mlp.down_proj.in_features
        for path in (tiny_checkpoint, tmp_path / "checkpoint")
    )
    assert before == after and before % 7


def test_flap_counts_the_parameters_of_several_stacks() -> None:
    """The channels of pi0's expert are smaller than those of its language model."""
    groups = groups_of(make(CASES["pi0"]))
    assert len({group.unit_parameters for group in groups if group.kind == "channels"}) > 1
    torch.manual_seed(0)
    metrics = {f"{group.key}.metric": torch.rand(group.units * group.channels) for group in groups}
    kept = _rank_everything(groups, metrics, 0.5)
    total = sum(group.units * group.unit_parameters for group in groups)
    left = sum(len(units) * group.unit_parameters for group, units in zip(groups, kept, strict=True))
    assert abs(left - total / 2) <= max(group.unit_parameters for group in groups)


@pytest.mark.parametrize("kind", ["rlrc", "auto"])
def test_a_compensated_model_loads_in_transformers(
    kind: str, tiny_checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    config = PruneConfig(policy=tiny_checkpoint, dataset=dataset, ratio=0.5, samples=4, method=Flap())
    prune(config, tmp_path)
    policy, frames = rlrc.load(tmp_path / "checkpoint"), Demonstrations.load(dataset)
    expected = logits(policy, frames)
    if kind == "auto":
        auto = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint", dtype="auto").eval()
        policy.model = auto
    torch.testing.assert_close(logits(policy, frames), expected)


def test_depth_removal_is_the_model_without_its_layers(
    tiny_checkpoint: Path, frames: Demonstrations, tmp_path: Path
) -> None:
    prune(PruneConfig(policy=tiny_checkpoint, method=Depth(keep=(0, -1))), tmp_path)
    dense, shallow = rlrc.load(tiny_checkpoint), rlrc.load(tmp_path / "checkpoint")
    decoder = dense.model.language_model.model
    decoder.layers = torch.nn.ModuleList([decoder.layers[0], decoder.layers[2]])
    decoder.config.num_hidden_layers = 2
    torch.testing.assert_close(logits(shallow, frames), logits(dense, frames))
    assert len(shallow.model.language_model.model.layers) == 2


def test_depth_removal_takes_the_layers_that_change_least(tiny_policy: Policy, dataset: Path, tmp_path: Path) -> None:
    layer = tiny_policy.model.language_model.model.layers[1]
    for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
        linear.weight.data.mul_(1e-3)
    tiny_policy.save(tmp_path / "idle")
    config = PruneConfig(policy=tmp_path / "idle", dataset=dataset, ratio=0.34, samples=4, method=Depth())
    prune(config, tmp_path / "out")
    stage = rlrc.load(tmp_path / "out" / "checkpoint").lineage["stages"][-1]
    assert stage["kept"] == {"layers": [0, 2]}
    prune(config.model_copy(update={"protect": (1,)}), tmp_path / "protected")
    assert 1 in rlrc.load(tmp_path / "protected" / "checkpoint").lineage["stages"][-1]["kept"]["layers"]


def test_gates_are_slopes_of_the_loss(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    """Against autograd through the whole policy, a gate before what one layer adds at a time."""
    config = PruneConfig(policy=tiny_checkpoint, dataset=dataset, ratio=0.34, samples=4, method=Depth(rank="gates"))
    prune(config, tmp_path)
    measured = load_file(tmp_path / "measured.safetensors")
    policy, demonstrations = rlrc.load(tiny_checkpoint, device="cpu"), Demonstrations.load(dataset)
    rows = demonstrations.draw(4, config.seed)
    inputs = policy.prepare(observe(demonstrations, rows, policy))
    actions, padded = chunks(demonstrations, rows, policy)
    assert not padded.any()
    scores = []
    for index, layer in enumerate(policy.model.language_model.model.layers):
        gate = torch.ones(4, 1, 1, requires_grad=True)
        hook = layer.register_forward_hook(lambda _, given, out, gate=gate: given[0] + gate * (out - given[0]))
        loss = policy.errors(*policy.predict(inputs, actions)).mean()
        (slopes,) = torch.autograd.grad(loss, gate)
        hook.remove()
        scores.append(float(slopes.abs().sum()))
        assert float(measured[str(index)]) == pytest.approx(scores[-1], rel=1e-3)
    stage = rlrc.load(tmp_path / "checkpoint").lineage["stages"][-1]
    assert int(np.argmin(scores)) not in stage["kept"]["layers"]


def test_n_of_m_zeroes_n_of_every_m_and_protected_layers_keep_all(
    tiny_checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    config = PruneConfig(policy=tiny_checkpoint, dataset=dataset, samples=4, protect=(1,), method=Wanda(pattern="2:4"))
    result = prune(config, tmp_path)
    assert result["metrics"]["zeros"] == pytest.approx(2 / 3 * 0.5)
    for index, layer in enumerate(rlrc.load(tmp_path / "checkpoint").model.language_model.model.layers):
        blocks = (layer.mlp.up_proj.weight == 0).unflatten(1, (-1, 4)).sum(-1)
        assert (blocks == (0 if index == 1 else 2)).all()


def test_token_ids_calibrate_as_language_models_are(tmp_path: Path, tiny_policy: Policy) -> None:
    policy = tiny_policy
    policy.model.config.action_head_only = False
    torch.manual_seed(0)
    policy.model = type(policy.model)(policy.model.config).eval()
    policy.save(tmp_path / "whole")
    ids = torch.randint(4, 20, (3, 9))
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    config = PruneConfig(policy=tmp_path / "whole", token_ids=tmp_path / "ids.safetensors", ratio=0.5)
    prune(config, tmp_path / "out")
    assert rlrc.load(tmp_path / "out" / "checkpoint").model.language_model.lm_head.out_features > 256
    measured = load_file(tmp_path / "out" / "measured.safetensors")
    language_model = policy.model.language_model
    loss = language_model(ids, labels=ids).loss
    layer = language_model.model.layers[0].mlp
    grads = torch.autograd.grad(loss, [layer.gate_proj.weight, layer.up_proj.weight, layer.down_proj.weight])
    gate, up, down = (
        (w.detach() * g).abs()
        for w, g in zip((layer.gate_proj.weight, layer.up_proj.weight, layer.down_proj.weight), grads, strict=True)
    )
    torch.testing.assert_close(measured["0.channels"], gate.sum(1) + up.sum(1) + down.sum(0), rtol=1e-3, atol=1e-9)


# -- state saliency ----------------------------------------------------------------------------------------------------


def test_blurring_changes_its_cell_most_and_the_far_corner_not() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    change = np.abs(blur(image, smoothed(image), 4, 0).astype(float) - image).mean(axis=(0, 3))
    assert change[:16, :16].mean() > 20 and change[40:, 40:].max() == 0


def test_the_blur_is_scipys_gaussian_filter() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3)).astype(np.float32)
    expected = gaussian_filter(pictures, (0, 6, 4, 0))
    np.testing.assert_allclose(_smooth(_smooth(pictures, 1, 6), 2, 4), expected, rtol=1e-6)


def test_saliency_is_what_a_whole_policy_does_when_the_picture_is_blurred(
    tiny_checkpoint: Path, frames: Demonstrations
) -> None:
    policy, drawn = rlrc.load(tiny_checkpoint), draw(tiny_checkpoint, frames, 5)
    source = Source(blocks_of(policy), groups_of(policy), Target())
    found = state_saliency(source.with_frames(drawn), drawn, 2)

    def act(images: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            inputs = policy.prepare(policy.observation(images, drawn.observation.instruction))
            logits, _ = policy.model.action_logits(inputs, policy.tokens_of(drawn.actions))
        centres = torch.tensor([(-1 + 2 * (255 - bin) / 255 - 1 / 255) for bin in range(1, 256)])
        centres = torch.cat([centres[:1], centres])  # the first two ids share the highest bin
        return logits.softmax(-1) @ centres

    images = drawn.observation.images[policy.spec.cameras[0]]
    own = act(images)
    expected = sum((own - act(blur(images, smoothed(images), 2, cell))).square() / 2 for cell in range(4)) / 4
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-3, atol=1e-9)


def test_salient_states_and_dimensions_count_more() -> None:
    sis = torch.rand(10, 2, 7) * 0.1
    sis[3] += 1.0
    sis[:, :, 2] += 0.5
    weights = StateSaliencyMethod(StateSaliency(top_share=0.1, weight=4.0)).weights(sis)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    torch.testing.assert_close(weights[3] / weights[4], torch.full((2, 7), 4.0))
    assert (weights[0].argmax(dim=1) == 2).all()


def test_a_weighted_loss_counts_each_token_by_its_weight(tiny_checkpoint: Path, frames: Demonstrations) -> None:
    drawn = draw(tiny_checkpoint, frames, 4)
    states, context = drawn.calibration().states, drawn.calibration().context
    one = torch.zeros(4, 1, 7)
    one[2, 0, 5] = 28.0
    found = drawn.weighted(one).calibration().loss(states, slice(0, 4))
    bins = drawn.policy.actions.ids_to_bins(drawn.policy.tokens_of(drawn.actions))
    torch.testing.assert_close(found, F.cross_entropy(drawn.policy.read(states, context)[2, 0, 5], bins[2, 5]))


# -- allocation --------------------------------------------------------------------------------------------------------


def test_published_ratios_give_published_shapes() -> None:
    assert sizes([heads(32, head_dim=128), channels(11008)], 0.9) == [4, 1100]
    assert sizes([heads(32, head_dim=128), channels(11008)], 0.25) == [24, 8256]


def test_overall_target_with_protected_layers_asks_more_of_the_others() -> None:
    """OpenVLA-7B with its first and last layer kept: 90 % overall is 96 % of the other thirty, 1.758 B parameters."""
    groups = []
    for layer in range(32):
        q, gate = (
            Member(DECODER, name, 0, width, 4096) for name, width in (("self_attn.q_proj", 128), ("mlp.gate_proj", 1))
        )
        groups += [
            Group(layer, "heads", 32, (q,), 2_097_152),
            Group(layer, "channels", 11008, (gate,), 12_288),
        ]
    left = sizes(groups, overall=0.9, protected=frozenset({0, 31}))
    assert left[:2] == left[-2:] == [32, 11008]
    assert set(zip(left[2:-2:2], left[3:-2:2], strict=True)) == {(2, 440)}
    linear = sum(count * group.unit_parameters for count, group in zip(left, groups, strict=True))
    assert round((7_541_237_184 - 6_476_005_376 + linear) / 1e9, 3) == 1.758


def test_global_overall_target_counts_parameters_not_units() -> None:
    groups = [heads(10), channels(200)]  # 1000 and 2000 parameters
    scores = [torch.full((10,), 5.0) + torch.arange(10), torch.linspace(0, 4, 200)]
    kept = choose(groups, scores, frozenset(), "global", None, 0.5, Rounding())
    assert [len(units) for units in kept] == [10, 50]


def test_global_threshold_leaves_whole_what_it_would_empty() -> None:
    scores = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0, 6.0])]
    kept = choose([heads(2), channels(4)], scores, frozenset(), "global", 0.5, None, Rounding())
    assert [units.tolist() for units in kept] == [[0, 1], [1, 2, 3]]


@pytest.mark.parametrize(("direction", "left"), [("up", 64), ("down", 32), ("nearest", 64)])
def test_rounding(direction: Any, left: int) -> None:
    assert sizes([heads(10), channels(100)], 0.5, rounding=Rounding(32, direction)) == [5, left]


def test_rounding_up_never_exceeds_what_there_is() -> None:
    assert sizes([channels(100)], 0.01, rounding=Rounding(128, "up")) == [100]


def test_a_ratio_that_leaves_nothing_names_the_layer_and_the_largest_workable_ratio() -> None:
    groups = [heads(6, layer=2), channels(40, layer=2), heads(6, layer=3), channels(20, layer=3)]
    with pytest.raises(UserError, match=r"decoder layer 3, MLP channels: .* leaves no channel of 20; .* is 0\.95$"):
        sizes(groups, 0.99)
    assert sizes(groups, 0.95) == [1, 2, 1, 1]
    with pytest.raises(
        UserError, match=r"attention heads: .* leaves no head of 6; the largest workable ratio is 0\.95"
    ):
        sizes(groups[:2], 1.0)
    with pytest.raises(UserError, match=r"the largest workable ratio is 0\.2"):
        sizes([channels(40)], 0.9, rounding=Rounding(32, "down"))
    with pytest.raises(UserError, match="all others"):
        sizes(groups, 1.0, scope="global")


def test_an_overall_target_out_of_reach_is_refused() -> None:
    groups = [channels(40, layer) for layer in range(4)]
    with pytest.raises(UserError, match=r"overall 0\.6 is out of reach: the unprotected layers hold 0\.5000"):
        sizes(groups, overall=0.6, protected=frozenset({0, 3}))


# -- cutting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_value_heads", [8, 2])
def test_cutting_equals_zeroing(key_value_heads: int) -> None:
    dense, whole = (llama(num_key_value_heads=key_value_heads, attention_bias=True) for _ in range(2))
    groups = coupled_groups(dense)
    generator = torch.Generator().manual_seed(1)
    kept = []
    for group in groups:
        kept.append(torch.randperm(group.units, generator=generator)[: 1 + group.units // 3].sort().values)
    for group, units in zip(groups, kept, strict=True):
        output = group.members[-1]
        columns = torch.ones(group.units, output.width, dtype=torch.bool)
        columns[units] = False
        weight = dense.model.layers[group.layer].get_submodule(output.name).weight
        weight.data[:, columns.flatten()] = 0

    sliced = apply(plan_cut(3, groups, kept), whole)
    ids = torch.randint(50, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(sliced(ids).logits, dense(ids).logits)
        torch.testing.assert_close(
            sliced.generate(ids, max_new_tokens=4, do_sample=False),
            dense.generate(ids, max_new_tokens=4, do_sample=False),
        )


# -- the verb ----------------------------------------------------------------------------------------------------------


def logits(policy: Policy, frames: Demonstrations) -> torch.Tensor:
    instructions = [frames.instruction(i) for i in range(len(frames))]
    inputs = policy.prepare(policy.observation(frames.images, instructions))
    tokens = torch.arange(7).repeat(len(frames), 1) + policy.actions.first_id
    with torch.no_grad():
        return policy.model.action_logits(inputs, tokens)[0]


def test_prune_writes_a_smaller_policy_with_exact_counts(
    tiny_checkpoint: Path, dataset: Path, frames: Demonstrations, tmp_path: Path
) -> None:
    config = PruneConfig(policy=tiny_checkpoint, dataset=dataset, ratio=0.9, protect=(-1,), samples=8)
    result = prune(config, tmp_path)
    with safe_open(tmp_path / "checkpoint" / "model.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == result["metrics"]["parameters"]
    prefix = "language_model.model.layers"
    assert shapes[f"{prefix}.0.self_attn.q_proj.weight"] == [4, 40]
    assert shapes[f"{prefix}.1.mlp.down_proj.weight"] == [40, 3]
    assert shapes[f"{prefix}.2.self_attn.o_proj.weight"] == [40, 40]

    lineage = json.loads((tmp_path / "checkpoint" / "compression.json").read_text())
    stage = lineage["stages"][-1]
    assert [len(stage["kept"][kind]["0"]) for kind in ("heads", "channels")] == [1, 3]
    assert result["layers"][0] == {"layer": 0, "heads": 1, "channels": 3}
    assert result["layers"][2] == {"layer": 2, "heads": 10, "channels": 40} and "2" not in stage["kept"]["heads"]
    assert stage["config"]["method"]["importance"] == "param_first" and len(stage["dataset_sha256"]) == 64

    dense, pruned = rlrc.load(tiny_checkpoint), rlrc.load(tmp_path / "checkpoint")
    for index in ("0", "1"):
        layer = dense.model.language_model.model.layers[int(index)]
        gone = [c for c in range(40) if c // layer.self_attn.head_dim not in stage["kept"]["heads"][index]]
        layer.self_attn.o_proj.weight.data[:, gone] = 0
        gone = [c for c in range(40) if c not in stage["kept"]["channels"][index]]
        layer.mlp.down_proj.weight.data[:, gone] = 0
    torch.testing.assert_close(logits(pruned, frames), logits(dense, frames), rtol=1e-4, atol=1e-5)


def test_a_pruned_policy_can_be_pruned_again(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    first = PruneConfig(policy=tiny_checkpoint, dataset=dataset, ratio=0.5, samples=4)
    prune(first, tmp_path / "a")
    result = prune(first.model_copy(update={"policy": tmp_path / "a" / "checkpoint"}), tmp_path / "b")
    assert [layer["heads"] for layer in result["layers"]] == [3, 3, 3]
    assert len(rlrc.load(tmp_path / "b" / "checkpoint").lineage["stages"]) == 2


def test_a_bfloat16_policy_stays_bfloat16(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    rlrc.load(tiny_checkpoint).save(tmp_path / "half", dtype=torch.bfloat16)
    for importance in ("param_first", "param_mix"):
        config = PruneConfig(policy=tmp_path / "half", dataset=dataset, ratio=0.5, samples=4)
        method = LlmPruner(importance=importance)
        prune(config.model_copy(update={"method": method}), tmp_path / importance)
        model = rlrc.load(tmp_path / importance / "checkpoint").model
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_equal_seeds_choose_equal_units(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    kept = []
    for run, seed in enumerate((0, 0, 1)):
        config = PruneConfig(policy=tiny_checkpoint, dataset=dataset, ratio=0.5, samples=4, seed=seed)
        prune(config, tmp_path / str(run))
        kept.append(rlrc.load(tmp_path / str(run) / "checkpoint").lineage["stages"][-1]["kept"])
    assert kept[0] == kept[1] != kept[2]


def test_a_dry_run_tells_the_same_counts_and_writes_nothing(
    tiny_checkpoint: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PruneConfig(policy=tiny_checkpoint, dataset=dataset, overall=0.5, protect=(0,), samples=4)
    told = prune(config.model_copy(update={"dry_run": True}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "mlp.down_proj     1 column" in capsys.readouterr().err
    done = prune(config, tmp_path / "out")
    assert done["metrics"].pop("zeros") == 0 and told == done
    assert abs(told["metrics"]["removed"] - 0.5) < 0.05


def test_bad_input_is_told_in_one_line(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    config = PruneConfig(policy=tiny_checkpoint, dataset=dataset, ratio=0.5)
    for change, message in [
        ({"protect": (0, 3)}, "no layer 3, they are numbered 0 to 2"),
        ({"protect": (0, 1, -1)}, "names all 3 layers"),
        ({"samples": 13}, "the dataset holds 12 frames"),
        ({"ratio": 0.999}, "leaves no head of 10; the largest workable ratio is 0.975"),
        ({"ratio": None, "overall": 0.9, "protect": (0, -1)}, "out of reach"),
        ({"ratio": None, "method": Depth(keep=(0, 3))}, "keep: there is no layer 3"),
        (
            {"ratio": None, "method": Depth(keep=(0,)), "protect": (1,)},
            "layer 1 is not among the layers that keep names",
        ),
        ({"ratio": 0.9, "method": Depth(), "protect": (0, 1)}, "1 is the most that can go"),
        ({"ratio": 0.2, "method": Depth()}, "a ratio of 0.2 takes none of 3 layers"),
        ({"ratio": 1.0, "method": Wanda()}, "leaves no weight"),
        ({"ratio": 1.0, "method": Flap()}, "leaves nothing"),
        ({"ratio": None, "overall": 0.5, "method": Magnitude()}, "takes a ratio, not an overall"),
        ({"ratio": None, "method": Magnitude(pattern="3:7")}, "cannot be cut into groups of 7"),
        ({"dataset": None, "token_ids": dataset / "meta" / "info.json"}, "not a safetensors file"),
    ]:
        with pytest.raises(UserError, match=message):
            prune(config.model_copy(update=change), tmp_path / "out")
    quantize(QuantizeConfig(policy=tiny_checkpoint), tmp_path / "packed")
    with pytest.raises(UserError, match="prune first, quantize last"):
        prune(config.model_copy(update={"policy": tmp_path / "packed" / "checkpoint"}), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": 0.5, "overall": 0.5, "dataset": "d"}, "either ratio or overall"),
        ({"dataset": "d"}, "either ratio or overall"),
        ({"ratio": 0.5}, "needs a dataset"),
        ({"ratio": 0.5, "dataset": "d", "token_ids": "t"}, "either dataset or token_ids"),
        ({"ratio": 0.5, "method": {"kind": "depth", "keep": [0]}}, "says itself how much goes"),
        ({"method": {"kind": "magnitude", "pattern": "4:4"}}, "zero fewer than all"),
        ({"ratio": 0.5, "method": {"kind": "magntude"}}, "magntude"),
        ({"ratio": 0.5, "round_to": 32, "method": {"kind": "tokens"}}, "leave round_to out"),
        ({"ratio": 0.5, "round_to": 32, "dataset": "d", "method": {"kind": "wanda"}}, "leave round_to out"),
        ({"method": {"kind": "wanda", "pattern": "2:4", "mass": True}, "dataset": "d"}, "mass takes a share"),
        ({"method": {"kind": "depth", "keep": [0], "rank": "gates"}}, "leave rank out"),
        ({"ratio": 0.5, "dataset": "d", "method": {"kind": "llm-pruner", "importnace": "x"}}, "importnace"),
    ],
)
def test_bad_configs_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PruneConfig.parse({"policy": "p", **values}, "recipe")
