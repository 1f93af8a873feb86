"""Every option of every verb with values that it cannot have."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from case import Case, Expected
from command_case import LAST, QUICK, user_place, without
from command_case import command_case as _case
from pydantic import BaseModel

NUMBERS = ("nan", "inf", "-inf", "-1", "-1000000000", "1e30", "", "abc", "1e999", "0x10", "1_0", "٣", "9" * 5000)
NEVER_INTEGERS = ("1.5", "1e3")
NEGATIVE_IS_RIGHT = ("protect", "reward")
TOO_LARGE = ("batch_size", "num_envs", "num_workers", "image_size", "batch_sizes", "samples", "jobs", "patch_size")
"""Options for which a billion is too much, whatever the verb."""


def cases() -> Iterator[Case]:
    yield from _options()
    yield from _shapes()


def _numeric(annotation: Any) -> set[type]:
    """Return the numeric types (int, float) that an option takes."""
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
    from rlrc.command_line import commands

    for verb in commands():
        for field, info in commands()[verb].config_class().model_fields.items():
            option = f"--{field.replace('_', '-')}"
            kinds = _numeric(info.annotation)
            if _model(info.annotation):
                continue
            if kinds:
                values = NUMBERS + (NEVER_INTEGERS if kinds == {int} else ())
                for value in values:
                    if value.startswith("-1") and field in NEGATIVE_IS_RIGHT:
                        continue
                    soft = value in ("0x10", "1_0", "٣") or (value == "1e30" and float in kinds)
                    expected: Expected = "either" if soft else "refused"
                    if soft and verb in ("collect", "rl", "evaluate", "bench"):  # right perhaps, and then long
                        continue
                    name = f"option/{verb}{option}={value[:12]}"
                    yield _case(
                        name,
                        verb,
                        f"{option}={value}" if value.startswith("-") else option,
                        *(() if value.startswith("-") else (value,)),
                        words=() if soft else (field,),
                        expected=expected,
                    )
                if field in TOO_LARGE:
                    yield _case(f"option/{verb}{option}=billion", verb, option, "1000000000", words=(field,))
                elif verb not in ("collect",):  # long, but right: refused for its policy, not for its size
                    gone = without(QUICK[verb], (option,))
                    missing = tuple("missing" if value in ("policy", "data") else value for value in gone)
                    line = (verb, *missing, option, "1000000000", "--out", "out", *LAST.get(verb, ()))
                    if missing != gone:
                        yield Case(
                            f"command/option/{verb}{option}=billion", line, user_place, words=(f"missing|{field}",)
                        )
            elif _literal(info.annotation):
                for value in ("bogus", "", "x" * 10_000, "1", "None "):
                    yield _case(f"option/{verb}{option}={value[:10]}", verb, option, value, words=(field,))
            yield _case(f"option/{verb}{option}-alone", verb, option, words=(field,), expected="either")


def _shapes() -> Iterator[Case]:
    for field in (
        "image-size",
        "patch-size",
        "hidden-size",
        "num-hidden-layers",
        "num-attention-heads",
        "intermediate-size",
    ):
        for value in ("0", "-1", "1000000000", "abc", "nan", "1.5", "7", "1" * 30):
            expected: Expected = "either" if value == "7" else "refused"
            yield _case(
                f"shape/{field}={value}",
                "train",
                f"--shape.{field}={value}",
                words=(f"{field}|--shape",),
                expected=expected,
            )
    for field in (
        "hidden-size",
        "num-hidden-layers",
        "num-attention-heads",
        "num-register-tokens",
        "intermediate-size",
    ):
        for value in ("-1", "0", "1000000000"):
            fine = field == "num-register-tokens" and value == "0"
            yield _case(
                f"shape/tower-{field}={value}",
                "train",
                f"--shape.towers.0.{field}={value}",
                words=(field + "|towers",),
                expected="either" if fine else "refused",
            )
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
                yield Case(
                    f"command/group/{part}.{option}={value}",
                    line,
                    user_place,
                    "either" if huge else "refused",
                    (f"{option}|{part}",),
                )
