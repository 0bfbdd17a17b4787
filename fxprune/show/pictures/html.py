"""The interactive picture: one html file that holds its data and Bokeh's script, and opens offline.

Why Bokeh.  Weighed on what their PyPI packages bundle: *Plotly* (4.8 MB of script, and answering a click
takes listeners written by hand), *pyvis* (last release in 2023; its page still links a CDN, and springs
lay it out), *Model Explorer* (made for large graphs, but its page is an application that needs its
server, and it does not know axes), *ipycytoscape* and *Dash Cytoscape* (need a notebook or a server).
*Bokeh* is well kept, inlines 2 MB from its own package, brings table, search box, hover and scrolling,
and its `CustomJS` ties them together in some lines of glue (`page_script.py`).
"""

from __future__ import annotations

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

from fxprune.show.pictures import page_script
from fxprune.show.pictures.columns import INK, SOFT, Columns, short
from fxprune.show.pictures.scene import Scene

__all__ = ["html_page"]

ROW_HEIGHT = 21  # px
WIRE_X, NAME_X, INDENT, WHAT_X, WORDS_X = 94, 108, 15, 358, 514  # px from the left
SIZES_X = 750  # px from the left, at least; more where there is room
LETTER, SMALL_LETTER = 7.25, 6.65  # px, of monospaced words, and of sizes and parameters
FAR = 5000  # px, beyond the right edge of any window
SIDE = 356  # px, of the list of groups
WIDE = 1000  # px, of a plot that has room for the column of sizes; narrower ones say them on hovering
PAPER, RULE, EMBED = "#fbfbfa", "#e8eaee", "#2457a6"
SANS = "Inter, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
MONO = "'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace"

# What the script that lays the picture out needs to know.
MEASURES = {
    "wire_x": WIRE_X,
    "what_x": WHAT_X,
    "words_x": WORDS_X,
    "least_sizes_x": SIZES_X,
    "wide": WIDE,
    "letter": LETTER,
    "small": SMALL_LETTER,
    "sans": SANS,
    "mono": MONO,
}

TABLE_CSS = f"""
.slick-header-column {{ background: #fff !important; border: 0 !important; color: {SOFT}; font-size: 11.5px }}
.slick-row, .slick-row.odd {{ background: #fff !important; font: 12.5px {SANS}; cursor: pointer }}
.slick-row:hover {{ background: #f3f5f8 !important }}
.slick-cell, .slick-cell.selected, .slick-cell.active {{
  border: 0 !important; padding: 1px 4px !important; background: transparent !important; line-height: 22px
}}
.slick-cell.selected {{ background: #e7ecf5 !important; font-weight: 600 }}
"""
NAME_CELL = """
<span title="<%= reason %>" style="color:<%= ink %>; display:flex; align-items:center"><span style="flex:none;
width:10px; height:10px; border-radius:3px; margin-right:8px; background:<%= color %>"></span><span
style="direction:rtl; overflow:hidden; text-overflow:ellipsis"><bdi><%= label %></bdi></span></span>
"""
NUMBER_CELL = '<div title="<%= reason %>" style="text-align:right; color:<%= ink %>"><%= value %></div>'


def html_page(scene: Scene, patterns: list[str]) -> str:
    """Return the whole page as one string; modules that match a pattern are open at first."""
    return file_html(_Page(Columns(scene, patterns)).layout(), INLINE, title=f"{scene.title} - fxprune")


