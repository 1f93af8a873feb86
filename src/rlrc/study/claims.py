"""The paper's claims as hypotheses, each with what was measured and whether it holds here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy  # its parts are imported where they are first used

from rlrc.study.evidence import Evidence

NON_INFERIORITY = 0.02
"""A policy that loses less than this (one-sided, at 95 %) is called not below the other."""


@dataclass(frozen=True)
class Claim:
    """A hypothesis, what was measured, and whether it holds; None where it has not been measured."""

    claim: str
    measured: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "does not hold", None: "not measured"}[self.holds]


def check(evidence: Evidence) -> list[Claim]:
    """Every claim about the policies that the study has, in the order of the paper's three steps."""
    claims = []
    for about, claim, measure in CLAIMS:
        if evidence.plan.policies.keys() >= set(about):
            outcome = measure(evidence)
            claims.append(Claim(claim, *(outcome or ("not measured", None))))
    return claims


def _at_least(evidence: Evidence, policy: str, condition: str, least: float) -> tuple[str, bool] | None:
    rate = evidence.rate(policy, condition)
    return None if rate is None else (f"{rate}, n = {rate.n}", rate.rate >= least)


def _at_most(evidence: Evidence, policy: str, condition: str, most: float) -> tuple[str, bool] | None:
    rate = evidence.rate(policy, condition)
    return None if rate is None else (f"{rate}, n = {rate.n}", rate.rate <= most)


def _sft_restores(evidence: Evidence) -> tuple[str, bool] | None:
    dense, sft = evidence.rate("dense", "ind"), evidence.rate("sft", "ind")
    if dense is None or sft is None or not dense.successes:
        return None
    share = sft.rate / dense.rate
    return f"{100 * share:.1f} % of it: {sft} of {dense}, n = {sft.n}", share >= 0.9


def _not_below(evidence: Evidence, policy: str, other: str) -> tuple[str, bool] | None:
    paired = evidence.compare(policy, other, "ind")
    if paired is None:
        return None
    bound = f"{100 * paired.difference:+.1f} points, bound {100 * paired.lower_bound:+.1f}, n = {paired.n}"
    return bound, paired.lower_bound >= -NON_INFERIORITY


def _above(evidence: Evidence, policy: str, other: str, condition: str) -> tuple[str, bool] | None:
    paired = evidence.compare(policy, other, condition)
    if paired is None:
        return None
    interval = f"[{100 * paired.low:+.1f}, {100 * paired.high:+.1f}]"
    measured = f"{100 * paired.difference:+.1f} points {interval}, p = {paired.p:.2g}, n = {paired.n}"
    return measured, paired.difference > 0 and paired.p < 0.05


def _mean_not_below(evidence: Evidence) -> tuple[str, bool] | None:
    gain = _mean_gain(evidence, "ind")
    if gain is None:
        return None
    mean, spread, told = gain
    bound = mean - float(scipy.stats.norm.ppf(0.95)) * spread
    return f"{100 * mean:+.2f} points, bound {100 * bound:+.2f}, {told}", bound >= -NON_INFERIORITY


def _mean_above(evidence: Evidence) -> tuple[str, bool] | None:
    gain = _mean_gain(evidence, "ood")
    if gain is None:
        return None
    mean, spread, told = gain
    p = float(scipy.stats.norm.sf(mean / spread)) if spread else 1.0
    return f"{100 * mean:+.1f} points, p = {p:.2g}, {told}", mean > 0 and p < 0.05


def _mean_gain(evidence: Evidence, condition: str) -> tuple[float, float, str] | None:
    """Episode by episode, the share of seeds that succeed minus the dense policy's success: mean and standard error.

    The error is that of the episodes: it speaks of these runs, not of a seed that has not been run.
    """
    dense, seeds = evidence.policies.get("dense"), evidence.seeds()
    if dense is None or not seeds or len(seeds) < len(evidence.plan.seeds):
        return None
    by_key = [{e.key: e.success_at_end for e in row.episodes if e.condition == condition} for row in seeds.values()]
    gains = [
        np.mean([wins[e.key] for wins in by_key]) - e.success_at_end
        for e in dense.episodes
        if all(e.key in wins for wins in by_key)
    ]
    if not gains:
        return None
    told = f"{len(seeds)} seeds, n = {len(gains)}"
    return float(np.mean(gains)), float(np.std(gains, ddof=1) / np.sqrt(len(gains))), told


def _curve_rises(evidence: Evidence) -> tuple[str, bool] | None:
    """Means over seeds: at the start (the same policy for all seeds), in the first and in the last half of the rest.

    The points of a half share their episodes, so a half counts the episodes of one point for each seed.
    """
    curves = {seed: np.array(points)[:, 2] for seed, points in evidence.rl_curves().items() if len(points) > 2}
    if not curves:
        return None
    n = min(_episodes_of_a_point(evidence, seed) for seed in curves)
    half = (min(len(curve) for curve in curves.values()) - 1) // 2
    start = float(np.mean([curve[0] for curve in curves.values()]))
    first = float(np.mean([curve[1 : 1 + half] for curve in curves.values()]))
    last = float(np.mean([curve[-half:] for curve in curves.values()]))
    runs = len(curves) * n
    against_start, against_first = _p_above(last, runs, start, n), _p_above(last, runs, first, runs)
    told = (
        f"{100 * start:.1f} %, then {100 * first:.1f} %, then {100 * last:.1f} % ({len(curves)} seeds, {n} episodes; "
    )
    told += f"one-sided normal p against the start {against_start:.2g}, against the first half {against_first:.2g})"
    return told, start < first < last and against_start < 0.05


