"""pi0, pi0.5 and SmolVLA against tensors of the published codes (tolerances from the fixtures' meta.json)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from flow_fixtures import FEATURES, SETS, WIDE, FlowSet
from torch.nn.functional import pad

from rlrc.errors import UserError
from rlrc.policies.flow.normalisation import FIELDS, LEROBOT_KINDS, normalise, unnormalise
from rlrc.policies.pi05.policy import bins

close = torch.testing.assert_close


@pytest.fixture(scope="module", params=SETS or [None])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FlowSet:
    if request.param is None:
        pytest.skip("reference tensors not found: ../shared/fixtures has no pi0, pi05 or smolvla")
    return FlowSet(request.param, tmp_path_factory.mktemp("flow"))


def test_inputs(case: FlowSet) -> None:
    cases, inputs = case.cases, case.policy.prepare(case.look())
    for place, name in enumerate(case.policy.spec.cameras):
        close(inputs.pixel_values[:, place], cases[f"expected.pixel_values.{name}"], atol=2e-5, rtol=0)
    mask = cases["expected.token_mask"].bool()
    length = inputs.input_ids.shape[1]
    assert length == int(mask.sum(dim=1).max()), "padding of all rows is left out"
    found = inputs.padded(length)
    assert torch.equal(found.text_mask, mask[:, :length])
    assert torch.equal(found.input_ids[found.text_mask], cases["expected.token_ids"][mask])
    if inputs.state is not None:
        close(inputs.state, cases["expected.state_padded"], atol=2e-6, rtol=0)
    else:
        state = case.policy.normalised_state(case.look())
        close(torch.from_numpy(state), cases["expected.state_normalised"], atol=2e-6, rtol=0)
    actions = torch.from_numpy(case.policy.to_normalised(cases["in.action"].numpy()))
    close(actions, cases["expected.action_normalised"], atol=2e-6, rtol=0)


@torch.no_grad()
def test_the_prefix(case: FlowSet) -> None:
    """Embeddings, positions, keys and values where something stands; ours lacks the padding that all rows have."""
    policy, cases = case.policy, case.cases
    inputs = policy.prepare(case.look())
    length = cases["expected.token_ids"].shape[1]
    prefix = policy.model.read_prefix(inputs.padded(length))
    there = cases["expected.prefix_pad_mask"].bool()
    assert torch.equal(prefix.there, there)
    embeddings, *_ = policy.model.embed_prefix(inputs.padded(length))
    close(embeddings[there], cases["expected.prefix_embeddings"][there], **FEATURES)
    per_picture = policy.model.config.tokens_of_picture
    features = policy.features(policy.encode(policy.prepare(case.look({})))).split(per_picture, dim=1)
    for name, found in zip(policy.spec.cameras, features, strict=True):
        if name != "right_wrist_0_rgb":  # which is not there in that case
            close(found, cases[f"expected.image_features.{name}"], **FEATURES)
    for index, memory in enumerate(prefix.memory):
        for kind, found in zip(("key", "value"), memory, strict=True):
            expected = cases[f"expected.kv.{index}.{kind}"]
            rows = found.transpose(1, 2)
            expected = expected if expected.shape == rows.shape else expected.transpose(1, 2)
            close(rows[there], expected[there], **FEATURES)


@torch.no_grad()
def test_velocities_and_actions(case: FlowSet) -> None:
    policy, cases = case.policy, case.cases
    times = cases["in.velocity_times"]
    close(policy.model.time_embedding(times.double()), cases["expected.time_embedding"].float(), **FEATURES)
    for number, time in enumerate(times.tolist()):
        close(case.velocity(case.look(), time), cases["expected.velocity"][number], **WIDE)
    inputs = policy.prepare(case.look())
    x, found = cases["in.noise"], [cases["in.noise"]]
    prefix = policy.model.read_prefix(inputs)
    for number in range(10):
        step = torch.full((2,), 1 - number / 10, dtype=torch.float64)
        found.append(x := x - policy.model.velocity(prefix, x, step, inputs.state) / 10)
    close(torch.stack(found), cases["expected.denoising"], **WIDE)
    (chunks,) = policy._denoise(inputs, cases["in.noise"], 10)
    close(chunks, cases["expected.denoising"][-1], **WIDE)
    actions = policy.to_physical(chunks[..., : len(policy.spec.action)].numpy())
    np.testing.assert_allclose(actions, cases["expected.actions"].numpy(), **WIDE)


def test_loss_and_gradients(case: FlowSet) -> None:
    policy, cases = case.policy, case.cases
    policy.model.zero_grad()
    actions, noise, times = cases["expected.action_normalised"], cases["in.noise"], cases["in.time"]
    inputs = policy.prepare(case.look())
    noisy = policy.mixed(actions, noise, times)
    velocity = policy.model.velocity(policy.model.read_prefix(inputs), noisy, times, inputs.state)
    close(velocity, cases["expected.training_velocity"], **WIDE)
    count = actions.shape[2]
    errors = policy.errors(velocity[..., :count], noise[..., :count] - actions)
    close(errors.mean(), cases["expected.loss_action_dim"], atol=1e-4, rtol=1e-4)
    elements = (velocity - (noise - pad(actions, (0, noise.shape[2] - count)))).square()
    close(elements, cases["expected.loss_elements"], **WIDE)
    elements.mean().backward()
    close(elements.mean(), cases["expected.loss"], atol=1e-4, rtol=1e-4)
    compared = 0
    for name, expected in cases.items():
        if name.startswith("grad."):
            ours = name.removeprefix("grad.").removeprefix("model.")
            ours = ours.replace("paligemma.model.language_model.embed_tokens", "paligemma.lm_head")
            close(policy.model.get_parameter(ours).grad, expected, atol=1e-5, rtol=2e-3)
            compared += 1
    assert compared >= 15


def test_the_noise_and_the_times_of_training(case: FlowSet) -> None:
    """Times are 0.001 + 0.999 Beta(1.5, 1), whose mean is 0.6 and whose variance is 0.0686."""
    actions = torch.zeros(20_000, 1, 7)
    noise, times, noisy = case.policy.noised(actions, torch.Generator().manual_seed(0))
    assert times.min() >= 0.001 and times.max() <= 1
    close(times.mean(), torch.tensor(0.001 + 0.999 * 0.6), atol=5e-3, rtol=0)
    close(times.var(), torch.tensor(0.0686), atol=2e-3, rtol=0)
    close(noisy, times[:, None, None] * noise)


@torch.no_grad()
def test_cameras_that_are_not_there(case: FlowSet) -> None:
    cases = case.cases
    if case.family == "smolvla":
        _, second = case.policy.spec.cameras
        close(case.velocity(case.look({second: [False, False]})), cases["missing.velocity"], **WIDE)
        rows = cases["padded.camera_mask"].bool().tolist()
        close(case.velocity(case.look({second: rows})), cases["padded.velocity"], **WIDE)
        close(case.velocity(case.look()), cases["empty.velocity"], **WIDE)
        return
    for number, time in enumerate(cases["in.velocity_times"].tolist()):
        close(case.velocity(case.look({}), time), cases["full.velocity"][number], **WIDE)
    flags = cases["mixed.camera_mask"].bool()
    present = {name: flags[:, place].tolist() for place, name in enumerate(case.policy.spec.cameras)}
    close(case.velocity(case.look(present)), cases["mixed.velocity"], **WIDE)
    without = case.look()
    images = {name: image for name, image in without.images.items() if name != "right_wrist_0_rgb"}
    lacking = type(without)(images, without.instruction, without.state, without.present)
    close(case.velocity(lacking), case.velocity(without))


@torch.no_grad()
def test_a_spec_names_the_robots_cameras_and_those_that_it_lacks(case: FlowSet) -> None:
    """The published codes' velocities with the last camera missing, whatever the robot calls the others."""
    own = case.policy.spec.cameras
    names = [f"robot_{place}" for place in range(len(own) - 1)]
    policy = case.load(more=f",cameras={'+'.join([*names, 'none'])}")
    assert policy.spec.cameras == tuple(names)
    whole = case.look()
    images = {name: whole.images[camera] for name, camera in zip(names, own[:-1], strict=True)}
    seen = type(whole)(images, whole.instruction, whole.state, {})
    expected = case.cases["missing.velocity"] if case.family == "smolvla" else case.cases["expected.velocity"][0]
    time = 0.5 if case.family == "smolvla" else float(case.cases["in.velocity_times"][0])
    close(case.velocity(seen, time, policy), expected, **WIDE)
    for cameras, told in (
        (["front", *["none"] * len(own)], "cameras .*, and spec names"),
        (["none"] * len(own), "one"),
    ):
        with pytest.raises(UserError, match=told):
            case.load(more=f",cameras={'+'.join(cameras)}")


