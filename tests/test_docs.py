"""What README and docs say exists: links, commands, options, environment variables, and code that runs."""

import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from rlrc import envs
from rlrc.command_line import commands
from rlrc.reading import read_json, validate
from rlrc.recipe import Recipe
from rlrc.serve.names import WireNames
from rlrc.stats import pairs_needed, wilson
from rlrc.tables import human_bytes
from rlrc.trial.plan import Scene

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = sorted((ROOT / "results").rglob("*.md"))
SOURCES = [*(ROOT / "src").rglob("*.py"), ROOT / "Makefile", ROOT / "scripts" / "setup.sh"]
OF_EVERY_VERB = {"out", "json", "help"}
MOST_WORDS = 1000


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_readme_is_short() -> None:
    words = len((ROOT / "README.md").read_text().split())
    assert words <= MOST_WORDS, f"README.md has {words} words"


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name(page)} links to {target}"
        assert not heading or heading in headings(there), f"{name(page)} links to {target}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    text = page.read_text()
    makes = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:^|`|&& )make ([a-z][\w-]*)", text, re.MULTILINE):
        assert target in makes, f"{name(page)}: make {target}"
    for command in shell_commands(text):
        words = shlex.split(command, comments=True)
        verb = words[1] if len(words) > 1 else ""
        if verb in ("VERB", "--version", "--help", ""):
            continue
        assert verb in commands(), f"{name(page)}: {command}"
        known = options(commands()[verb].config_class()) | OF_EVERY_VERB
        for word in words[2:]:
            if word.startswith("--"):
                option = word[2:].partition("=")[0]
                assert option.replace("-", "_") in known, f"{name(page)}: {verb} has no option --{option}"


def test_every_verb_is_listed() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    assert set(commands()) <= set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))


def test_options_named_in_text_exist() -> None:
    known = OF_EVERY_VERB.union(*(options(commands()[verb].config_class()) for verb in commands()))
    for page in PAGES:
        if page.parent.name == "journal":
            continue  # it also tells of other programs
        for option in re.findall(r"`--([a-z][\w.-]*)", page.read_text()):
            of_others = option in ("no-deps", "extra-index-url", "by-task") or option.startswith("policy.")
            assert of_others or option.replace("-", "_") in known, f"{name(page)}: --{option}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_named_in_text_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"`?((?:src|recipes|results|benchmarks|scripts|tests|checkpoints)/[\w./-]*\w)", text):
        new = "reach" in path  # the page that says how to add a world
        assert new or (ROOT / path).exists() or list(ROOT.glob(f"{path}*")), f"{name(page)} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_recipes_are_recipes(page: Path) -> None:
    """And in docs/deploy.md names on the wire are names on the wire, in docs/trials.md scenes are scenes."""
    for text in blocks(page, "yaml"):
        values = yaml.safe_load(text)
        if isinstance(values, list):
            assert all(validate(value, Scene, name(page)) for value in values)
        elif "cameras" in values:
            validate(values, WireNames, name(page))
        else:
            Recipe.parse(values, name(page))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_extras_exist(page: Path) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in re.findall(r"\.\[([\w,]+)\]'", page.read_text()):
        assert set(extras.split(",")) <= known.keys(), f"{name(page)}: .[{extras}]"


def test_numbers_of_readme_are_those_of_the_results() -> None:
    text = (ROOT / "README.md").read_text()
    summary = read_json(ROOT / "results" / "tabletop" / "summary.json")
    dense, packed = summary["bytes"]["dense"], summary["bytes"]["rl-4bit"]
    told = [f"**{dense / packed:.1f} times fewer bytes**", f"{human_bytes(dense)} become {human_bytes(packed)}"]
    pairs = {pair["split"]: pair for pair in summary["paired"] if (pair["a"], pair["b"]) == ("dense", "rl-4bit")}
    assert all(abs(pairs["ind"][bound]) < 3 for bound in ("points", "low", "high"))
    told += [f"{pair['points']:+.1f} points [{pair['low']:+.1f}, {pair['high']:+.1f}]" for pair in pairs.values()]
    told += told_of_latency()
    for world, n in (("libero_spatial", 200), ("putonplate", 256)):
        summary = read_json(ROOT / "results" / world / "summary.json")
        for policy in ("dense", "sft"):
            row = next(r for r in summary["rows"] if r["policy"] == policy and r["split"] == "ind")
            assert row["n"] == n
            low, high = wilson(row["successes"], n)
            told.append(f"{100 * row['successes'] / n:.1f} % [{100 * low:.0f}, {100 * high:.0f}]")
    for number in told:
        assert number in text, number


def test_latencies_of_the_results_page_are_those_of_the_results() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    first, *_ = rows = latency_rows()
    assert f"in {first['rounds']} rounds" in text
    for row in rows:
        assert f"| {' | '.join([*cells(row), human_bytes(row['peak_bytes'])])} |".replace("|  |", "| |") in text


def told_of_latency() -> Iterator[str]:
    """What README tells of the latency at OpenVLA-7B's size: a table, and the first and last row of it in words."""
    first, *_, last = rows = latency_rows()
    yield f"medians of {first['rounds']} rounds"
    yield f"**{last['speedup']:.1f} times faster at OpenVLA-7B's size**"
    yield f"one action takes {cells(last)[0]} instead of {cells(first)[0]} through transformers"
    yield from (f"|{'|'.join(cells(row))}|" for row in rows)
    yield quick_row("vision and tokens lighter too, 4-bit", "balanced-4bit")
    yield quick_row("OpenVLA-OFT ({actions} actions a call), pruned, 4-bit", "oft-rlrc-4bit")


def quick_row(told: str, name: str) -> str:
    """What README tells of a row: milliseconds, ratio and weights of one action, where a call may give several."""
    rows = read_json(ROOT / "results" / "latency_7b" / "cpu.json")["rows"]
    row = next(row for row in rows if row["name"] == name)
    actions = row["actions_per_call"]
    milliseconds, ratio = row["p50_ms"] / actions, row["speedup"] * actions
    size = human_bytes(row["weight_bytes"])
    return f"|{told.format(actions=actions)}|{milliseconds:.0f} ms|{ratio:.2f}x|{size}|"


def latency_rows() -> list[dict[str, Any]]:
    """The rows of the first group that are told of: the baseline and rlrc's own. RLRC's weights through transformers
    stand on the page of results alone."""
    first, *others = read_json(ROOT / "results" / "latency_7b" / "cpu.json")["rows"]
    return [first, *(row for row in others if row["group"] == first["group"] and row["backend"] == "rlrc")]


def cells(row: dict[str, Any]) -> list[str]:
    """Seconds, ratio and weights of a row."""
    seconds, ratio = row["p50_ms"] / 1000, row["speedup"]
    return [
        f"{seconds:.1f} s" if seconds > 10 else f"{seconds:.2f} s",
        "" if ratio == 1 else f"{ratio:.2f}x",
        human_bytes(row["weight_bytes"]),
    ]


def test_numbers_of_blocks_are_those_that_are_needed() -> None:
    page = (ROOT / "docs" / "trials.md").read_text()
    rows = re.findall(r"^\| (\d+) % \| (\d+) \| (\d+) \| (\d*) ?\|$", page, re.MULTILINE)
    assert len(rows) == 3
    for share, *numbers in rows:
        for points, number in zip((10, 20, 30), numbers, strict=True):
            less, more = (int(share) - points) / 200, (int(share) + points) / 200
            assert number == ("" if less < 0 else str(pairs_needed(less, more)))


def test_environment_variables_are_listed() -> None:
    page = (ROOT / "docs" / "environment.md").read_text()
    read = r"""environ(?:\.get|\.setdefault|\.pop)?[(\[]["']([A-Z_0-9]+)["']|["']([A-Z_0-9]+)["'] in os\.environ"""
    for path in SOURCES:
        for found in re.findall(rf"{read}|[\"'](RLRC_[A-Z_]+)[\"']", path.read_text()):
            variable = "".join(found)
            assert f"`{variable}`" in page, f"{name(path)} reads {variable}, which docs/environment.md does not list"


def test_a_method_and_a_world_as_the_page_adds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(envs, "WORLDS", dict(envs.WORLDS))
    namespace: dict[str, Any] = {}
    for code in blocks(ROOT / "docs" / "extend.md", "python"):
        if code.startswith("# reach.py"):
            (tmp_path / "reach.py").write_text(code)
        else:
            exec(compile(code, "docs/extend.md", "exec"), namespace)
    sys.modules.pop("reach", None)
    # Half of the base policy's 10 heads and 640 channels; the world's expert goes straight to its goal.
    shape, success = capsys.readouterr().out.splitlines()[-2:]
    assert shape == "{'num_attention_heads': 5, 'num_key_value_heads': 5, 'intermediate_size': 320}"
    assert success == "1.0"


def test_python_of_other_pages_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for code in blocks(ROOT / "docs" / "bring-your-own.md", "python"):
        exec(compile(code, "docs/bring-your-own.md", "exec"), {})


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def headings(page: Path) -> set[str]:
    """As GitHub names them in links."""
    titles = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def shell_commands(text: str) -> Iterator[str]:
    """Every `rlrc ...` of a block of shell or of inline code."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.partition(" #")[0].split("&&"):
                if part.strip().startswith("rlrc "):
                    yield part.strip()
    yield from re.findall(r"`(rlrc [^`]+)`", without_code(text))


def options(config: type[BaseModel]) -> set[str]:
    """Names of a config's fields, and dotted those of the configs in it."""
    found = set()
    for field, info in config.model_fields.items():
        found.add(field)
        for inner in configs_in(info.annotation):
            found |= {f"{field}.{option}" for option in options(inner)}
    return found


def configs_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from configs_in(part)