class _Page:
    """Data sources, a plot for each part of the picture, and the callbacks between them."""

    def __init__(self, columns: Columns) -> None:
        self.scene = columns.scene
        rows, words = columns.rows(), columns.words()
        rows["x"] = [NAME_X + INDENT * depth for depth in rows["depth"]]
        rows["left"] = [x - 9 for x in rows["x"]]
        words["x"] = [WORDS_X + LETTER * at for at in words["at"]]
        self.sites, self.groups = _source("sites", columns.sites()), _source("groups", columns.groups())
        # Everything, and of it what is seen: filled in the browser.
        self.all_rows, self.all_words = _source("all_rows", rows), _source("all_words", words)
        self.all_wires = _source("all_wires", columns.wires())
        shown = ("shown_name", "shown_what", "shown_size", "size_x")
        self.rows = _empty("rows", *rows, "y", "top", "bottom", "arrow", "dot_alpha", *shown)
        self.words = _empty("words", *words, "y", "alpha")
        self.wires = _empty("wires", "y0", "y1", "bend", "alpha", "color")
        self.marks = _empty("marks", "y", "color", "text", "names")

    def layout(self) -> Model:
        plot, overview, table = self._plot(), self._overview(), self._table()
        search = TextInput(placeholder="Search a module, layer, op or weight", width=300, name="search")
        status = Div(text="", styles=_text(12), name="status")
        height = Spinner(value=30, visible=False)  # how many rows fit into the window
        sources = ("all_rows", "all_words", "all_wires", "rows", "words", "wires", "sites", "groups", "marks")
        parts: dict[str, Any] = {name: getattr(self, name) for name in sources}
        parts |= {"plot": plot, "overview": overview, "search": search, "status": status, "height": height}
        layout = CustomJS(args=parts | MEASURES, code=page_script.LAYOUT)
        again = CustomJS(args={"layout": layout}, code="layout.execute(cb_obj)")
        search.js_on_change("value_input", again)
        self.groups.selected.js_on_change("indices", again)
        window = {"plot": plot, "counts": self.counts, "height": height, "row_height": ROW_HEIGHT}
        window |= {"sizes": self.sizes, "wide": WIDE}
        fit = CustomJS(args=window | {"layout": layout}, code=page_script.FIT)
        plot.js_on_change("inner_height", fit)
        plot.js_on_change("inner_width", fit)
        overview.add_tools(_range_tool(plot))
        self._make_clickable(plot, layout)
        buttons = [self._opener("Open all", True, layout), self._opener("Close all", False, layout)]
        bar = row(search, *buttons, status, height, sizing_mode="stretch_width", spacing=8)
        bar.styles = {"padding": "8px 10px", "align-items": "center", "border-bottom": f"1px solid {RULE}"}
        side = column(self._heading(), table, self._key(), width=SIDE + 28, sizing_mode="stretch_height")
        side.styles = {"padding": "0 14px"}
        picture = row(plot, overview, sizing_mode="stretch_both")
        main = column(bar, picture, sizing_mode="stretch_both")
        white = InlineStyleSheet(css=":host { background: #fff }")
        return row(side, main, sizing_mode="stretch_both", stylesheets=[white])

    def _plot(self) -> figure:
        """Return the graph: wires on the left, then name, class or line, axes, sizes and parameters."""
        plot = _bare(Range1d(0, 1000), sizing_mode="stretch_both", name="plot")
        plot.background_fill_color = PAPER
        sans = {"y": "y", "text_font": value(SANS), "text_baseline": "middle", "text_font_size": "12.5px"}
        mono = sans | {"text_font": value(MONO), "text_font_size": "12px"}
        small = {"text_font_size": "11px"}
        self._draw_frames_and_marks(plot, sans | small)
        self._draw_wires(plot)
        name = {"text": "shown_name", "text_color": "color", "text_font_style": "style"}
        plot.add_glyph(self.rows, Text(x="x", text="arrow", text_color=SOFT, **sans))
        plot.add_glyph(self.rows, Text(x="x", x_offset=14, **name, **sans))
        plot.add_glyph(self.rows, Text(x=WHAT_X, text="shown_what", text_color=SOFT, **sans | small))
        sizes = Text(x="size_x", text="shown_size", text_color=SOFT, **mono | small)
        self.sizes = plot.add_glyph(self.rows, sizes)
        self.counts = Text(x=1000, text="count", text_color=INK, text_align="right", **mono | small)
        plot.add_glyph(self.rows, self.counts)
        label = Text(x="x", text="text", text_color="color", text_alpha="alpha", **mono)
        self.labels = plot.add_glyph(self.words, label)
        hit = Rect(x=WORDS_X / 2, width=WORDS_X, y="y", height=1, fill_alpha=0, line_color=None)
        self.hits = plot.add_glyph(self.rows, hit)
        wheel = WheelPanTool(dimension="height")
        plot.add_tools(
            wheel, _hover(self.labels, "@title", "@hint"), _hover(self.hits, "@path", "@what @where @size")
        )
        plot.toolbar.active_scroll = wheel
        return plot

    def _draw_frames_and_marks(self, plot: figure, text: dict[str, Any]) -> None:
        """Frame open modules; light up rows with a site of the selected group, and count them."""
        frame = Quad(left="left", right=FAR, top="top", bottom="bottom", fill_color=INK, fill_alpha=0.014)
        frame.update(line_color=INK, line_alpha=0.08)
        plot.add_glyph(self.rows, frame)
        band = Rect(x=FAR / 2, width=FAR, y="y", height=0.94, fill_color="color", fill_alpha=0.13)
        edge = Rect(x=2, width=4, y="y", height=0.94, fill_color="color", line_color=None)
        band.line_color = None
        lit = plot.add_glyph(self.marks, band)
        plot.add_glyph(self.marks, edge)
        plot.add_glyph(self.marks, Text(x=10, text="text", text_color="color", **text))
        plot.add_tools(_hover(lit, "@text", "@names"))

    def _draw_wires(self, plot: figure) -> None:
        """Draw wires down a line of dots; what skips a dot bends around it."""
        ends = {"x0": WIRE_X, "x1": WIRE_X, "y0": "y0", "y1": "y1"}
        bends = {"cx0": "bend", "cx1": "bend", "cy0": "y0", "cy1": "y1"}
        wire = Bezier(**ends, **bends, line_color="color", line_alpha="alpha", line_width=1.7)
        dot = Scatter(x=WIRE_X, y="y", size=7, marker="shape", fill_color="fill", line_color="#4a5568")
        dot.update(fill_alpha="dot_alpha", line_alpha="dot_alpha")
        plot.add_glyph(self.wires, wire)
        plot.add_glyph(self.rows, dot)

    def _overview(self) -> figure:
        """Draw the picture in a strip: modules as blocks, what is lit as ticks, the window as a frame."""
        strip = _bare(Range1d(0, 1), width=46, sizing_mode="stretch_height")
        block = Quad(left=0.15, right=0.85, top="top", bottom="bottom", fill_color=INK, fill_alpha=0.05)
        line = Rect(x=0.5, y="y", width=0.5, height=0.12, fill_color=INK, fill_alpha=0.12, line_color=None)
        tick = Scatter(x=0.5, y="y", marker="dash", size=26, line_color="color", line_width=2.5)
        block.line_color = None
        strip.add_glyph(self.rows, block)
        strip.add_glyph(self.rows, line)
        strip.add_glyph(self.marks, tick)
        return strip

    def _table(self) -> DataTable:
        name, number = (HTMLTemplateFormatter(template=cell) for cell in (NAME_CELL, NUMBER_CELL))
        columns = [
            TableColumn(field="name", title="group", formatter=name, width=SIDE - 128),
            TableColumn(field="size", title="size", formatter=number, width=88),
            TableColumn(field="sites", title="sites", formatter=number, width=40),
        ]
        return DataTable(
            source=self.groups,
            columns=columns,
            index_position=None,
            reorderable=False,
            row_height=24,
            width=SIDE,
            sizing_mode="stretch_height",
            stylesheets=[InlineStyleSheet(css=TABLE_CSS)],
            name="legend",
        )

    def _heading(self) -> Div:
        scene = self.scene
        before, after = (sum(count[i] for count in scene.parameters.values()) for i in (0, 1))
        count = short(before) + (f" → {short(after)}" if scene.pruned else "")
        live = sum(group.frozen is None for group in scene.groups)
        title = f"font-size:19px; font-weight:650; color:{INK}; margin:14px 0 3px"
        lines = [f"{count} parameters · {len(scene.groups)} groups, {live} can shrink", *scene.analysis.notes]
        text = f'<div style="{title}">{escape(scene.title)}</div>{"<br>".join(map(escape, lines))}'
        return Div(text=text, styles=_text(12.5), width=SIDE)

    def _key(self) -> Div:
        """Return the legend: what the marks and words of the picture mean."""
        entries = [
            ("●", "an op or a module; ○ an input or output; □ a weight"),
            ("▸", "a module: a click opens it; on the right, its parameters"),
            ("─", "a wire: what an op reads; in colour, a residual stream"),
            (f'<span style="color:{EMBED}">embed</span>', "a group, in its colour: a click lights its sites"),
            ("b n 3", "in grey: frozen; hovering says why"),
            ("(a b) [a | b]", "a product of axes; a concatenation"),
            ("12 → 6", "before → after pruning"),
        ]
        lines = "".join(f'<div><b style="color:{INK}">{mark}</b> {said}</div>' for mark, said in entries)
        styles = _text(11.5) | {"border-top": f"1px solid {RULE}", "padding": "6px 0 8px"}
        return Div(text=lines, styles=styles, width=SIDE, name="key")

    def _opener(self, label: str, opens: bool, layout: CustomJS) -> Button:
        button = Button(label=label, width=84, button_type="light")
        args = {"all_rows": self.all_rows, "layout": layout, "open": opens}
        button.js_on_click(CustomJS(args=args, code=page_script.OPEN_ALL))
        return button

    def _make_clickable(self, plot: figure, layout: CustomJS) -> None:
        # One tool for both: of several that listen to a tap, Bokeh lets one be active.
        sources = {name: getattr(self, name) for name in ("rows", "all_rows", "words", "groups")}
        callback = CustomJS(args=sources | {"layout": layout}, code=page_script.CLICK)
        targets = [self.hits, self.labels]
        plot.add_tools(TapTool(renderers=targets, behavior="inspect", callback=callback))


