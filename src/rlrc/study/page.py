"""A study's README: tables, verdicts and figures in Markdown."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlrc import envs
from rlrc.episodes import Comparison, Episode, by_condition, by_task, success_rate
from rlrc.study.claims import Claim
from rlrc.study.evidence import Evidence, latency, motion
from rlrc.tables import human_bytes, human_count, human_ratio, markdown_table

MARK = "This page is written by `rlrc study"
"""Beginning of a page's first paragraph, the proof that the files beside it are a study's."""
MARKS = {True: "yes", False: "**no**", None: "not measured"}


def page(evidence: Evidence, claims: Sequence[Claim], pictures: dict[str, Path], strip: Path | None) -> str:
    """The whole page; figures are linked by their file names."""
    reference = evidence.reference
    blocks = [
        f"# {evidence.recipe.name}: what compression costs, and what recovery brings back",
        f"{MARK} recipes/{evidence.recipe.name}.yaml`; do not edit it. The recipe says "
        "how each policy was made. Success is read at the end of the episode, and all rates come from "
        "`episodes.parquet`. Brackets hold 95 % intervals: Wilson's for rates, Tango's for differences over the same "
        "episodes, in points, and that of the median over rounds for speeds. A p-value is that of McNemar's exact test "
        "unless another test is named. IND means scenes like those of the demonstrations, and OOD means scenes unlike "
        "them.",
        _missing(evidence),
        "## Result",
        markdown_table(*main_table(evidence)),
        _picture("Success with 95 % intervals", pictures),
        f"![The dense policy above, the compressed one below, in the same episodes]({strip.name})" if strip else "",
        *_section(
            "Claims",
            markdown_table(
                ["claim", "measured", "does it hold?"], [[c.claim, c.measured, MARKS[c.holds]] for c in claims]
            ),
        ),
        *_section("Tasks", markdown_table(*_task_table(evidence))),
        *_section("Learning curves", _picture("Learning curves", pictures), markdown_table(*_seed_table(evidence))),
        *_section(
            "Challenges",
            markdown_table(*_variant_table(evidence)),
            _picture("Success in each of the challenges", pictures),
        ),
        *_section(
            "Pruning ratios",
            markdown_table(*_ratio_table(evidence)),
            _picture("Success against the pruning ratio", pictures),
        ),
        *_section(
            "Parts",
            markdown_table(*_part_table(evidence)),
            _picture("Success against how much lighter each part is", pictures),
        ),
        "## Motion",
        f"Each number is a mean over the in-distribution episodes that both the policy and {reference} solve. The "
        f"ratio to {reference} on the same episodes is in parentheses.",
        markdown_table(*_motion_table(evidence)),
        "## Cost",
        _cost(evidence),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def main_table(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    """Policies by success, paired difference to the first one, and size."""
    reference = evidence.reference
    head = ["policy"]
    for split in evidence.splits:
        head += [f"{split.upper()} success", f"difference to {reference}"]
    head += ["parameters", "weights", "speed of one action"]
    latencies = {label: latency(row.cost) for label, row in evidence.policies.items() if row.cost}
    in_chunks = any(taken["actions_per_call"] > 1 for taken in latencies.values())
    head += ["one call", "actions of it", "one action"] if in_chunks else []
    body = []
    for label in evidence.policies:
        cells = [label]
        for split in evidence.splits:
            rate = evidence.rate(label, split)
            paired = evidence.compare(label, reference, split) if label != reference else None
            cells += ["" if rate is None else f"{rate}, n = {rate.n}", _difference(paired)]
        sizes = evidence.described[label]
        cells += [human_count(sizes["parameters"]["total"]), human_bytes(sizes["bytes"]["total"])]
        taken = latencies.get(label)
        cells.append(human_ratio(taken["speedup"], taken["speedup_95"]) if taken else "")
        if in_chunks:
            times = [f"{taken['call_ms']:.1f} ms", f"{taken['actions_per_call']:g}"] if taken else ["", ""]
            cells += [*times, f"{taken['action_ms']:.1f} ms" if taken else ""]
        body.append(cells)
    return head, body


def _task_table(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    """Success in each task of a suite; other worlds have no such table."""
    if envs.spec(evidence.recipe.world).num_tasks == 1:
        return [], []
    groups = {label: by_task(row.episodes) for label, row in evidence.policies.items()}
    names = list(dict.fromkeys(name for tasks in groups.values() for name in tasks))
    body = [[name, *(_counted(tasks.get(name)) for tasks in groups.values())] for name in names]
    return ["task", *groups], body


def _counted(episodes: Sequence[Episode] | None) -> str:
    return "" if episodes is None else f"{success_rate(episodes)}, n = {len(episodes)}"


def _seed_table(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    seeds = evidence.seeds()
    body = [[name, *(f"{row.rates[s]}, n = {row.rates[s].n}" for s in evidence.splits)] for name, row in seeds.items()]
    if len(body) > 1:
        rates = {split: [100 * row.rates[split].rate for row in seeds.values()] for split in evidence.splits}
        told = (
            f"{np.mean(values):.1f} %, standard deviation {np.std(values, ddof=1):.1f}" for values in rates.values()
        )
        body.append([f"mean of these {len(seeds)} runs", *told])
    return ["RL run", *(split.upper() for split in evidence.splits)], body


def _variant_table(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    groups = {label: by_condition(row.episodes) for label, row in evidence.policies.items()}
    names = list(dict.fromkeys(c for cells in groups.values() for c in cells if "/" in c))
    labels = [label for label, cells in groups.items() if any(name in cells for name in names)]
    body = [
        [name.partition("/")[2], *(str(success_rate(groups[label][name])) for label in labels)]
        for name in names
        if all(name in groups[label] for label in labels)
    ]
    for name in evidence.by_class(labels[0]) if labels else []:
        pooled = [evidence.by_class(label)[name] for label in labels]
        body.append([f"**all of {name}**, n = {len(pooled[0])}", *(str(success_rate(episodes)) for episodes in pooled)])
    return ["challenge", *labels], body


def _ratio_table(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    body = []
    for ratio, rows in evidence.by_ratio().items():
        told = {
            step: ", ".join(f"{split.upper()} {row.rates[split]}" for split in evidence.splits)
            + f", n = {row.rates[evidence.splits[0]].n}"
            for step, row in rows.items()
        }
        if told:
            body.append([f"{100 * ratio:g} %", *(told.get(step, "") for step in range(3))])
    return ["share pruned", "right after pruning", "+ SFT", "+ SFT + RL"], body


def _part_table(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    body = [
        [part, f"{degree:g}", *(f"{row.rates[split]}, n = {row.rates[split].n}" for split in evidence.splits)]
        for part, rows in evidence.by_part().items()
        for degree, row in rows.items()
    ]
    return ["part", "how much went, or bits", *(split.upper() for split in evidence.splits)], body


def _motion_table(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    main = {label: by_condition(row.episodes).get("ind", []) for label, row in evidence.policies.items()}
    body = []
    for label, episodes in main.items():
        moved = motion(episodes, main[evidence.reference])
        if moved is None:
            body.append([label, "0", "", "", ""])
            continue
        cells = [
            f"{moved[name]:.{digits}f} ({moved[f'{name}_ratio']:.2f})" if name in moved else ""
            for name, digits in (("steps", 1), ("path_length", 3), ("jerk", 2))
        ]
        body.append([label, f"{moved['n']:.0f}", *cells])
    return ["policy", "episodes", "steps to success", "path length, m", "jerk, m/s³"], body


def _cost(evidence: Evidence) -> str:
    hours = sum(stage.seconds for stage in evidence.stages.values()) / 3600
    by_verb: dict[str, float] = {}
    for stage in evidence.stages.values():
        by_verb[stage.verb] = by_verb.get(stage.verb, 0) + stage.seconds / 3600
    told = ", ".join(f"{verb} {spent:.2f}" for verb, spent in sorted(by_verb.items(), key=lambda item: -item[1]))
    return (
        f"The stages took {hours:.1f} hours in all ({told}). They ran side by side where `--jobs` allowed it. Of a "
        "stage that was cut off and resumed, only the last part is counted."
        f"\n\nMachine: {_machine(evidence) or 'not recorded'}."
    )


def _machine(evidence: Evidence) -> str:
    """What `bench` says of its machine; without one, every processor that a stage ended on."""
    told = [f"{key} {value}" for key, value in evidence.machine.items()]
    ended_on = {stage.machine for stage in evidence.stages.values() if stage.machine}
    return ", ".join(told) or "; ".join(sorted(ended_on))


def _section(title: str, *blocks: str) -> list[str]:
    """A heading over what there is to show, if anything."""
    shown = [block for block in blocks if block]
    return [f"## {title}", *shown] if shown else []


def _missing(evidence: Evidence) -> str:
    missing = evidence.missing()
    return f"Not measured yet: {', '.join(missing)}." if missing else ""


def _difference(paired: Comparison | None) -> str:
    if paired is None:
        return ""
    p = "p < 0.001" if paired.p < 0.001 else f"p = {paired.p:.3f}"
    return f"{100 * paired.difference:+.1f} [{100 * paired.low:+.1f}, {100 * paired.high:+.1f}], {p}, n = {paired.n}"


def _picture(caption: str, pictures: dict[str, Path]) -> str:
    return f"![{caption}]({pictures[caption].name})" if caption in pictures else ""
