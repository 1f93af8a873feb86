"""Command lines: every option with values that it cannot have, environment variables, places that cannot be written."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

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
    "bench": ("--policies", "policy", "--batch-sizes", "1", "--repeats", "1", "--warmup", "0"),
    "report": ("finished",),
    "run": ("recipe.yaml",),
    "study": ("recipe.yaml",),
    "inspect": ("policy",),
    "assets": ("maniskill",),
    "make-random": ("--preset", "openvla-tiny"),
}
"""The least that each verb needs to end soon."""
LAST = {"prune": ("method:random",)}
NUMBERS = ("nan", "inf", "-inf", "-1", "-1000000000", "1e30", "", "abc", "1e999", "0x10", "1_000", "٣", "9" * 5000)
NEVER_INTEGERS = ("1.5", "1e3")
NEGATIVE_IS_RIGHT = ("protect", "reward")
TOO_LARGE = ("batch_size", "num_envs", "num_workers", "image_size", "batch_sizes", "samples", "jobs", "patch_size")
"""Options whose billion cannot be had, by any verb."""


def cases() -> Iterator[Case]:
    yield from _usage()
    yield from _options()
    yield from _shapes()
    yield from _paths()
    yield from _particular()
    yield from _environment()
    yield from _places()


def _place(place: Path) -> None:
    put_user_files(place)
    put("policy", place / "policy")
    put("images", place / "data")
    put("finished", place / "finished")
    (place / "recipe.yaml").write_text("name: one\nbase: policy\nstages:\n  - {verb: prune, policy: base, ratio: 0.5}\n")


def _case(
    name: str,
    verb: str,
    *arguments: str,
    words: tuple[str, ...] = (),
    expected: Expected = "refused",
    place: Callable[[Path], None] = _place,
    **more: Any,
) -> Case:
    given = tuple(arguments)
    quick = _without(QUICK[verb], given)
    line = (verb, *quick, *given, "--out", "out", *LAST.get(verb, ()))
    return Case(f"command/{name}", line, place, expected, words, **more)


def _without(quick: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """The quick arguments less those that are given otherwise."""
    kept: list[str] = []
    position = 0
    while position < len(quick):
        if quick[position].startswith("--"):
            if quick[position] not in given:
                kept += quick[position : position + 2]
            position += 2
        else:
            kept.append(quick[position])
            position += 1
    return tuple(kept)


def _usage() -> Iterator[Case]:
    for name, arguments in {
        "unknown-verb": ("magic",),
        "empty-verb": ("",),
        "option-first": ("--magic",),
        "huge-verb": ("x" * 100_000,),
        "not-unicode": ("\udcff\udcfe",),
        "control-verb": ("\x1b[31mred",),
        "version-and-more": ("--version", "x"),
    }.items():
        yield Case(f"command/usage/{name}", arguments, _place, words=("verb",))
    from rlrc.verbs import VERBS

    for verb in VERBS:
        yield Case(f"command/usage/{verb}-nothing", (verb,), _place, "either" if verb == "collect" else "refused")
        yield Case(f"command/usage/{verb}-unknown-option", (verb, *QUICK[verb], "--magic", "1"), _place, words=("magic",))
        yield Case(f"command/usage/{verb}-positional", (verb, *QUICK[verb], "stray", "stray2", "stray3"), _place, words=("stray",))
        yield Case(f"command/usage/{verb}-help", (verb, "--help"), _place, "works")
    for arguments in ((), ("--help",), ("-h",), ("--version",)):
        yield Case(f"command/usage/works-{' '.join(arguments)}", arguments, _place, "works")


def _numeric(annotation: Any) -> set[type]:
    """int or float, where an option takes them."""
    if annotation in (int, float):
        return {annotation}
    if get_origin(annotation) is Literal:
        return set()
    return {kind for inner in get_args(annotation) for kind in _numeric(inner)}


def _literal(annotation: Any) -> bool:
    return get_origin(annotation) is Literal or any(_literal(inner) for inner in get_args(annotation))


def _model(annotation: Any) -> bool:
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        return True
    return any(_model(inner) for inner in get_args(annotation))


def _options() -> Iterator[Case]:
    from rlrc.verbs import VERBS, config_class

    for verb in VERBS:
        for field, info in config_class(verb).model_fields.items():
            option = f"--{field.replace('_', '-')}"
            kinds = _numeric(info.annotation)
            if _model(info.annotation):
                continue
            if kinds:
                values = NUMBERS + (NEVER_INTEGERS if kinds == {int} else ())
                for value in values:
                    if value.startswith("-1") and field in NEGATIVE_IS_RIGHT:
                        continue
                    soft = value in ("0x10", "1_000", "٣") or (value == "1e30" and float in kinds)
                    expected: Expected = "either" if soft else "refused"
                    if soft and verb in ("collect", "rl", "evaluate", "bench"):  # right perhaps, and then long
                        continue
                    name = f"option/{verb}{option}={value[:12]}"
                    yield _case(name, verb, f"{option}={value}" if value.startswith("-") else option, *(() if value.startswith("-") else (value,)), words=(field,), expected=expected)
                if field in TOO_LARGE:
                    yield _case(f"option/{verb}{option}=billion", verb, option, "1000000000", words=(field,))
                elif verb not in ("collect",):  # long, but right: refused for its policy, not for its size
                    gone = _without(QUICK[verb], (option,))
                    missing = tuple("missing" if value in ("policy", "data") else value for value in gone)
                    line = (verb, *missing, option, "1000000000", "--out", "out", *LAST.get(verb, ()))
                    if missing != gone:
                        yield Case(f"command/option/{verb}{option}=billion", line, _place, words=(f"missing|{field}",))
            elif _literal(info.annotation):
                for value in ("bogus", "", "x" * 10_000, "1", "None "):
                    yield _case(f"option/{verb}{option}={value[:10]}", verb, option, value, words=(field,))
            yield _case(f"option/{verb}{option}-alone", verb, option, words=(field,), expected="either")


def _shapes() -> Iterator[Case]:
    for field in ("image-size", "patch-size", "hidden-size", "num-hidden-layers", "num-attention-heads", "intermediate-size"):
        for value in ("0", "-1", "1000000000", "abc", "nan", "1.5", "7", "1" * 30):
            expected: Expected = "either" if value == "7" else "refused"
            yield _case(f"shape/{field}={value}", "train", f"--shape.{field}={value}", words=(field,), expected=expected)
    for field in ("hidden-size", "num-hidden-layers", "num-attention-heads", "num-register-tokens", "intermediate-size"):
        for value in ("-1", "0", "1000000000"):
            fine = field == "num-register-tokens" and value == "0"
            yield _case(f"shape/tower-{field}={value}", "train", f"--shape.towers.0.{field}={value}", words=(field + "|towers",), expected="either" if fine else "refused")
    for value in ("0", "-1", "1000000000"):
        yield _case(f"shape/stem={value}", "train", f"--shape.towers.0.stem-channels={value}", words=("stem|towers",))
    for option in ("grasped", "success", "consecutive-grasp"):
        for value in ("nan", "inf", "abc", "1e999"):
            yield _case(f"reward/{option}={value}", "rl", f"--reward.{option}={value}", words=(option + "|reward",))
    for group, options in {
        "augment:augmentation": ("crop-area", "shift", "brightness", "contrast", "saturation", "hue"),
        "lora:lora": ("rank", "alpha", "dropout"),
    }.items():
        part = group.partition(":")[0]
        for option in options:
            for value in ("nan", "inf", "-1", "abc", "1000000000000", "1e30"):
                huge = value in ("1000000000000", "1e30")
                line = ("sft", *QUICK["sft"], "--out", "out", group, f"--{part}.{option}={value}")
                yield Case(f"command/group/{part}.{option}={value}", line, _place, "either" if huge else "refused", (f"{option}|{part}",))


def _paths() -> Iterator[Case]:
    def extra(make: Callable[[Path], Any]) -> Callable[[Path], None]:
        def build(place: Path) -> None:
            _place(place)
            make(place / "thing")

        return build

    things: dict[str, Callable[[Path], Any]] = {
        "missing": lambda path: None,
        "pipe": lambda path: os.mkfifo(path),
        "folder": lambda path: path.mkdir(),
        "file": lambda path: path.write_text("hello"),
        "dev-zero": lambda path: path.symlink_to("/dev/zero"),
        "loop": lambda path: path.symlink_to("thing"),
    }
    options = {"prune": ("token-ids", "measured"), "quantize": ("dataset",), "rl": ("dataset",), "run": ("recipe",)}
    options |= {"study": ("recipe",), "bench": ("policies",), "convert-libero": ("source",)}
    for verb, names in options.items():
        for option in names:
            for kind, make in things.items():
                name = f"path/{verb}-{option}-{kind}"
                if option == "recipe":
                    line = (verb, "thing", "--out", "out")
                    yield Case(f"command/{name}", line, extra(make), words=("thing",))
                else:
                    plus = ("--rounding", "gptq") if verb == "quantize" else ()
                    plus = ("--bc-coefficient", "0.1") if verb == "rl" else plus
                    yield _case(name, verb, f"--{option}", "thing", *plus, words=("thing",), place=extra(make))
            if option != "recipe":
                for kind, value in {"empty": "", "long": "x" * 5000, "not-unicode": "\udcff"}.items():
                    yield _case(f"path/{verb}-{option}-{kind}", verb, f"--{option}", value, expected="refused")
    weights = {"text": b"hello", "cut": (100).to_bytes(8, "little") + b"{"}
    for kind, content in weights.items():
        for option in ("token-ids", "measured"):
            yield _case(f"path/prune-{option}-{kind}", "prune", f"--{option}", "thing", words=("thing",), place=extra(lambda path, c=content: path.write_bytes(c)))

    def ids(tensor: Callable[[], Any], name: str = "input_ids") -> Callable[[Path], None]:
        def make(path: Path) -> None:
            from safetensors.torch import save_file

            save_file({name: tensor()}, path)

        return extra(make)

    import torch

    tokens: dict[str, Callable[[], Any]] = {
        "floats": lambda: torch.zeros(2, 8),
        "beyond": lambda: torch.full((2, 8), 10**6),
        "negative": lambda: torch.full((2, 8), -1),
        "one-axis": lambda: torch.zeros(8, dtype=torch.int64),
        "three-axes": lambda: torch.zeros(2, 2, 2, dtype=torch.int64),
        "no-rows": lambda: torch.zeros(0, 8, dtype=torch.int64),
        "no-columns": lambda: torch.zeros(2, 0, dtype=torch.int64),
    }
    for kind, tensor in tokens.items():
        line = ("prune", "--policy", "policy", "--ratio", "0.5", "--token-ids", "thing", "--samples", "2", "--out", "out", "method:wanda")
        yield Case(f"command/path/token-ids-{kind}", line, ids(tensor), words=("thing|input_ids|token",))
    line = ("prune", "--policy", "policy", "--ratio", "0.5", "--token-ids", "thing", "--out", "out", "method:wanda")
    yield Case("command/path/token-ids-other-name", line, ids(tokens["negative"], "ids"), words=("input_ids",))


def _particular() -> Iterator[Case]:
    lines: dict[str, tuple[str, tuple[str, ...], str, Expected]] = {
        "bench-batch-0": ("bench", ("--batch-sizes", "0"), "batch_sizes", "refused"),
        "bench-batch-negative": ("bench", ("--batch-sizes=-1",), "batch_sizes", "refused"),
        "bench-batch-none": ("bench", ("--batch-sizes",), "batch_sizes", "refused"),
        "prune-seed-negative": ("prune", ("--seed=-1",), "seed", "refused"),
        "prune-both-ratios": ("prune", ("--ratio", "0.5", "--overall", "0.5"), "ratio", "refused"),
        "prune-everything": ("prune", ("--ratio", "1.0"), "ratio", "either"),
        "prune-protect-beyond": ("prune", ("--protect", "99"), "protect|layer", "refused"),
        "prune-round-billion": ("prune", ("--round-to", "1000000000"), "round", "either"),
        "quantize-group-0": ("quantize", ("--group-size", "0"), "group_size", "refused"),
        "quantize-group-7": ("quantize", ("--group-size", "7"), "group", "either"),
        "quantize-group-billion": ("quantize", ("--group-size", "1000000000"), "group", "either"),
        "quantize-bits-3": ("quantize", ("--bits", "3"), "bits", "refused"),
        "quantize-unknown-layer": ("quantize", ("--modules-to-not-convert", "nothing"), "nothing", "refused"),
        "quantize-empty-layer": ("quantize", ("--modules-to-not-convert", ""), "modules_to_not_convert", "refused"),
        "quantize-gptq-without-data": ("quantize", ("--rounding", "gptq"), "dataset", "refused"),
        "evaluate-world-unknown": ("evaluate", ("--world", "moon"), "moon", "refused"),
        "evaluate-world-empty": ("evaluate", ("--world", ""), "world", "refused"),
        "evaluate-world-long": ("evaluate", ("--world", "x" * 100_000), "world", "refused"),
        "evaluate-world-maniskill": ("evaluate", ("--world", "maniskill:"), "maniskill", "refused"),
        "evaluate-world-putonplate": ("evaluate", ("--world", "putonplate:magic"), "putonplate|mani", "refused"),
        "evaluate-world-libero": ("evaluate", ("--world", "libero_spatial:magic"), "libero", "refused"),
        "evaluate-split-unknown": ("evaluate", ("--splits", "magic"), "magic", "refused"),
        "evaluate-splits-none": ("evaluate", ("--splits",), "split", "refused"),
        "evaluate-variant-unknown": ("evaluate", ("--variants", "magic"), "magic", "refused"),
        "evaluate-variants-none": ("evaluate", ("--variants",), "variant", "refused"),
        "evaluate-tasks": ("evaluate", ("--tasks", "99"), "task", "refused"),
        "evaluate-key-unknown": ("evaluate", ("--unnorm-key", "nobody"), "nobody", "refused"),
        "evaluate-key-empty": ("evaluate", ("--unnorm-key", ""), "unnorm_key", "refused"),
        "evaluate-temperature-tiny": ("evaluate", ("--temperature", "1e-300"), "temperature", "either"),
        "evaluate-temperature-1e30": ("evaluate", ("--temperature", "1e30"), "temperature", "either"),
        "collect-world-unknown": ("collect", ("--world", "moon"), "moon", "refused"),
        "rl-clip-infinite": ("rl", ("--clip", "inf"), "clip", "refused"),
        "rl-kl-zero": ("rl", ("--target-kl", "0"), "target_kl", "refused"),
        "sft-rate-1e30": ("sft", ("--learning-rate", "1e30"), "finite|nan|learning|infinit", "refused"),
        "sft-rate-1e300": ("sft", ("--learning-rate", "1e300"), "learning|finite|nan|infinit", "refused"),
        "sft-decay-1e30": ("sft", ("--weight-decay", "1e30"), "weight|finite|nan|infinit", "either"),
        "sft-save-every-1e300": ("sft", ("--save-every", "1e300"), "save", "either"),
        "sft-spread-1e300": ("sft", ("--label-spread", "1e300"), "label|spread", "either"),
        "sft-spread-tiny": ("sft", ("--label-spread", "1e-300"), "label|spread|finite|nan", "either"),
        "sft-batch-billion": ("sft", ("--batch-size", "1000000000"), "batch", "refused"),
        "sft-steps-huge": ("sft", ("--steps", "9" * 40), "steps", "refused"),
        "sft-seed-huge": ("sft", ("--seed", "9" * 40), "seed", "refused"),
        "sft-seed-2-63": ("sft", ("--seed", str(2**63)), "seed", "refused"),
        "evaluate-seed-huge": ("evaluate", ("--seed", "9" * 40), "seed", "refused"),
        "make-random-seed-huge": ("make-random", ("--seed", "9" * 400), "seed", "either"),
        "sft-device-unknown": ("sft", ("--device", "magic"), "device", "refused"),
        "sft-device-9": ("sft", ("--device", "cuda:99"), "cuda", "refused"),
        "quantize-device-9": ("quantize", ("--device", "cuda:99"), "cuda", "refused"),
        "sft-camera-unknown": ("sft", ("--cameras", "nothing"), "nothing", "refused"),
        "sft-camera-empty": ("sft", ("--cameras", ""), "camera", "refused"),
        "sft-two-cameras": ("sft", ("--cameras", "observation.images.front", "observation.images.front"), "camera", "refused"),
        "sft-action-unknown": ("sft", ("--action-key", "nothing"), "nothing", "refused"),
        "sft-state-unknown": ("sft", ("--state-key", "nothing"), "nothing", "refused"),
        "sft-episodes-beyond": ("sft", ("--dataset-episodes", "5:9"), "episode", "refused"),
        "sft-episodes-empty": ("sft", ("--dataset-episodes", "1:1"), "episode", "refused"),
        "sft-episodes-backwards": ("sft", ("--dataset-episodes", "2:0"), "episode", "refused"),
        "sft-episodes-text": ("sft", ("--dataset-episodes", "abc"), "dataset_episodes", "refused"),
        "sft-episodes-billion": ("sft", ("--dataset-episodes", "0:999999999"), "episode", "either"),
        "sft-episodes": ("sft", ("--dataset-episodes", "0:1"), "episode", "works"),
        "sft-statistics-unknown": ("sft", ("--statistics", "magic"), "statistics", "refused"),
        "run-jobs-billion": ("run", ("--jobs", "1000000000"), "jobs", "refused"),
        "run-jobs-0": ("run", ("--jobs", "0"), "jobs", "refused"),
        "assets-unknown": ("assets", ("magic",), "magic", "refused"),
        "make-random-preset": ("make-random", ("--preset", "magic"), "preset", "refused"),
        "convert-camera-unknown": ("convert-libero", ("--image-key", "nothing"), "nothing", "refused"),
        "convert-size-0": ("convert-libero", ("--image-size", "0"), "image_size", "refused"),
        "convert-size-billion": ("convert-libero", ("--image-size", "1000000000"), "image_size", "refused"),
        "hub-id": ("sft", ("--policy", "nobody/nothing"), "nobody/nothing", "refused"),
        "hub-url": ("sft", ("--policy", "https://huggingface.co/openvla/openvla-7b"), "huggingface", "refused"),
        "data-hub-id": ("sft", ("--dataset", "nobody/nothing"), "nobody/nothing", "refused"),
    }
    for name, (verb, arguments, word, expected) in lines.items():
        yield _case(f"particular/{name}", verb, *arguments, words=(word,), expected=expected)


def _environment() -> Iterator[Case]:
    """Variables that rlrc or its libraries read."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        for value in ("abc", "", "-1", "1.5", "99999999999999999999"):
            soft = name == "LOCAL_RANK" or value in ("", "-1")
            for verb in ("sft", "prune", "run"):
                soft_here = soft or (name == "WORLD_SIZE" and verb == "prune") or (verb == "run" and name == "RANK")
                yield _case(f"environment/{name}={value}-{verb}", verb, words=(name,) if not soft_here else (), expected="either" if soft_here else "refused", environment={name: value})
    yield _case("environment/two-processes-run", "run", words=("process|WORLD_SIZE",), environment={"WORLD_SIZE": "2", "RANK": "0"})
    tabletop = ("--world", "tabletop")
    for name, value in {"MUJOCO_GL": "bogus", "PYOPENGL_PLATFORM": "bogus", "OMP_NUM_THREADS": "abc"}.items():
        line = " ".join(("rlrc evaluate", *QUICK["evaluate"], *tabletop, "--out out"))
        yield Case(f"command/environment/{name}-{value}", (), _place, "refused" if name == "MUJOCO_GL" else "either", (name,) if name == "MUJOCO_GL" else (), {name: value}, shell=line)
    inspect = "rlrc inspect policy"
    sft = " ".join(("rlrc sft", *QUICK["sft"], "--out out"))
    homes = {
        "missing": "HOME=/nonexistent/home",
        "file": "HOME=$PWD/user/thesis.txt",
        "cache-file": "XDG_CACHE_HOME=$PWD/user/thesis.txt",
        "cache-null": "XDG_CACHE_HOME=/dev/null",
        "none": "HOME=",
        "temporary-missing": "TMPDIR=/nonexistent",
        "proc": "HOME=/proc XDG_CACHE_HOME=/proc",
        "ascii": "LC_ALL=C PYTHONIOENCODING=ascii",
        "columns": "COLUMNS=abc TERM=dumb",
    }
    for kind, variables in homes.items():
        yield Case(f"command/environment/home-{kind}", (), _place, "works", shell=f"{variables} {inspect}" if False else f"export {variables}; {inspect}")
    for kind in ("missing", "cache-file", "proc"):
        yield Case(f"command/environment/home-{kind}-sft", (), _place, "works", shell=f"export {homes[kind]}; {sft}")


