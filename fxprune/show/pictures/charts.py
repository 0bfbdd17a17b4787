"""Charts: which modules carry which groups, and what pruning kept of each layer."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from fxprune.errors import OptionError, shown
from fxprune.show.pictures.chosen_rows import chosen_rows
from fxprune.show.pictures.libraries import drawing_library
from fxprune.show.pictures.scene import Scene
from fxprune.show.pictures.tree import Tree

__all__ = ["coupling_map", "kept_bars"]

INK, SOFT, RULE = "#1b2330", "#5c6675", "#e3e6eb"
LINE = 0.19  # inches of height per row


def coupling_map(scene: Scene, suffix: str, patterns: list[str]) -> bytes:
    """Draw modules by groups: a square where the module carries the group, larger for more sites.

    Only groups that may shrink have a column; they stand in the order in which the model uses them.
    """
    layers = _layers(scene, patterns)
    of_layer = {name: i for i, layer in enumerate(layers) for name in layers[layer]}
    used = scene.analysis.names
    points: dict[tuple[int, int], int] = {}
    groups = [
        g for g in scene.groups if g.frozen is None and any(_used(used, s.name) in of_layer for s in g.sites)
    ]
    for column, group in enumerate(groups):
        for name in [_used(used, site.name) for site in group.sites]:
            if name in of_layer:
                cell = (column, of_layer[name])
                points[cell] = points.get(cell, 0) + 1
    figure, axes = _figure(2.6 + 0.2 * len(groups), len(layers), extra=2.2)
    columns, rows = zip(*points, strict=True) if points else ((), ())
    colour = [scene.colour(groups[column]) for column in columns]
    axes.scatter(columns, rows, s=[14 + 14 * count for count in points.values()], c=colour, marker="s", lw=0)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(groups)), [_sized(scene, g) for g in groups], rotation=90, fontsize=7)
    for label, group in zip(axes.get_xticklabels(), groups, strict=True):
        label.set_color(scene.colour(group))
    axes.set_yticks(range(len(layers)), list(layers), fontsize=7)
    axes.set_xlim(-0.8, len(groups) - 0.2)
    axes.grid(color=RULE, linewidth=0.6)
    return _written(figure, suffix)


def kept_bars(scene: Scene, suffix: str, patterns: list[str]) -> bytes:
    """Draw a bar per layer: the share of its parameters that is kept, with the numbers before and after."""
    counts = {}
    for layer, names in _layers(scene, patterns).items():
        known = [scene.parameters[name] for name in names if name in scene.parameters]
        if known:
            counts[layer] = (sum(before for before, _ in known), sum(after for _, after in known))
    if not counts:
        raise OptionError(f"modules={shown(patterns)}: no layer there has a weight that could be kept")
    figure, axes = _figure(7.0, len(counts), extra=0.9)
    shares = [after / before for before, after in counts.values()]
    axes.barh(range(len(counts)), [1] * len(counts), color="#eceef2", height=0.72)
    axes.barh(range(len(counts)), shares, color=[_shade(share) for share in shares], height=0.72)
    for i, (share, (before, after)) in enumerate(zip(shares, counts.values(), strict=True)):
        axes.text(1.01, i, f"{share:4.0%}", va="center", fontsize=7, color=INK)
        axes.text(1.1, i, f"{before:,} → {after:,}", va="center", fontsize=7, color=SOFT)
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    axes.set_title(
        f"{scene.title}: {total[1]:,} of {total[0]:,} parameters kept ({total[1] / total[0]:.0%})",
        loc="left", fontsize=9, color=INK, pad=14,
    )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"], fontsize=7)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(counts)), list(counts), fontsize=7)
    return _written(figure, suffix)


def _layers(scene: Scene, patterns: list[str]) -> dict[str, list[str]]:
    """Return the weights of each layer, in the order of the graph; a weight outside any layer is its own."""
    tree = Tree.of(scene.analysis)
    chosen = chosen_rows(tree, patterns)
    within = {r.index for row in chosen for r in (row, *tree.below(row))} if patterns else None
    layers: dict[str, list[str]] = {}
    for row in tree.rows:
        if row.kind != "weight" or (within is not None and row.index not in within):
            continue
        own = row.parent is not None and row.node is None
        layers.setdefault(tree.rows[row.parent].path if own else row.path, []).append(row.path)  # type: ignore[index]
    return layers


def _used(names: Mapping[str, str], name: str) -> str:
    return names.get(name, name)


def _sized(scene: Scene, group: Any) -> str:
    before, after = scene.before(group.atom), scene.after(group.atom)
    return f"{group.name}  {before}" + (f" → {after}" if before != after else "")


def _shade(share: float) -> str:
    """Return a shade, darker where more is kept."""
    low, high = (0x9D, 0xB8, 0xDD), (0x24, 0x4F, 0x93)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


def _figure(width: float, rows: int, extra: float) -> tuple[Any, Any]:
    """Return a bare chart with a line for each row, the first on top."""
    figure = drawing_library("matplotlib.figure").Figure(
        figsize=(width, extra + LINE * rows), layout="constrained"
    )
    axes = figure.subplots()
    axes.set_ylim(rows - 0.4, -0.6)
    axes.tick_params(length=0, colors=SOFT)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure, axes


def _written(figure: Any, suffix: str) -> bytes:
    """Write a figure: text stays text in an SVG, and no date, so that equal pictures are equal files."""
    out = io.BytesIO()
    with drawing_library("matplotlib").rc_context({"svg.fonttype": "none", "svg.hashsalt": "fxprune"}):
        dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix)
        figure.savefig(out, format=suffix[1:], dpi=150, metadata=dated)
    return out.getvalue()
