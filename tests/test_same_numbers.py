"""What a policy computes depends on nothing but the policy and its inputs, and its first action waits for nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rlrc.configs.train import Shape
from rlrc.native import processor
from rlrc.packed import cpu, reference
from rlrc.policies.openvla.tiny import new_policy
from rlrc.quantize import QuantizeConfig, quantize

needs_kernels = pytest.mark.skipif(cpu.missing() is not None, reason=f"no kernels here: {cpu.missing()}")

ACTING = """
import json, subprocess, sys
import rlrc
settings = {name: __import__("os").environ.get(name) for name in ("OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE")}
early = "torch" in sys.modules
policy = rlrc.load(sys.argv[1])
import numpy as np, torch
from rlrc.packed import cpu

def refuse(*arguments, **options):
    raise AssertionError(f"acting started {arguments}")

subprocess.run = subprocess.Popen = refuse
known = set(sys.modules)
images = np.random.default_rng(0).integers(0, 256, (2, 120, 90, 3), np.uint8)
action = policy.act(images[:1], ["put carrot on plate"])
imported = sorted(set(sys.modules) - known)
inputs = policy.prepare(policy.observation(images, ["put carrot on plate", "put red cube on plate"]))
with torch.no_grad():
    logits = policy.model.action_logits(inputs, policy.sample(inputs).latent["tokens"][:, 0])[0]
print(json.dumps({
    "action": action.tolist(), "logits": logits.float().tolist(), "imported": imported, "early": early,
    "settings": settings, "threads": torch.get_num_threads(), "missing": cpu.missing(),
}))
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random policy in 4 bits and otherwise bf16, so that one picture's tokens are decoded by the kernel."""
    folder = tmp_path_factory.mktemp("packed")
    shape = Shape(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    statistics = {"q01": [-1.0] * 7, "q99": [1.0] * 7}
    policy = new_policy(shape, ["put carrot on plate", "put red cube on plate"], {"tabletop": {"action": statistics}})
    policy.save(folder / "dense", dtype=torch.bfloat16)
    quantize(QuantizeConfig(policy=folder / "dense"), folder)
    return folder / "checkpoint"


def act(policy: Path, cache: Path | None, threads: int, instructions: str) -> Any:
    """What a new process finds; without a `cache` it uses the kernels that are compiled on this machine already."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "CXX")}
    environment |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if cache:
        environment["XDG_CACHE_HOME"] = str(cache)
    environment[processor.INSTRUCTIONS] = instructions
    environment.pop("THP_MEM_ALLOC_ENABLE", None)
    done = subprocess.run(
        [sys.executable, "-c", ACTING, str(policy)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def processes(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What two processes found, with other numbers of threads, and with the best and the least instructions that this
    processor has; the first has to compile."""
    mine = [level.name for level in processor.levels()] or [""]
    empty = tmp_path_factory.mktemp("cache")
    return [act(packed, empty, 1, mine[0]), act(packed, None, 2, mine[-1])]


def test_neither_instructions_nor_the_number_of_threads_change_a_bit(processes: list[Any]) -> None:
    first, second = processes
    assert (first["threads"], second["threads"]) == (1, 2)
    assert first["missing"] == second["missing"]
    assert first["action"] == second["action"]
    assert first["logits"] == second["logits"]


def test_the_first_action_compiles_and_imports_nothing(processes: list[Any]) -> None:
    """That it starts no compiler is checked in the process itself."""
    assert [found["imported"] for found in processes] == [[], []]


def test_python_has_the_settings_of_the_command_line(processes: list[Any]) -> None:
    code = (
        "import os, sys\nsys.argv = ['rlrc', '--version']\nfrom rlrc.cli import main\nmain()\nimport json\n"
        "print(json.dumps({n: os.environ.get(n) for n in ('OMP_WAIT_POLICY', 'THP_MEM_ALLOC_ENABLE')}))"
    )
    unset = {name: value for name, value in os.environ.items() if name not in processes[0]["settings"]}
    done = subprocess.run([sys.executable, "-c", code], env=unset, capture_output=True, text=True, check=True)
    by_command_line = json.loads(done.stdout.splitlines()[-1])
    assert by_command_line == {"OMP_WAIT_POLICY": "PASSIVE", "THP_MEM_ALLOC_ENABLE": "1"}
    assert [found["settings"] for found in processes] == [by_command_line] * 2
    assert not processes[0]["early"], "import rlrc imported torch"


def test_your_own_settings_win() -> None:
    code = "import os, rlrc\nprint(os.environ['OMP_WAIT_POLICY'], os.environ['THP_MEM_ALLOC_ENABLE'])"
    own = {**os.environ, "OMP_WAIT_POLICY": "ACTIVE", "THP_MEM_ALLOC_ENABLE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ACTIVE", "0"]


@needs_kernels
def test_it_would_notice_another_backend(packed: Path) -> None:
    """With another backend for packed weights the logits differ, so equal ones mean the same choice."""
    import numpy as np

    import rlrc

    policy = rlrc.load(packed)
    inputs = policy.prepare(policy.observation(np.zeros((1, 96, 96, 3), np.uint8), ["put carrot on plate"]))
    tokens = policy.sample(inputs).latent["tokens"][:, 0]
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        before = policy.model.action_logits(inputs, tokens)[0]
        patch.setattr(cpu, "linear", reference.linear)
        assert not torch.equal(policy.model.action_logits(inputs, tokens)[0], before)
