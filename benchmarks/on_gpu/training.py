"""Steps a second of fine-tuning and of PPO, on random pictures: rlrc's own loss, update and optimizer, no data, no
world.

    python benchmarks/on_gpu/training.py --out training.json             OpenVLA-7B with 90 % of its decoder pruned
    python benchmarks/on_gpu/training.py --out training.json --tiny      a tiny policy: a rehearsal

A step of fine-tuning is forward, backward and AdamW over one batch. A step of PPO is one minibatch of an update, whose
share of reading the buffer for the old log-probabilities is part of it. Both keep float32 weights and moments and
compute in bf16, as the verbs do; 7B needs about 40 GB.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import options
import shapes
import torch

from rlrc.bench import machine, noise_observation, now
from rlrc.configs.rl import RlConfig
from rlrc.configs.sft import SftConfig
from rlrc.files import write_json
from rlrc.policies.contract import Policy
from rlrc.policies.values import Sampler
from rlrc.recover.acting import Buffer, Seen
from rlrc.recover.critic import new_critic
from rlrc.recover.loop import Learner
from rlrc.recover.ppo import update

BATCH, TIMES = 8, 5
WORLDS, CHUNKS = 8, 4
"""Worlds and chunks of the buffer that PPO learns from."""


def main() -> None:
    chosen = options.parse(__doc__)
    rows = []
    for verb, step in (("sft", fine_tuning), ("rl", ppo)):
        policy = shapes.policy(shapes.config_of("rlrc", chosen.tiny), 16, None, chosen.device)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(
                {"verb": verb, "shape": "rlrc", "tiny": chosen.tiny, **step(policy, chosen.device, Path(folder))}
            )
        print(rows[-1], flush=True)
        del policy
    write_json(chosen.out, {"machine": machine(), "device": chosen.device, "rows": rows})


def fine_tuning(policy: Policy, device: str, out: Path) -> dict[str, Any]:
    """Steps a second of `sft`."""
    config = SftConfig(policy=out, dataset=out, device=device, batch_size=BATCH)
    learner = Learner(policy, config, out)
    inputs = policy.prepare(noise_observation(policy, BATCH))
    actions = torch.zeros(BATCH, policy.spec.horizon, len(policy.spec.action), device=policy.device)

    def step() -> None:
        with learner.autocast():
            loss = policy.loss(policy.encode(inputs), actions)["loss"]
        loss.backward()
        learner.step()

    return timed(step, policy, 1, BATCH)


def ppo(policy: Policy, device: str, out: Path) -> dict[str, Any]:
    """Minibatches a second of `rl`'s update."""
    config = RlConfig(policy=out, device=device, batch_size=BATCH, num_envs=WORLDS)
    critic = new_critic(policy, config.seed)
    learner = Learner(policy, config, out, {"critic": critic}, {"critic.": config.value_learning_rate})
    buffer = collected(policy, learner)

    def step() -> None:
        update(policy, critic, buffer, None, 0, config, learner)

    return timed(step, policy, len(buffer) // BATCH, BATCH)


@torch.no_grad()
def collected(policy: Policy, learner: Learner) -> Buffer:
    """A buffer of sampled actions on random pictures, with rewards that are random too."""
    seen = Seen(policy, encoded=not learner.trains_vision)
    random = torch.Generator(policy.device).manual_seed(0)
    with learner.autocast():
        samples = [
            policy.sample(seen.add(noise_observation(policy, WORLDS)), Sampler(1.0), random) for _ in range(CHUNKS)
        ]
        seen.add(noise_observation(policy, WORLDS))
    flags = torch.zeros(CHUNKS, WORLDS, dtype=torch.bool, device=policy.device)
    return Buffer(
        seen,
        {name: torch.stack([sample.latent[name] for sample in samples]) for name in samples[0].latent},
        torch.stack([sample.logprobs for sample in samples if sample.logprobs is not None]),
        torch.ones(CHUNKS, WORLDS, policy.spec.horizon, dtype=torch.bool, device=policy.device),
        torch.rand(CHUNKS, WORLDS, generator=random, device=policy.device),
        torch.ones(CHUNKS + 1, WORLDS, device=policy.device),
        *(flags.clone() for _ in range(3)),
    )


def timed(step: Callable[[], None], policy: Policy, steps: int, batch: int) -> dict[str, Any]:
    """The median over TIMES calls, after two that prepare what is prepared once; each call makes `steps` steps."""
    seconds = []
    for _ in range(2 + TIMES):
        started = now(policy.device)
        step()
        seconds.append(now(policy.device) - started)
    taken = median(seconds[2:]) / steps
    measured = {"batch_size": batch, "steps_per_second": 1 / taken, "seconds": [s / steps for s in seconds[2:]]}
    if policy.device.type == "cuda":
        measured["peak_bytes"] = torch.cuda.max_memory_allocated(policy.device)
        torch.cuda.reset_peak_memory_stats(policy.device)
    return measured


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"took {time.monotonic() - started:.0f} s")
