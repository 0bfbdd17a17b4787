"""`fxprune.report`: what pruning did, per group and in total, as a table, Markdown, HTML or JSON."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from fxprune.capture.example_of import example_of
from fxprune.choose.planned import analysis_behind, as_planned
from fxprune.compiler import verify
from fxprune.errors import OptionError, listed, shown
from fxprune.result.forms import graph_form
from fxprune.result.measure import parameters_of, threads_of
from fxprune.result.own_attention import widths_held
from fxprune.result.pruned_module import noise_for, on_least_noise, plan_of, record_of
from fxprune.result.refitted import FEW
from fxprune.result.refused import refused_by
from fxprune.result.remade import as_it_was
from fxprune.rules.registry import DEFAULT_RULES, RuleSet
from fxprune.show.reports.figures import GroupFigures, figures_of, folded, heads_of, norms_as_before
from fxprune.show.reports.side_by_side import latencies, macs_by_node
from fxprune.show.reports.texts import as_html, as_markdown, count, in_ms, pair, row

__all__ = ["Report", "report"]

FORMATS = ("table", "markdown", "json")
EXPECTED_WHOLE = 0.95  # with less of its parameters a model does not predict as it did


@dataclass(frozen=True)
class Report:
    """Before and after, as pairs.  `str()` is the table, or what `format` asked for.

    groups: those that shrank.  macs: multiply-accumulates of one call with `batch` samples.
    latency: median seconds of such a call with `threads` threads, or None where it was not measured.
    certificate: the largest relative error, or None where it was not asked for.
    certified: what the certificate says beside that number: "exact", or why it is not.
    floored: the groups of which the request would have taken more, had their floor not held it up.
    norms_as_before: batch norms that hold the original's statistics, of inputs that fewer channels make now.
    discarded: group -> estimated KL divergence of what it lost, where channels were chosen by "kl".
    samples: calibration samples that layers were solved again on; 0 where none were.
    divergence: KL divergence from the original on those held out, before that and after.
    replaced: of an instance of the model's own class, the modules that are parts of the graph, each with what
        its own code said of the new sizes.
    spelled: of such an instance, the sizes that its code has from attributes, where it computes others.
    widened: of such an instance, attention of torch.nn that holds several widths, by a subclass, each with
        what torch.nn's own code says of them.
    refused: of such an instance, what raises, since nothing proved it on the new sizes.
    """

    model: str
    groups: list[GroupFigures]
    parameters: tuple[int, int]
    macs: tuple[float, float]
    heads: tuple[int, int]
    batch: int
    threads: int
    latency: tuple[float, float] | None = None
    certificate: float | None = None
    certified: str = ""
    floored: tuple[str, ...] = ()
    norms_as_before: int = 0
    discarded: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    divergence: tuple[float, ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()
    spelled: tuple[str, ...] = ()
    widened: tuple[tuple[str, str], ...] = ()
    refused: tuple[str, ...] = ()
    format: str = "table"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, in which pairs are [before, after]."""
        return {k: v for k, v in asdict(self).items() if k != "format"}

    def to_json(self) -> str:
        """Return the figures as JSON, which has no infinite numbers: a certificate that is one is null."""
        figures = self.to_dict()
        if self.certificate is not None and not math.isfinite(self.certificate):
            figures["certificate"] = None
        return json.dumps(figures, indent=1, allow_nan=False)

    def to_markdown(self) -> str:
        """Return a table of groups, then one of totals."""
        return "\n\n".join(as_markdown(*table) for table in self._tables())

    def _repr_html_(self) -> str:
        return "\n".join(as_html(*table) for table in self._tables())

    def __rich__(self) -> Any:
        """Make what `rich.print` shows."""
        from rich.console import Group as Stack
        from rich.table import Table
        from rich.text import Text

        stack = []
        for title, head, rows in self._tables():
            table = Table(title=Text(title), title_justify="left", header_style="bold")
            for i, column in enumerate(head):
                table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i > 0)
            for cells in rows:
                table.add_row(*map(Text, cells))  # code may hold what is markup in a string
            stack.append(table)
        return Stack(*stack)

    def __str__(self) -> str:
        if self.format == "json":
            return self.to_json()
        return self.to_markdown() if self.format == "markdown" else _on_terminal(self)

    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Lay out the groups, and the totals with what else is to be said: title, head, rows."""
        groups = [
            [name, pair(g.width, count), pair(g.parameters, count), pair(g.macs, count)]
            for name, g in folded(self.groups)
        ]
        groups.append(["the rest", "", *self._rest()])
        return [
            (self.model, ["group", "width", "its parameters", "its MACs"], groups),
            (self._summary(), ["", "before", "after", "left"], [*self._totals(), *self._remarks()]),
        ]

    def _totals(self) -> list[list[str]]:
        """Lay out what was counted, measured and certified of the whole model."""
        rows = [
            ["parameters", *row(self.parameters, count)],
            [f"MACs, batch {self.batch}", *row(self.macs, count)],
        ]
        if self.heads[0]:
            rows.append(["heads", *row(self.heads, count)])
        if self.latency is not None:
            label = f"latency, batch {self.batch}, {self.threads} thread{'s' * (self.threads > 1)}"
            rows.append([label, *row(self.latency, in_ms)])
        if self.certificate is not None:
            said = f"largest relative error: {self.certified}"
            rows.append([said, "", f"{self.certificate:.1e}", ""])
        return rows

    def _remarks(self) -> list[list[str]]:
        """Lay out what stood in the way, what was lost, what was solved again, and what is no own code."""
        rows = []
        if self.floored:
            rows.append([f"at their floor: {listed(self.floored, 4)}", "", str(len(self.floored)), ""])
        if self.norms_as_before:
            said = (
                "batch norms with the original's statistics: take them anew (train mode) before you measure"
            )
            rows.append([said, "", str(self.norms_as_before), ""])
        if self.discarded:
            most = sorted(self.discarded, key=lambda name: -self.discarded[name])[:3]
            some = ", ".join(f"{name} {self.discarded[name]:.2g}" for name in most)
            discarded = f"{sum(self.discarded.values()):.2g}"
            rows.append([f"estimated KL discarded; most: {some}", "", discarded, ""])
        if self.samples:
            few = " (few: more make it better)" if self.samples < FEW else ""
            rows.append([f"calibration samples{few}", "", str(self.samples), ""])
        if len(self.divergence) == 2:
            sliced, solved = (f"{value:.2g}" for value in self.divergence)
            rows.append(["KL of held-out samples, slices and solved again", sliced, solved, ""])
        for path, why in self.replaced:
            rows.append([f"{path or 'the model'} is a part of the graph: {why}", "", "", ""])
        for path, why in self.widened:
            rows.append([f"{path} is a subclass of torch.nn's attention, for {why}", "", "", ""])
        rows += [[f"a size in its code is an attribute: {said}", "", "", ""] for said in self.spelled]
        return rows + [[f"raises: {said}", "", "", ""] for said in self.refused]

    def _rest(self) -> list[str]:
        """Sum up what no group that shrank carries: parameters and MACs, before and after."""
        cells = []
        for total, own in ((self.parameters, "parameters"), (self.macs, "macs")):
            carried = [sum(getattr(g, own)[i] for g in self.groups) for i in (0, 1)]
            cells.append(pair((max(total[0] - carried[0], 0), max(total[1] - carried[1], 0)), count))
        return cells

    def _summary(self) -> str:
        """Return a title that says what to expect of so few parameters."""
        left = self.parameters[1] / self.parameters[0] if self.parameters[0] else 1.0
        if left > EXPECTED_WHOLE:
            return "In total"
        return f"In total; {left:.0%} of the parameters are left: fine-tune, or the accuracy is gone"


def report(
    model: nn.Module,
    pruned: nn.Module,
    *,
    format: str = "table",
    latency: bool = False,
    certificate: bool = False,
    example_inputs: Any = None,
    example_kwargs: dict[str, Any] | None = None,
    batch: int | None = None,
    threads: int | None = None,
    runs: int | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> Report:
    """Return what pruning did to a model, per group and in total.

    Args:
        model: the original; it is not changed.
        pruned: what `prune` made of it.
        format: what `str()` of the result gives: "table", "markdown" or "json".
        latency: measure it: the median of `runs` calls of each (11), taking turns, with `threads` threads
            (torch's own number by default).
        certificate: verify the result in float64.
        example_inputs, example_kwargs: the call to measure, instead of noise of the recorded shape.
        batch: samples of that noise, 1 by default.
        rules: those that it was pruned with.

    Raises:
        PlanError: `pruned` was not made by fxprune.
        OptionError: a format that there is none of; `threads` or `runs` without `latency`; `batch` beside
            an example, which has a batch of its own.

    Example:
        >>> print(fxprune.report(model, pruned, latency=True))
        >>> Path("report.md").write_text(fxprune.report(model, pruned).to_markdown())
    """
    if format not in FORMATS:
        raise OptionError(f"format={shown(format)}: one of {', '.join(map(repr, FORMATS))}")
    given = example_inputs is not None or example_kwargs is not None
    if given and batch is not None:
        raise OptionError(
            "batch= is for noise, and example_inputs= have a batch of their own: give one of them"
        )
    if not latency and (threads is not None or runs is not None):
        raise OptionError("threads= and runs= say how time is measured: give latency=True as well")
    plan, graph = plan_of(pruned), graph_form(pruned)
    if given or batch is not None:
        told = example_of(model, example_inputs, example_kwargs) if given else None
        example = told or noise_for(pruned, model, batch or 1)
        left = macs_by_node(graph, example)
    else:
        example, left = on_least_noise(pruned, model, lambda example: macs_by_node(graph, example))
    model = as_it_was(model, record_of(pruned).remade, example)
    analysis = analysis_behind(model, pruned, rules=rules)
    macs = macs_by_node(analysis.module, example), left
    with threads_of(threads):
        seconds = latencies([model, pruned], example, runs=11 if runs is None else runs) if latency else None
    found = None
    if certificate:
        call: dict[str, Any] = {"example_inputs": example_inputs, "example_kwargs": example_kwargs}
        found = verify(model, pruned, rules=rules, **call)
    planned = as_planned(analysis, plan)  # without the removed branches, with heads merged
    groups = {group.name: group for group in planned.groups}
    own = record_of(pruned).own
    return Report(
        model=type(model).__name__,
        groups=figures_of(planned, [groups[name] for name in plan.groups], plan, graph, macs),
        parameters=(parameters_of(model), parameters_of(pruned)),
        macs=(sum(macs[0].values()), sum(macs[1].values())),
        heads=(heads_of(analysis, {}), heads_of(planned, plan.groups)),
        batch=example.batch or 1,
        threads=threads or torch.get_num_threads(),
        latency=(seconds[0], seconds[1]) if seconds else None,
        certificate=None if found is None else float(found),
        certified="" if found is None else found.words,
        floored=plan.floored,
        norms_as_before=norms_as_before(model, pruned),
        discarded=dict(plan.discarded),
        samples=plan.samples,
        divergence=plan.divergence,
        replaced=own.replaced if own else (),
        spelled=tuple(map(str, own.spellings)) if own else (),
        widened=tuple(widths_held(pruned)),
        refused=tuple(refused_by(own)) if own else (),
        format=format,
    )


def _on_terminal(shown: Report) -> str:
    """Draw a table by rich, in colour where it is printed on a terminal; Markdown where there is no rich."""
    try:
        from rich.console import Console
    except ImportError:
        return shown.to_markdown()
    colour = sys.stdout.isatty()
    console = Console(file=io.StringIO(), force_terminal=colour, width=None if colour else 120)
    console.print(shown)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined]
