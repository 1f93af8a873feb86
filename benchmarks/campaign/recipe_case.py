"""The parts that cases about recipes share."""

from pathlib import Path
from typing import Any

from case import Case, Expected
from damage import Change, write
from valid import put, put_user_files

RUN = ("run", "recipe.yaml", "--out", "runs/one")
PRUNE = "{verb: prune, policy: base, ratio: 0.5, method: {kind: random}}"


def recipe_case(
    name: str,
    text: str | bytes,
    *words: str,
    expected: Expected = "refused",
    arguments: tuple[str, ...] = RUN,
    then: Change | None = None,
    **more: Any,
) -> Case:
    """A case about this recipe, with a policy and the user's files beside it; `then` changes the place."""

    def build(place: Path) -> None:
        put_user_files(place)
        put("policy", place / "policy")
        write(text)(place / "recipe.yaml")
        if then is not None:
            then(place)

    return Case(f"recipe/{name}", arguments, build, expected, words, **more)


def recipe_text(*stages: str, name: str = "one", base: str = "policy", more: str = "") -> str:
    lines = "".join(f"  - {stage}\n" for stage in stages or (PRUNE,))
    return f"name: {name}\nbase: {base}\n{more}stages:\n{lines}"
