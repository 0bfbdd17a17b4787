"""`python -m fxprune.certify.zoo.own_class SPEC...`: how much of many models' own code holds the new sizes.

One file of a command: what it asks of one model, its table (resumable, sorted), and the summary.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import fx, nn

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.analyze import analyze
from fxprune.certify.zoo import table
from fxprune.certify.zoo.check import built
from fxprune.certify.zoo.result import CERTIFIED, EXCLUDED, FAILED, in_short
from fxprune.compiler import prune_analyzed, verify
from fxprune.errors import FxpruneError, first_line
from fxprune.graph.tensors import module_of, on_meta
from fxprune.result.own_attention import widths_held
from fxprune.result.own_code import OwnCode
from fxprune.result.pruned_module import record_of
from fxprune.result.saved import model_specs
from fxprune.rules.calls import call_of
from fxprune.rules.registry import DEFAULT_RULES

__all__ = ["Outcome", "own_class", "read", "summary"]

WAYS: Mapping[str, Mapping[str, Any]] = {
    "uniform": {},
    "global": {"scope": "global"},
    "head_dim": {"attention": "head_dim"},
}
SOFTMAX = {"softmax", "scaled_dot_product_attention", "multi_head_attention_forward"}


@dataclass(frozen=True)
class Outcome:
    """What became of one model, pruned at 0.5 as an instance of its own class.

    way: how its channels were chosen, one of `WAYS`.
    outcome: "certified", "refused" (with the words in `note`), "excluded" (nobody can build it) or "FAILED".
    own_class: "whole", "sizes" (whole, but code has sizes from attributes, where it computes others, or
        attention of torch.nn holds several widths by a subclass),
        "attention" (the replaced modules all are those that run a softmax, or lie in one),
        "forward" (the root's `forward` alone is a graph, which calls the user's modules), "parts", "graph".
    parts: the replaced modules, with why; else the sizes in the code.
    certificate: the largest relative error in float64.
    seconds: processor time from the analysis to the instance.
    """

    model: str
    way: str
    outcome: str
    own_class: str = ""
    parts: str = ""
    certificate: str = ""
    seconds: str = ""
    note: str = ""


COLUMNS = [field.name for field in fields(Outcome)]


def own_class(spec: str, ways: Iterable[str]) -> list[Outcome]:
    """Prune the model that a spec names in each way, and say how much of its own code is left."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        model = built(spec)
    except Exception as error:  # the library's own failure
        return [Outcome(spec, way, EXCLUDED, note=_said(error)) for way in ways]
    if on_meta(model):
        return [Outcome(spec, way, EXCLUDED, note="too large for numbers") for way in ways]
    try:
        analysis = analyze(model)
    except FxpruneError as refused:  # a model that is not captured, in neither form
        return [Outcome(spec, way, "refused", note=_said(refused)) for way in ways]
    except Exception as error:
        return [Outcome(spec, way, FAILED, note=_said(error)) for way in ways]
    return [_pruned(spec, model, analysis, way) for way in ways]


def _pruned(spec: str, model: nn.Module, analysis: Analysis, way: str) -> Outcome:
    start = time.process_time()
    try:
        pruned = prune_analyzed(model, analysis, 0.5, form="module", **WAYS[way])
        seconds = f"{time.process_time() - start:.2f}"
        found = verify(model, pruned, batch=None if record_of(pruned).dynamic else 2)
    except FxpruneError as refused:
        return Outcome(spec, way, "refused", note=_said(refused))
    except Exception as wrong:  # the row names whatever went wrong
        return Outcome(spec, way, FAILED, note=_said(wrong))
    own = record_of(pruned).own
    assert own is not None
    parts = "; ".join(f"{path or 'root'}: {in_short(why)}" for path, why in own.replaced[:3])
    parts += f"; {len(own.replaced) - 3} more" if len(own.replaced) > 3 else ""
    edited = [*map(str, own.spellings), *(f"{path}: {why}" for path, why in widths_held(pruned))]
    parts = parts or "; ".join(edited[:2]) + (", ..." if len(edited) > 2 else "")
    outcome = CERTIFIED if found.exact else FAILED
    return Outcome(spec, way, outcome, _kind(model, pruned, own), parts, f"{float(found):.0e}", seconds)


