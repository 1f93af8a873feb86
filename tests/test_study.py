"""A study: claims that hold as the episodes say, files that agree with the episodes, cells that may be missing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from rlrc.episodes import Episode, read_episodes, video_path, write_episodes
from rlrc.errors import UserError
from rlrc.study import StudyConfig, study, thinned, write_evidence
from rlrc.study.claims import check
from rlrc.study.evidence import gather, motion
from rlrc.video import write_video

N = 200
PLAN = {
    "policies": {"dense": "base", "pruned": "prune", "sft": "sft", "rl": "rl", "rl-4bit": "quantize"}
    | {"rl-scratch": "rl-scratch"},
    "seeds": ["rl", "rl-seed1", "rl-seed2"],
    "sft_steps": {100: "sft"},
    "ratios": {0: ["base"], 0.9: ["prune", "sft", "rl"]},
    "parts": {"decoder": {0.5: "sft", 0.9: "prune"}, "bits": {4: "quantize"}},
}
SUCCESSES = {
    "base": (180, 120),
    "prune": (10, 0),
    "sft": (170, 115),
    "rl": (184, 150),
    "quantize": (182, 146),
    "rl-scratch": (12, 2),
    "rl-seed1": (182, 148),
    "rl-seed2": (186, 144),
}
FILMED = 2


def episode(split: str, number: int, won: bool, variant: str = "main", path: float = 0.5) -> Episode:
    flags = {"success_at_end": won, "success_once": won, "grasped": True}
    numbers = {"sum_reward": 1.0, "max_reward": 1.0, "path_length": path, "jerk": 2.0}
    return Episode("p", "tabletop", split, variant, number, 0, **flags, steps=12 if won else None, **numbers)


@pytest.fixture(scope="module")
def place(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run `runs/toy` lies, of which everything has ended; every policy is the same tiny checkpoint."""
    place = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        make_run(Path("runs/toy"), tiny_checkpoint)
    return place


@pytest.fixture
def folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run for one test to change."""
    shutil.copytree(place / "runs", tmp_path / "runs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/toy")


@pytest.fixture(scope="module")
def written(place: Path) -> Path:
    """The evidence of the run as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        summary = write_evidence(gather(Path("runs/toy")), place / "out")
    assert summary == json.loads((place / "out" / "summary.json").read_text())
    return place / "out"


