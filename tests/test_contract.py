"""What every family has to keep of the contract, on small random policies."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_policies import CASES, Case, look, make

import rlrc
from rlrc.bench import stage_clock
from rlrc.configs.learner import LearnerConfig
from rlrc.errors import UserError
from rlrc.packed.layers import QuantizedLinear, count_parameters, quantization_config
from rlrc.policies.contract import Policy
from rlrc.policies.families import FAMILIES
from rlrc.policies.losses import Teacher
from rlrc.policies.values import Observation, Sampler
from rlrc.progress import MetricsLog
from rlrc.prune.groups import blocks_of, coupled_groups
from rlrc.prune.stream import Calibration, Stream
from rlrc.prune.structured import layer_shape, plan_cut
from rlrc.quantize import linear_names, quantize_linears
from rlrc.recover.loop import Learner


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def policy(case: Case) -> Policy:
    return make(case)


def test_every_family_has_a_case() -> None:
    assert {case.family for case in CASES.values()} == FAMILIES.keys()


def actions_for(policy: Policy, rows: int = 3) -> torch.Tensor:
    shape = (rows, policy.spec.horizon, len(policy.spec.action))
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 1.9 - 0.95


def noise(rows: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(10 + row) for row in range(rows)]


@torch.no_grad()
def test_shapes(case: Case, policy: Policy) -> None:
    spec, inputs = policy.spec, policy.prepare(look(policy))
    shape = (3, spec.horizon, len(spec.action))
    encoded = policy.encode(inputs)
    assert len(encoded) == 3 and policy.features(encoded).shape[:2] == (3, policy.num_patches)
    sample = policy.sample(inputs, case.sampler, noise())
    assert sample.actions.shape == shape and sample.actions.isfinite().all()
    assert all(len(value) == 3 for value in sample.latent.values())
    predicted, target = policy.predict(inputs, actions_for(policy), noise())
    assert predicted.shape[:3] == target.shape == shape
    for values in (policy.errors(predicted, target), policy.mean_actions(predicted), policy.best_actions(predicted)):
        assert values.shape == shape
    acted = policy.act(look(policy))
    assert acted.shape == (shape if spec.horizon > 1 else (3, len(spec.action))) and acted.dtype == np.float32
    assert {name for part in policy.parts for name in [policy.part_of(f"{policy.parts[part]}.x")]} == set(policy.parts)
    for name in policy.parts.values():
        policy.model.get_submodule(name)


@torch.no_grad()
def test_rows_do_not_depend_on_each_other(case: Case, policy: Policy) -> None:
    everything = look(policy)
    inputs = policy.prepare(everything)
    sampled = policy.sample(inputs, case.sampler, noise())
    predicted, _ = policy.predict(inputs, actions_for(policy), noise())
    for row in range(3):
        alone = policy.prepare(everything[[row]])
        close(policy.sample(alone, case.sampler, [noise()[row]]).actions, sampled.actions[row : row + 1])
        close(policy.predict(alone, actions_for(policy)[[row]], [noise()[row]])[0], predicted[row : row + 1])
        for kept in (inputs[[row]], policy.encode(inputs)[[row]]):
            close(policy.sample(kept, case.sampler, [noise()[row]]).actions, sampled.actions[row : row + 1])
    parts = [policy.encode(policy.prepare(everything[[row]])) for row in (2, 0, 1)]
    joined = policy.predict(
        type(parts[0]).concatenate(parts), actions_for(policy)[[2, 0, 1]], [noise()[i] for i in (2, 0, 1)]
    )
    close(joined[0], predicted[[2, 0, 1]])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_everything_that_is_seen_counts(policy: Policy) -> None:
    """Another picture of any camera, another state or another text makes another chunk."""
    observation, spec = look(policy, 1), policy.spec
    others = [replace(observation, instruction=["stop now"])]
    for camera in spec.cameras:
        others.append(replace(observation, images={**observation.images, camera: 255 - observation.images[camera]}))
    if observation.state is not None:
        others.append(replace(observation, state=observation.state + 0.4))
    if len(spec.cameras) > 1:
        swapped = dict(zip(spec.cameras, reversed(list(observation.images.values())), strict=True))
        others.append(replace(observation, images=swapped))

    def predicted(seen: Observation) -> torch.Tensor:
        return policy.predict(policy.prepare(seen), actions_for(policy, 1), noise(1))[0]

    for other in others:
        assert (predicted(other) - predicted(observation)).abs().max() > 1e-4


@torch.no_grad()
def test_both_attention_kernels_compute_the_same(policy: Policy) -> None:
    inputs = policy.prepare(look(policy))
    found = []
    for kind in ("sdpa", "eager"):
        policy.model.set_attn_implementation(kind)
        found.append(policy.predict(inputs, actions_for(policy), noise())[0])
    close(*found)


@torch.no_grad()
def test_save_and_load_give_the_same_bits(case: Case, policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy")
    loaded = case.paced(rlrc.load(tmp_path / "policy"))
    assert type(loaded) is type(policy) and loaded.spec == policy.spec
    assert not [file.name for file in (tmp_path / "policy").iterdir() if file.suffix in (".pt", ".bin", ".py")]
    state = policy.model.state_dict()
    assert loaded.model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.model.state_dict().items())
    sampler, observation = case.sampler, look(policy)
    first, second = (
        p.sample(p.prepare(observation), sampler, noise()).actions.numpy().tobytes() for p in (policy, loaded)
    )
    assert first == second
    acted = [p.act(observation, generator=noise()).tobytes() for p in (policy, loaded)]
    assert acted[0] == acted[1]
    loaded.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "policy" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_loss_falls(policy: Policy) -> None:
    inputs, actions = policy.prepare(look(policy)), actions_for(policy)
    trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.Adam(trained, lr=2e-3), []
    for _ in range(12):
        loss = policy.loss(policy.encode(inputs), actions, generator=noise())["loss"]
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_what_lies_behind_an_episode_is_not_learnt_and_rows_have_weights(policy: Policy) -> None:
    inputs, actions = policy.prepare(look(policy)), actions_for(policy)
    padded = torch.zeros(actions.shape[:2], dtype=torch.bool)
    padded[0, 1:] = True
    predicted, target = policy.predict(inputs, actions, noise())
    errors = policy.errors(predicted, target).mean(dim=2)
    rows = [errors[row][~padded[row]].mean() for row in range(3)]
    loss = policy.loss(inputs, actions, padded, generator=noise())["loss"]
    close(loss, torch.stack(rows).mean())
    weights = torch.tensor([2.5, 0.25, 0.25])
    for behind, of_row in ((padded, torch.stack(rows)), (None, errors.mean(dim=1))):
        loss = policy.loss(inputs, actions, behind, generator=noise(), weights=weights)["loss"]
        close(loss, (weights * of_row).mean())


@torch.no_grad()
def test_a_samples_logprobs_are_its_likelihood(case: Case, policy: Policy) -> None:
    inputs, sampler = policy.prepare(look(policy)), case.exploring
    if policy.no_likelihood is not None:
        with pytest.raises(UserError, match="PPO needs the likelihood"):
            policy.likelihood(inputs, {}, sampler)
        return
    sample = policy.sample(inputs, sampler, noise())
    assert sample.logprobs is not None
    likelihood = policy.likelihood(inputs, sample.latent, sampler)
    torch.testing.assert_close(sample.logprobs, likelihood.logprobs, atol=1e-4, rtol=1e-4)
    if policy.bin_width is not None:
        bins = policy.predict(inputs, actions_for(policy))[0].shape[-1]
        assert (likelihood.entropy > 0).all() and (likelihood.entropy <= math.log(bins)).all()
    other = policy.sample(inputs, sampler, [torch.Generator().manual_seed(90 + row) for row in range(3)])
    assert not torch.equal(other.actions, sample.actions)
    close(policy.likelihood(inputs, other.latent, sampler).state, likelihood.state)
    assert likelihood.state.shape == (3, policy.critic_width) and likelihood.state.dtype == torch.float32


def test_likelihoods_with_and_without_gradients_are_equal(case: Case, policy: Policy) -> None:
    """To the bit, so that PPO's first ratios are exactly 1; as it reads them, after vision and with plain attention."""
    if policy.no_likelihood is not None:
        return  # test_a_samples_logprobs_are_its_likelihood holds it to saying so
    policy.model.set_attn_implementation("eager")
    with torch.no_grad():
        inputs = policy.encode(policy.prepare(look(policy)))
        latent = policy.sample(inputs, case.exploring, noise()).latent
        without = policy.likelihood(inputs, latent, case.exploring)
    found = policy.likelihood(inputs, latent, case.exploring)
    assert found.logprobs.requires_grad
    assert torch.equal(found.logprobs, without.logprobs) and torch.equal(found.state, without.state)


