"""Imports only point downwards, and `import rlrc` stays light."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fresh import fresh

from rlrc.command_line import commands
from rlrc.config import Config
from rlrc.errors import EXTRAS
from rlrc.policies.families import FAMILIES

PACKAGE = Path(__file__).parents[1] / "src" / "rlrc"

FLOORS = [
    {
        *(
            "client",
            "config",
            "configs",
            "episode_ids",
            "episodes",
            "errors",
            "files",
            "jobs",
            "lock",
            "ownership",
            "pixels",
            "png",
        ),
        *("process", "progress", "reading", "stats", "tables", "served", "version", "video"),
    },
    {"native"},
    {"bfloat16", "packed"},
    {"policies"},
    {"envs", "data"},
    {"prune", "quantize"},
    {
        *(
            "act",
            "recover",
            "bench",
            "roofline",
            "inspect",
            "sensitivity",
            "sensitivity_map",
            "fit",
            "stage_chart",
            "assets",
        ),
        *("serve", "client", "port", "wire"),
    },
    {"finished", "pipeline", "recipe", "report", "resolve", "stage", "study", "trial", "verbs"},
    {"__init__", "__main__", "autoclasses", "cli", "command_line"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path: Path) -> str:
    return ".".join(("rlrc", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def imported(path: Path) -> set[str]:
    """The modules of rlrc that a file imports, wherever in the file, and those that its tables name in text."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in MODULES else str(node.module))
        elif isinstance(node, ast.Constant) and str(node.value).startswith("rlrc."):
            names.add(str(node.value))
    return (names & MODULES.keys()) - {module_name(path)}


IMPORTS = {module: imported(path) for module, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    here = room(module)
    assert here in FLOOR, f"{here} stands on no floor: give it one here and in docs/architecture.md"
    above = {name for name in IMPORTS[module] if FLOOR[room(name)] > FLOOR[here]}
    assert not above, f"{module} (floor {FLOOR[here]}) imports {sorted(above)} from above it"


def test_files_do_not_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"circle: {' -> '.join((*trail, module))}"
        if module not in done:
            for other in IMPORTS[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_tables_name_modules_that_are_there() -> None:
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and re.fullmatch(r"rlrc(\.\w+)+", str(node.value)):
                assert node.value in MODULES, f"{module} names {node.value}, which does not exist"
    for verb in commands().values():
        assert callable(verb.function()) and issubclass(verb.config_class(), Config)


FAMILIES_FILE = "rlrc.policies.families"
"""The only module outside a family's folder that names it."""


@pytest.mark.parametrize("name", FAMILIES)
def test_nobody_outside_its_folder_imports_a_family(name: str) -> None:
    inside = FAMILIES[name].package
    for module, path in MODULES.items():
        if not is_within(module, inside) and module != FAMILIES_FILE:
            named = {other for other in imported(path) if is_within(other, inside)}
            assert not named, f"{module} imports {sorted(named)}"


@pytest.mark.parametrize("name", FAMILIES)
def test_nobody_outside_its_folder_names_a_family(name: str) -> None:
    """Neither its classes anywhere, nor its name above the floor of policies; `configs` list what users may choose."""
    inside = FAMILIES[name].package
    files = [ast.parse(MODULES[f"{inside}.{file}"].read_text()) for file in ("config", "model", "policy")]
    classes = {node.name for file in files for node in file.body if isinstance(node, ast.ClassDef)}
    assert {FAMILIES[name].config_class, FAMILIES[name].model_class} <= classes
    for module, path in MODULES.items():
        if is_within(module, inside) or module == FAMILIES_FILE or room(module) == "configs":
            continue
        words = set(words_of(ast.parse(path.read_text())))
        assert not words & classes, f"{module} names {sorted(words & classes)}"
        assert name not in words or room(module) == "policies", f"{module} names '{name}'"


HIDE = """
import json, sys
from importlib import import_module

package, modules = sys.argv[1], json.loads(sys.argv[2])


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == package or name.startswith(package + "."):
            raise AssertionError(f"{name} is hidden, and somebody imports it")


sys.meta_path.insert(0, Hidden())
missing = []
for name in modules:
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] == "rlrc":
            raise
        missing.append(name)
try:
    import_module(package)
except AssertionError:
    print(json.dumps(missing))
"""


@pytest.mark.parametrize("name", FAMILIES)
def test_everything_else_can_be_imported_without_a_family(name: str) -> None:
    package = FAMILIES[name].package
    others = [module for module in MODULES if not is_within(module, package) and module != "rlrc.__main__"]
    without_their_packages = json.loads(fresh(HIDE, package, json.dumps(others)).splitlines()[-1])
    needing_more = ("rlrc.envs.", "rlrc.data.libero", "rlrc.packed.cuda.")
    assert all(module.startswith(needing_more) for module in without_their_packages)


def is_within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def words_of(tree: ast.AST) -> Iterator[str]:
    """Identifiers and texts of the code; docstrings tell what is done elsewhere and may name whom they like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


DECLARED = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text())["project"]
PACKAGES = {"PIL": "pillow", "cv2": "opencv-python", "huggingface_hub": "huggingface-hub", "yaml": "pyyaml"}
"""What is installed under another name than it is imported."""
OWN_INSTALL = {"libero", "robosuite"}
"""What `make libero` installs, because these packages ask for other releases than ours."""


def test_every_package_that_is_imported_is_declared() -> None:
    lines = [
        *DECLARED["dependencies"],
        *(line for extra in DECLARED["optional-dependencies"].values() for line in extra),
    ]
    declared = {re.split(r"[\[<>=; ]", line)[0].lower().replace("_", "-") for line in lines}
    for module, path in MODULES.items():
        for name in third_party(path):
            package = PACKAGES.get(name, name).lower().replace("_", "-")
            assert package in declared or name in OWN_INSTALL, f"{module} imports {name}: declare it in pyproject.toml"


def test_the_core_needs_no_extra() -> None:
    for module, path in MODULES.items():
        if FLOOR[room(module)] <= 4 and not module.startswith(("rlrc.envs", "rlrc.stats")):
            at_import = third_party(path, only_at_import=True)
            assert not at_import & EXTRAS.keys() or module in ("rlrc.data.collect",), f"{module}: {at_import}"


def third_party(path: Path, only_at_import: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if only_at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"rlrc"}


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
