"""A study: every cell of a recipe run on the same episodes, and what follows from them, as tables, tests and figures.

    rlrc study recipes/tabletop.yaml --jobs 2

The recipe's `study` says which stages are the cells. They run or resume below runs/<its name>, exactly as `rlrc run`
would run them; the evidence is written to results/<its name>: `summary.json` for machines, `README.md` with its
pictures for people, every episode in `episodes.parquet` and the logs of every training in `training/`.
"""

from pathlib import Path
from typing import Any

from rlrc.configs.run import StudyConfig
from rlrc.episodes import write_episodes
from rlrc.errors import UserError
from rlrc.files import write_json, write_text
from rlrc.pipeline import run
from rlrc.progress import say
from rlrc.recipe import read_recipe
from rlrc.study.claims import check
from rlrc.study.evidence import Evidence, gather
from rlrc.study.figures import draw
from rlrc.study.page import page
from rlrc.study.strip import write_strip


def study(config: StudyConfig, out: Path) -> dict[str, Any]:
    """Bring the recipe to its end and write the evidence to `out`.

    Raises:
        UserError: the recipe is wrong or has no `study`, or a stage finds its input wrong.
    """
    recipe = read_recipe(config.recipe)
    if recipe.study is None:
        raise UserError(f"{config.recipe}: no `study` says what its stages show; `rlrc run` runs them")
    folder = Path("runs") / recipe.name
    run(config, folder)
    return write_evidence(gather(folder), out)


def write_evidence(evidence: Evidence, out: Path) -> dict[str, Any]:
    """Write the evidence of a run's finished stages to `out` and return what `summary.json` holds.

    Raises:
        UserError: no policy of the study has been evaluated yet.
    """
    summary = evidence.summary()
    claims = check(evidence)
    name = evidence.plan.name
    prefix = f"{name}-" if name else ""
    write_json(out / f"{name or 'summary'}.json", summary)
    write_json(out / f"{prefix}claims.json", [vars(claim) for claim in claims])
    write_episodes(out / f"{prefix}episodes.parquet", evidence.all_episodes())
    for stage in evidence.stages.values():
        if (log := stage.folder / "metrics.jsonl").exists():
            write_text(out / "training" / f"{prefix}{stage.name}.jsonl", log.read_text())
    pictures = draw(evidence, out, prefix)
    strip = write_strip(evidence, out / f"{prefix}strip.gif")
    written = out / (f"{name}.md" if name else "README.md")
    write_text(written, page(evidence, claims, pictures, strip))
    for claim in claims:
        say(f"{claim.verdict}: {claim.claim} ({claim.measured})")
    say(f"evidence: {written}")
    return summary