@torch.no_grad()
def test_a_sample_follows_the_distribution(policy: Policy) -> None:
    """Over many draws, each token's share is the probability that the likelihood gives it."""
    if policy.bin_width is None:
        return  # tests/test_flow_rl.py holds what denoises to its densities
    draws, sampler = 600, Sampler(0.5)
    observation = look(policy, 1)[np.zeros(draws, int)]
    inputs = policy.encode(policy.prepare(observation))
    sample = policy.sample(inputs, sampler, torch.Generator().manual_seed(0))
    assert sample.logprobs is not None
    first = sample.latent["tokens"][:, 0, 0]
    values, counts = first.unique(return_counts=True)
    expected = torch.stack([sample.logprobs[first == value][0, 0, 0].exp() for value in values]) * draws
    assert ((counts - expected).abs() <= 5 * expected.sqrt() + 1).all()


@torch.no_grad()
def test_every_stack_can_lose_units(case: Case, policy: Policy, tmp_path: Path) -> None:
    """What is left computes what the policy with those units zeroed computes, also after saving and loading."""
    policy.save(tmp_path / "whole")
    source = rlrc.load(tmp_path / "whole")
    config, generator = copy.deepcopy(source.model.config), torch.Generator().manual_seed(5)
    groups, stacks = coupled_groups(source), {stack.name: stack for stack in source.stacks()}
    counts = [1 + group.units // (2 + group.layer) for group in groups]
    kept = [
        torch.randperm(group.units, generator=generator)[:count].sort().values
        for group, count in zip(groups, counts, strict=True)
    ]
    for group, units in zip(groups, kept, strict=True):
        gone = torch.ones(group.units, dtype=torch.bool)
        gone[units] = False
        for member in (member for member in group.members if member.axis == 1):
            zeroed = blocks_of(policy)[group.layer]
            member.matrix(zeroed).weight[:, gone.repeat_interleave(member.width)] = 0
    plan = plan_cut(len(blocks_of(source)), groups, kept)
    for index, block in enumerate(blocks_of(source)):
        plan.edit(index, block)
    shapes = {
        name: [layer_shape(stack.layers[index]) | plan.shapes.get((index, name), {}) for index in plan.layers]
        for name, stack in stacks.items()
    }
    source.reshape(config, plan.layers, shapes)
    source.rebuilt(config).save(tmp_path / "cut", tensors=source.model.state_dict().items())
    cut = case.paced(rlrc.load(tmp_path / "cut"))
    assert count_parameters(cut.model) < count_parameters(policy.model)
    found, expected = (p.predict(p.prepare(look(p)), actions_for(p), noise())[0] for p in (cut, policy))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    found, expected = (p.sample(p.prepare(look(p)), case.sampler, noise()).actions for p in (cut, policy))
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=5e-5)