def test_normalisation(case: FlowSet) -> None:
    """LeRobot's four kinds, with a dimension that never moves."""
    cases = case.cases
    if "norm.in" not in cases:
        return  # SmolVLA's set has none
    values = cases["norm.in"].double().numpy()
    for name, kind in LEROBOT_KINDS.items():
        if f"norm.{name}.forward" not in cases:
            continue
        stats = {field: cases[f"norm.stat.{field}"].double().numpy() for field in FIELDS[kind]}
        np.testing.assert_allclose(normalise(values, stats, kind), cases[f"norm.{name}.forward"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            unnormalise(values, stats, kind), cases[f"norm.{name}.inverse"], rtol=1e-5, atol=1e-5
        )


def test_what_rlrc_saves_of_it_computes_the_same(case: FlowSet, tmp_path: Path) -> None:
    case.policy.save(tmp_path / "saved")
    import rlrc

    again = rlrc.load(tmp_path / "saved")
    assert again.spec == case.policy.spec
    assert torch.equal(case.velocity(case.look(), policy=again), case.velocity(case.look()))


def test_bins() -> None:
    """numpy's digitize on 256 edges: -1 below the lowest, 255 from the highest on."""
    assert bins(np.array([-1.5, -1.0, -0.999, 0.0, 0.9921875, 0.999, 1.0, 7.0])) == [-1, 0, 0, 128, 255, 255, 255, 255]