def _places() -> Iterator[Case]:
    def full(place: Path) -> None:
        _place(place)

    if os.geteuid() == 0 and _can_mount():
        for name, verb in {"sft": "sft", "prune": "prune", "quantize": "quantize", "make-random": "make-random"}.items():
            for size in ("4k", "64k", "1m"):
                line = " ".join((f"rlrc {verb}", *QUICK[verb], "--out full/out", *LAST.get(verb, ())))
                mount = f'mkdir full && mount -t tmpfs -o size={size} tmpfs full || exit 98; {line}; s=$?; ls -A full/out 2>/dev/null | grep -q "tmp$" && s=97; umount full; rmdir full; exit $s'
                yield Case(f"command/full/{name}-{size}", (), full, "refused", ("disk is full",), shell=f"unshare -m bash -c '{_definition()}{_quoted(mount)}'")
    outs = {"file": "user/thesis.txt", "below-file": "user/thesis.txt/x", "proc": "/proc/x", "null": "/dev/null/x", "dev": "/dev/null", "user": "user", "here": ".", "dots": "user/photos/.."}
    outs |= {"long": "x" * 5000, "long-part": "x" * 300, "not-unicode": "\udcff" * 300}
    for verb in ("prune", "quantize", "sft", "evaluate", "collect", "make-random"):
        for kind, out in outs.items():
            line = (verb, *QUICK[verb], "--out", out, *LAST.get(verb, ()))
            yield Case(f"command/out/{verb}-{kind}", line, _place, "refused")


def _can_mount() -> bool:
    import subprocess

    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


def _definition() -> str:
    import sys

    return f'rlrc() {{ "{sys.executable}" -m rlrc "$@"; }}; '


def _quoted(text: str) -> str:
    return text.replace("'", "'\\''")
