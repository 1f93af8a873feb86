"""The page of a run: right numbers, self-contained, and everything in it shows and plays in a real browser."""

import html
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import Browser

from rlrc.episodes import Episode, video_path, write_episodes
from rlrc.errors import UserError
from rlrc.report import ReportConfig, report
from rlrc.report.summary import summarise_run
from rlrc.video import write_video

FILMED = 2
SUCCESSES = {"base": (108, 84), "prune": (0, 1), "sft": (101, 70), "rl": (109, 88), "quantize": (106, 85)}
COSTS = {"base": (6_400_000, 12_800_000, 21.0), "quantize": (1_400_000, 1_600_000, 9.0)}
TRAINING = {
    "sft": lambda step: {"loss": 5 * math.exp(-step / 200) + 1, "token_accuracy": 1 - math.exp(-step / 300)},
    "rl": lambda step: {
        "success_at_end": 0.8 + 0.001 * step,
        "approx_kl": 0.01 + 0.005 * math.sin(step),
        "explained_variance": 1 - math.exp(-step / 20),
        **({"eval_ind_success": 0.8, "eval_ood_success": 0.5 + 0.002 * step} if step % 20 == 0 else {}),
    },
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `rlrc run` leaves it: five policies evaluated on 128 + 128 episodes, two trained, two benchmarked."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    stages = [{"verb": "evaluate", "name": f"{name}-eval", "policy": name} for name in SUCCESSES]
    stages += [{"verb": name, "policy": "base"} for name in TRAINING]
    stages += [
        {"verb": "bench", "policies": list(COSTS)},
        {"verb": "sensitivity", "policy": "base", "dataset": "demos"},
    ]
    stages += [{"verb": "report"}]
    recipe = {"name": "toy-run", "base": "checkpoints/base", "stages": stages}
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name, successes in SUCCESSES.items():
        policy = checkpoint(folder, name)
        stage = finish(folder / f"{name}-eval", "evaluate", {"policy": policy, "world": "tabletop"})
        write_episodes(stage / "episodes.parquet", episodes(policy, successes))
        for split in ("ind", "ood"):
            for i in range(FILMED):
                write_video(video_path(stage, split, i), film(i), fps=5)
    for name, metrics in TRAINING.items():
        stage = finish(folder / name, name, {"policy": "base", "steps": 100})
        rows = [{"step": step, **metrics(step)} for step in range(1, 101)]
        (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = finish(folder / "bench", "bench", {"policies": [checkpoint(folder, name) for name in COSTS]})
    (stage / "bench.json").write_text(json.dumps(bench(folder)))
    finish(folder / "sensitivity", "sensitivity", {"policy": "base", "dataset": "demos"}, sensitivity())
    return folder


def checkpoint(folder: Path, name: str) -> str:
    return "checkpoints/base" if name == "base" else str(folder / name / "checkpoint")


def finish(stage: Path, verb: str, config: dict, result: dict | None = None) -> Path:
    stage.mkdir()
    (stage / "config.yaml").write_text(yaml.safe_dump({"verb": verb, "fingerprint": "0" * 16, "config": config}))
    (stage / "done.json").write_text(
        json.dumps({"fingerprint": "0" * 16, "seconds": 83.0, "machine": "Some CPU, 2 cores", "result": result or {}})
    )
    return stage


def sensitivity() -> dict:
    """Two versions that could be made, and one that could not."""
    change = {"mean": 0.01, "low": 0.005, "high": 0.02}
    done = {"loss_change": change, "changed": change, "speedup": 1.5, "speedup_95": [1.4, 1.7]}
    rows = [
        {"part": "vision", "kind": "bits", "degree": 4, "bytes": 700_000, **done},
        {"part": "decoder", "kind": "width", "degree": 0.5, "bytes": 600_000, **done},
        {"part": "layers", "kind": "depth", "degree": 0.9, "refused": "nothing would be left"},
    ]
    return {"own": {"loss": 0.1, "bytes": 1_000_000, "frames": 8}, "rows": rows}


def episodes(policy: str, successes: tuple[int, int]) -> list[Episode]:
    rows = []
    for split, count in zip(("ind", "ood"), successes, strict=True):
        order = np.random.default_rng(len(split + policy)).permutation(128)
        for i in range(128):
            won = bool(order[i] < count)
            rows.append(Episode(policy, "tabletop", split, "main", i, 0, won, won, won, None, 0.0, 0.0, 1.0, 1.0))
    return rows


def film(seed: int) -> list[np.ndarray]:
    frames = np.full((30, 96, 96, 3), 60 + 40 * seed, np.uint8)
    for t, frame in enumerate(frames):
        frame[30:50, 2 * t : 2 * t + 20] = (200, 120, 40)
    return list(frames)


def bench(folder: Path) -> dict:
    stages = ("preprocess", "vision", "projector", "prefill", "decode", "other")
    return {
        "machine": {"cpu": "Some CPU", "threads": 2, "memory_bytes": 2**34, "gpu": None, "commit": "abc1234"},
        "policies": [
            {
                "policy": checkpoint(folder, name),
                "parameters": {"total": parameters},
                "bytes": {"memory": size, "disk": size},
                "peak_memory": {"baseline": 400 * 2**20, "peak": 450 * 2**20},
                "latency_ms": {"p50": p50, "p90": 1.2 * p50},
                "stages_ms": {stage: {"p50": p50 / 6, "p90": p50 / 5} for stage in stages},
                "actions_per_second": {"1": 1000 / p50, "32": 9000 / p50},
                "speedup": 21.0 / p50,
            }
            for name, (parameters, size, p50) in COSTS.items()
        ],
    }


@pytest.fixture(scope="module")
def page(run_folder: Path) -> Path:
    report(ReportConfig(run=run_folder), run_folder / "report")
    return run_folder / "report" / "report.html"


def test_rows_compare_each_policy_with_the_first(run_folder: Path) -> None:
    summary = summarise_run(run_folder)
    assert [row.name for row in summary.rows] == list(SUCCESSES)
    assert summary.conditions == ["ind", "ood"] and summary.reference.comparisons == {}
    prune = summary.rows[1]
    assert prune.rates["ind"].successes == 0 and prune.comparisons["ind"].difference == pytest.approx(-108 / 128)
    assert prune.comparisons["ind"].p == pytest.approx(2 * 0.5**108)


def test_a_policy_that_acts_in_two_ways_has_two_rows(run_folder: Path, tmp_path: Path) -> None:
    """Its episodes are the same ones, so they must not be pooled."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    stages = [{"verb": "evaluate", "name": name, "policy": "sft"} for name in ("sft-eval", "sft-more", "one-step")]
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "toy", "base": "checkpoints/base", "stages": stages}))
    policy = checkpoint(folder, "sft")
    for name, way in (
        ("sft-eval", {}),
        ("sft-more", {"seed": 0, "episodes": 99}),
        ("one-step", {"denoising_steps": 1}),
    ):
        shutil.rmtree(folder / name, ignore_errors=True)
        stage = finish(folder / name, "evaluate", {"policy": policy, "world": "tabletop"} | way)
        write_episodes(stage / "episodes.parquet", episodes(policy, (64, 32)))
    rows = summarise_run(folder).rows
    assert [(row.name, row.policy, len(row.episodes)) for row in rows] == [
        ("sft", "sft", 512),
        ("one-step", "sft", 256),
    ]


class Text(HTMLParser):
    """The page's cells of text, and every address it mentions."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for key, value in attributes if key in ("src", "href", "poster", "data")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_page_says_what_was_measured_and_needs_no_other_file(page: Path) -> None:
    parsed = Text()
    parsed.feed(page.read_text())
    assert "toy-run" in parsed.texts
    assert {"84.4 %", "[77, 90] n=128", "0.0 %", "[0, 3] n=128"} <= set(parsed.texts)  # 108 and 0 of 128, Wilson
    assert {"6.40 M", "1.40 M", "12.2 MiB", "21.0 ms", "2.33x", "abc1234", "1 min 23 s, Some CPU, 2 cores"} <= set(
        parsed.texts
    )
    outside = [address for address in parsed.addresses if not address.startswith(("data:", "#"))]
    assert not outside
    assert not re.search(r"@import|url\(http", page.read_text())


def test_a_run_without_measurements_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run's folder"):
        report(ReportConfig(run=tmp_path), tmp_path / "out")
    (tmp_path / "recipe.yaml").write_text("name: x\nstages: [{verb: report}]\n")
    with pytest.raises(UserError, match="nothing to show yet"):
        report(ReportConfig(run=tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def test_every_picture_shows_and_every_film_plays(page: Path, browser: Browser) -> None:
    browser.open(page)
    pictures = browser.run("[...document.images].map(i => [i.complete, i.naturalWidth])")
    assert all(complete and width > 0 for complete, width in pictures)
    charts = browser.run(
        "[...document.querySelectorAll('svg')].map(s => [s.getBoundingClientRect().height, s.ariaLabel,"
        " s.querySelectorAll('path').length])"
    )
    assert len(charts) == 1 + 1 + 1 + 2 + 4  # success, time, what parts bear, two of sft, four of rl
    assert all(height > 80 and label and paths > 5 for height, label, paths in charts)
    played = browser.run(
        """Promise.all([...document.querySelectorAll('video')].map(async film => {
            if (film.readyState < 2) await new Promise(done => film.addEventListener('loadeddata', done));
            await film.play();
            const end = Date.now() + 20000;
            while (film.currentTime < 0.2 && Date.now() < end) await new Promise(done => setTimeout(done, 50));
            return [film.readyState, film.currentTime, film.videoWidth, film.duration, film.ariaLabel];
        }))"""
    )
    assert len(played) == 2 * FILMED
    for ready, time, width, duration, label in played:
        assert ready >= 2 and time >= 0.2
        assert width == 2 * 288 + 8 and duration == pytest.approx(
            6.0
        )  # two panels of 3 x 96 px, 30 frames at 5 a second
        assert re.fullmatch(r"(IND|OOD) episode \d: base (succeeds|fails), quantize (succeeds|fails)", label)


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1200, True)])
def test_the_page_fits_a_phone_and_the_dark(page: Path, browser: Browser, width: int, dark: bool) -> None:
    browser.open(page, width, dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    colours = browser.run("['backgroundColor', 'color'].map(k => getComputedStyle(document.body)[k])")
    paper, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (paper < 150 and ink > 600) if dark else (paper > 600 and ink < 150)
    chart = browser.run("getComputedStyle(document.querySelector('svg text')).fill")
    assert chart == colours[1]
    assert browser.run("parseFloat(getComputedStyle(document.querySelector('svg text')).fontSize)") >= 8


def test_the_page_tells_what_each_part_can_bear(page: Path) -> None:
    text = html.unescape(page.read_text())
    for told in ("What each part can bear", "vision, 4 bits", "decoder, 50 % of heads and channels gone", "not done"):
        assert told in text
    assert "+0.0100<small>[+0.0050, +0.0200]" in text and "1.50x<small>[1.40, 1.70]" in text
