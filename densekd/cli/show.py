"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()
) -> None:
    """Prints a table; wide enough to be read where the output is no terminal.

    Args:
        title: A line above it.
        columns: The column heads.
        rows: The cells.
        right: Numbers of the columns that are aligned to the right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    shown = Table(title=title, box=box.SIMPLE_HEAD, title_justify='left', title_style='bold')
    for i, column in enumerate(columns):
        shown.add_column(column, justify='right' if i in right else 'left', overflow='fold')
    for row in rows:
        shown.add_row(*map(str, row))
    console.print(shown)
