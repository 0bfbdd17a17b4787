"""The certificate: the pruned model against the masked original, in float64.

The masked original is the captured graph at full size and depth in which every removed branch adds zero,
removed channels are set to zero after every node, and every statistic (mean, variance) over a shrinking
axis counts kept channels only.  It knows nothing of slicing, reshape constants or module attributes: what
the rewrite gets wrong shows.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.analysis.analysis import Analysis
from fxprune.certify.float64 import Float64Interpreter, default_float64, doubled
from fxprune.certify.masked_original import MaskedOriginal
from fxprune.errors import CertificateError
from fxprune.graph.copies import structural_copy
from fxprune.graph.example import Example
from fxprune.graph.facts import Captured
from fxprune.graph.own_nodes import makes_output
from fxprune.graph.process_lock import PROCESS_LOCK
from fxprune.graph.tensors import device_of, floats_of, in_float64, is_float, tensor_at
from fxprune.graph.values import bound_arguments
from fxprune.plan.selection import Selection
from fxprune.result.record import Record

__all__ = ["Certificate", "certify", "same_function"]


class Certificate(float):
    """The largest error relative to the largest output, as a float; 1e-8 or less is exact."""

    tolerance = 1e-8

    @property
    def exact(self) -> bool:
        return float(self) <= self.tolerance

    def __repr__(self) -> str:
        return f"Certificate({float(self):.2e}, {'exact' if self.exact else 'NOT EXACT'})"


def certify(
    model: nn.Module,
    pruned: fx.GraphModule,
    analysis: Analysis,
    selection: Selection,
    example: Example,
) -> Certificate:
    """Run both on the same input and compare every output."""
    if any(t.device.type == "meta" for t in (*model.parameters(), *model.buffers())):
        raise CertificateError("a model on the meta device has no values to certify: materialise it first")
    _check_capture(model, analysis.original, example)
    example = example.map(in_float64)
    with torch.no_grad(), default_float64():
        with _same_draws(model):
            wanted = MaskedOriginal(analysis, selection, example.batch).run_on(example)
        with _same_draws(model):
            got = Float64Interpreter(_unrounded(doubled(pruned), model)).run_on(example)
    pairs = zip(floats_of(wanted), floats_of(got), strict=True)
    output = next(n for n in analysis.module.graph.nodes if n.op == "output")
    kept = _kept_outputs(analysis, selection, output)
    if not analysis.prune_outputs and any(k is not None for dims in kept for k in dims):
        raise CertificateError("an output lost elements, though outputs are to stay whole")
    return Certificate(
        max((_error(_compact(a, k), b) for (a, b), k in zip(pairs, kept, strict=True)), default=0.0)
    )


def same_function(pruned: fx.GraphModule, stock: nn.Module, example: Example) -> float:
    """The largest relative error between a rewritten graph and a module's own code, in float64."""
    example = example.map(in_float64)
    device = device_of(pruned)
    eager = in_float64(copy.deepcopy(stock).to(device)).eval()
    with torch.no_grad(), default_float64():
        with _same_draws(pruned):
            wanted = floats_of(eager(*example.args, **example.kwargs))
        with _same_draws(pruned):
            got = floats_of(Float64Interpreter(doubled(pruned)).run_on(example))
    return max((_error(a, b) for a, b in zip(wanted, got, strict=True)), default=0.0)


def _error(wanted: Tensor, got: Tensor) -> float:
    if wanted.shape != got.shape:
        raise CertificateError(
            f"an output has shape {tuple(got.shape)}, the masked original's {tuple(wanted.shape)}"
        )
    scale = wanted.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    error = ((wanted - got).abs().max() / scale).item()
    return error if error == error else float("inf")


def _kept_outputs(analysis: Analysis, selection: Selection, output: fx.Node) -> list[list[Any]]:
    """For each output tensor, the kept positions per dimension (outputs shrink only when asked to)."""
    kept = []
    for node in _leaves(output.args[0]):
        tensors = [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
        for t, axes in zip(tensors, analysis.axes[node], strict=True):
            if is_float(t):
                kept.append([selection.positions(axis) for axis in axes])
    return kept


def _leaves(value: Any) -> list[fx.Node]:
    """The nodes that an output is made of, through a dataclass's own call."""
    found: list[fx.Node] = []

    def visit(n: fx.Node) -> fx.Node:
        if makes_output(n):
            fx.map_arg((n.args, n.kwargs), visit)
        else:
            found.append(n)
        return n

    fx.map_arg(value, visit)
    return found


def _compact(t: Tensor, kept: list[Any]) -> Tensor:
    for dim, positions in enumerate(kept):
        if positions is not None:
            t = t.index_select(dim, torch.from_numpy(positions).to(t.device))
    return t


def _check_capture(model: nn.Module, captured: Captured, example: Example) -> None:
    """A capture that took another branch than the model does would certify the wrong function."""
    eager = structural_copy(model).eval()
    with torch.no_grad():
        with _same_draws(model):
            wanted = floats_of(eager(*example.args, **example.kwargs))
        with _same_draws(model):
            got = floats_of(captured.module(*bound_arguments(captured.module, example)))
    if len(wanted) != len(got):
        raise CertificateError(f"the model returns {len(wanted)} tensors, its capture {len(got)}")
    for a, b in zip(wanted, got, strict=True):
        tolerance = 10 * torch.finfo(a.dtype).eps ** 0.5
        if a.shape != b.shape or (a - b).abs().max() > tolerance * a.abs().max().clamp_min(1e-30):
            raise CertificateError(
                f"the {captured.way} capture computes something else than the model itself: "
                f"prune it with the other one (capture='symbolic' or 'export')"
            )


def _unrounded(twin: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """A float64 twin of a pruned module, with scales folded into its weights in float64 too.

    The module's own weights hold the folded products as rounded to their dtype; those that are off by
    no more than that are taken for what they stand for.
    """
    record = getattr(twin, "record", None)
    if not isinstance(record, Record) or not record.folded:
        return twin
    original = model.state_dict()
    old_of = {new: old for old, new in record.plan.renamed.items()}
    for name, (rows, ratio) in record.folded.items():
        old = old_of.get(name, name)
        kept = [None if k is None else k.numpy() for k in record.plan.kept.get(old, ())]
        exact = in_float64(_compact(original[old], kept))
        exact[rows.to(exact.device)] *= ratio
        stored = tensor_at(twin, name)
        if bool(((stored - exact).abs() <= torch.finfo(original[old].dtype).eps * exact.abs()).all()):
            stored.data = exact
    return twin


@contextlib.contextmanager
def _same_draws(model: nn.Module) -> Iterator[None]:
    """A model that draws random numbers in eval mode (masked patches) draws the same in each run."""
    devices = {t.device for t in model.parameters() if t.device.type == "cuda"}
    with PROCESS_LOCK, torch.random.fork_rng(devices=list(devices)):
        torch.default_generator.manual_seed(0)  # (torch.manual_seed takes milliseconds)
        for device in devices:
            torch.cuda.default_generators[device.index or 0].manual_seed(0)
        yield