def _kind(model: nn.Module, pruned: nn.Module, own: OwnCode) -> str:
    if own.is_graph:
        return "graph"
    if own.is_whole:
        return "sizes" if own.spellings or any(widths_held(pruned)) else "whole"
    attention = all(
        _runs_softmax(pruned.get_submodule(p.path), p.path) or _holds_attention(model.get_submodule(p.path))
        for p in own.parts
    )
    return "parts" if not attention else "forward" if own.forward else "attention"


def _runs_softmax(part: nn.Module, path: str) -> bool:
    """Is a replaced module one that runs a softmax itself, or one inside such?"""
    assert isinstance(part, fx.GraphModule)
    homes = {
        module_of(node)
        for node in part.graph.nodes
        if node.op.startswith("call") and call_of(node, part, DEFAULT_RULES).op in SOFTMAX
    }
    return any(home == path or home.rpartition(".")[0] == path for home in homes)


def _holds_attention(module: nn.Module) -> bool:
    """Is it torch's own attention, or does it call one: a pooling whose result nobody uses?"""
    return any(isinstance(m, nn.MultiheadAttention) for m in (module, *module.children()))


def read(path: str | os.PathLike[str]) -> dict[tuple[str, str], Outcome]:
    """Return the rows by model and way; none where there is no file yet."""
    return {(row["model"], row["way"]): Outcome(**row) for row in table.rows_of(path)}


def write(path: str | os.PathLike[str], outcomes: Iterable[Outcome]) -> None:
    """Write all rows, sorted."""
    table.write_rows(path, COLUMNS, map(vars, sorted(outcomes, key=lambda o: (o.model, o.way))))


def summary(outcomes: Iterable[Outcome]) -> str:
    """Count, by way and library, the models that keep their class whole, in parts, or not at all."""
    header = (
        "way",
        "library",
        "models",
        "whole",
        "whole but sizes",
        "but attention",
        "but forward",
        "but parts",
        "graph",
        "refused",
        "failed",
    )
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    tried = [o for o in outcomes if o.outcome != EXCLUDED]
    for way in WAYS:
        rows = [o for o in tried if o.way == way]
        libraries = sorted({o.model.partition(":")[0] for o in rows})
        lines += [_line(way, lib, [o for o in rows if o.model.startswith(f"{lib}:")]) for lib in libraries]
        if len(libraries) > 1:
            lines.append(_line(way, "all", rows))
    return "\n".join(lines)


def _line(way: str, library: str, rows: list[Outcome]) -> str:
    kinds = [o.own_class if o.outcome == CERTIFIED else o.outcome for o in rows]
    order = "whole", "sizes", "attention", "forward", "parts", "graph", "refused", FAILED
    return f"| {' | '.join(map(str, (way, library, len(rows), *map(kinds.count, order))))} |"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {in_short(first_line(error))}"


def run(
    specs: Iterable[str], path: str, ways: Iterable[str], *, workers: int, limit: float, again: bool
) -> Iterator[Outcome]:
    """Ask every model that the table does not hold, in a process of its own; the table grows as they end."""
    from pebble import ProcessPool

    rows, ways = read(path), [*ways]
    due = {spec: [way for way in ways if again or (spec, way) not in rows] for spec in dict.fromkeys(specs)}
    with ProcessPool(workers, max_tasks=20, context=multiprocessing.get_context("spawn")) as pool:
        running: dict[Future[list[Outcome]], tuple[str, list[str]]] = {
            pool.schedule(own_class, args=[spec, some], timeout=limit): (spec, some)
            for spec, some in due.items()
            if some
        }
        for done in as_completed(running):
            spec, some = running[done]
            try:
                found: list[Outcome] = done.result()
            except Exception as error:  # out of time, out of memory, a crash in native code
                found = [Outcome(spec, way, FAILED, note=_said(error)) for way in some]
            for outcome in found:
                rows[spec, outcome.way] = outcome
                yield outcome
            write(path, rows.values())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Prune many models as instances of their own classes.")
    parser.add_argument("specs", nargs="*", help="timm:NAME, torchvision:PATTERN*, package.module:*, ...")
    parser.add_argument("--table", default="zoo_own_class.csv", help="the CSV file to resume and to add to")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one model")
    parser.add_argument("--again", action="store_true", help="also ask what the table holds")
    options = parser.parse_args(arguments)
    specs = [spec for pattern in options.specs for spec in model_specs.expand(pattern)]
    settings = {"workers": options.workers, "limit": options.limit, "again": options.again}
    for outcome in run(specs, options.table, options.ways, **settings):
        print(*vars(outcome).values(), sep=" | ", flush=True)
    print(summary(read(options.table).values()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
