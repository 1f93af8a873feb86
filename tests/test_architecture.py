"""Imports only point downwards, and `import rlrc` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "rlrc"

FLOORS = [
    {
        "autoclasses",
        "config",
        "configs",
        "errors",
        "episode_ids",
        "episodes",
        "files",
        "process",
        "progress",
        "reading",
        "stats",
        "tables",
        "verbs",
        "video",
        "__init__",
    },
    {"kernels"},
    {"models"},
    {"envs", "data"},
    {"prune", "quantize", "cache"},
    {"rollouts", "evaluate", "recover", "bench", "roofline", "inspect", "stage_chart", "assets"},
    {"stage", "recipe", "report", "pipeline", "study"},
    {"cli", "command_line", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The rlrc modules that a file imports, dotted and without the leading `rlrc.`, wherever in the file they are."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "rlrc" else {module}
    return {name.removeprefix("rlrc.") for name in names if name.startswith("rlrc.")}


def room(module: str) -> str:
    return module.split(".")[0]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_downwards(path: Path) -> None:
    here = room(module_name(path))
    assert here in FLOOR, f"{here} stands on no floor: give it one here and in docs/architecture.md"
    if here == "__init__":
        return  # the package's front door, which imports its rooms only when asked
    above = {name for name in imported(path) if room(name) in FLOOR and FLOOR[room(name)] > FLOOR[here]}
    assert not above, f"{module_name(path)} (floor {FLOOR[here]}) imports {sorted(above)} from above it"


def test_rooms_of_one_floor_do_not_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for path in MODULES:
        here = room(module_name(path))
        others = {room(name) for name in imported(path)}
        edges.setdefault(here, set()).update(o for o in others if o != here and FLOOR.get(o) == FLOOR.get(here))
    edges.pop("__init__", None)

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, f"circle: {' -> '.join((*trail, node))}"
        for other in edges.get(node, ()):
            visit(other, (*trail, node))

    for node in edges:
        visit(node, ())


def test_the_floors_are_those_of_the_architecture_page() -> None:
    page = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text()
    rooms = {room for floor in FLOORS for room in floor if not room.startswith("__")}
    missing = {room for room in rooms if f"`{room}.py`" not in page and f"`{room}/`" not in page}
    assert not missing, f"docs/architecture.md does not name {sorted(missing)}"


def test_import_rlrc_is_light() -> None:
    code = (
        "import sys, time\nbefore = time.process_time()\nimport rlrc\nseconds = time.process_time() - before\n"
        "heavy = {'torch', 'transformers', 'mujoco', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert seconds < 0.5, seconds"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
