"""`accelerate launch` on two processes: gradients are averaged, episodes are not shared, one process writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_ppo import metrics
from test_sft import assert_close, changed, train

import rlrc

SCRIPT = """
import sys
from pathlib import Path

import torch
from rlrc import envs
from rlrc.recover import ppo
from test_ppo import config
from test_sft import train

checkpoint, out = Path(sys.argv[1]), Path(sys.argv[2])
train(checkpoint, out / "sft", batch_size=4)

envs.WORLDS["bandit"] = "bandit_world"
update = ppo.update

def checked(policy, critic, buffer, frames, iteration, config, learner):
    every = torch.arange(len(buffer) + buffer.rewards.shape[1])
    pictures = learner.gather(policy.features(buffer.seen.inputs(every)).float().sum()[None])
    assert pictures[0] != pictures[1], "both processes saw the same episodes"
    values = update(policy, critic, buffer, frames, iteration, config, learner)
    for name, parameter in learner.parameters.items():
        ours, theirs = learner.gather(parameter.detach()[None])
        assert torch.equal(ours, theirs), name
    return values

ppo.update = checked
ppo.rl(config(checkpoint), out / "rl")
"""


@pytest.fixture(scope="module")
def out(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What SFT and then PPO wrote in two processes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", "--mixed_precision", "no", "--num_machines", "1", "--dynamo_backend", "no"]
    command += [str(folder / "script.py"), str(tiny_checkpoint), str(folder)]
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_sft_equals_one_process_with_twice_the_batch(tiny_checkpoint: Path, tmp_path: Path, out: Path) -> None:
    train(tiny_checkpoint, tmp_path, batch_size=8)
    assert_close(tmp_path / "checkpoint", out / "sft" / "checkpoint")
    assert len(metrics(out / "sft")) == len(metrics(tmp_path)), "only one process writes"


def test_ppo_keeps_one_policy(tiny_checkpoint: Path, out: Path) -> None:
    assert changed(tiny_checkpoint, out / "rl" / "checkpoint")
    assert len(metrics(out / "rl")) == 2
    assert rlrc.load(out / "rl" / "checkpoint").lineage["stages"][-1]["verb"] == "rl"
