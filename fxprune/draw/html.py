"""The interactive picture: one html file that holds its data and Bokeh's script, and opens offline.

Why Bokeh.  Weighed on what their PyPI packages bundle: *Plotly* (4.8 MB of script; a click can start
script of one's own only by hand-written listeners), *pyvis* (last release 2023; lays nodes out by
springs, and its page still links a CDN), *Model Explorer* (made for large graphs, but its page is an
application that needs its server; axes can't be coloured by group), *ipycytoscape* and *Dash Cytoscape*
(need a notebook or a server).  *Bokeh* is well kept, inlines 2 MB from its own package, ships table,
search box and hover, and `CustomJS` ties them together in a few lines (`glue.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

from bokeh.core.properties import value
from bokeh.embed import file_html
from bokeh.layouts import column, row
from bokeh.models import (
    Bezier,
    Button,
    ColumnDataSource,
    CustomJS,
    DataTable,
    Div,
    HoverTool,
    HTMLTemplateFormatter,
    InlineStyleSheet,
    Model,
    Quad,
    Range1d,
    RangeTool,
    Rect,
    Scatter,
    Spinner,
    TableColumn,
    TapTool,
    Text,
    TextInput,
    WheelPanTool,
)
from bokeh.plotting import figure
from bokeh.resources import INLINE

from fxprune.axes import Axis, atoms_of
from fxprune.draw import glue
from fxprune.draw.colours import GREY
from fxprune.draw.scene import Scene
from fxprune.draw.scope import chosen_rows
from fxprune.draw.tree import Row, Tree, opened_at_first
from fxprune.draw.words import Word
from fxprune.groups import Group

__all__ = ["html_page"]

ROW_HEIGHT = 21  # px
WIRE_X, NAME_X, INDENT, WHAT_X, WORDS_X, SIZES_X = 108, 122, 15, 336, 516, 768  # px from the left
LETTER = 7.25  # px, of the monospaced words
SANS = "Inter, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
MONO = "'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace"
INK, SOFT, PAPER = "#1b2330", "#7b8494", "#fbfbfa"


def html_page(scene: Scene, patterns: list[str]) -> str:
    """The whole page as one string; modules that match a pattern are open at first."""
    return file_html(_Page(scene, patterns).layout(), INLINE, title=f"{scene.title} - fxprune")


class _Page:
    """Data sources, a plot for each part of the picture, and the callbacks between them."""

    def __init__(self, scene: Scene, patterns: list[str]) -> None:
        self.scene = scene
        self.tree = Tree.of(scene.analysis)
        self.opened = opened_at_first(self.tree)
        for chosen in chosen_rows(self.tree, patterns):
            self.opened |= {r.index for r in (chosen, *self.tree.above(chosen), *self.tree.below(chosen))}
        self.listed = sorted(scene.groups, key=lambda g: g.frozen is not None)
        self.number = {group: i for i, group in enumerate(self.listed)}
        # Everything, and of it what is seen: filled in the browser.
        self.all_rows = ColumnDataSource(self._rows(), name="all_rows")
        self.all_words = ColumnDataSource(self._words(), name="all_words")
        self.all_wires = ColumnDataSource(self._wires(), name="all_wires")
        self.sites = ColumnDataSource(self._sites(), name="sites")
        self.groups = ColumnDataSource(self._groups(), name="groups")
        seen = ("y", "top", "bottom", "arrow", "dot_alpha")
        self.rows = ColumnDataSource({k: [] for k in (*self.all_rows.data, *seen)}, name="rows")
        self.words = ColumnDataSource({k: [] for k in (*self.all_words.data, "y", "alpha")}, name="words")
        self.wires = ColumnDataSource({k: [] for k in ("y0", "y1", "bend", "alpha", "color")}, name="wires")
        self.marks = ColumnDataSource({k: [] for k in ("y", "color", "text", "names")}, name="marks")

    # ------------------------------------------------------------ data

    def _rows(self) -> dict[str, list[Any]]:
        tree, opened = self.tree, self.opened
        inner = {r.parent for r in tree.rows}
        return {
            "index": [r.index for r in tree.rows],
            "parent": [-1 if r.parent is None else r.parent for r in tree.rows],
            "frame": [r.kind == "module" for r in tree.rows],
            "name": [tree.name(r) for r in tree.rows],
            "path": [r.path for r in tree.rows],
            "what": [r.what for r in tree.rows],
            "where": [r.where for r in tree.rows],
            "text": [f"{r.path} {r.what} {r.name}".lower() for r in tree.rows],
            "inner": [r.index in inner for r in tree.rows],
            "open": [r.index in opened for r in tree.rows],
            "dot": [int(not _of_layer(tree, r)) for r in tree.rows],
            "x": [NAME_X + INDENT * r.depth for r in tree.rows],
            "left": [NAME_X + INDENT * r.depth - 9 for r in tree.rows],
            "color": [SOFT if r.kind == "weight" else INK for r in tree.rows],
            "style": ["bold" if r.kind == "module" else "normal" for r in tree.rows],
            "fill": ["#ffffff" if r.kind in ("weight", "input", "output") else "#4a5568" for r in tree.rows],
            "shape": ["square" if r.kind == "weight" else "circle" for r in tree.rows],
            "size": [self._size_text(r) for r in tree.rows],
            "count": [self._parameters(r) for r in tree.rows],
        }

    def _words(self) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = {k: [] for k in ("row", "x", "text", "color", "group", "title", "hint")}
        for line in self.tree.rows:
            at = 0
            for word in self._label(line):
                title, hint = self._hint(word)
                if word.text.strip():
                    lead = len(word.text) - len(word.text.lstrip())
                    out["row"].append(line.index)
                    out["x"].append(WORDS_X + LETTER * (at + lead))
                    out["text"].append(word.text.strip())
                    shrinks = word.group is not None and word.group.frozen is None
                    out["color"].append(self.scene.colour(word.group) if shrinks else GREY)
                    out["group"].append(-1 if word.group is None else self.number[word.group])
                    out["title"].append(title)
                    out["hint"].append(hint)
                at += len(word.text)
        return out

    def _wires(self) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = {"from": [], "to": [], "groups": [], "color": []}
        for source, target, node in self.tree.wires:
            axes = {
                a
                for value in self.scene.analysis.axes.get(node, [])
                for axis in value
                for a in atoms_of(axis)
            }
            groups = [g for g in map(self.scene.words.group, axes) if g]
            out["from"].append(source)
            out["to"].append(target)
            out["groups"].append(sorted(self.number[g] for g in groups))
            embed = next((g for g in groups if g.role == "embed"), None)
            out["color"].append(self.scene.colour(embed) if embed else "#9aa3b2")
        return out

    def _sites(self) -> dict[str, list[Any]]:
        """Every site of every group, and the row of its weight; weights of several names stand once."""
        used = self.scene.analysis.names
        row_of = {r.path: r.index for r in self.tree.rows if r.kind == "weight"}
        found = [
            (row_of[used.get(site.name, site.name)], self.number[group], str(site))
            for group in self.scene.groups
            for site in group.sites
            if used.get(site.name, site.name) in row_of
        ]
        return {key: [entry[i] for entry in found] for i, key in enumerate(("row", "group", "name"))}

    def _groups(self) -> dict[str, list[Any]]:
        scene, groups = self.scene, self.listed
        return {
            "name": [g.name for g in groups],
            "color": [scene.colour(g) for g in groups],
            "ink": [GREY if g.frozen else INK for g in groups],
            "size": [self._size(g) for g in groups],
            "sites": [len(g.sites) for g in groups],
            "reason": [escape(f"{g.name}: {self._told(g)}", quote=True) for g in groups],
            "told": [escape(self._told(g)) for g in groups],
        }

    # ------------------------------------------------------------ words

    def _label(self, line: Row) -> list[Word]:
        if line.kind == "weight":
            return self.scene.words.pieces(line.axes)
        return self.scene.words.value(line.node) if line.node is not None else []

    def _hint(self, word: Word) -> tuple[str, str]:
        """What hovering over a word says: a title, and a line below."""
        if word.axis is None:
            return "", ""
        if word.group is not None:
            return word.group.name, self._told(word.group)
        if self.scene.words.is_batch(word.axis):
            return "batch", "any size"
        reasons = (self.scene.analysis.inference.solver.frozen(a) for a in atoms_of(word.axis))
        why = dict.fromkeys(str(r) for r in reasons if r)
        return f"{word.text} = {word.axis.size}", f"whole: {'; '.join(why) or 'of size 1'}"

    def _told(self, group: Group) -> str:
        """`12 -> 6, heads, 3 sites`, or why it is whole."""
        count = f"{len(group.sites)} site{'s' * (len(group.sites) != 1)}"
        return f"{self._size(group)}, {count}, {_reason(group) or group.role}"

    def _size(self, group: Group) -> str:
        before, after = self.scene.before(group.atom), self.scene.after(group.atom)
        return f"{before} → {after}" if before != after else f"{before}"

    def _size_text(self, line: Row) -> str:
        if line.kind == "weight":
            shapes = self.scene.shape(line.path)
        else:
            values = self.scene.analysis.axes.get(line.node, []) if line.node else []
            if not values:
                return ""
            sizes = (self.scene.before, self.scene.after)
            shapes = tuple(tuple(self._counted(x, size) for x in values[0]) for size in sizes)  # type: ignore[assignment]
        before, after = ("·".join(map(str, shape)) or "scalar" for shape in shapes)
        changed = [str(a) if a == b else f"{b}→{a}" for b, a in zip(*shapes, strict=True)]
        return before if before == after else "·".join(changed)

    def _counted(self, axis: Axis, size: Callable[[Axis], int]) -> str:
        """A size; the batch, of which no number is known, by its letter."""
        batch = math.prod(a.size for a in atoms_of(axis) if self.scene.words.is_batch(a))
        times = size(axis) // batch
        return str(times) if batch == 1 else "b" if times == 1 else f"{times}b"

    def _parameters(self, line: Row) -> str:
        """Of a module or layer: how many parameters are in it."""
        inside = [r.path for r in self.tree.below(line) if r.kind == "weight"]
        counts = [self.scene.parameters[name] for name in inside if name in self.scene.parameters]
        before, after = (sum(c[i] for c in counts) for i in (0, 1))
        if not before:
            return ""
        return _short(before) if not self.scene.pruned else f"{_short(before)} → {_short(after)}"

    # ------------------------------------------------------------ the picture

    def layout(self) -> Model:
        plot, overview = self._plot(), self._overview()
        table, search, status = (
            self._table(),
            self._search(),
            Div(text="", styles=_text(12, SOFT), name="status"),
        )
        height = Spinner(value=30, visible=False)  # rows that fit into the window
        parts: dict[str, Any] = {
            "all_rows": self.all_rows,
            "all_words": self.all_words,
            "all_wires": self.all_wires,
            "rows": self.rows,
            "words": self.words,
            "wires": self.wires,
            "sites": self.sites,
            "groups": self.groups,
            "marks": self.marks,
            "search": search,
            "status": status,
            "plot": plot,
            "overview": overview,
            "height": height,
            "wire_x": WIRE_X,
        }
        layout = CustomJS(args=parts, code=glue.LAYOUT)
        again = CustomJS(args={"layout": layout}, code="layout.execute(cb_obj)")
        self._clickable(plot, layout)
        window = {"plot": plot, "counts": self.counts, "height": height, "row_height": ROW_HEIGHT}
        fit = CustomJS(args=window | {"layout": layout}, code=glue.FIT)
        search.js_on_change("value_input", again)
        self.groups.selected.js_on_change("indices", again)
        plot.js_on_change("inner_height", fit)
        plot.js_on_change("inner_width", fit)
        overview.add_tools(_range_tool(plot))
        buttons = [self._opener("Open all", True, layout), self._opener("Close all", False, layout)]
        bar = row(search, *buttons, status, height, sizing_mode="stretch_width", spacing=8, styles=_bar())
        side = column(
            self._heading(), table, width=418, sizing_mode="stretch_height", styles={"padding": "0 14px"}
        )
        picture = row(plot, overview, sizing_mode="stretch_both")
        main = column(bar, picture, sizing_mode="stretch_both")
        page = row(side, main, sizing_mode="stretch_both", stylesheets=[_sheet(":host{background:#fff}")])
        return page

    def _plot(self) -> figure:
        plot = _bare(
            x_range=Range1d(0, 1000), y_range=Range1d(-30, 0), sizing_mode="stretch_both", name="plot"
        )
        plot.background_fill_color = PAPER
        mono = {"text_font": value(MONO), "text_font_size": "12px", "text_baseline": "middle"}
        sans = {"text_font": value(SANS), "text_font_size": "12.5px", "text_baseline": "middle"}
        end = 5000  # beyond the right edge
        frames = Quad(left="left", right=end, top="top", bottom="bottom", fill_color=INK, fill_alpha=0.014)
        frames.update(line_color=INK, line_alpha=0.08)
        plot.add_glyph(self.rows, frames)
        band = Rect(
            x=end / 2, width=end, y="y", height=0.94, fill_color="color", fill_alpha=0.13, line_color=None
        )
        lit = plot.add_glyph(self.marks, band, name="lit")
        edge = Rect(x=2, width=4, y="y", height=0.94, fill_color="color", line_color=None)
        plot.add_glyph(self.marks, edge)
        count = Text(x=10, y="y", text="text", text_color="color", **sans | {"text_font_size": "11px"})
        plot.add_glyph(self.marks, count)
        bend = {
            "x0": WIRE_X,
            "y0": "y0",
            "x1": WIRE_X,
            "y1": "y1",
            "cx0": "bend",
            "cy0": "y0",
            "cx1": "bend",
            "cy1": "y1",
        }
        plot.add_glyph(self.wires, Bezier(**bend, line_color="color", line_width=1.7, line_alpha="alpha"))
        dots = Scatter(x=WIRE_X, y="y", size=7, marker="shape", fill_color="fill", line_color="#4a5568")
        dots.update(fill_alpha="dot_alpha", line_alpha="dot_alpha")
        plot.add_glyph(self.rows, dots)
        plot.add_glyph(self.rows, Text(x="x", y="y", text="arrow", text_color=SOFT, **sans))
        plot.add_glyph(
            self.rows,
            Text(x="x", y="y", x_offset=14, text="name", text_color="color", text_font_style="style", **sans),
        )
        plot.add_glyph(
            self.rows,
            Text(x=WHAT_X, y="y", text="what", text_color=SOFT, **sans | {"text_font_size": "11.5px"}),
        )
        small = mono | {"text_font_size": "11px"}
        plot.add_glyph(self.rows, Text(x=SIZES_X, y="y", text="size", text_color=SOFT, **small))
        self.counts = Text(x=1000, y="y", text="count", text_color=INK, text_align="right", **small)
        plot.add_glyph(self.rows, self.counts)
        label = Text(x="x", y="y", text="text", text_color="color", text_alpha="alpha", **mono)
        self.labels = plot.add_glyph(self.words, label, name="labels")
        hit = Rect(x=WORDS_X / 2, width=WORDS_X, y="y", height=1, fill_alpha=0, line_color=None)
        self.hits = plot.add_glyph(self.rows, hit, name="hits")
        at_mouse = {"point_policy": "follow_mouse", "attachment": "below"}
        plot.add_tools(
            HoverTool(renderers=[self.labels], tooltips=_tip("@title", "@hint"), attachment="below"),
            HoverTool(renderers=[self.hits], tooltips=_tip("@path", "@what @where"), **at_mouse),
            HoverTool(renderers=[lit], tooltips=_tip("@text", "@names"), **at_mouse),
        )
        wheel = WheelPanTool(dimension="height")
        plot.add_tools(wheel)
        plot.toolbar.active_scroll = wheel
        return plot

    def _overview(self) -> figure:
        """The whole picture in a strip: modules as blocks, what is lit as ticks, the window as a frame."""
        strip = _bare(x_range=Range1d(0, 1), y_range=Range1d(-30, 0), width=46, sizing_mode="stretch_height")
        blocks = Quad(left=0.15, right=0.85, top="top", bottom="bottom", fill_color=INK, fill_alpha=0.05)
        blocks.update(line_color=None)
        strip.add_glyph(self.rows, blocks)
        strip.add_glyph(
            self.rows,
            Rect(x=0.5, y="y", width=0.5, height=0.12, fill_color=INK, fill_alpha=0.12, line_color=None),
        )
        tick = Scatter(x=0.5, y="y", marker="dash", size=26, line_color="color", line_width=2.5)
        strip.add_glyph(self.marks, tick)
        return strip

    def _table(self) -> DataTable:
        swatch = (
            '<span title="<%= reason %>" style="color:<%= ink %>"><span style="display:inline-block;width:10px;'
            'height:10px;border-radius:3px;margin-right:8px;background:<%= color %>"></span><%= value %></span>'
        )
        number = HTMLTemplateFormatter(
            template='<div title="<%= reason %>" style="text-align:right;color:<%= ink %>"><%= value %></div>'
        )
        columns = [
            TableColumn(
                field="name", title="group", formatter=HTMLTemplateFormatter(template=swatch), width=262
            ),
            TableColumn(field="size", title="size", formatter=number, width=88),
            TableColumn(field="sites", title="sites", formatter=number, width=40),
        ]
        return DataTable(
            source=self.groups,
            columns=columns,
            index_position=None,
            row_height=24,
            width=390,
            sizing_mode="stretch_height",
            selectable=True,
            reorderable=False,
            stylesheets=[_sheet(TABLE_CSS)],
            name="legend",
        )

    def _search(self) -> TextInput:
        return TextInput(placeholder="Search a module, layer, op or weight", width=300, name="search")

    def _heading(self) -> Div:
        scene = self.scene
        before, after = (sum(c[i] for c in scene.parameters.values()) for i in (0, 1))
        count = _short(before) + (f" → {_short(after)}" if scene.pruned else "")
        live = sum(group.frozen is None for group in scene.groups)
        notes = "".join(f"<div>{escape(note)}</div>" for note in scene.analysis.notes)
        return Div(
            text=f'<div style="font-size:19px;font-weight:650;color:{INK};margin:14px 0 3px">{escape(scene.title)}</div>'
            f"<div>{count} parameters · {len(scene.groups)} groups, {live} can shrink</div>{notes}",
            styles=_text(12.5, SOFT),
            width=390,
        )

    def _opener(self, label: str, opens: bool, layout: CustomJS) -> Button:
        button = Button(label=label, width=84, button_type="light")
        args = {"all_rows": self.all_rows, "layout": layout, "open": opens}
        button.js_on_click(CustomJS(args=args, code=glue.OPEN_ALL))
        return button

    def _clickable(self, plot: figure, layout: CustomJS) -> None:
        rows = {"rows": self.rows, "all_rows": self.all_rows}
        toggle = CustomJS(args=rows | {"layout": layout}, code=glue.TOGGLE_ROW)
        pick = CustomJS(args={"words": self.words, "groups": self.groups}, code=glue.PICK_GROUP)
        plot.add_tools(
            TapTool(renderers=[self.hits], behavior="inspect", callback=toggle),
            TapTool(renderers=[self.labels], behavior="inspect", callback=pick),
        )


TABLE_CSS = f"""
.slick-header-column {{ background: #fff !important; border: 0 !important; color: {SOFT}; font-size: 11.5px }}
.slick-row, .slick-row.odd {{ background: #fff !important; font: 12.5px {SANS}; cursor: pointer }}
.slick-row:hover {{ background: #f3f5f8 !important }}
.slick-cell, .slick-cell.selected, .slick-cell.active {{ border: 0 !important; padding: 1px 4px !important; background: transparent !important; line-height: 22px }}
.slick-cell.selected {{ background: #e7ecf5 !important; font-weight: 600 }}
"""


def _bare(**options: Any) -> figure:
    plot = figure(tools="", toolbar_location=None, min_border=0, outline_line_color=None, **options)
    plot.stylesheets = [_sheet(".bk-events:focus, :host(:focus) { outline: none !important }")]
    plot.axis.visible = plot.grid.visible = False
    return plot


def _range_tool(plot: figure) -> RangeTool:
    tool = RangeTool(y_range=plot.y_range)
    tool.overlay.update(fill_color=INK, fill_alpha=0.06, line_color=INK, line_alpha=0.25, line_dash="solid")
    return tool


def _tip(title: str, line: str) -> str:
    return (
        f'<div style="font:600 12.5px {SANS};color:{INK}">{title}</div>'.replace('"', "&quot;").replace(
            "&quot;", '"'
        )
        + f'<div style="font:12px sans-serif;color:{SOFT};white-space:pre-line;max-width:420px">{line}</div>'
    )


def _text(size: float, color: str) -> dict[str, str]:
    return {"font-family": SANS, "font-size": f"{size}px", "color": color, "line-height": "1.45"}


def _bar() -> dict[str, str]:
    return {"padding": "8px 10px", "align-items": "center", "border-bottom": "1px solid #e8eaee"}


def _sheet(css: str) -> InlineStyleSheet:
    return InlineStyleSheet(css=css)


def _of_layer(tree: Tree, line: Row) -> bool:
    """A weight that stands under its layer: no wire ends there."""
    return line.kind == "weight" and line.node is None


def _reason(group: Group) -> str:
    return f"whole: {group.frozen}" if group.frozen else ""


def _short(count: int) -> str:
    """86567656 -> 86.6 M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
