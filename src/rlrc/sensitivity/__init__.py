"""Measure what each part of a policy can bear: lighten one part alone, and compare with the policy as it was.

    rlrc sensitivity --policy checkpoints/tabletop-base --dataset runs/default/demos/dataset --out runs/sensitivity

Each part is quantized, each stack of layers narrowed, and the layers thinned out, degree by degree. On demonstrated
frames each version's training loss and actions are compared with those of the policy as it was, and its bytes and its
time are measured. Nothing is trained: the rise of the loss says where fine-tuning begins, and is no success rate.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlrc.bench import interleaved, machine, timed_action
from rlrc.configs.sensitivity import SensitivityConfig
from rlrc.data import Demonstrations
from rlrc.data.statistics import adopt_statistics, policy_key
from rlrc.errors import Impossible, UserError
from rlrc.files import write_json
from rlrc.inspect import describe
from rlrc.policies.checkpoint import load
from rlrc.policies.contract import Policy
from rlrc.process import keep_freed_memory
from rlrc.progress import bar, say
from rlrc.reading import read_json
from rlrc.sensitivity.frames import Behaviour, Frames
from rlrc.sensitivity.variants import Maker, Variant, variants_of
from rlrc.sensitivity_map import draw_map, table
from rlrc.stats import median_interval
from rlrc.tables import print_table

FILE, PICTURE = "sensitivity.json", "sensitivity.png"
WARM_UP = 2
"""Rounds of timing that do not count."""

Row = dict[str, Any]


check = Demonstrations.check


def sensitivity(config: SensitivityConfig, out: Path) -> dict[str, Any]:
    """Write `sensitivity.json`, row by row, and `sensitivity.png`; rows that are there already stay.

    Returns:
        The policy's own loss, bytes and time, and for each version what it is, by how much the loss rises and the share
        of the actions' numbers that change (both with 95 % intervals over episodes), its bytes, and how many times as
        fast it is (with the interval of the median over rounds). A version that cannot be has the reason in place.

    Raises:
        UserError: the policy is quantized, has no such part, has a loss that is not finite, or does not fit the
            dataset.
    """
    keep_freed_memory()
    policy = load(config.policy, policy_key(config), config.device, spec=config.spec)
    if getattr(policy.model.config, "quantization_config", None) is not None:
        raise UserError(f"{config.policy} is quantized already; ask about the checkpoint it was made from")
    demonstrations = Demonstrations.of(config)
    adopt_statistics(policy, demonstrations, config)
    variants = variants_of(policy, config)
    frames = Frames.draw(policy, demonstrations, config.samples, config.seed)
    before = frames.shown_to(policy)
    if not np.isfinite(before.losses).all():
        raise UserError(f"{config.policy}: its loss on demonstrations is NaN or infinite; it or its data is broken")
    size = describe(policy)["bytes"]["total"]
    rows = _rows_of(out / FILE)
    with (
        tempfile.TemporaryDirectory() as scratch,
        bar("sensitivity", len(variants), start=len(rows)) as progress,
    ):
        maker = Maker(config, demonstrations, Path(scratch))
        for variant in variants[len(rows) :]:
            rows.append(asdict(variant) | _compared(policy, variant, maker, frames, before, config.repeats))
            own = {"loss": float(before.losses.mean()), "bytes": size, "frames": config.samples}
            result = {"policy": str(config.policy), "own": own, "rows": rows, "machine": machine()}
            write_json(out / FILE, result)
            progress.advance(note=str(variant))
    draw_map(out / PICTURE, rows, size)
    print_table(f"{config.policy}: what each part can bear", *table(rows, size))
    return read_json(out / FILE)


def _rows_of(path: Path) -> list[Row]:
    """What a run that was cut off has measured, in the order of the versions."""
    return list(read_json(path)["rows"]) if path.exists() else []


def _compared(policy: Policy, variant: Variant, maker: Maker, frames: Frames, before: Behaviour, repeats: int) -> Row:
    """Measure what one version loses and saves."""
    try:
        with maker.make(variant) as lighter:
            after = frames.shown_to(lighter)
            if not np.isfinite(after.losses).all():
                raise Impossible("its loss is NaN or infinite")
            seconds = interleaved([timed_action(policy), timed_action(lighter)], WARM_UP + repeats)[:, WARM_UP:]
            size = describe(lighter)["bytes"]["total"]
    except Impossible as error:
        say(f"{variant}: not done ({error})")
        return {"refused": str(error)}
    ratios = seconds[0] / seconds[1]
    return {
        "loss_change": asdict(frames.loss_change(before, after)),
        "changed": asdict(frames.changed(before, after)),
        "bytes": size,
        "p50_ms": [1000 * float(np.median(of_one)) for of_one in seconds],
        "speedup": float(np.median(ratios)),
        "speedup_95": median_interval(ratios.tolist()),
    }
