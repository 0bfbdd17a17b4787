"""What the interactive picture shows, as columns of plain values: rows, words, wires, sites, groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

from fxprune.analysis.colours import GREY
from fxprune.analysis.freedom.regions import Freedom
from fxprune.analysis.groups import Group
from fxprune.analysis.words import Word
from fxprune.rules.axes import Axis, atoms_of
from fxprune.show.pictures.chosen_rows import chosen_rows
from fxprune.show.pictures.scene import Scene
from fxprune.show.pictures.tree import Row, Tree, opened_at_first

__all__ = ["Columns", "short"]

INK, SOFT, DOT = "#1b2330", "#7b8494", "#4a5568"
WIRE = "#9aa3b2"  # of a wire that carries no residual stream

Table = dict[str, list[Any]]


class Columns:
    """One table per kind of thing; tables refer to rows and groups by number.

    Groups that may shrink come first; a word or wire that belongs to no group has group -1.
    """

    def __init__(self, scene: Scene, patterns: list[str]) -> None:
        self.scene = scene
        self.tree = Tree.of(scene.analysis)
        self.listed = sorted(scene.groups, key=lambda g: g.frozen is not None)
        self.number = {group: i for i, group in enumerate(self.listed)}
        self.opened = opened_at_first(self.tree)
        for chosen in chosen_rows(self.tree, patterns):
            self.opened |= {r.index for r in (chosen, *self.tree.above(chosen), *self.tree.below(chosen))}

    def rows(self) -> Table:
        """Make the rows' columns.  `dot`: wires may end there; `frame`: a module, framed when open."""
        tree, rows = self.tree, self.tree.rows
        inner = {r.parent for r in rows}
        return {
            "index": [r.index for r in rows],
            "parent": [-1 if r.parent is None else r.parent for r in rows],
            "depth": [r.depth for r in rows],
            "inner": [r.index in inner for r in rows],
            "frame": [r.kind == "module" for r in rows],
            "open": [r.index in self.opened for r in rows],
            "dot": [int(r.kind != "weight" or r.node is not None) for r in rows],
            "fill": ["#ffffff" if r.kind in ("weight", "input", "output") else DOT for r in rows],
            "shape": ["square" if r.kind == "weight" else "circle" for r in rows],
            "name": [tree.name(r) for r in rows],
            "style": ["bold" if r.kind == "module" else "normal" for r in rows],
            "color": [SOFT if r.kind == "weight" else INK for r in rows],
            "path": [r.path for r in rows],
            "what": [r.what for r in rows],
            "where": [r.where for r in rows],
            "text": [f"{r.path} {r.what} {r.name}".lower() for r in rows],
            "size": [self._shape(r) for r in rows],
            "count": [self._parameters(r) for r in rows],
        }

    def words(self) -> Table:
        """Return the words of every label; `at` counts letters from the label's beginning."""
        out: Table = {name: [] for name in ("row", "at", "text", "color", "group", "title", "hint")}
        for row in self.tree.rows:
            at = 0
            for word in self._label(row):
                text = word.text.strip()
                if text:
                    shrinks = word.group is not None and word.group.frozen is None
                    title, hint = self._hint(word)
                    out["row"].append(row.index)
                    out["at"].append(at + word.text.index(text))
                    out["text"].append(text)
                    out["color"].append(self.scene.colour(word.group) if shrinks else GREY)
                    out["group"].append(-1 if word.group is None else self.number[word.group])
                    out["title"].append(title)
                    out["hint"].append(hint)
                at += len(word.text)
        return out

    def wires(self) -> Table:
        """Make the wires from row to row, with the groups that each carries; a residual stream colours it."""
        out: Table = {name: [] for name in ("from", "to", "groups", "color")}
        for source, target, node in self.tree.wires:
            values = self.scene.analysis.axes.get(node, ())
            axes = {a for value in values for axis in value for a in atoms_of(axis)}
            groups = [group for group in map(self.scene.words.group, axes) if group]
            stream = next((group for group in groups if group.role == "embed"), None)
            out["from"].append(source)
            out["to"].append(target)
            out["groups"].append(sorted(self.number[group] for group in groups))
            out["color"].append(self.scene.colour(stream) if stream else WIRE)
        return out

    def sites(self) -> Table:
        """Return every site of every group, and the row of its weight."""
        out: Table = {name: [] for name in ("row", "group", "name")}
        used = self.scene.analysis.names
        row_of = {row.path: row.index for row in self.tree.rows if row.kind == "weight"}
        for group in self.listed:
            for site in group.sites:
                weight = used.get(site.name, site.name)  # a shared tensor stands where the graph uses it
                if weight in row_of:
                    out["row"].append(row_of[weight])
                    out["group"].append(self.number[group])
                    out["name"].append(str(site))
        return out

    def groups(self) -> Table:
        return {
            "name": [group.name for group in self.listed],
            "label": [escape(group.name) for group in self.listed],
            "color": [self.scene.colour(group) for group in self.listed],
            "ink": [GREY if group.frozen else INK for group in self.listed],
            "size": [self._size(group) for group in self.listed],
            "sites": [len(group.sites) for group in self.listed],
            "reason": [escape(f"{g.name}: {self._told(g)}", quote=True) for g in self.listed],
            "told": [escape(self._told(group)) for group in self.listed],
        }

    # ------------------------------------------------------------ texts

    def _label(self, row: Row) -> list[Word]:
        if row.kind == "weight":
            return self.scene.words.pieces(row.axes)
        return self.scene.words.value(row.node) if row.node is not None else []

    def _hint(self, word: Word) -> tuple[str, str]:
        """Return what hovering over a word says: a title, and a line below."""
        if word.axis is None:
            return word.text.strip(), "punctuation: (a b) is a product, [a | b] a concatenation"
        if word.group is not None:
            return word.group.name, self._told(word.group)
        if self.scene.words.is_batch(word.axis):
            return "b", "the batch: any size"
        reasons = (self.scene.analysis.frozen(a) for a in atoms_of(word.axis))
        why = dict.fromkeys(reason.brief for reason in reasons if reason)
        return f"{word.text} = {word.axis.size}", f"frozen: {'; '.join(why) or 'of size 1'}"

    def _told(self, group: Group) -> str:
        """Describe a group: `12 → 6, 3 sites, heads, any basis`, or why it is frozen."""
        count = f"{len(group.sites)} site{'s' * (len(group.sites) != 1)}"
        why = group.why if group.frozen is not None else group.role + _freedom(group)
        return f"{self._size(group)}, {count}, {why}"

    def _size(self, group: Group) -> str:
        return _change(str(self.scene.before(group.atom)), str(self.scene.after(group.atom)))

    def _shape(self, row: Row) -> str:
        """Write the shape of a weight, or of the first tensor of a value: `b·197·768→384`."""
        if row.kind == "weight":
            before, after = ([*map(str, shape)] for shape in self.scene.shape(row.path))
        else:
            values = self.scene.analysis.axes.get(row.node, ()) if row.node is not None else ()
            if not values:
                return ""
            before = [self._counted(axis, self.scene.before) for axis in values[0]]
            after = [self._counted(axis, self.scene.after) for axis in values[0]]
        return "·".join(map(_change, before, after, ["→"] * len(before))) or "scalar"

    def _counted(self, axis: Axis, size: Callable[[Axis], int]) -> str:
        """Return a size; the batch, of which no number is known, by its letter."""
        batch = math.prod(a.size for a in atoms_of(axis) if self.scene.words.is_batch(a))
        times = size(axis) // batch
        return str(times) if batch == 1 else "b" if times == 1 else f"{times}b"

    def _parameters(self, row: Row) -> str:
        """Count the parameters in a module or layer, in words."""
        inside = [r.path for r in self.tree.below(row) if r.kind == "weight"]
        counts = [self.scene.parameters[name] for name in inside if name in self.scene.parameters]
        before, after = (sum(count[i] for count in counts) for i in (0, 1))
        return _change(short(before), short(after)) if before else ""


def short(count: int) -> str:
    """Shorten a number: 86567656 -> 86.6 M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _freedom(group: Group) -> str:
    """Spell which changes of basis a group allows, where those are more than permutations."""
    if group.freedom <= Freedom.PERMUTATION:
        return ""
    limit = f" ({group.why})" if group.why else ""
    return f", basis: {group.freedom}{limit}"


def _change(before: str, after: str, arrow: str = " → ") -> str:
    return before if before == after else f"{before}{arrow}{after}"
