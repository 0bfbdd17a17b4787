"""An analysis as a table of groups, for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fxprune.analysis.colours import colours
from fxprune.analysis.groups import Group

__all__ = ["groups_table"]

CELL = "text-align:{};padding:2px 12px 2px 0;background:none"


def groups_table(groups: Sequence[Group], caption: str) -> str:
    """Write a row per group: its name and colour, its freedom and what limits it; frozen ones last, grey."""
    colour = colours(groups)
    rows = []
    for group in sorted(groups, key=lambda g: g.frozen is not None):
        style = f' style="color:{colour[group]}"' if group.frozen else ""
        swatch = (
            f'<span style="display:inline-block;width:.75em;height:.75em;border-radius:3px;'
            f'background:{colour[group]};margin-right:.6em"></span>'
        )
        sites = escape("\n".join(map(str, group.sites)), quote=True)
        rows.append(
            f"<tr{style}>"
            + _cell(swatch + escape(group.name))
            + _cell(str(group.size), "right")
            + _cell(group.role)
            + f'<td style="{CELL.format("right")}" title="{sites}">{len(group.sites)}</td>'
            + _cell(str(group.freedom))
            + _cell(escape(group.why))
            + "</tr>"
        )
    head = "".join(f'<th style="{CELL.format("left")}">{title}</th>' for title in _TITLES)
    return (
        '<div style="max-height:32em;overflow:auto"><table style="border-collapse:collapse">'
        f'<caption style="text-align:left;caption-side:top">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


_TITLES = ("group", "size", "role", "sites", "freedom", "")


def _cell(content: str, align: str = "left") -> str:
    return f'<td style="{CELL.format(align)}">{content}</td>'
