"""Every verb on small policies of the flow-matching families, with two cameras, a state and chunks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import bandit_world
import numpy as np
import pytest
import torch
from small_policies import CASES, FLOW, SHAPE, make
from two_cameras import FRAMES, two_cameras

import rlrc
from rlrc import envs
from rlrc.act.action_error import action_error
from rlrc.act.evaluate import evaluate
from rlrc.bench import bench
from rlrc.configs.bench import BenchConfig
from rlrc.configs.evaluate import EvaluateConfig
from rlrc.configs.inspect import InspectConfig
from rlrc.configs.learner import Lora
from rlrc.configs.make_random import MakeRandomConfig
from rlrc.configs.prune import Depth, Flap, LlmPruner, Magnitude, PruneConfig, StateSaliency, Wanda
from rlrc.configs.quantize import QuantizeConfig
from rlrc.configs.rl import RlConfig
from rlrc.configs.sft import SftConfig
from rlrc.configs.train import FlowOptions, TrainConfig
from rlrc.data import Demonstrations
from rlrc.data.statistics import adopt_statistics
from rlrc.errors import UserError
from rlrc.inspect import inspect
from rlrc.policies.make_random import make_random
from rlrc.policies.registry import new_policy, publish
from rlrc.prune import prune
from rlrc.quantize import quantize
from rlrc.recover.ppo import rl
from rlrc.recover.sft import sft
from rlrc.recover.train import train

FAMILIES = ("pi0", "pi05", "smolvla")
PUBLISHED = {"smolvla": (450_046_176, 500), "pi0": (3_501_372_176, 777), "pi05": (3_616_757_520, 812)}
"""Parameters and tensors of the published files, as ../shared/reference/flow_policies.md counts them."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_cameras(tmp_path_factory.mktemp("two-cameras") / "dataset")


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of each family after a few steps of training from scratch."""
    out = tmp_path_factory.mktemp(f"train-{request.param}")
    learning = {"steps": 10, "batch_size": 4, "warmup_steps": 1, "learning_rate": 2e-3, "state_loss_weight": 0}
    config = TrainConfig(
        family=request.param, flow=FLOW, shape=SHAPE, dataset=dataset, device="cpu", noise_draws=3, **learning
    )
    assert np.isfinite(train(config, out)["loss"])
    policy = rlrc.load(out / "checkpoint")
    assert (policy.spec.family, policy.spec.cameras) == (request.param, ("front", "wrist"))
    assert (policy.spec.horizon, len(policy.spec.state), len(policy.spec.action)) == (3, 8, 7)
    return out / "checkpoint"


def test_published_sizes() -> None:
    for preset, (parameters, tensors) in PUBLISHED.items():
        shapes = publish(preset).shapes
        assert (sum(torch.Size(shape).numel() for shape in shapes.values()), len(shapes)) == (parameters, tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_policies_act(family: str, tmp_path: Path) -> None:
    make_random(MakeRandomConfig(preset=f"{family}-tiny", out_folder=tmp_path / "random"), Path("unused"))
    policy = rlrc.load(tmp_path / "random", dtype=torch.float32)
    assert policy.spec.family == family and policy.spec.horizon == 50
    random = np.random.default_rng(0)
    images = {name: random.integers(0, 256, (1, 60, 80, 3), np.uint8) for name in policy.spec.cameras}
    state = random.normal(size=(1, len(policy.spec.state))).astype(np.float32)
    actions = policy.act(images, ["put carrot on plate"], state=state)
    assert actions.shape == (1, 50, len(policy.spec.action)) and np.isfinite(actions).all()
    # What nothing reads is counted, and neither loaded nor saved.
    assert policy.published_parameters > sum(parameter.numel() for parameter in policy.model.parameters())


def test_data_that_a_policy_was_not_made_for_are_told_before_training(
    trained: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, shown, config = rlrc.load(trained), Demonstrations.load(dataset), SftConfig(policy=trained, dataset=dataset)
    assert shown.state is not None
    adopt_statistics(policy, shown, config)
    assert not capsys.readouterr().err, "the policy was trained on these"
    far = shown.state.mean(axis=0) + 100 * (np.ptp(shown.state, axis=0) + 1)
    adopt_statistics(policy, replace(shown, state=shown.state + far), config)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "100.0% of the states in" in line and "far outside" in line and "clipped" not in line
    actions = shown.actions.copy()
    actions[:, 2] = actions[:, 2].mean() + 100 * (np.ptp(actions[:, 2]) + 1)
    adopt_statistics(policy, replace(shown, actions=actions), config)
    assert f"{1 / 7:.1%} of the action labels in" in (told := capsys.readouterr().err) and " 2 (100%);" in told
    with pytest.raises(UserError, match=r"makes \d+ tokens, and the policy reads 1 to"):
        adopt_statistics(policy, replace(shown, tasks=["put " * 300 for _ in shown.tasks]), config)


METHODS = {
    "taylor": LlmPruner(),
    "saliency": StateSaliency(grid=2),
    "flap": Flap(),
    "wanda": Wanda(),
    "depth": Depth(),
    "gates": Depth(rank="gates"),
}


@pytest.mark.parametrize("method", METHODS)
def test_prune(trained: Path, dataset: Path, method: str, tmp_path: Path) -> None:
    config = PruneConfig(policy=trained, dataset=dataset, ratio=0.4, samples=6, method=METHODS[method], device="cpu")
    family = rlrc.load(trained).spec.family
    if (family, method) == ("smolvla", "flap"):
        with pytest.raises(UserError, match="FLAP looks at one output matrix a unit"):
            prune(config, tmp_path)
        return
    result = prune(config, tmp_path)
    policy = rlrc.load(tmp_path / "checkpoint")
    before = result["metrics"]["linear_parameters_before"]
    if method == "wanda":
        # Keys and values that all heads share, and the matrices of pi0.5's norms, are no units and stay whole.
        assert 0.25 < result["metrics"]["zeros"] < 0.42
    else:
        assert result["metrics"]["linear_parameters"] < 0.85 * before
    assert policy.spec == rlrc.load(trained).spec
    seen = {(layer.get("stack", "decoder"), kind) for layer in result["layers"] for kind in layer if kind != "layer"}
    assert {("decoder", "heads"), ("expert", "channels")} <= seen


def test_single_weights_of_one_stack_alone(trained: Path, tmp_path: Path) -> None:
    """Also where the heads of both stacks belong together."""
    for stack, other in (("decoder", "expert"), ("expert", "decoder")):
        method = Magnitude()
        prune(PruneConfig(policy=trained, ratio=0.4, method=method, stacks=(stack,), device="cpu"), tmp_path / stack)
        policy = rlrc.load(tmp_path / stack / "checkpoint")
        for name, tensor in policy.model.state_dict().items():
            if name.endswith(("q_proj.weight", "up_proj.weight")):
                part = policy.part_of(name)
                assert part not in (stack, other) or bool((tensor == 0).float().mean() > 0.3) == (part == stack), name


def test_one_stack_alone(trained: Path, dataset: Path, tmp_path: Path) -> None:
    """The other keeps its matrices to the bit, but for what belongs to the heads that leave."""
    whole = rlrc.load(trained)
    for stack, other in (("decoder", "expert"), ("expert", "decoder")):
        config = PruneConfig(policy=trained, dataset=dataset, ratio=0.4, samples=4, stacks=(stack,), device="cpu")
        prune(config, tmp_path / stack)
        cut = rlrc.load(tmp_path / stack / "checkpoint").model.state_dict()
        untouched = [name for name in whole.model.state_dict() if whole.part_of(name) == other and ".mlp." in name]
        assert untouched
        for name in untouched:
            assert torch.equal(cut[name], whole.model.state_dict()[name])
        smaller = [name for name in cut if whole.part_of(name) == stack and ".mlp." in name]
        assert all(cut[name].shape != whole.model.state_dict()[name].shape for name in smaller)


def test_depth_keeps_what_layers_are(trained: Path, dataset: Path, tmp_path: Path) -> None:
    """Layers 0 and 2 of three stay: the middle one leaves both stacks, and each layer reads as it did."""
    prune(PruneConfig(policy=trained, method=Depth(keep=(0, 2)), device="cpu", dataset=dataset, samples=4), tmp_path)
    cut, whole = rlrc.load(tmp_path / "checkpoint"), rlrc.load(trained)
    for kept, stack in zip(cut.stacks(), whole.stacks(), strict=True):
        assert len(kept.layers) == 2 and len(stack.layers) == 3
        for new, old in enumerate((0, 2)):
            for name, tensor in kept.layers[new].state_dict().items():
                assert torch.equal(tensor, stack.layers[old].state_dict()[name])
    if cut.spec.family == "smolvla":
        assert [layer.crosses for layer in cut.stacks()[1].layers] == [False, False]


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_fine_tuning(trained: Path, dataset: Path, lora: Lora | None, tmp_path: Path) -> None:
    config = SftConfig(
        policy=trained,
        dataset=dataset,
        steps=10,
        batch_size=4,
        warmup_steps=1,
        learning_rate=1e-2,
        lora=lora,
        device="cpu",
    )
    assert np.isfinite(sft(config, tmp_path)["loss"])
    old, new = (rlrc.load(path).model.state_dict() for path in (trained, tmp_path / "checkpoint"))
    assert old.keys() == new.keys()
    for part in ("decoder", "expert", "action_out_proj"):
        prefix = rlrc.load(trained).parts[part]
        changed = [name for name in old if name.startswith(prefix) and not torch.equal(old[name], new[name])]
        assert changed, part


def test_a_teacher(trained: Path, dataset: Path, tmp_path: Path) -> None:
    """A copy of the teacher has nothing to learn from it alone; a pruned one comes nearer to it."""
    learning: dict[str, Any] = {"dataset": dataset, "batch_size": 4, "noise_draws": 2, "device": "cpu"}
    teaching = {"teacher": trained, "teacher_share": 1.0, "precision": "fp32"}
    copy = SftConfig(policy=trained, steps=1, learning_rate=1e-12, **teaching, **learning)
    assert sft(copy, tmp_path / "copy")["teacher_loss"] == pytest.approx(0, abs=1e-9)
    prune(PruneConfig(policy=trained, dataset=dataset, ratio=0.5, samples=4, device="cpu"), tmp_path / "pruned")
    pruned = tmp_path / "pruned" / "checkpoint"
    student = SftConfig(policy=pruned, steps=40, warmup_steps=1, learning_rate=3e-3, **teaching, **learning)
    sft(student, tmp_path / "student")
    rows = [json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["teacher_loss"] < 0.8 * rows[0]["teacher_loss"]
    other = SftConfig(policy=pruned, steps=1, teacher=make_other(tmp_path), **learning)
    with pytest.raises(UserError, match="the teacher sees and does something else"):
        sft(other, tmp_path / "other")
    with pytest.raises(ValueError, match="teacher_share needs a teacher"):
        SftConfig(policy=pruned, teacher_share=0.9, **learning)


def make_other(scratch: Path) -> Path:
    make_random(MakeRandomConfig(preset="pi0-tiny", out_folder=scratch / "random"), Path("unused"))
    return scratch / "random"


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_quantize(trained: Path, dataset: Path, rounding: str, tmp_path: Path) -> None:
    policy = rlrc.load(trained)
    parts = [part for part in policy.parts if part != "embedding"]
    config = QuantizeConfig(
        policy=trained, bits=8, dataset=dataset, samples=6, rounding=rounding, parts=parts, device="cpu"
    )
    result = quantize(config, tmp_path)
    assert 0 < result["actions"]["l1_change"] < 0.1
    packed = {policy.part_of(layer["name"]) for layer in result["per_layer"]}
    assert {"decoder", "expert", "vision", "projector"} <= packed
    rlrc.load(tmp_path / "checkpoint")


def test_action_error(trained: Path, dataset: Path, tmp_path: Path) -> None:
    result = action_error(EvaluateConfig(policy=trained, dataset=dataset, num_envs=3, device="cpu"), tmp_path)
    assert result["frames"] == 2 * FRAMES


def test_inspect(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = inspect(InspectConfig(policy=trained), tmp_path)
    told = capsys.readouterr()
    assert "cameras front, wrist; a state of 8 numbers; 3 actions of 7 numbers a call" in told.err
    assert [layer.get("stack") for layer in described["layers"]] == [None] * 3 + ["expert"] * 3
    assert "heads" not in described["layers"][2], "the last layer of the language model has keys and values alone"
    assert described["parameters"]["total"] == sum(p.numel() for p in rlrc.load(trained).model.parameters())


def test_bench(quick_rates: None, tmp_path: Path) -> None:
    stats = {"toy": {entry: {"mean": [0.0] * 7, "std": [1.0] * 7} for entry in ("action", "proprio")}}
    new_policy("smolvla", SHAPE, ["stop"], stats, 0, FLOW).save(tmp_path / "policy")
    config = BenchConfig(policies=[tmp_path / "policy"], batch_sizes=(1,), repeats=2, warmup=0, device="cpu")
    result = bench(config, tmp_path)
    assert result["policies"][0]["stages_ms"]["decode"]["p50"] > 0


@pytest.fixture
def bandit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world with two cameras and the state that the policies read."""
    monkeypatch.setitem(envs.WORLDS, "bandit", "bandit_world")
    monkeypatch.setattr(bandit_world, "SPEC", replace(bandit_world.SPEC, cameras=("front", "wrist")))