@torch.no_grad()
def test_every_part_can_be_packed(policy: Policy, tmp_path: Path) -> None:
    dense = policy.predict(policy.prepare(look(policy)), actions_for(policy), noise())[0]
    names = {part: linear_names(policy, [part]) for part in policy.parts}
    assert all(names.values())
    packed, _ = quantize_linears(policy.model, [name for part in names.values() for name in part], 8, 32)
    assert {policy.part_of(layer.name) for layer in packed} >= set(policy.parts) - {"noisy_action", "proprio"}
    policy.model.config.quantization_config = quantization_config(8, 32, [layer.name for layer in packed])
    policy.save(tmp_path / "packed")
    loaded = rlrc.load(tmp_path / "packed")
    assert sum(isinstance(module, QuantizedLinear) for module in loaded.model.modules()) == len(packed)
    found = loaded.predict(loaded.prepare(look(loaded)), actions_for(loaded), noise())[0]
    assert (found - dense).abs().mean() < 0.1 * dense.std()
    assert loaded.act(look(loaded)).shape == policy.act(look(policy)).shape


@pytest.mark.parametrize("teaches", [False, True], ids=["alone", "teacher"])
def test_a_packed_policy_is_fine_tuned(policy: Policy, tmp_path: Path, teaches: bool) -> None:
    """With every part in 2 bits; what the teacher says of the very same frames is learnt beside them."""
    teacher = Teacher(copy.deepcopy(policy), 0.5) if teaches else None
    packed, _ = quantize_linears(policy.model, linear_names(policy, list(policy.parts)), bits=2, group_size=8)
    names = [layer.name for layer in packed]
    policy.model.config.quantization_config = quantization_config(2, 8, names)
    learner = Learner(policy, LearnerConfig(precision="fp32", learning_rate=5e-3), tmp_path)
    losses = []
    for _ in range(10):
        inputs = policy.prepare(look(policy))
        losses.append(policy.loss(inputs, actions_for(policy), None, 0.0, noise(), teacher)["loss"])
        losses[-1].backward()
        learner.step()
    assert losses[-1] < 0.95 * losses[0], losses
    trained = {name: policy.model.get_submodule(name).weight.detach().flatten(1) for name in names}
    with MetricsLog(tmp_path) as log:
        log.log(10, loss=0.0)
    learner.finish("sft")
    loaded = rlrc.load(tmp_path / "checkpoint").model
    assert all(torch.equal(loaded.get_submodule(name).dequantize(), weight) for name, weight in trained.items())


