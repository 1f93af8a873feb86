"""The names of what is measured, what each is, and which of them act in turn."""

from importlib.util import find_spec
from itertools import chain
from typing import NamedTuple

BASELINE = "dense-transformers"
COMPILED = f"{BASELINE}-compiled"
TWO_LAYERS = "two-layers"
"""Two decoder layers in place of 32, for packages that need the dense weights, or more, while they pack them."""
VLA_CACHE = "dense-vla-cache"
"""The dense policy with VLA-Cache. The picture never changes here, so it reuses as much as it ever can."""
LARGE = "dense-8bit"
"""A policy that is too large to lie beside the baseline: its codes lie in the baseline's weights."""

TRANSFORMERS, RLRC = "transformers", "rlrc"
BITSANDBYTES, DYNAMIC, TORCHAO = "bitsandbytes", "torch dynamic int8", "torchao"
PACKAGES = {BITSANDBYTES: "bitsandbytes", TORCHAO: "torchao"}
"""Packages that need not be installed, by what runs a policy through them."""
NOT_INSTALLED = "is not installed"


class Run(NamedTuple):
    """A row is described by these four facts."""

    shape: str
    """A key of `shapes.SHAPES`."""
    bits: int = 16
    """Bits of the weights."""
    by: str = RLRC
    """Who runs it: the row's `backend`."""
    compiled: bool = False
    """Whether torch.compile compiles it."""


SPECIAL = {
    BASELINE: Run("dense", by=TRANSFORMERS),
    COMPILED: Run("dense", by=TRANSFORMERS, compiled=True),
    VLA_CACHE: Run("dense"),
    "rlrc-transformers": Run("rlrc", by=TRANSFORMERS),
    "rlrc-overall-transformers": Run("rlrc-overall", by=TRANSFORMERS),
    TWO_LAYERS: Run(TWO_LAYERS, by=TRANSFORMERS),
    f"{TWO_LAYERS}-compiled": Run(TWO_LAYERS, by=TRANSFORMERS, compiled=True),
    f"{TWO_LAYERS}-8bit": Run(TWO_LAYERS, 8, BITSANDBYTES),
    f"{TWO_LAYERS}-4bit": Run(TWO_LAYERS, 4, BITSANDBYTES),
    f"{TWO_LAYERS}-dynamic-int8": Run(TWO_LAYERS, 8, DYNAMIC),
    f"{TWO_LAYERS}-torchao-int8": Run(TWO_LAYERS, 8, TORCHAO),
    f"{TWO_LAYERS}-torchao-int8-compiled": Run(TWO_LAYERS, 8, TORCHAO, compiled=True),
    f"{TWO_LAYERS}-torchao-int4-compiled": Run(TWO_LAYERS, 4, TORCHAO, compiled=True),
    f"{TWO_LAYERS}-rlrc": Run(TWO_LAYERS),
    f"{TWO_LAYERS}-rlrc-8bit": Run(TWO_LAYERS, 8),
    f"{TWO_LAYERS}-rlrc-4bit": Run(TWO_LAYERS, 4),
}
"""Rows whose names do not say all: the others are rlrc's, "<shape>" in bf16 and "<shape>-4bit" or "-8bit"."""
BUSY = "rlrc-overall"
"""The group that acts a second time while another process keeps one core busy."""
GROUPS = {
    "rlrc": [BASELINE, "rlrc-transformers", "rlrc", "rlrc-8bit", "rlrc-4bit"],
    BUSY: [BASELINE, "rlrc-overall-transformers", "rlrc-overall", "rlrc-overall-8bit", "rlrc-overall-4bit"],
    "balanced": [BASELINE, "balanced", "balanced-4bit", "balanced-shuffled", "balanced-shuffled-4bit"],
    "dense": [BASELINE, COMPILED, "dense", VLA_CACHE],
    "dense-packed": [BASELINE, "dense", LARGE, "dense-4bit"],
    "methods": [BASELINE, "llm-pruner-25", "flap-20", "depth-0-31"],
    **{
        f"ratio-{ratio}": [f"ratio-{ratio}", f"ratio-{ratio}-8bit", f"ratio-{ratio}-4bit"]
        for ratio in ("0.25", "0.5", "0.75")
    },
    TWO_LAYERS: [
        TWO_LAYERS,
        *(f"{TWO_LAYERS}-{how}" for how in ("8bit", "4bit", "rlrc", "rlrc-8bit", "rlrc-4bit")),
    ],
    f"{TWO_LAYERS}-dynamic": [TWO_LAYERS, *(f"{TWO_LAYERS}-{how}" for how in ("dynamic-int8", "rlrc-8bit"))],
    f"{TWO_LAYERS}-compiled": [
        TWO_LAYERS,
        *(
            f"{TWO_LAYERS}-{how}"
            for how in ("compiled", "torchao-int8", "torchao-int8-compiled", "torchao-int4-compiled")
        ),
    ],
    "oft": [BASELINE, "oft", "oft-rlrc", "oft-rlrc-4bit"],
}
"""Groups of policies that act in turn; a group holds as many as fit into memory together."""
NAMES = list(dict.fromkeys(chain(*GROUPS.values())))
"""All rows, in the order in which they are stored."""
SWEEP = {0.0: "dense", 0.25: "ratio-0.25", 0.5: "ratio-0.5", 0.75: "ratio-0.75", 0.9: "rlrc"}
"""Shapes of the paper's figure, by the share that is pruned."""


def run_of(name: str) -> Run:
    """Return what the row of this name is."""
    if name in SPECIAL:
        return SPECIAL[name]
    shape, _, bits = name.rpartition("-") if name.endswith("bit") else (name, "", "16bit")
    return Run(shape, int(bits.removesuffix("bit")))


def is_optional(name: str) -> bool:
    """Whether the row may be missing where what it needs does not run on this machine: other people's ways."""
    run = run_of(name)
    return run.compiled or run.by not in (TRANSFORMERS, RLRC)


def bf16_of(name: str) -> str | None:
    """The row of the same policy in bf16, run in the same way by rlrc or transformers; None of one in bf16."""
    run = run_of(name)
    if run.bits == 16:
        return None
    if run.by == RLRC:
        return name.removesuffix(f"-{run.bits}bit")
    return f"{TWO_LAYERS}-compiled" if run.compiled else TWO_LAYERS


def through_transformers(name: str) -> str:
    """The row of the same shape in bf16 through transformers' own modules."""
    return TWO_LAYERS if run_of(name).shape == TWO_LAYERS else f"{name}-transformers"


def refusal(name: str, device: str, instructions: str | None) -> str | None:
    """Why a row cannot be measured, as far as that is known before it starts; None where it is worth a try.

    Args:
        device: "cpu" or "cuda".
        instructions: the level that all libraries are held to, or None.
    """
    by = run_of(name).by
    if by == DYNAMIC and device != "cpu":
        return "PyTorch's dynamic quantization computes on CPUs alone"
    if by == BITSANDBYTES and instructions is not None:
        return "bitsandbytes asks the processor itself what it can do, and has no setting that holds it to less"
    if by in PACKAGES and find_spec(PACKAGES[by]) is None:
        return f"{PACKAGES[by]} {NOT_INSTALLED}"
    return None