@pytest.mark.usefixtures("bandit")
def test_evaluate(trained: Path, tmp_path: Path) -> None:
    """Noise is fixed for each episode, and the number of denoising steps can be chosen."""
    options: dict[str, Any] = {"episodes": 4, "num_envs": 2, "num_workers": 0, "videos": 0, "device": "cpu"}
    config = EvaluateConfig(policy=trained, world="bandit", **options)
    runs = [
        evaluate(config.model_copy(update=changed), tmp_path / str(number))
        for number, changed in enumerate(({}, {}, {"denoising_steps": 1}))
    ]
    assert runs[0]["conditions"] == runs[1]["conditions"]
    assert runs[2]["conditions"].keys() == runs[0]["conditions"].keys()


@pytest.mark.parametrize(("family", "mode"), [("pi0", "rtc"), ("smolvla", "asynchronous"), ("smolvla", "rtc")])
def test_realtime(family: str, mode: Any, tmp_path: Path) -> None:
    """The tabletop's clock runs on while the policy thinks."""
    robot = {entry: {"mean": [0.0] * 7, "std": [0.02] * 7} for entry in ("action", "proprio")}
    new_policy(family, SHAPE, ["put carrot on plate"], {"tabletop": robot}, 0, FLOW).save(tmp_path / "policy")
    config = EvaluateConfig(
        policy=tmp_path / "policy",
        world="tabletop",
        episodes=1,
        num_envs=1,
        num_workers=0,
        videos=0,
        realtime=mode,
        latency_ms=400 if mode == "asynchronous" else None,
        device="cpu",
    )
    (tmp_path / "eval").mkdir()
    result = evaluate(config, tmp_path / "eval")
    assert result["realtime"]["mode"] == mode
    assert result["realtime"]["latency_ms"] == 400 or len(result["realtime"]["calls_ms"]) == 20


