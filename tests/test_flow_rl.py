"""Random denoising steps against pi_RL's own (tolerances from the fixture's meta.json), and against their densities."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from flow_fixtures import FlowSet
from safetensors.torch import load_file
from torch import nn

from rlrc.errors import UserError
from rlrc.policies.flow.denoising import (
    NoiseNetwork,
    Step,
    entropy,
    euler,
    log_density,
    sde_step,
)
from rlrc.policies.flow.exploring import Explorer
from rlrc.policies.values import Exploration, Sampler
from rlrc.recover.gae import policy_loss, summed

close = torch.testing.assert_close
SETS = sorted(path.parent for path in FIXTURES[1].glob("pi0/*rl*/meta.json"))
TIGHT = {"atol": 1e-5, "rtol": 1e-5}
CHAIN = {"atol": 1e-3, "rtol": 1e-3}
KINDS = ("flow_sde", "flow_noise")


@pytest.fixture(scope="module", params=SETS or [None])
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip("reference tensors not found: ../shared/fixtures/pi0 has no flow_rl")
    found: Path = request.param
    return found


@pytest.fixture(scope="module")
def cases(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "cases.safetensors")


@pytest.fixture(scope="module")
def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "meta.json").read_text())["config"]
    return found


@pytest.fixture(scope="module")
def base(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FlowSet:
    meta = json.loads((folder / "meta.json").read_text())
    name = Path(meta["upstream"]["base_model"].rpartition("../")[2]).name
    return FlowSet(f"pi0/{name}", tmp_path_factory.mktemp("base"))


def runs(cases: dict[str, torch.Tensor]) -> list[int]:
    return sorted({int(match[1]) for name in cases if (match := re.match(r"step\.K(\d+)\.x", name))})


def test_single_steps(cases: dict[str, torch.Tensor]) -> None:
    compared = 0
    for steps in runs(cases):
        case = f"step.K{steps}"
        for number in range(steps):
            x, velocity = cases[f"{case}.x"][number], cases[f"{case}.velocity"][number]
            noise, numbers = cases[f"{case}.noise"][number], torch.full((len(x),), number)
            close(euler(x, velocity, steps), cases[f"{case}.flow_ode.mean"][number], **TIGHT)
            found = {"flow_noise": Step(euler(x, velocity, steps), cases[f"{case}.flow_noise_std"][number])}
            for name in cases:
                if match := re.fullmatch(rf"{case}\.(flow_sde\.level([\d.]+))\.mean", name):
                    found[match[1]] = sde_step(x, velocity, numbers, steps, float(match[2]))
            for kind, step in found.items():
                expected = {part: cases[f"{case}.{kind}.{part}"][number] for part in ("mean", "std")}
                close(step.mean, expected["mean"], **TIGHT)
                close(step.deviation, expected["std"], **TIGHT)
                drawn = step.mean + step.deviation * noise
                close(log_density(drawn, step), cases[f"{case}.{kind}.logprob"][number], atol=1e-4, rtol=1e-4)
                close(entropy(step.deviation), cases[f"{case}.{kind}.entropy"][number], **TIGHT)
                compared += 1
    assert compared >= 40


def explorer(base: FlowSet, cases: dict[str, torch.Tensor], config: dict[str, Any], kind: str) -> Explorer:
    network = None
    if kind == "flow_noise":
        network = NoiseNetwork(32, 32, (20, 12))
        linears = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
        for place, linear in enumerate(linears):
            for leaf in ("weight", "bias"):
                name = f"chain.flow_noise.weight.noise_head.mlp_logvar.moduleList.{place}.linear_1.{leaf}"
                getattr(linear, leaf).data = cases[name].clone()
    exploration = Exploration(kind.replace("_", "-"), config["noise_level"])  # type: ignore[arg-type]
    return Explorer(base.policy.model, exploration, config["num_steps"], network)


def latent_of(cases: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """The chain of the fixture as we keep it."""
    chain = cases[f"chain.{kind}.x"]
    if kind == "flow_noise":
        return {"chain": chain}
    step = cases["chain.flow_sde.denoise_index"][:, 0].long()
    rows = torch.arange(len(chain))
    return {"step": step, "chain": torch.stack([chain[rows, step], chain[rows, step + 1]], dim=1)}


def logprobs_of(
    kind: str, base: FlowSet, cases: dict[str, torch.Tensor], config: dict[str, Any], ours: Explorer
) -> torch.Tensor:
    """Log-probabilities of the executed actions' own dimensions."""
    inputs = base.policy.prepare(base.look())
    found = ours.likelihood(inputs, latent_of(cases, kind), lambda prefix, seen: prefix.last[:, 0])
    return found.logprobs[:, : config["action_chunk"], : config["action_env_dim"]]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_likelihood_of_a_chain(
    kind: str, base: FlowSet, cases: dict[str, torch.Tensor], config: dict[str, Any]
) -> None:
    found = logprobs_of(kind, base, cases, config, explorer(base, cases, config, kind))
    close(found, cases[f"chain.{kind}.logprob"], **CHAIN)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_likelihood_loss_and_evaluation_after_an_update(
    kind: str, base: FlowSet, cases: dict[str, torch.Tensor], config: dict[str, Any]
) -> None:
    """The fixture's update lets a weight of the policy, and one of the network, grow by 3 %."""
    weight = base.policy.model.action_out_proj.weight
    before = weight.clone()
    ours = explorer(base, cases, config, kind)
    try:
        weight.mul_(1.03)
        if ours.network is not None:
            ours.network.layers[0].weight.mul_(1.03)
        new = logprobs_of(kind, base, cases, config, ours)
        close(new, cases[f"chain.{kind}.updated.logprob"], **CHAIN)
        old, advantages = cases[f"chain.{kind}.logprob"] + cases["chain.old_shift"], cases["chain.advantages"]
        executed = torch.ones(new.shape[:2], dtype=torch.bool)
        for ratio_of in ("token", "action", "chunk"):
            (sums, owners), (old_sums, _) = (summed(values, executed, ratio_of) for values in (new, old))
            loss = policy_loss(sums, old_sums, advantages[owners], 0.2)
            close(loss, cases[f"chain.{kind}.{ratio_of}_level.actor_loss"], **CHAIN)
        inputs = base.policy.prepare(base.look())
        (chunks,) = base.policy._denoise(inputs, cases["chain.noise"][0], config["num_steps"])
        close(chunks, cases[f"chain.{kind}.updated.eval_actions"], **CHAIN)
    finally:
        weight.copy_(before)


