"""A study: every cell of a recipe run on the same episodes, and what follows from them, as tables, tests and figures.

    rlrc study recipes/tabletop.yaml --jobs 2

The recipe's `study` says which stages are the cells. They run or resume below runs/<its name>, exactly as `rlrc run`
would run them; the evidence is written to results/<its name>: `summary.json` for machines, `README.md` with its
pictures for people, every episode in `episodes.parquet`, and of every training's log at most a hundred rows in
`training/`.
"""

from pathlib import Path
from typing import Any

from rlrc.configs.run import StudyConfig
from rlrc.episodes import write_episodes
from rlrc.errors import UserError
from rlrc.files import write_json, write_text
from rlrc.lock import locked
from rlrc.ownership import made, require_plain
from rlrc.pipeline import run
from rlrc.progress import MAX_METRICS_BYTES, say
from rlrc.reading import read_text
from rlrc.recipe import read_recipe
from rlrc.study.claims import check
from rlrc.study.evidence import Evidence, gather
from rlrc.study.figures import FIGURES, draw
from rlrc.study.page import MARK, page
from rlrc.study.strip import write_strip

LOG_ROWS = 100
"""Rows of a training's log that are kept; all of them would take megabytes."""


def study(config: StudyConfig, out: Path) -> dict[str, Any]:
    """Bring the recipe to its end and write the evidence to `out`.

    Raises:
        UserError: the recipe is wrong or has no `study`, a stage finds its input wrong, or `out` holds files of the
            study's names that no study wrote.
    """
    recipe = read_recipe(config.recipe)
    if recipe.study is None:
        raise UserError(f"{config.recipe}: no `study` says what its stages show; `rlrc run` runs them")
    folder = Path("runs") / recipe.name
    _require_own(out, recipe.study.name)
    run(config, folder)
    return write_evidence(gather(folder), out)


def write_evidence(evidence: Evidence, out: Path) -> dict[str, Any]:
    """Write the evidence of a run's finished stages to `out` and return what `summary.json` holds.

    Raises:
        UserError: no policy of the study has been evaluated yet, or another process writes to `out`.
    """
    _require_own(out, evidence.plan.name)
    with made(out), locked(out):
        return _write(evidence, out)


def _write(evidence: Evidence, out: Path) -> dict[str, Any]:
    summary = evidence.summary()
    claims = check(evidence)
    name = evidence.plan.name
    prefix = f"{name}-" if name else ""
    written = _page(out, name)
    if not written.exists():  # shows from the first file on whose they are
        write_text(written, f"{MARK} {evidence.recipe.name}`, which was cut off: run it again.\n")
    write_json(out / f"{name or 'summary'}.json", summary)
    write_json(out / f"{prefix}claims.json", [vars(claim) for claim in claims])
    write_episodes(out / f"{prefix}episodes.parquet", evidence.all_episodes())
    for stage in evidence.stages.values():
        if (log := stage.folder / "metrics.jsonl").exists():
            write_text(out / "training" / f"{prefix}{stage.name}.jsonl", thinned(read_text(log, MAX_METRICS_BYTES)))
    pictures = draw(evidence, out, prefix)
    strip = write_strip(evidence, out / f"{prefix}strip.webp")
    write_text(written, page(evidence, claims, pictures, strip))
    for claim in claims:
        say(f"{claim.verdict}: {claim.claim} ({claim.measured})")
    say(f"evidence: {written}")
    return summary


def thinned(log: str) -> str:
    """At most `LOG_ROWS` rows of a log, at even distances, the last one among them."""
    rows = log.splitlines(keepends=True)
    return "".join(rows[::-1][:: -(-len(rows) // LOG_ROWS) or 1][::-1])


def _page(out: Path, name: str | None) -> Path:
    return out / (f"{name}.md" if name else "README.md")


def _require_own(out: Path, name: str | None) -> None:
    """Check that what the study writes replaces nothing but another study's evidence.

    Raises:
        UserError: it would.
    """
    prefix = f"{name}-" if name else ""
    pictures = [*FIGURES, "strip.webp", "claims.json", "episodes.parquet"]
    files = [_page(out, name), out / f"{name or 'summary'}.json", *(out / f"{prefix}{file}" for file in pictures)]
    for path in (out, out / "training", *files):
        require_plain(path)
    there = [path for path in (*files, *(out / "training").glob(f"{prefix}*.jsonl")) if path.exists()]
    is_ours = _page(out, name).is_file() and MARK.encode() in _page(out, name).read_bytes()[:1000]
    if there and not is_ours:
        raise UserError(f"{there[0]}: no study wrote this file, so none replaces it; choose another --out")