@pytest.mark.usefixtures("bandit")
@pytest.mark.parametrize("exploration", [None, "flow-noise"])
def test_rl(trained: Path, exploration: Any, tmp_path: Path) -> None:
    options = {"num_envs": 4, "num_workers": 0, "iterations": 2, "batch_size": 4, "ratio_of": "action", "device": "cpu"}
    config = RlConfig(policy=trained, world="bandit", denoising_steps=3, exploration=exploration, **options)
    metrics = rl(config, tmp_path)
    assert np.isfinite(metrics["policy_loss"]) and metrics["acting_gap"] < 0.2
    assert metrics["ratio_mean"] == pytest.approx(1, abs=0.2)
    old, new = rlrc.load(trained), rlrc.load(tmp_path / "checkpoint")
    assert (old.model.config.num_steps, new.model.config.num_steps) == (2, 3)
    assert new.spec == old.spec and new.model.state_dict().keys() == old.model.state_dict().keys()


@pytest.mark.usefixtures("bandit")
def test_ppo_finds_what_pays(trained: Path, tmp_path: Path) -> None:
    """The bandit pays for actions that point to +x, which a policy that saw three demonstrations does not know."""
    options = {"num_envs": 64, "num_workers": 0, "iterations": 12, "batch_size": 32, "ratio_of": "action"}
    learning = {"denoising_steps": 3, "learning_rate": 2e-3, "eval_every": 12, "eval_temperature": 0, "device": "cpu"}
    rl(RlConfig(policy=trained, world="bandit", **options, **learning), tmp_path)
    first, *_, last = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert last["success_at_end"] > first["success_at_end"] + 0.1
    assert first["eval_ind_success"] < 0.5 and min(last["eval_ind_success"], last["eval_ood_success"]) > 0.8


