"""The page of an experiment: right numbers, self-contained, and readable on a phone and in the dark."""

import re
from pathlib import Path

import pytest
from browser import Browser

from rlrc.configs.trial import TrialConfig
from rlrc.stats import holm, mcnemar, paired_difference, wilson
from rlrc.trial.page import page
from rlrc.trial.plan import Scene, new_plan
from rlrc.trial.records import Attempt, Look, Records
from rlrc.trial.results import Results, evaluate, pair_table, policy_table

POLICIES = ("teacher", "pruned", "packed")
WINS = {
    "teacher": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1],
    "pruned": [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1],
    "packed": [1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1],
}
"""Outcome of each policy in each block."""
NOTE = "the gripper <slipped> & fell [twice] " + "and so on " * 20


def experiment(folder: Path, blocks: int = 12, wins: dict[str, list[int]] = WINS) -> Results:
    given = [f"{name}=ws://127.0.0.1:{8000 + number}" for number, name in enumerate(wins)]
    config = TrialConfig.parse({"policies": given, "scenes": "scenes.yaml", "seed": 4}, "test")
    scenes = [Scene(name=f"mug {number}", layout="the mug is left", repeats=blocks // 4) for number in range(4)]
    plan = new_plan(config, scenes, {name: {"policy": f"<{name}>"} for name in wins})
    records = Records(plan, folder / "attempts.jsonl", folder / "looks.jsonl")
    is_first = True
    while (due := records.due()) is not None:
        trial = plan.trials[due]
        outcome = "void" if is_first else "success" if wins[trial.policy][trial.block] else "failure"
        values = {"trial": due, "attempt": records.attempts_at(due) + 1, "outcome": outcome, "seconds": 30.0 + due}
        values |= {"note": NOTE if is_first else "", "begun": "2026-11-28T10:00:00+00:00", "answers": 3, "actions": 24}
        records.add(Attempt(**values))
        is_first = False
        if records.counted == 5 and not records.looks:
            records.add_look(Look(at="2026-11-28T10:00:00+00:00", counted=5))
    return evaluate(plan, records)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return experiment(tmp_path_factory.mktemp("trials"))


def test_the_numbers_are_those_of_the_tests(results: Results) -> None:
    for policy, wins in zip(results.policies, WINS.values(), strict=True):
        assert policy.rate is not None and (policy.rate.successes, policy.rate.n) == (sum(wins), 12)
        assert (policy.rate.low, policy.rate.high) == wilson(sum(wins), 12)
    names = [("teacher", "pruned"), ("teacher", "packed"), ("pruned", "packed")]
    assert [(pair.first, pair.second) for pair in results.pairs] == names
    adjusted = holm([mcnemar(WINS[first], WINS[second]) for first, second in names])
    for pair, p in zip(results.pairs, adjusted, strict=True):
        found = pair.comparison.difference, pair.comparison.low, pair.comparison.high
        assert found == paired_difference(WINS[pair.first], WINS[pair.second]) and pair.p_adjusted == p
    assert [pair.told_needed for pair in results.pairs] == [
        "none, the difference is found",
        "unknown, no difference was seen",
        "none, the difference is found",
    ]


def test_a_difference_that_is_not_found_says_how_many_more_trials_it_needs(tmp_path: Path) -> None:
    wins = {"teacher": [1, 1, 1, 1], "pruned": [0, 1, 1, 1]}
    (pair,) = experiment(tmp_path, 4, wins).pairs
    # One block of four is lost: 31 blocks would show it in 80 of 100 experiments, and 4 are done.
    assert pair.blocks_needed == 31 and pair.told_needed == "about 27 more of each policy"


def test_tables_tell_all(results: Results) -> None:
    _, rows = policy_table(results)
    assert rows[1][:3] == ["pruned", "16.7 % [5, 45]", "2 of 12"]
    head, rows = pair_table(results)
    assert head[2] == "p of Holm" and rows[0][0] == "pruned - teacher" and rows[0][4] == "teacher 8, pruned 0"


@pytest.fixture(scope="module")
def written(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "trial.html"
    path.write_text(page("kitchen", results))
    return path


def test_the_page_needs_no_other_file_and_escapes_what_was_typed(written: Path) -> None:
    text = written.read_text()
    assert "16.7 %" in text and "(after 5 trials)" in text and "&lt;slipped&gt; &amp; fell [twice]" in text
    assert "<slipped>" not in text and "&lt;teacher&gt;" in text
    assert not re.search(r"@import|url\(http|src=|href=\"(?!data:|#)", text)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1200, True)])
def test_the_page_fits_a_phone_and_the_dark(written: Path, browser: Browser, width: int, dark: bool) -> None:
    browser.open(written, width, dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    charts = browser.run(
        "[...document.querySelectorAll('svg')].map(s => [s.getBoundingClientRect().height, s.ariaLabel])"
    )
    assert len(charts) == 2 and all(height > 60 and label for height, label in charts)
    assert browser.run("document.querySelectorAll('tbody tr').length") == 3 + 3 + 37
