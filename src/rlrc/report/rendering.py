"""HTML pages that need no other file, made from the templates beside this one."""

from pathlib import Path
from typing import Any

import jinja2

from rlrc.tables import human_bytes, human_seconds


def render(template: str, verb: str, name: str, description: str, **values: Any) -> str:
    """The page of a verb.

    Args:
        name: of what the page is about, its title.
        description: what the page is, in one line.
    """
    environment = jinja2.Environment(loader=jinja2.PackageLoader("rlrc", "report"), autoescape=True)
    environment.filters |= {"bytes": human_bytes, "duration": human_seconds}
    style = (Path(__file__).parent / "page.css").read_text()
    return environment.get_template(template).render(
        verb=verb, name=name, description=description, style=style, **values
    )