def _source(name: str, data: dict[str, list[Any]]) -> ColumnDataSource:
    return ColumnDataSource(data, name=name)


def _empty(name: str, *columns: str) -> ColumnDataSource:
    return _source(name, {column: [] for column in columns})


def _bare(across: Range1d, **options: Any) -> figure:
    """Return a plot without axes, of which y counts rows downwards."""
    plot = figure(tools="", toolbar_location=None, x_range=across, y_range=Range1d(-30, 0), **options)
    plot.update(min_border=0, outline_line_color=None)
    plot.axis.visible = plot.grid.visible = False
    return plot


def _range_tool(plot: figure) -> RangeTool:
    """Return a frame around what the plot shows, to be dragged."""
    tool = RangeTool(y_range=plot.y_range)
    frame = {"fill_color": INK, "fill_alpha": 0.06, "line_color": INK, "line_alpha": 0.25}
    tool.overlay.update(line_dash="solid", **frame)
    return tool


def _hover(renderer: Any, title: str, line: str) -> HoverTool:
    below = f"font:12px {SANS}; color:{SOFT}; white-space:pre-line; max-width:420px"
    tooltips = (
        f'<div style="font:600 12.5px {SANS}; color:{INK}">{title}</div><div style="{below}">{line}</div>'
    )
    return HoverTool(renderers=[renderer], tooltips=tooltips, point_policy="follow_mouse", attachment="below")


def _text(size: float) -> dict[str, str]:
    return {"font-family": SANS, "font-size": f"{size}px", "color": SOFT, "line-height": "1.45"}
