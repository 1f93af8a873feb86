"""What training does between two reads of its metrics asks no tensor for its values, so that on a GPU it never waits.

The tensors here have shapes and no values (`FakeTensorMode`): whoever asks one for its value gets an error. They lie on
the CPU, because PyTorch without CUDA cannot index tensors that pretend to lie on a GPU.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import small_policies
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from rlrc.configs.learner import LearnerConfig
from rlrc.configs.rl import RlConfig
from rlrc.policies.contract import Policy
from rlrc.policies.prismatic.inputs import PrismaticInputs
from rlrc.recover.acting import Buffer, Rows
from rlrc.recover.critic import Critic
from rlrc.recover.loop import Learner, Means
from rlrc.recover.ppo import Targets, fit_critic, improve


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> Iterator[Policy]:
    """A small policy whose weights have no values, in a mode in which no new tensor has any."""
    policy = small_policies.make(small_policies.CASES["openvla"])
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    for module in policy.model.modules():
        tensors: Any
        for tensors in (module._parameters, module._buffers):
            for leaf, tensor in tensors.items():
                if tensor is not None:
                    empty = fake.from_tensor(tensor.detach())
                    tensors[leaf] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty

    def refuse(tensor: torch.Tensor) -> None:
        raise AssertionError("a tensor is read back")

    for reading in ("cpu", "numpy", "tolist"):
        monkeypatch.setattr(torch.Tensor, reading, refuse)
    monkeypatch.setattr(nn.Module, "to", lambda module, *place: module)  # such weights cannot be swapped
    with fake:
        yield policy


def seen(policy: Policy, rows: int, pictures: bool) -> PrismaticInputs:
    """Prompts without padding, with pictures or with what the projector made of them."""
    ids = torch.ones(rows, 9, dtype=torch.long)
    if pictures:
        return PrismaticInputs(ids, torch.ones_like(ids), pixel_values=torch.zeros(rows, 6, 32, 32))
    patches = torch.zeros(rows, policy.num_patches, policy.stacks()[0].config.hidden_size)
    return PrismaticInputs(ids, torch.ones_like(ids), image_embeddings=patches)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_supervised_step_asks_for_no_value(
    without_values: Policy, optimizer: Literal["adamw", "muon"], tmp_path: Path
) -> None:
    policy = without_values
    learner = Learner(policy, LearnerConfig(device="cpu", optimizer=optimizer, precision="bf16"), tmp_path)
    means = Means()
    with learner.autocast():
        inputs = policy.encode(seen(policy, 3, pictures=True))
        losses = policy.loss(inputs, torch.zeros(3, 1, 7), label_spread=2.0)
    losses["loss"].backward()
    means.add(**losses, grad_norm=learner.step())
    with pytest.raises(DataDependentOutputException):
        means.take(learner)


def test_a_step_of_ppo_asks_for_no_value(without_values: Policy, tmp_path: Path) -> None:
    policy: Any = without_values
    critic = Critic(40)
    config = RlConfig(policy=tmp_path, world="tabletop", device="cpu", batch_size=4, target_kl=None, precision="bf16")
    learner = Learner(policy, config, tmp_path, {"critic": critic})
    moments: Any = SimpleNamespace(inputs=lambda index: seen(policy, len(index), pictures=False))
    ones, true = torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bool)  # three steps in four worlds
    tokens, logprobs = torch.full((3, 4, 1, 7), policy.actions.first_id), torch.zeros(3, 4, 1, 7)
    executed, masks = true[..., None], torch.ones(4, 4)
    buffer = Buffer(moments, {"tokens": tokens}, logprobs, executed, ones, masks, true, true, true)
    target = Targets(logprobs.flatten(0, 1), torch.zeros(12, 40), *[ones.flatten()] * 3)
    rows = Rows.batches(torch.arange(12), 4, policy.device)
    means = Means()
    for vitals in fit_critic(critic, target, rows, config, learner, 1.0):
        means.add(**vitals)
    improve(policy, critic, buffer, target, rows, None, 1.0, config, learner, means)
    with pytest.raises(DataDependentOutputException):
        means.take(learner)
