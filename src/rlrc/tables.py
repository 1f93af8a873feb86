"""Tables on the console (stderr) and in Markdown, and numbers as people read them."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

FILE_WIDTH = 120  # columns where stderr is no terminal


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column is text, folded where space is short; the others are numbers, which may have several lines."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    table.show_lines = any("\n" in cell for row in rows for cell in row)
    for index, column in enumerate(columns):
        if index == 0:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    console.print(table)


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """The lines of a table; nothing where it has no rows."""
    if not body:
        return ""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KiB': powers of 1024, as memory is counted."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}" if count < 10 else f"{count:.1f} {unit}"


def human_count(count: float) -> str:
    """1234567 -> '1.23 M': powers of 1000, as parameters are counted."""
    for unit in ("", " k", " M", " B"):
        if count < 1000 or unit == " B":
            break
        count /= 1000
    return f"{count:.0f}" if not unit else f"{count:.2f}{unit}" if count < 10 else f"{count:.1f}{unit}"


def human_ratio(ratio: float, interval: Sequence[float] | None) -> str:
    """2 of [1.9, 2.2] -> '2.00x [1.90, 2.20]'; a ratio without an interval stands alone."""
    return f"{ratio:.2f}x" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def human_seconds(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
