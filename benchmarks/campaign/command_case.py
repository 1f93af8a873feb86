"""The parts that cases about command lines share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from case import Case, Expected
from valid import put, put_user_files

POLICY = ("--policy", "policy")
DATA = ("--dataset", "data")
QUICK = {
    "collect": ("--episodes", "1", "--num-workers", "1"),
    "convert-libero": ("--source", "data"),
    "train": (*DATA, "--steps", "1", "--batch-size", "2", "--warmup-steps", "0"),
    "prune": (*POLICY, "--ratio", "0.5"),
    "sft": (*POLICY, *DATA, "--steps", "1", "--batch-size", "2", "--warmup-steps", "0"),
    "rl": (*POLICY, "--iterations", "1", "--num-envs", "2", "--num-workers", "0", "--batch-size", "2"),
    "quantize": (*POLICY,),
    "evaluate": (*POLICY, "--episodes", "1", "--num-envs", "1", "--num-workers", "0", "--videos", "0"),
    "serve": ("--policy", "missing"),  # with a policy it would not end
    "trial": ("--policies", "a=ws://127.0.0.1:1", "b=ws://127.0.0.1:2", "--scenes", "scenes.yaml"),  # nobody is there
    "bench": ("--policies", "policy", "--batch-sizes", "1", "--repeats", "1", "--warmup", "0"),
    "sensitivity": (*POLICY, *DATA, "--samples", "2", "--repeats", "6", "--bits", "8", "--widths", "0.5"),
    "fit": (*POLICY, *DATA, "--samples", "2", "--repeats", "1", "--max-memory", "1GB"),
    "report": ("finished",),
    "run": ("recipe.yaml",),
    "study": ("recipe.yaml",),
    "inspect": ("policy",),
    "assets": ("maniskill",),
    "export": ("--policy", "missing"),  # LeRobot has no class for the policy that lies there
    "make-random": ("--preset", "openvla-tiny"),
    "cache": (),
}
"""Arguments of each verb that are just enough for it to end soon."""
LAST = {"prune": ("method:random",)}


def user_place(place: Path) -> None:
    """Put a policy, a dataset, a finished run, a recipe and the user's files into `place`."""
    put_user_files(place)
    put("policy", place / "policy")
    put("images", place / "data")
    put("finished", place / "finished")
    (place / "scenes.yaml").write_text("- {name: left, layout: the mug is left}\n")
    (place / "recipe.yaml").write_text(
        "name: one\nbase: policy\nstages:\n  - {verb: prune, policy: base, ratio: 0.5, method: {kind: random}}\n"
    )


def command_case(
    name: str,
    verb: str,
    *arguments: str,
    words: tuple[str, ...] = (),
    expected: Expected = "refused",
    place: Callable[[Path], None] = user_place,
    **more: Any,
) -> Case:
    """Return the case of a verb with these arguments and the least that it needs beside them."""
    given = tuple(arguments)
    quick = without(QUICK[verb], given)
    line = (verb, *quick, *given, "--out", "out", *LAST.get(verb, ()))
    return Case(f"command/{name}", line, place, expected, words, **more)


def without(quick: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the quick arguments without those that `given` sets."""
    kept: list[str] = []
    is_kept = True
    for word in quick:
        if word.startswith("--"):
            is_kept = word not in given
        if is_kept:
            kept.append(word)
    return tuple(kept)