def _p_above(a: float, n_a: int, b: float, n_b: int) -> float:
    """One-sided p that proportion a of n_a is not above proportion b of n_b, unpaired."""
    spread = np.sqrt(a * (1 - a) / n_a + b * (1 - b) / n_b)
    return float(scipy.stats.norm.sf((a - b) / spread)) if spread else 1.0


def _episodes_of_a_point(evidence: Evidence, stage: str) -> int:
    episodes: int = evidence.stages[stage].config["eval_episodes"]
    return episodes


def _keeps_skill(evidence: Evidence, packed: str, parent: str) -> tuple[str, bool] | None:
    paired = {split: evidence.compare(packed, parent, split) for split in evidence.splits}
    told = [
        f"{split.upper()} {100 * c.difference:+.1f} [{100 * c.low:+.1f}, {100 * c.high:+.1f}]"
        for split, c in paired.items()
        if c is not None
    ]
    if len(told) < len(evidence.splits):
        return None
    return ", ".join(told) + " points", all(c is not None and c.difference >= -0.03 for c in paired.values())


def _decoder_cut(evidence: Evidence) -> tuple[str, bool] | None:
    if not {"dense", "rl"} <= evidence.described.keys():
        return None
    before, after = (evidence.described[label]["parameters"]["decoder"] for label in ("dense", "rl"))
    return f"{100 * (1 - after / before):.1f} %: {before:,} to {after:,}", after <= 0.15 * before


def _bytes(evidence: Evidence) -> tuple[str, bool] | None:
    if not {"dense", "rl-4bit"} <= evidence.described.keys():
        return None
    before, after = (evidence.described[label]["bytes"]["total"] for label in ("dense", "rl-4bit"))
    return f"1/{before / after:.2f}: {before:,} to {after:,} bytes", 6 * after <= before


def _scratch(evidence: Evidence) -> tuple[str, bool] | None:
    paired = evidence.compare("rl-scratch", "rl", "ind")
    if paired is None:
        return None
    return f"{100 * paired.difference:+.1f} points, n = {paired.n}", paired.difference <= -0.2


CLAIMS: tuple[tuple[tuple[str, ...], str, Callable[[Evidence], tuple[str, bool] | None]], ...] = (
    (
        ("dense",),
        "The dense policy succeeds in at least 85 % of the IND episodes.",
        lambda e: _at_least(e, "dense", "ind", 0.85),
    ),
    (
        ("pruned",),
        "Right after 90 % pruning, at most 25 % of the IND episodes succeed.",
        lambda e: _at_most(e, "pruned", "ind", 0.25),
    ),
    (("sft",), "SFT restores at least 90 % of the dense policy's IND success.", _sft_restores),
    (
        ("8-bit", "sft"),
        "The 8-bit policy is at most 3 points below its bf16 parent, IND and OOD (point estimates).",
        lambda e: _keeps_skill(e, "8-bit", "sft"),
    ),
    (
        ("4-bit", "sft"),
        "The 4-bit policy is at most 3 points below its bf16 parent, IND and OOD (point estimates).",
        lambda e: _keeps_skill(e, "4-bit", "sft"),
    ),
    (
        ("rl",),
        "After RL, IND success is not below the dense policy's (one-sided 95 % bound within 2 points).",
        lambda e: _not_below(e, "rl", "dense"),
    ),
    (
        ("rl",),
        "The mean of the RL seeds is not below the dense policy's IND success (the same bound).",
        _mean_not_below,
    ),
    (
        ("rl",),
        "After RL, OOD success is above the dense policy's (McNemar, p < 0.05).",
        partial(_above, policy="rl", other="dense", condition="ood"),
    ),
    (
        ("rl",),
        "The mean of the RL seeds is above the dense policy's OOD success (one-sided normal, p < 0.05).",
        _mean_above,
    ),
    (
        ("rl",),
        "OOD success rises along the RL learning curves, from the start over the first half to the last half.",
        _curve_rises,
    ),
    (
        ("rl", "sft-tokens"),
        "After RL, IND success is not below that of the fine-tuned policy (one-sided 95 % bound within 2 points).",
        lambda e: _not_below(e, "rl", "sft-tokens"),
    ),
    *(
        (
            ("rl", "more-sft"),
            f"After RL, {split.upper()} success is above that after the same minutes of SFT (McNemar, p < 0.05).",
            partial(_above, policy="rl", other="more-sft", condition=split),
        )
        for split in ("ind", "ood")
    ),
    (
        ("rl", "sft", "sft-longer"),
        "After RL, IND success is not below that of the fine-tuned policy (one-sided 95 % bound within 2 points).",
        lambda e: _not_below(e, "rl", "sft"),
    ),
    *(
        (
            ("rl", "sft", "sft-longer"),
            f"After RL, OOD success is above that {told} (McNemar, p < 0.05).",
            partial(_above, policy="rl", other=other, condition="ood"),
        )
        for other, told in (("sft", "before it"), ("sft-longer", "after the same minutes of more SFT"))
    ),
    (
        ("rl-4bit",),
        "The 4-bit policy is at most 3 points below its bf16 parent, IND and OOD (point estimates).",
        lambda e: _keeps_skill(e, "rl-4bit", "rl"),
    ),
    (("rl",), "At least 85 % of the decoder's parameters are removed.", _decoder_cut),
    (("rl-4bit",), "The weights of the 4-bit policy take at most 1/6 of the dense policy's bytes in bf16.", _bytes),
    (("rl-scratch",), "RL without SFT, with the same budget, is at least 20 points worse (IND).", _scratch),
)
"""The claims: the policies that a study must have for it, the claim in words, and what measures it."""
