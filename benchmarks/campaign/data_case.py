"""The parts that cases about datasets share: the verbs that read them, and edits of their columns."""

from collections.abc import Callable
from typing import Any

from case import Case, Expected
from damage import Change, at
from valid import CAMERA, TRAIN_ONE_STEP, data_case

SFT = ("sft", "--policy", "policy", "--dataset", "data", "--out", "out", *TRAIN_ONE_STEP)
TRAIN = ("train", "--dataset", "data", "--out", "out", *TRAIN_ONE_STEP)
SAMPLED = ("--policy", "policy", "--dataset", "data", "--samples", "2", "--out", "out")
READERS = {
    "sft": SFT,
    "train": TRAIN,
    "prune": ("prune", "--ratio", "0.5", *SAMPLED, "method:wanda"),
    "gptq": ("quantize", "--rounding", "gptq", *SAMPLED),
    "convert-libero": ("convert-libero", "--source", "data", "--image-key", CAMERA, "--out", "out"),
}


def dataset_case(
    name: str,
    change: Change,
    *words: str,
    expected: Expected = "refused",
    arguments: tuple[str, ...] = SFT,
    base: str = "images",
) -> Case:
    """A case about a dataset that `change` has damaged."""
    return Case(f"dataset/{name}", arguments, data_case(change, base), expected, words)


def lists(kind: str) -> Callable[[], Any]:
    def make() -> Any:
        import pyarrow as pa

        return pa.list_(getattr(pa, kind)())

    return make


def arrow_type(kind: str) -> Callable[[], Any]:
    def make() -> Any:
        import pyarrow as pa

        return getattr(pa, kind)()

    return make


Edit = tuple[Callable[[list[Any]], list[Any]], Any]


def number_edits() -> dict[str, Edit]:
    """Edits of a column of numbers."""
    return {
        "all-null": (lambda values: [None] * len(values), None),
        "one-null": (at(3, None), None),
        "text": (lambda values: [str(value) for value in values], arrow_type("string")),
        "bytes": (lambda values: [b"\xff\x00"] * len(values), arrow_type("binary")),
        "bool": (lambda values: [True] * len(values), arrow_type("bool_")),
        "lists": (lambda values: [[value] for value in values], lists("float64")),
        "long-lists": (lambda values: [[value, value] for value in values], lists("float64")),
        "negative": (at(3, -1), None),
        "all-negative": (lambda values: [-1 - value for value in values], None),
        "nan": (at(3, float("nan")), arrow_type("float64")),
        "infinity": (at(3, float("inf")), arrow_type("float64")),
        "1e300": (at(3, 1e300), arrow_type("float64")),
        "huge": (at(3, 2**62), arrow_type("int64")),
        "disordered": (lambda values: values[::-1], None),
        "equal": (lambda values: [values[0]] * len(values), None),
        "times": (lambda values: [0] * len(values), arrow_type("timestamp_s")),
    }


def vector_edits() -> dict[str, Edit]:
    """Edits of a column of vectors."""

    def one_number(value: Any) -> Callable[[list[Any]], list[Any]]:
        return lambda values: [*values[:3], [*values[3][:-1], value], *values[4:]]

    return {
        "all-null": (lambda values: [None] * len(values), None),
        "one-null": (at(3, None), None),
        "null-inside": (one_number(None), None),
        "all-null-inside": (lambda values: [[None] * len(value) for value in values], None),
        "nan": (one_number(float("nan")), None),
        "infinity": (one_number(float("inf")), None),
        "minus-infinity": (one_number(float("-inf")), None),
        "1e300": (one_number(1e300), lists("float64")),
        "ragged-longer": (at(3, [0.0] * 12), lists("float32")),
        "ragged-shorter": (at(3, [0.0]), lists("float32")),
        "ragged-equal-sum": (lambda v: [v[0][:-1], [*v[1], 0.0], *v[2:]], lists("float32")),
        "one-empty": (at(3, []), lists("float32")),
        "all-empty": (lambda values: [[] for _ in values], lists("float32")),
        "text": (lambda values: ["abc"] * len(values), arrow_type("string")),
        "texts-inside": (lambda values: [["abc"] * len(value) for value in values], lists("string")),
        "numbers": (lambda values: [0.5] * len(values), arrow_type("float32")),
        "lists-of-lists": (lambda values: [[value] for value in values], None),
        "bytes": (lambda values: [b"abc"] * len(values), arrow_type("binary")),
    }