@pytest.mark.parametrize("kind", ["flow-sde", "flow-noise"])
@torch.no_grad()
def test_what_is_sampled_has_the_density_that_the_likelihood_says(kind: str) -> None:
    """Of many draws of one row, the step that was random has the mean and the deviation of its distribution."""
    from small_policies import CASES, look, make

    policy = make(CASES["smolvla"])
    policy.with_noise_network(0)
    draws = 1500
    inputs = policy.encode(policy.prepare(look(policy, 1)[np.zeros(draws, int)]))
    policy.denoise_in(3)
    sampler = Sampler(0.7, exploration=Exploration(kind))  # type: ignore[arg-type]
    sample = policy.sample(inputs, sampler, torch.Generator().manual_seed(1))
    assert sample.logprobs is not None
    if kind == "flow-noise":
        assert torch.equal(sample.latent["chain"][:, -1, :, :7], sample.actions)
    else:
        counts = sample.latent["step"].bincount()
        assert len(counts) == 3 and (counts - 500).abs().max() < 100
        last = sample.latent["step"] == 2
        assert torch.equal(sample.latent["chain"][last, 1, :, :7], sample.actions[last])
    # The mean of a log-density over its own draws is minus its entropy.
    likelihood = policy.likelihood(inputs, sample.latent, sampler)
    close(likelihood.logprobs, sample.logprobs, atol=1e-4, rtol=1e-4)
    close(sample.logprobs.mean(), -likelihood.entropy.mean(), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", ["flow-sde", "flow-noise"])
@torch.no_grad()
def test_temperature_scales_all_that_is_random(kind: str) -> None:
    """The starting noise too: otherwise PPO would train a policy that nobody asks, one that starts from full noise."""
    from small_policies import CASES, look, make

    policy = make(CASES["pi0"])
    policy.with_noise_network(0)
    inputs = policy.encode(policy.prepare(look(policy, 1)[np.zeros(400, int)]))
    policy.denoise_in(4)
    chunks = {}
    for temperature in (1e-6, 0.25, 1.0):
        sampler = Sampler(temperature, exploration=Exploration(kind))  # type: ignore[arg-type]
        sample = policy.sample(inputs, sampler, torch.Generator().manual_seed(1))
        start = sample.latent["chain"][:, 0]
        if kind == "flow-sde":  # the chain keeps its random step alone
            start = start[sample.latent["step"] == 0]
        assert abs(float(start.std()) / temperature - 1) < 0.05
        chunks[temperature] = float(sample.actions.std(dim=0).mean())
    assert chunks[1e-6] < 1e-4 < chunks[0.25] < chunks[1.0]


def test_the_normal_distribution() -> None:
    x, mean, deviation = torch.tensor([0.0, 1.5]), torch.tensor([0.5, 0.5]), torch.tensor([0.3, 2.0])
    normal = torch.distributions.Normal(mean, deviation)
    close(log_density(x, Step(mean, deviation)), normal.log_prob(x))
    close(entropy(deviation), normal.entropy())


def test_the_networks_deviations_stay_within_bounds() -> None:
    network = NoiseNetwork(8, 5)
    for scale in (1e-3, 1.0, 1e4):
        found = network(scale * torch.randn(50, 3, 8))
        assert found.shape == (50, 3, 5) and (found >= 0.08 - 1e-6).all() and (found <= 0.16 + 1e-6).all()


def test_steps_that_have_no_likelihood_are_refused() -> None:
    from small_policies import CASES, look, make

    policy = make(CASES["pi0"])
    inputs = policy.prepare(look(policy))
    with pytest.raises(UserError, match="needs the network"):
        policy.sample(inputs, Sampler(1.0, exploration=Exploration("flow-noise")))
    with pytest.raises(UserError, match="PPO needs the likelihood"):
        policy.likelihood(inputs, {}, Sampler(1.0))
    policy.denoise_in(1)
    with pytest.raises(UserError, match="at least 2 denoising steps, not 1"):
        policy.sample(inputs, Sampler(1.0, exploration=Exploration()))
