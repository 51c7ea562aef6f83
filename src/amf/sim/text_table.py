"""A table of text: a grid on a terminal, lines aligned with spaces in a pipe."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True, slots=True)
class TextTable:
    """The first `texts` columns are words, the others numbers."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 2
    title: str = ""

    def lines(self, one_word: bool = False) -> list[str]:
        """The heads, then the rows. `one_word`: heads without spaces, for tools that split there."""
        heads = [head.replace(" ", "_") for head in self.heads] if one_word else self.heads
        rows = [heads, *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        return ["  ".join(self._aligned(row, widths)).rstrip() for row in rows]

    def grid(self) -> Table:
        grid = Table(header_style="bold", pad_edge=False, title=self.title or None)
        for number, head in enumerate(self.heads):
            grid.add_column(head, justify="left" if number < self.texts else "right")
        for row in self.rows:
            grid.add_row(*row)
        return grid

    def _aligned(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        cells = enumerate(zip(row, widths, strict=True))
        return [cell.ljust(width) if column < self.texts else cell.rjust(width) for column, (cell, width) in cells]
