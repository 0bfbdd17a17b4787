"""Pictures of what the compiler sees: groups, axes, and what pruning took away."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.analysis.analysis import Analysis
from fxprune.errors import OptionError, shown
from fxprune.result.files import write_whole
from fxprune.result.plan import Plan
from fxprune.rules.registry import DEFAULT_RULES, RuleSet
from fxprune.show.pictures.libraries import drawing_library
from fxprune.show.pictures.scene import Scene, scene_of

__all__ = ["draw"]

STATIC = (".svg", ".png", ".pdf")
VIEWS = {"graph": (".html", *STATIC), "coupling": STATIC, "kept": STATIC}


def draw(
    what: nn.Module | Analysis,
    path: str | os.PathLike[str],
    *,
    pruned: nn.Module | Plan | None = None,
    view: str = "graph",
    modules: str | Sequence[str] = (),
    example_inputs: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> Path:
    """Draw a model's graph, its groups, or what pruning kept, into one file.

    A graph as `.html` is interactive and opens offline: modules open on a click, a click on a group (in
    the list or on a word) lights up all its sites, hovering over a grey axis says why it is frozen.

    Args:
        what: a model (it is analysed), an `Analysis`, or a pruned model (with the sizes before).
        path: the file to write; its suffix chooses the format: `.html` for the graph, `.svg`, `.png` or
            `.pdf` for any view.
        pruned: beside a model or an analysis, the pruned model or plan whose sizes are shown as well.
        view: "graph"; "coupling", a map of modules by the groups that they carry; or "kept", a bar of the
            share of parameters kept for each layer.
        modules: draw only these modules and what is in them: names or patterns (`"blocks.[01]"`).
            For a page, these are open at first.
        example_inputs, example_kwargs, rules: as of `prune`.

    Returns:
        The path of the file; it appears whole or not at all.

    Raises:
        OptionError: an unknown suffix or view, or "kept" of what is not pruned.
        PatternError: `modules` matches none.
        DrawError: a package of the extra `[draw]`, or graphviz's `dot`, is missing.
        PlanError: `pruned` belongs to another model.

    Example:
        >>> fxprune.draw(model, "deit.html", pruned=fxprune.prune(model, 0.5))
        >>> fxprune.draw(model, "block.svg", modules="blocks.0")
        >>> fxprune.draw(pruned, "kept.png", view="kept")
    """
    path = Path(path)
    if view not in VIEWS:
        raise OptionError(f"view={shown(view)}: one of {', '.join(map(repr, VIEWS))}")
    if path.suffix.lower() not in VIEWS[view]:
        raise OptionError(f"{path.name}: view={shown(view)} is drawn as {', '.join(VIEWS[view])}")
    scene = scene_of(what, pruned, example_inputs=example_inputs, example_kwargs=example_kwargs, rules=rules)
    if view == "kept" and not scene.pruned:
        raise OptionError(
            "view='kept' needs a pruned model: draw(pruned, ...) or draw(model, ..., pruned=pruned)"
        )
    patterns = [modules] if isinstance(modules, str) else list(modules)
    write_whole(path, _drawn(scene, path.suffix.lower(), view, patterns))
    return path


def _drawn(scene: Scene, suffix: str, view: str, patterns: list[str]) -> bytes:
    """Draw a scene; each renderer's libraries are imported only when it is used."""
    if view != "graph":
        from fxprune.show.pictures.charts import coupling_map, kept_bars

        chart = coupling_map if view == "coupling" else kept_bars
        return chart(scene, suffix, patterns)
    if suffix == ".html":
        drawing_library("bokeh")
        from fxprune.show.pictures.html import html_page

        return html_page(scene, patterns).encode()
    from fxprune.show.pictures.dot import static_graph

    return static_graph(scene, suffix, patterns)
