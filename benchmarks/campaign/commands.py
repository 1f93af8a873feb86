"""Command lines: what is no verb or option, places that cannot be read or written, environment variables."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from case import Case, Expected
from command_case import LAST, QUICK, user_place
from command_case import command_case as _case

FULL_DISK = """
rlrc() {{ "{python}" -m rlrc "$@"; }}
mkdir full && mount -t tmpfs -o size={size} tmpfs full || exit 98
{line}
status=$?
ls -A full/out 2>/dev/null | grep -q "tmp$" && status=97
umount full
rmdir full
exit $status
"""
"""Runs a verb into a file system of its own, and ends with 97 where something half-written is left."""


def cases() -> Iterator[Case]:
    yield from _usage()
    yield from _paths()
    yield from _particular()
    yield from _environment()
    yield from _frame_caches()
    yield from _places()


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
        yield Case(f"command/usage/{name}", arguments, user_place, words=("verb",))
    from rlrc.command_line import commands

    for verb in commands():
        if verb not in ("collect", "cache"):  # all that they need has a default
            yield Case(f"command/usage/{verb}-nothing", (verb,), user_place)
        yield Case(
            f"command/usage/{verb}-unknown-option", (verb, *QUICK[verb], "--magic", "1"), user_place, words=("magic",)
        )
        yield Case(
            f"command/usage/{verb}-positional",
            (verb, *QUICK[verb], "stray", "stray2", "stray3"),
            user_place,
            words=("stray",),
        )
        yield Case(f"command/usage/{verb}-help", (verb, "--help"), user_place, "works")
    for arguments in ((), ("--help",), ("-h",), ("--version",)):
        yield Case(f"command/usage/works-{' '.join(arguments)}", arguments, user_place, "works")


def _paths() -> Iterator[Case]:
    def extra(make: Callable[[Path], Any]) -> Callable[[Path], None]:
        def build(place: Path) -> None:
            user_place(place)
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
                    word = "thing|h5py" if option == "source" and kind in ("folder", "file") else "thing"
                    made = _case(name, verb, f"--{option}", "thing", *plus, words=(word,), place=extra(make))
                    yield replace(made, arguments=_wanda(f"--{option}")) if verb == "prune" else made
            if option != "recipe":
                for kind, value in {"empty": "", "long": "x" * 5000, "not-unicode": "\udcff"}.items():
                    yield _case(f"path/{verb}-{option}-{kind}", verb, f"--{option}", value, expected="refused")
    weights = {"text": b"hello", "cut": (100).to_bytes(8, "little") + b"{"}
    for kind, content in weights.items():
        for option in ("token-ids", "measured"):
            place = extra(lambda path, c=content: path.write_bytes(c))
            yield Case(f"command/path/prune-{option}-{kind}", _wanda(f"--{option}"), place, words=("thing",))

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
        words = ("thing|input_ids|token",)
        yield Case(f"command/path/token-ids-{kind}", _wanda("--token-ids"), ids(tensor), words=words)
    other = ids(tokens["negative"], "ids")
    yield Case("command/path/token-ids-other-name", _wanda("--token-ids"), other, words=("input_ids",))


def _wanda(option: str) -> tuple[str, ...]:
    """Pruning that reads the file `thing` as this option."""
    data = ("--dataset", "data") if option == "--measured" else ()
    line = ("prune", "--policy", "policy", "--ratio", "0.5", "--samples", "2", option, "thing", *data, "--out", "out")
    return (*line, "method:wanda")


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
        "sft-two-cameras": (
            "sft",
            ("--cameras", "observation.images.front", "observation.images.front"),
            "camera",
            "refused",
        ),
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
                yield _case(
                    f"environment/{name}={value}-{verb}",
                    verb,
                    words=(name,) if not soft_here else (),
                    expected="either" if soft_here else "refused",
                    environment={name: value},
                )
    yield _case(
        "environment/two-processes-run",
        "run",
        words=("process|WORLD_SIZE",),
        environment={"WORLD_SIZE": "2", "RANK": "0"},
    )
    tabletop = ("--world", "tabletop")
    for name, value in {"MUJOCO_GL": "bogus", "PYOPENGL_PLATFORM": "bogus", "OMP_NUM_THREADS": "abc"}.items():
        line = " ".join(("rlrc evaluate", *QUICK["evaluate"], *tabletop, "--out out"))
        yield Case(
            f"command/environment/{name}-{value}",
            (),
            user_place,
            "refused" if name == "MUJOCO_GL" else "either",
            (name,) if name == "MUJOCO_GL" else (),
            {name: value},
            shell=line,
        )
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
        yield Case(
            f"command/environment/home-{kind}",
            (),
            user_place,
            "works",
            shell=f"export {variables}; {inspect}",
        )
    for kind in ("missing", "cache-file", "proc"):
        yield Case(
            f"command/environment/home-{kind}-sft", (), user_place, "works", shell=f"export {homes[kind]}; {sft}"
        )


def _frame_caches() -> Iterator[Case]:
    """The folder of frames that stages share, and its limit."""
    for value in ("abc", "-1", "nan", "inf", "1e300", "1e999", "20GB"):
        name = f"command/environment/RLRC_FRAME_CACHE_GB={value}"
        limit = {"RLRC_FRAME_CACHE_GB": value}
        yield _case(
            f"environment/RLRC_FRAME_CACHE_GB={value}-sft", "sft", words=("RLRC_FRAME_CACHE_GB",), environment=limit
        )
        yield Case(f"{name}-cache", ("cache",), user_place, "refused", ("RLRC_FRAME_CACHE_GB",), limit)
    for value in ("0", "0.000001", ""):
        yield _case(
            f"environment/RLRC_FRAME_CACHE_GB={value}-sft",
            "sft",
            expected="works",
            environment={"RLRC_FRAME_CACHE_GB": value},
        )

    def filled(make: Callable[[Path], Any]) -> Callable[[Path], None]:
        def build(place: Path) -> None:
            user_place(place)
            (place / "kept/rlrc").mkdir(parents=True)
            make(place / "kept/rlrc/frames")

        return build

    def mine(frames: Path) -> None:
        for name in ("thesis.txt", "0" * 32 + "/thesis.txt", "photos/one.jpg", "1" * 32):
            (frames / name).parent.mkdir(parents=True, exist_ok=True)
            (frames / name).write_text("mine")

    def locked(frames: Path) -> None:
        """Make a folder that looks like a cache, and put another file beside its own."""
        folder = frames / ("2" * 32)
        folder.mkdir(parents=True)
        for name in ("lock", "header.json", "thesis.txt"):
            (folder / name).write_text("")

    things: dict[str, Callable[[Path], Any]] = {
        "mine": mine,
        "locked": locked,
        "link": lambda path: path.symlink_to("../../user"),
        "file": lambda path: path.write_text("mine"),
        "pipe": lambda path: os.mkfifo(path),
    }
    kept = {"XDG_CACHE_HOME": "{place}/kept"}
    for kind, make in things.items():
        soft: Expected = "either" if kind in ("file", "pipe", "locked") else "works"
        ours = tuple(f"kept/rlrc/frames/{'2' * 32}/{name}" for name in ("lock", "header.json"))
        yield Case(f"command/cache/clear-{kind}", ("cache", "--clear"), filled(make), soft, (), kept, leaves=ours)
        sft = ("sft", *QUICK["sft"], "--out", "out")
        yield Case(f"command/cache/sft-{kind}", sft, filled(make), "either", (), kept, leaves=("kept/rlrc/hashes",))


def _places() -> Iterator[Case]:
    if os.geteuid() == 0 and _can_mount():
        for verb in ("sft", "prune", "quantize", "make-random"):
            for size in ("4k", "64k", "1m"):
                line = " ".join((f"rlrc {verb}", *QUICK[verb], "--out full/out", *LAST.get(verb, ())))
                script = FULL_DISK.format(python=sys.executable, size=size, line=line)
                yield Case(
                    f"command/full/{verb}-{size}",
                    (),
                    user_place,
                    "refused",
                    ("disk is full",),
                    shell=f"unshare -m bash -c {shlex.quote(script)}",
                )
    outs = {
        "file": "user/thesis.txt",
        "below-file": "user/thesis.txt/x",
        "proc": "/proc/x",
        "null": "/dev/null/x",
        "dev": "/dev/null",
        "user": "user",
        "here": ".",
        "dots": "user/photos/..",
    }
    outs |= {"long": "x" * 5000, "long-part": "x" * 300, "not-unicode": "\udcff" * 300}
    for verb in ("prune", "quantize", "sft", "evaluate", "collect", "make-random"):
        for kind, out in outs.items():
            line = (verb, *QUICK[verb], "--out", out, *LAST.get(verb, ()))
            yield Case(f"command/out/{verb}-{kind}", line, user_place, "refused")


def _can_mount() -> bool:
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
