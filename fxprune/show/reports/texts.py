"""Figures and tables as text."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

__all__ = ["as_html", "as_markdown", "count", "in_ms", "pair", "row"]


def count(number: float) -> str:
    """Write a number to three digits, below 10,000 in full: 12.3M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= unit:
            scaled = number / (1e3 if name == "k" else unit)
            return f"{scaled:.{max(0, 2 - int(math.log10(scaled)))}f}{name}"
    return f"{number:.0f}"


def in_ms(value: float) -> str:
    """Write seconds as milliseconds."""
    return f"{value * 1e3:.3g} ms"


def pair(figures: tuple[float, float], text: Callable[[float], str]) -> str:
    """Write figures before and after."""
    return f"{text(figures[0])} -> {text(figures[1])}"


def row(figures: tuple[float, float], text: Callable[[float], str]) -> list[str]:
    """Lay out figures before and after, and the share that is left."""
    before, after = figures
    return [text(before), text(after), f"{after / before:.2f}" if before else ""]


def as_markdown(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return f"**{title}**\n\n" + "\n".join(f"| {' | '.join(map(_in_cell, line))} |" for line in lines)


def _in_cell(text: str) -> str:
    """Write a text so that it ends no cell and no row of a table in Markdown."""
    return " ".join(text.replace("|", "\\|").splitlines())


def as_html(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in HTML."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table><caption>{html.escape(title)}</caption>{row(head, 'th')}{body}</table>"