def test_what_does_not_fit_is_told(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="options flow belong to the family pi0 or pi05 or smolvla"):
        TrainConfig(dataset=dataset, flow=FlowOptions(horizon=4))
    with pytest.raises(ValueError, match="10 heads cannot share 3 key-value heads equally"):
        TrainConfig(dataset=dataset, family="smolvla", flow=FlowOptions(num_key_value_heads=3))
    with pytest.raises(ValueError, match="depth removes the layers of one number from all stacks but vision"):
        PruneConfig(policy=tmp_path, dataset=dataset, ratio=0.5, method=Depth(), stacks=("expert",))


@pytest.mark.parametrize(
    ("case", "steps", "text"),
    [
        ("oft-l1", 5, "denoising_steps: this policy's actions are not denoised"),
        ("oft-diffusion", 51, "denoising_steps 51: the policy was trained with 50, so it can take 1 to 50"),
        ("pi0", 0, "denoising_steps 0: the policy denoises in 1 to 1000"),
    ],
)
def test_steps_that_a_policy_cannot_take_are_refused(case: str, steps: int, text: str) -> None:
    with pytest.raises(UserError, match=text):
        make(CASES[case]).denoise_in(steps)


def test_tokens_have_no_noise(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stacks: 'expert' cannot be pruned in this policy; it has decoder"):
        prune(PruneConfig(policy=tiny_checkpoint, ratio=0.5, dataset=dataset, stacks=("expert",)), tmp_path)
    policy = rlrc.load(tiny_checkpoint)
    with pytest.raises(UserError, match="denoising_steps: policies of the family openvla take no such number"):
        policy.denoise_in(4)
    with pytest.raises(UserError, match="denoising_steps: policies of the family openvla take no such number"):
        rl(RlConfig(policy=tiny_checkpoint, denoising_steps=4, device="cpu"), tmp_path / "rl")
    with pytest.raises(UserError, match="noise_draws"):
        policy.learn_from(4)
