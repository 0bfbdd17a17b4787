"""The certificate: the pruned model against the masked original, in float64.

The masked original is the captured graph at full size and depth in which every removed branch adds zero,
removed channels are set to zero after every node, and every statistic (mean, variance) over a shrinking
axis counts kept channels only.  It knows nothing of slicing, reshape constants or module attributes: what
the rewrite gets wrong shows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.analysis import Analysis
from fxprune.certify.comparison import (
    Comparison,
    Look,
    leaves_of_outputs,
    refuse_missing_guards,
    same_draws,
)
from fxprune.certify.draws import is_varied
from fxprune.certify.float64 import Float64Interpreter, default_float64, doubled, in_double, in_eval_mode
from fxprune.certify.noise import drawn_in_order
from fxprune.certify.relative_error import compare
from fxprune.errors import CertificateError, listed
from fxprune.graph.captured import Captured
from fxprune.graph.copies import graph_shared, own_buffers, structural_copy
from fxprune.graph.example import Example
from fxprune.graph.tensors import device_of, floats_of, in_float64, on_meta
from fxprune.graph.values import bound_arguments
from fxprune.result.selection import Selection

__all__ = ["Certificate", "certified", "certify", "same_function"]


class Certificate(float):
    """The largest relative error, as a float; 1e-8 or less, with nothing in `unseen`, is exact.

    changed: the result's tensors that are not the plan's slices of the original's any more (trained,
        replaced, spoilt), each with its relative difference.  They count as errors.
    function: where some are changed: the error with the result's own weights in the masked original.
    unseen: why nothing was seen, though other inputs and other weights were tried; the error is then inf.
    notes: what was not seen beside that: an input on which no output depends, a choice among equals.
    """

    tolerance = 1e-8
    changed: dict[str, float]
    function: float | None
    unseen: str
    notes: tuple[str, ...]

    def __new__(
        cls,
        error: float,
        changed: dict[str, float] | None = None,
        function: float | None = None,
        unseen: str = "",
        notes: tuple[str, ...] = (),
    ) -> Certificate:
        made = super().__new__(cls, float("inf") if unseen else error)
        made.changed, made.function, made.unseen, made.notes = changed or {}, function, unseen, notes
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return float(self), self.changed, self.function, self.unseen, self.notes

    def beside(self, error: float) -> Certificate:
        """Return the certificate of an instance whose code differs by `error` from this graph."""
        notes = self.notes
        if not error <= self.tolerance:
            notes = (*notes, f"the model's own code differs from its graph by {error:.2e}")
        return Certificate(max(float(self), error), self.changed, self.function, self.unseen, notes)

    @property
    def exact(self) -> bool:
        return float(self) <= self.tolerance and not self.unseen and not self.changed

    def __repr__(self) -> str:
        return f"Certificate({float(self):.2e}, {self.words})"

    @property
    def words(self) -> str:
        """What it says beside the number: "exact", or "NOT EXACT; saw nothing: ..."."""
        return "; ".join(self._words())

    def _words(self) -> Iterator[str]:
        yield "exact" if self.exact else "NOT EXACT"
        if self.unseen:
            yield f"saw nothing: {self.unseen}"
        if self.changed:
            some = listed(self.changed)
            yield f"{len(self.changed)} weights are not the plan's slices any more (trained?): {some}"
        if self.function is not None:
            yield f"with them in the original: {self.function:.2e}"
        yield from self.notes


def certify(
    model: nn.Module,
    pruned: fx.GraphModule,
    analysis: Analysis,
    selection: Selection,
    example: Example,
) -> Certificate:
    """Compare weights, then run both on the same inputs and compare every output.

    A constant weight (a layer scale of zeros, fresh biases) hides what it multiplies: then both are
    compared a second time with random numbers in its place.  So it is where no output depends on inputs.
    """
    return certified(Comparison(model, pruned, analysis, selection), example)


def certified(comparison: Comparison, example: Example) -> Certificate:
    """Certify the result of a comparison."""
    model, analysis = comparison.model, comparison.analysis
    if on_meta(model):
        raise CertificateError("a model on the meta device has no values to certify: materialise it first")
    if not leaves_of_outputs(analysis):
        raise CertificateError("the model returns no tensor of numbers: there is nothing to compare")
    _check_capture(model, analysis.original, example)
    return _certificate(comparison, example.map(in_float64))


def _certificate(comparison: Comparison, example: Example) -> Certificate:
    """Look until an output depends on the inputs; more where constant weights or inputs hide something."""
    refuse_missing_guards(comparison.pruned, comparison.analysis, example)
    changed = comparison.weights.changed(comparison.pruned)
    first = comparison.look(example)
    looks, telling = [first], first if first.defined and comparison.depends(first) else None
    if not is_varied(example) and (look := comparison.tried(comparison.draw(example))):
        looks.append(look)
        telling = telling or (look if comparison.depends(look) else None)
    constants = comparison.weights.constants()
    if constants and (look := comparison.tried(comparison.draw(example), constants)):
        looks.append(look)
    depends = telling is not None
    blind = not depends
    for look in comparison.deeper(example) if blind else ():
        # Of a class token that nothing mixes with the image, other weights show all that there is.
        depends = comparison.depends(look) or comparison.depends_on_weights(look, looks[-1])
        looks.append(look)
        if depends:
            break
    error = max((look.error for look in looks if look.defined), default=0.0)
    function = None
    if changed:
        trained = comparison.look(example, comparison.weights.with_those_of(comparison.pruned), own=True)
        function = trained.error if trained.defined and trained.seen else None
        error = max(error, *changed.values())
    if not depends:
        return Certificate(error, changed, function, _nothing(first))
    notes = comparison.dead_inputs(telling) if telling else ()
    if blind:
        notes = ("no output depends on the inputs here: other inputs and weights were compared too",)
    if comparison.ties:
        ties = ", ".join(sorted(comparison.ties))
        notes = (*notes, f"{ties} chooses among equal elements: the original's choice was taken")
    return Certificate(error, changed, function, notes=notes)


def _nothing(look: Look) -> str:
    if not look.defined:
        return "the outputs hold NaN"
    return "no output depends on the inputs" if look.seen else "every output is zero or empty"


def same_function(pruned: fx.GraphModule, stock: nn.Module, example: Example) -> float:
    """Return the largest relative error between a rewritten graph and a module's own code, in float64."""
    example = example.map(in_float64)
    device = device_of(pruned)
    eager = in_float64(copy.deepcopy(stock).to(device))
    in_eval_mode(eager)
    with torch.no_grad(), default_float64():
        with same_draws(pruned), in_double():
            given = example.map(Tensor.clone)
            wanted = floats_of(eager(*given.args, **given.kwargs))
        with same_draws(pruned):
            got = floats_of(Float64Interpreter(doubled(pruned)).run_on(example.map(Tensor.clone)))
    return compare(wanted, got).error


def _check_capture(model: nn.Module, captured: Captured, example: Example) -> None:
    """Refuse a capture that took another branch than the model: it would certify the wrong function."""
    eager = structural_copy(model, own_buffers)
    in_eval_mode(eager)
    graph = graph_shared(captured.module, lambda held: structural_copy(held, own_buffers))
    with torch.no_grad():
        with same_draws(model), drawn_in_order():
            given = example.map(Tensor.clone)  # its code may write to what it is given
            wanted = floats_of(eager(*given.args, **given.kwargs))
        with same_draws(model), drawn_in_order():
            got = floats_of(graph(*bound_arguments(graph, example.map(Tensor.clone))))
    if len(wanted) != len(got):
        raise CertificateError(f"the model returns {len(wanted)} tensors, its capture {len(got)}")
    for a, b in zip(wanted, got, strict=True):
        # 0.003 in float32: rounding stays far below, another branch does not.
        tolerance = 10 * torch.finfo(a.dtype).eps ** 0.5
        if a.shape != b.shape or (compare([a], [b]).error > tolerance and not bool(a.isnan().any())):
            raise CertificateError(
                f"the {captured.way} capture computes something else than the model itself: "
                f"prune it with the other one (capture='symbolic' or 'export')"
            )
