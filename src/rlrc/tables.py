"""Tables on the console (stderr), and numbers as people read them."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column is text, the others are numbers; a table is never cut or wrapped where stderr is a file."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console(stderr=True)
    console.print(table, width=None if console.is_terminal else 200, markup=False)


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


def human_seconds(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