@torch.no_grad()
def test_layers_pass_one_by_one(policy: Policy) -> None:
    """Pruning streams the layers block by block; that is the policy's own computation."""
    inputs, actions = policy.prepare(look(policy)), actions_for(policy)
    entering = policy.teacher_forced(inputs, actions, noise())
    assert not all(there.all() for there in entering.there.values()), "texts of several lengths, to try masks as well"
    calibration = Calibration(entering.states, entering.there, entering.context, policy.step, lambda states, rows: None)
    stream, states = Stream(calibration), entering.states
    for block in blocks_of(policy):
        states = stream.step(block, states)
    close(policy.read(states, entering.context), policy.predict(inputs, actions, noise())[0])


def test_stages_are_those_that_take_time(policy: Policy) -> None:
    inputs = policy.prepare(look(policy, 1))
    stages = policy.stages(inputs)
    with stage_clock(policy) as seconds:
        policy.sample(inputs)
    assert {stage for stage, taken in seconds.items() if taken} == set(stages)
    assert all(stage.positions > 0 and stage.passes > 0 for stage in stages.values())
    assert policy.published_parameters > sum(p.numel() for p in policy.model.parameters())


BAD: dict[str, tuple[Callable[[Observation], Observation], str]] = {
    "no camera": (lambda seen: replace(seen, images={}), "the policy sees the camera 'front', which is not there"),
    "rows": (lambda seen: replace(seen, instruction=["stop"]), "3 images came with 1 instructions"),
    "absent": (
        lambda seen: replace(seen, present={"front": np.array([True, False, True])}),
        "'front' is missing in some",
    ),
}
BAD_STATE: dict[str, tuple[Callable[[Observation], Observation], str]] = {
    "no state": (lambda seen: replace(seen, state=None), "the policy reads a state of 5 numbers"),
    "width": (lambda seen: replace(seen, state=np.zeros((3, 4), np.float32)), r"shape \(3, 5\), not \(3, 4\)"),
    "integers": (lambda seen: replace(seen, state=np.zeros((3, 5), int)), "floating-point"),
    "nan": (lambda seen: replace(seen, state=np.full((3, 5), np.nan, np.float32)), "NaN or infinity"),
}


@pytest.mark.parametrize("kind", [*BAD, *BAD_STATE])
def test_bad_observations(policy: Policy, kind: str) -> None:
    if kind in BAD_STATE and not policy.spec.state:
        policy.prepare(BAD_STATE[kind][0](look(policy)))  # nobody reads it
        return
    change, message = (BAD | BAD_STATE)[kind]
    if kind == "absent" and policy.masks_cameras:
        lacking, black = change(look(policy)), look(policy)
        black.images["front"][1] = 0  # type: ignore[index]
        found = [policy.predict(policy.prepare(seen), actions_for(policy), noise())[0] for seen in (lacking, black)]
        close(found[0][[0, 2]], found[1][[0, 2]])
        assert (found[0][1] - found[1][1]).abs().max() > 1e-3, "a camera that is not there is no black picture"
        return
    with pytest.raises(UserError, match=message):
        policy.prepare(change(look(policy)))


def test_bad_samplers(case: Case, policy: Policy) -> None:
    inputs = policy.prepare(look(policy))
    with pytest.raises(UserError, match="3 rows came with 2 generators"):
        policy.sample(inputs, case.sampler, noise(2))
    if policy.bin_width is None:
        with pytest.raises(UserError, match="label_spread"):
            policy.loss(inputs, actions_for(policy), label_spread=1.0, generator=noise())
