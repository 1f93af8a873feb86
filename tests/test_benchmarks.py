"""Every name that a script of `benchmarks` imports exists: their runs take hours, and tests start few of them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SOURCE = Path(__file__).parents[1] / "src"
ELSEWHERE = ("ask_*.py", "reading_worker.py")
"""Scripts that run with other people's packages, or with rlrc of another commit."""

SCRIPTS = [path for path in sorted(BENCHMARKS.rglob("*.py")) if not any(path.match(name) for name in ELSEWHERE)]


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Every module and name of an import by name in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", name.name) for name in node.names)


def defined(path: Path) -> set[str]:
    """The names that a file binds, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
    return names


def sources(module: str) -> list[Path]:
    """The file of a module of rlrc, and of a package also those of what lies in it. Nothing is imported, since some of
    rlrc's modules need packages that are not installed here."""
    path = SOURCE.joinpath(*module.split("."))
    return [path / "__init__.py", *path.iterdir()] if path.is_dir() else [path.with_suffix(".py")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_what_it_imports_exists(path: Path) -> None:
    for module, name in imported(path):
        neighbour = next((place for place in (path.parent, BENCHMARKS) if (place / f"{module}.py").exists()), None)
        if neighbour is not None:
            assert name in defined(neighbour / f"{module}.py"), f"{module}.py defines no {name}"
        elif module.split(".")[0] == "rlrc":
            first, *others = sources(module)
            assert name in defined(first) | {other.stem for other in others}, f"{module} has no {name}"
