"""A colour per group: one hue for each role, shades of it for the groups of that role."""

from __future__ import annotations

import colorsys
from collections import defaultdict
from collections.abc import Iterable

from fxprune.analysis.groups import Group

__all__ = ["GREY", "colours"]

GREY = "#8a93a3"  # what is frozen

# In degrees of the colour circle.
HUES = {"embed": 215, "heads": 26, "head_dim": 160, "hidden": 280}
OTHER_HUE = 335
SPREAD = 36  # degrees of hue between the first and the last group of a role


def colours(groups: Iterable[Group]) -> dict[Group, str]:
    """Give each group a colour `#rrggbb`: dark enough for text on white, grey if it is frozen."""
    by_role: dict[str, list[Group]] = defaultdict(list)
    out = {}
    for group in groups:
        out[group] = GREY
        if group.frozen is None:
            by_role[group.role].append(group)
    for role, several in by_role.items():
        for i, group in enumerate(several):
            # Neighbours, whose hues are alike, differ in lightness.
            shift = (i / (len(several) - 1) - 0.5) * SPREAD if len(several) > 1 else 0.0
            out[group] = _hex(HUES.get(role, OTHER_HUE) + shift, lightness=(0.42, 0.34, 0.38)[i % 3])
    return out


def _hex(hue: float, lightness: float) -> str:
    rgb = colorsys.hls_to_rgb(hue % 360 / 360, lightness, 0.6)
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)
