"""The parts that cases about checkpoints share."""

from case import Case, Expected
from damage import Change
from valid import TRAIN_ONE_STEP, policy_case

SFT = ("sft", "--policy", "policy", "--dataset", "data", "--out", "out", *TRAIN_ONE_STEP)
"""Reads all of a checkpoint: shapes, weights, tokenizer, preprocessor, statistics."""
PRUNE = ("prune", "--policy", "policy", "--ratio", "0.5", "--out", "out", "method:random")
ONE_EPISODE = ("--episodes", "1", "--num-envs", "1", "--num-workers", "0", "--videos", "0")
ONE_ITERATION = ("--iterations", "1", "--num-envs", "2", "--num-workers", "0", "--batch-size", "2")
VERBS_ON_WEIGHTS = {
    "sft": SFT,
    "prune": PRUNE,
    "quantize": ("quantize", "--policy", "policy", "--out", "out"),
    "evaluate": ("evaluate", "--policy", "policy", "--out", "out", *ONE_EPISODE),
    "rl": ("rl", "--policy", "policy", "--out", "out", *ONE_ITERATION),
    "bench": ("bench", "--policies", "policy", "--batch-sizes", "1", "--repeats", "1", "--warmup", "0", "--out", "out"),
}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def checkpoint_case(
    name: str,
    change: Change,
    *words: str,
    expected: Expected = "refused",
    arguments: tuple[str, ...] = SFT,
    base: str = "policy",
) -> Case:
    """A case about a policy that `change` has damaged."""
    return Case(f"checkpoint/{name}", arguments, policy_case(change, base), expected, words)
