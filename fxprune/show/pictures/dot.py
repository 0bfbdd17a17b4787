"""The static picture of a graph: graphviz lays it out, words keep their colours, frames are modules."""

from __future__ import annotations

from html import escape

from fxprune.analysis.words import Word
from fxprune.errors import DrawError
from fxprune.show.pictures.chosen_rows import chosen_rows
from fxprune.show.pictures.libraries import drawing_library
from fxprune.show.pictures.scene import Scene
from fxprune.show.pictures.tree import Row, Tree, collapsed, opened_at_first

__all__ = ["static_graph"]

INK, SOFT = "#1b2330", "#5c6675"  # darker greys than on a screen: paper is less forgiving
SANS, MONO = "Helvetica", "Courier"
DPI = {".png": "144", ".svg": "72", ".pdf": "72"}


def static_graph(scene: Scene, suffix: str, patterns: list[str]) -> bytes:
    """Draw the modules that patterns choose, in full; without any the whole model, blocks closed.

    Raises:
        DrawError: the package graphviz, or its program `dot`, is missing or fails.
    """
    graphviz = drawing_library("graphviz")
    source = _Drawing(scene, patterns).source(suffix)
    try:
        return graphviz.Source(source).pipe(format=suffix[1:])
    except graphviz.ExecutableNotFound as error:
        raise DrawError(
            "graphviz's program 'dot' is not on the PATH: install graphviz (apt-get install graphviz, "
            "brew install graphviz, or graphviz.org)"
        ) from error
    except graphviz.CalledProcessError as error:
        raise DrawError(f"graphviz's program 'dot' failed: {error}") from error


class _Drawing:
    """Rows become boxes, modules that are open become frames around them."""

    def __init__(self, scene: Scene, patterns: list[str]) -> None:
        self.scene, self.tree = scene, Tree.of(scene.analysis)
        chosen = chosen_rows(self.tree, patterns)
        within = {r.index for row in chosen for r in (row, *self.tree.below(row))}
        self.opened = within | {r.index for row in chosen for r in self.tree.above(row)}
        if not patterns:
            within = {row.index for row in self.tree.rows}
            self.opened = opened_at_first(self.tree)
        self.within = within
        self.graph = collapsed(self.tree, self.opened)
        self.shown = [i for i in sorted(self.graph) if i in within]

    def source(self, suffix: str) -> str:
        graphviz = drawing_library("graphviz")
        dot = graphviz.Digraph()
        dot.attr(rankdir="TB", nodesep="0.35", ranksep="0.42", fontname=SANS, pad="0.2", dpi=DPI[suffix])
        dot.attr("node", shape="plain", fontname=SANS, fontsize="12", fontcolor=INK)
        dot.attr("edge", fontname=MONO, fontsize="11", color="#8892a3", arrowsize="0.6", penwidth="1.2")
        self._fill(dot, None, self.shown)
        shown = set(self.shown)
        for a, b, node in self.graph.edges(keys=True):
            if a in shown and b in shown:
                dot.edge(str(a), str(b), label=f"<&#160;{self._coloured(self.scene.words.value(node))}>")
            elif a in shown or b in shown:
                self._loose(dot, a, b, inside=b in shown)
        return dot.source

    def _fill(self, dot: object, frame: int | None, indices: list[int]) -> None:
        """Draw the boxes that stand right in a frame, and the frames inside it with theirs."""
        inner: dict[int, list[int]] = {}
        for i in indices:
            between = self._frames(i, frame)
            if between:
                inner.setdefault(between[-1], []).append(i)
            else:
                dot.node(str(i), label=self._box(self.tree.rows[i]))  # type: ignore[attr-defined]
        for i, inside in inner.items():
            row = self.tree.rows[i]
            with dot.subgraph(name=f"cluster_{i}") as cluster:  # type: ignore[attr-defined]
                what = f'&#160;&#160;<font color="{SOFT}">{escape(row.what)}</font>' if row.what else ""
                label = f"<<b>{escape(row.path)}</b>{what}>"
                cluster.attr(label=label, labeljust="l", fontsize="12", fontcolor=INK)
                cluster.attr(style="rounded,filled", color="#c9cfd9", fillcolor="#00000008", margin="12")
                self._fill(cluster, i, inside)

    def _frames(self, index: int, outer: int | None) -> list[int]:
        """Return the open modules around a row, innermost first, up to the one that is being filled."""
        out = []
        for row in self.tree.above(self.tree.rows[index]):
            if row.index == outer:
                break
            if row.kind == "module" and row.index in self.within:
                out.append(row.index)
        return out

    def _box(self, row: Row) -> str:
        """Return a table: name and class, then a line per weight with its axes and shape."""
        bold = f"<b>{escape(self.tree.name(row))}</b>" if row.kind != "op" else escape(row.name)
        what = f'&#160;<font color="{SOFT}" point-size="10">{escape(row.what)}</font>' if row.what else ""
        lines = [f'<tr><td align="left" colspan="3">{bold}{what}</td></tr>']
        weights = [row] if row.kind == "weight" else []
        if row.kind == "layer":
            weights = [r for r in self.tree.below(row) if r.kind == "weight"]
        for weight in weights:
            axes = self._coloured(self.scene.words.pieces(weight.axes)) or "1"
            name = "&#160;" if weight is row else escape(weight.name)
            cells = (
                f'<font color="{SOFT}" point-size="11">{name}</font>',
                f'<font face="{MONO}" point-size="11">{axes}</font>',
                f'<font color="{SOFT}" point-size="10">{self._shape(weight) or "scalar"}</font>',
            )
            lines.append("<tr>" + "".join(f'<td align="left">{cell}</td>' for cell in cells) + "</tr>")
        border = "#5c6675" if row.kind in ("layer", "module") else "#b4bcc8"
        style = f'border="1" cellborder="0" cellspacing="0" cellpadding="3" color="{border}"'
        return f'<<table {style} bgcolor="white" style="rounded">{"".join(lines)}</table>>'

    def _shape(self, weight: Row) -> str:
        before, after = self.scene.shape(weight.path)
        parts = [f"{b}" if a == b else f"{b}&#8594;{a}" for b, a in zip(before, after, strict=True)]
        return " &#215; ".join(parts)

    def _coloured(self, words: list[Word]) -> str:
        out = []
        for word in words:
            live = word.group is not None and word.group.frozen is None
            text = escape(word.text).replace(" ", "&#160;")
            colour = self.scene.colour(word.group) if live else SOFT
            out.append(f'<font color="{colour}">{text}</font>')
        return "".join(out)

    def _loose(self, dot: object, a: int, b: int, *, inside: bool) -> None:
        """Draw a wire from or to what is not in the picture: its end is the name of that."""
        other = self.tree.rows[a if inside else b]
        end = f"from{a}" if inside else f"to{b}"
        value = self.scene.words.value(self.graph.nodes[a]["row"].node) if a in self.graph else []
        label = f'<<font color="{SOFT}" point-size="11"><i>{escape(other.path)}</i></font>>'
        dot.node(end, label=label, shape="plain")  # type: ignore[attr-defined]
        ends = (end, str(b)) if inside else (str(a), end)
        dot.edge(*ends, style="dashed", label=f"<&#160;{self._coloured(value)}>")  # type: ignore[attr-defined]