def make_run(folder: Path, tiny_checkpoint: Path) -> None:
    stages = [{"verb": "evaluate", "name": f"{name}-eval", "policy": name} for name in SUCCESSES]
    stages += [{"verb": "rl", "name": seed, "policy": "sft"} for seed in PLAN["seeds"]]
    for stage in stages:
        here = folder / stage["name"]
        here.mkdir(parents=True)
        maker = stage.get("policy", "")
        path = str(tiny_checkpoint) if maker == "base" else str(folder / maker / "checkpoint")
        config = {"policy": path, "eval_episodes": 100}
        (here / "config.yaml").write_text(
            yaml.safe_dump({"verb": stage["verb"], "fingerprint": "0" * 16, "config": config})
        )
        done = {"fingerprint": "0" * 16, "seconds": 360.0, "result": {}}
        if stage["verb"] == "rl":  # the others ended before stages told their machine
            done["machine"] = "Some CPU, 2 cores" if stage["name"] == "rl" else "Other CPU, 8 cores"
        (here / "done.json").write_text(json.dumps(done))
        if stage["verb"] == "rl":
            points = [
                {"step": s, "eval_ind_success": 0.8, "eval_ood_success": 0.5 + s / 100} for s in (1, 10, 20, 30, 40)
            ]
            (here / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
        else:
            evaluated(here, maker)
    for name in SUCCESSES:
        (folder / name).mkdir(exist_ok=True)
        if name != "base":
            (folder / name / "checkpoint").symlink_to(tiny_checkpoint)
    recipe = {"name": "toy", "base": str(tiny_checkpoint), "stages": stages, "study": PLAN}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def evaluated(out: Path, policy: str) -> None:
    episodes = [
        episode(split, number, number < wins, path=0.5 if policy == "base" else 0.6)
        for split, wins in zip(("ind", "ood"), SUCCESSES[policy], strict=True)
        for number in range(N)
    ]
    if policy in ("base", "rl"):
        episodes += [episode("ood", i, i < 20, "carrot") for i in range(40)]
        episodes += [episode("ood", i, i < 30, "plate") for i in range(40)]
        episodes += [episode("ood", i, i < 10, "position") for i in range(40)]
    write_episodes(out / "episodes.parquet", episodes)
    for number in range(FILMED):
        colours = np.random.default_rng(number).integers(0, 255, (30, 1, 1, 3), dtype=np.uint8)
        write_video(video_path(out, "ind", number), np.broadcast_to(colours, (30, 24, 96, 3)), 5)


def verdicts(folder: Path) -> dict[str, bool | None]:
    return {claim.claim: claim.holds for claim in check(gather(folder))}


def test_the_summary_counts_the_episodes(written: Path) -> None:
    summary = json.loads((written / "summary.json").read_text())
    cells = {(row["policy"], row["split"], row["variant"]): row for row in summary["rows"]}
    assert cells["rl", "ood", "main"] == {
        "policy": "rl",
        "split": "ood",
        "variant": "main",
        "n": N,
        "successes": 150,
    }
    part = next(row for row in summary["rows"] if row.get("part") == "decoder" and row["split"] == "ood")
    assert (part["policy"], part["degree"], part["n"], part["successes"]) == ("sft", 0.5, N, 115)
    assert cells["rl", "ood", "plate"]["successes"] == 30 and cells["rl-seed2", "ind", "main"]["successes"] == 186
    pair = next(p for p in summary["paired"] if (p["a"], p["b"], p["split"]) == ("dense", "rl", "ood"))
    assert pair["points"] == pytest.approx(15.0) and pair["n"] == N
    assert pair["p"] == pytest.approx(2 * 0.5**30)  # thirty discordant pairs, all one way
    assert summary["parameters"]["dense"] == summary["parameters"]["rl"] > summary["decoder_parameters"]["rl"] > 0
    assert summary["bytes"]["dense"] > 0
    episodes = read_episodes(written / "episodes.parquet")
    assert sum(e.success_at_end for e in episodes if e.policy == "rl" and e.variant == "main") == 184 + 150


def test_stages_that_differ_by_their_seed_are_one_policy(folder: Path) -> None:
    """Each was evaluated with its seed, so that a pair is the same episode of the same seed."""
    wins = {"base": (30, 50), "prune": (40, 45)}
    for policy, of_seeds in wins.items():
        for seed, (stage, won) in enumerate(
            zip((policy, {"base": "sft", "prune": "rl"}[policy]), of_seeds, strict=True)
        ):
            cells = [replace(episode(split, n, n < won), seed=seed) for split in ("ind", "ood") for n in range(N)]
            write_episodes(folder / f"{stage}-eval" / "episodes.parquet", cells)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["study"] = {"policies": {"taylor": ["base", "sft"], "random": ["prune", "rl"]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    summary = gather(folder).summary()
    assert [(row["policy"], row["n"], row["successes"]) for row in summary["rows"] if row["split"] == "ood"] == [
        ("taylor", 2 * N, 80),
        ("random", 2 * N, 85),
    ]
    pair = next(pair for pair in summary["paired"] if pair["split"] == "ood")
    assert (pair["n"], pair["points"]) == (2 * N, pytest.approx(100 * 5 / (2 * N)))
    assert pair["p"] == pytest.approx(0.301758, abs=1e-6), "10 pairs one way and 5 the other"


def test_claims_follow_the_episodes(folder: Path) -> None:
    held = verdicts(folder)
    failed = [claim for claim, holds in held.items() if not holds]
    of_size = ["At least 85 % of the decoder's parameters are removed."]
    of_size += ["The weights of the 4-bit policy take at most 1/6 of the dense policy's bytes in bf16."]
    assert failed == of_size, "all are the same checkpoint"
    assert held["After RL, IND success is not below the dense policy's (one-sided 95 % bound within 2 points)."]
    assert held["The mean of the RL seeds is above the dense policy's OOD success (one-sided normal, p < 0.05)."]


def test_the_mean_over_seeds_is_taken_episode_by_episode(folder: Path) -> None:
    """Of 200 episodes, three seeds win 184, 182 and 186, the dense policy 180; whoever wins more wins the same ones."""
    claims = check(gather(folder))
    claim = next(c for c in claims if c.claim.startswith("The mean of the RL seeds is not below"))
    gains = np.zeros(200)
    gains[180:182], gains[182:184], gains[184:186] = 1, 2 / 3, 1 / 3
    bound = gains.mean() - 1.644854 * gains.std(ddof=1) / np.sqrt(200)
    assert claim.measured == f"{100 * gains.mean():+.2f} points, bound {100 * bound:+.2f}, 3 seeds, n = 200"


def test_claims_that_fail_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = {"base": (160, 120), "prune": (60, 0), "sft": (140, 100), "rl": (150, 110), "rl-scratch": (145, 0)}
    for name, successes in worse.items():
        monkeypatch.setitem(SUCCESSES, name, successes)
        evaluated(folder / f"{name}-eval", name)
    claims = check(gather(folder))
    failed = [claim.claim for claim in claims if claim.holds is False]
    first_words = ("The dense policy", "Right after 90 % pruning", "SFT restores at least 90 %", "RL without SFT")
    assert all(any(claim.startswith(words) for claim in failed) for words in first_words)
    assert sum(claim.startswith("After RL") for claim in failed) == 2


def test_the_page_shows_every_part_and_pictures_exist(place: Path, written: Path) -> None:
    text = (written / "README.md").read_text()
    assert "| rl | 92.0 % [87, 95], n = 200 | +2.0 [" in text
    assert "Not measured yet" not in text and "**all of semantics**, n = 80" in text
    assert "(1.20)" in text, "the path is longer by a fifth"
    assert "| decoder | 0.9 | 5.0 % [3, 9], n = 200 | 0.0 % [0, 2], n = 200 |" in text
    assert "Machine: Other CPU, 8 cores; Some CPU, 2 cores." in text, "no `bench` names it, so the stages do"
    for name in ("success.png", "variants.png", "curves.png", "ratios.png", "parts.png", "strip.webp"):
        assert f"({name})" in text
        assert Image.open(written / name).size[0] > 300
    assert Image.open(written / "strip.webp").n_frames > 20
    assert (written / "training" / "rl.jsonl").read_text() == (
        place / "runs" / "toy" / "rl" / "metrics.jsonl"
    ).read_text()


def test_a_suite_is_told_task_by_task(folder: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe |= {"world": "libero_10:fast", "study": {"policies": {"dense": "base", "pruned": "prune"}}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name, wins in (("base", 12), ("prune", 1)):
        episodes = [replace(episode("ind", i, i < wins), task=("open it", "close it")[i % 2]) for i in range(20)]
        write_episodes(folder / f"{name}-eval" / "episodes.parquet", episodes)
    write_evidence(gather(folder), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| task | dense | pruned |" in text
    assert "| close it | 60.0 % [31, 83], n = 10 | 0.0 % [0, 28], n = 10 |" in text
    assert "| open it | 60.0 % [31, 83], n = 10 | 10.0 % [2, 40], n = 10 |" in text


def test_what_has_not_been_measured_is_named(folder: Path, tmp_path: Path) -> None:
    for name in ("rl", "quantize", "rl-seed1"):
        (folder / f"{name}-eval" / "done.json").unlink()
    write_evidence(gather(folder), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Not measured yet: rl, quantize, rl-seed1." in text
    holds = {claim["claim"]: claim["holds"] for claim in json.loads((tmp_path / "out" / "claims.json").read_text())}
    assert holds["After RL, OOD success is above the dense policy's (McNemar, p < 0.05)."] is None


def test_a_study_that_is_run_again_replaces_its_own_evidence(folder: Path, tmp_path: Path) -> None:
    (folder / "rl-eval" / "done.json").rename(tmp_path / "done.json")
    write_evidence(gather(folder), tmp_path / "out")
    (tmp_path / "done.json").rename(folder / "rl-eval" / "done.json")
    write_evidence(gather(folder), tmp_path / "out")
    assert "Not measured yet" not in (tmp_path / "out" / "README.md").read_text()


def test_motion_is_compared_where_both_succeed() -> None:
    ours = [episode("ind", i, i % 2 == 0, path=0.9) for i in range(10)]
    theirs = [episode("ind", i, i < 6, path=0.6) for i in range(10)]
    moved = motion(ours, theirs)
    assert moved is not None and moved["n"] == 3
    assert moved["path_length"] == pytest.approx(0.9) and moved["path_length_ratio"] == pytest.approx(1.5)
    assert motion(ours, [episode("ind", 0, False)]) is None


def test_a_recipe_without_a_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("stages: [{verb: collect}]")
    with pytest.raises(UserError, match="no `study` says what its stages show"):
        study(StudyConfig(recipe=tmp_path / "r.yaml"), tmp_path)


def test_a_long_log_is_thinned_and_keeps_its_end() -> None:
    rows = [f"{number}\n" for number in range(1, 501)]
    assert thinned("".join(rows)) == "".join(rows[4::5])
    assert thinned("".join(rows[:100])) == "".join(rows[:100]) and thinned("") == ""
    assert thinned("".join(rows[:101])) == "".join(rows[:101:2])


@pytest.mark.parametrize("name", ["README.md", "summary.json", "success.png", "training/rl.jsonl"])
def test_what_no_study_wrote_is_not_replaced(folder: Path, tmp_path: Path, name: str) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match="no study wrote this file"):
        write_evidence(gather(folder), tmp_path / "out")
    assert mine.read_text() == "mine" and len(list((tmp_path / "out").iterdir())) == 1
