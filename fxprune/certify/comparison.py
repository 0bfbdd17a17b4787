"""Run a pruned model beside its masked original, on any inputs and with any weights."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.outputs import frozen_outputs, named_outputs
from fxprune.certify.draws import drawn, leaves_of, table_sizes
from fxprune.certify.float64 import default_float64, doubled, put_tensors
from fxprune.certify.masked_original import MaskedOriginal
from fxprune.certify.noise import Drawn, Replaying
from fxprune.certify.relative_error import compact, compare, differ
from fxprune.certify.weights import PlannedWeights
from fxprune.errors import CertificateError
from fxprune.graph.example import Example
from fxprune.graph.op_names import op_name
from fxprune.graph.own_nodes import is_guard
from fxprune.graph.process_lock import PROCESS_LOCK
from fxprune.graph.tensors import cuda_devices_of, floats_of, in_float64, is_float, seed_anew, tensor_at
from fxprune.result.record import Record
from fxprune.result.selection import Selection

__all__ = ["Comparison", "Look", "leaves_of_outputs", "refuse_missing_guards", "same_draws"]

Tensors = dict[str, Tensor]
Noise = dict[str, Drawn]


@dataclass(frozen=True)
class Look:
    """What one run of both showed.

    error: the largest relative error; inf where one of two numbers alone is finite, or a wanted one is NaN.
    seen: there was a number other than zero to compare.
    defined: no wanted output holds NaN.
    got: what the result returned, of `example` and with `tensors` for weights, `noise` for what it draws.
    """

    error: float
    seen: bool
    defined: bool
    got: list[Tensor]
    example: Example
    tensors: Tensors | None
    noise: Noise


class Comparison:
    """A pruned model beside its masked original, for any inputs and any weights."""

    def __init__(
        self, model: nn.Module, pruned: fx.GraphModule, analysis: Analysis, selection: Selection
    ) -> None:
        self.model, self.pruned, self.analysis, self.selection = model, pruned, analysis, selection
        self.weights = PlannedWeights(model, pruned, analysis, selection)
        output = next(n for n in analysis.module.graph.nodes if n.op == "output")
        self.kept = _kept_outputs(analysis, selection, output)
        placeholders = [n for n in analysis.module.graph.nodes if n.op == "placeholder"]
        self.names = [str(n.target) for n in placeholders]
        self.unread = {str(n.target) for n in placeholders if not n.users}
        self.tables = table_sizes(analysis)
        self.ties: set[str] = set()  # the result's nodes that chose other ones of equal elements
        self.first: tuple[Example, tuple[list[Tensor], Noise]] | None = None  # example, what it gave

    def look(self, example: Example, tensors: Tensors | None = None, *, own: bool = False) -> Look:
        """Compare on one input.

        `tensors` stand for the original's weights, and, unless the result keeps its `own`, their slices for
        the result's.
        """
        return self._looked(example, tensors, *self._original(example, tensors), own=own)

    def _looked(
        self, example: Example, tensors: Tensors | None, wanted: list[Tensor], noise: Noise, own: bool = False
    ) -> Look:
        """Compare with what the masked original returned and drew."""
        own_tensors = None if own else tensors
        got = self._result(example, own_tensors, noise)
        found = compare(wanted, got)
        return Look(found.error, found.seen, found.defined, got, example, own_tensors, noise)

    def tried(self, example: Example, constants: set[str] | None = None) -> Look | None:
        """Compare on inputs, and with random numbers in the weights `constants`, that the model may refuse.

        None where it does, or gives NaN.
        """
        tensors = None if constants is None else self.weights.randomised(constants)
        return self._tried(example, tensors)

    def _tried(self, example: Example, tensors: Tensors | None) -> Look | None:
        try:
            original = self._original(example, tensors)
        except Exception:  # the model's own code refuses these values
            return None
        found = self._looked(example, tensors, *original)
        return found if found.defined else None

    def deeper(self, example: Example) -> Iterator[Look]:
        """Look at other inputs, then with other weights."""
        for scale in (10.0, 0.1):
            if look := self._tried(self.draw(example, scale=scale), None):
                yield look
        for seed in (1, 2):
            if look := self._tried(self.draw(example), self.weights.randomised(seed=seed)):
                yield look

    def draw(
        self, example: Example, *, seed: int = 1, scale: float = 1.0, only: int | None = None
    ) -> Example:
        """Draw other inputs of the same shapes."""
        return drawn(example, self.names, self.tables, seed=seed, scale=scale, only=only)

    def depends(self, look: Look) -> bool:
        """Return whether a look saw more than zeros, and other numbers for other inputs (if it takes any)."""
        if not look.seen or not leaves_of(look.example):
            return look.seen
        refused = 0
        for scale in (1.0, 10.0):
            outputs = self._other(look, self.draw(look.example, seed=2, scale=scale))
            if outputs is None:
                refused += 1
            elif differ(look.got, outputs):
                return True
        return refused == 2  # it takes no other values: nothing is known

    def depends_on_weights(self, look: Look, before: Look) -> bool:
        """Return whether a look saw more than zeros, and other numbers than one before with other weights."""
        random = look.tensors is not None and before.tensors is not None
        return random and look.seen and before.seen and differ(look.got, before.got)

    def dead_inputs(self, look: Look) -> tuple[str, ...]:
        """List the inputs, of several, that no output depends on."""
        leaves = leaves_of(look.example)
        found = []
        for i in range(len(leaves) if 1 < len(leaves) <= MANY_INPUTS else 0):
            name = self._name_of(look.example, i)
            changed = self.draw(look.example, seed=2, only=i)
            if name in self.unread or torch.equal(leaves_of(changed)[i], leaves[i]):
                continue
            outputs = self._other(look, changed)
            if outputs is not None and not differ(look.got, outputs):
                found.append(f"no output depends on input {name!r}")
        return tuple(found)

    def _other(self, look: Look, example: Example) -> list[Tensor] | None:
        try:
            return self._result(example, look.tensors, look.noise)
        except Exception:  # the model's own code refuses these values
            return None

    def _name_of(self, example: Example, leaf: int) -> str:
        named = [*zip(self.names, example.args, strict=False), *example.kwargs.items()]
        names = [name for name, value in named for _ in leaves_of(Example((value,)))]
        return names[leaf] if leaf < len(names) else str(leaf)

    def effect(self, example: Example) -> float:
        """Measure how far the original's outputs move where the result's weights are put into it."""
        wanted, _ = self._original(example, None)
        return compare(wanted, self._original(example, self.weights.with_those_of(self.pruned))[0]).error

    def _original(self, example: Example, tensors: Tensors | None) -> tuple[list[Tensor], Noise]:
        """Return the masked original's outputs and what it drew; on the first example it runs once."""
        if tensors is None and self.first is not None and self.first[0] is example:
            return self.first[1]
        found = self._run_original(example, tensors)
        if tensors is None and self.first is None:
            self.first = example, found
        return found

    def _run_original(self, example: Example, tensors: Tensors | None) -> tuple[list[Tensor], Noise]:
        with torch.no_grad(), default_float64(), same_draws(self.model):
            masked = MaskedOriginal(self.analysis, self.selection, example.batch)
            if tensors is None and self.weights.refitted:
                tensors = self.weights.own()
            if tensors is not None:
                put_tensors(masked.module, tensors)
            outputs = floats_of(masked.run_on(example.map(Tensor.clone)))  # code may write to its inputs
        return [compact(t, k) for t, k in zip(outputs, self.kept, strict=True)], masked.noise

    def _result(self, example: Example, tensors: Tensors | None, noise: Noise) -> list[Tensor]:
        with torch.no_grad():  # what is no code of the model's needs no default
            copied = doubled(self.pruned)
            if tensors is not None:
                self.weights.put_into_pruned(copied, tensors)
            else:
                copied = _unrounded(copied, self.model)
        with torch.no_grad(), default_float64(), same_draws(self.model):
            running = Replaying(copied, noise)
            outputs = floats_of(running.run_on(example.map(Tensor.clone)))
        self.ties |= running.ties
        return outputs


MANY_INPUTS = 8  # where there are more, none is varied on its own: each costs a run


def leaves_of_outputs(analysis: Analysis) -> list[Tensor]:
    """Find the tensors of numbers that a model returns, as values of the captured graph."""
    output = next(n for n in analysis.module.graph.nodes if n.op == "output")
    values = [pytree.tree_leaves(node.meta.get("val")) for node, _ in named_outputs(output)]
    return [t for vs in values for t in vs if isinstance(t, Tensor) and is_float(t)]


def refuse_missing_guards(pruned: fx.GraphModule, analysis: Analysis, example: Example) -> None:
    """Raise CertificateError if a result accepts calls that its capture does not speak of."""
    record = getattr(pruned, "record", None)
    shapes = [t.shape[1:] for t in leaves_of(example)]
    if not isinstance(record, Record) or shapes != [t.shape[1:] for t in leaves_of(record.example)]:
        return  # captured with another call, it has other guards
    missing = _guards(analysis.module.graph) - _guards(pruned.graph)
    if missing:
        kinds = ", ".join(f"{count} x {name}" for name, count in sorted(missing.items()))
        raise CertificateError(
            f"the result lacks guards that its capture needs ({kinds}): it would take a call that it "
            f"computes wrongly; prune anew, or keep these nodes when you edit its graph"
        )


def _guards(graph: fx.Graph) -> Counter[str]:
    """Count the guards of each kind in a graph."""
    return Counter(op_name(node.target) for node in graph.nodes if is_guard(node))


def _kept_outputs(analysis: Analysis, selection: Selection, output: fx.Node) -> list[list[Any]]:
    """Return the kept positions per dimension of each output (outputs shrink only when asked to)."""
    kept = []
    for node, frozen in frozen_outputs(output, analysis.outputs):
        tensors = [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
        for t, axes, stays in zip(tensors, analysis.axes[node], frozen, strict=True):
            positions = [selection.positions(axis) for axis in axes]
            if stays and any(p is not None for p in positions):
                raise CertificateError("an output lost elements, though it is to stay whole")
            if is_float(t):
                kept.append(positions)
    return kept


def _unrounded(copied: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """Fold scales into the weights of a float64 copy in float64 too.

    The module's own weights hold the folded products as rounded to their dtype; those that are off by
    no more than that are taken for what they stand for.
    """
    record = getattr(copied, "record", None)
    if not isinstance(record, Record) or not record.folded:
        return copied
    original = model.state_dict()
    old_of = {new: old for old, new in record.plan.renamed.items()}
    for name, (rows, ratio) in record.folded.items():
        old = old_of.get(name, name)
        kept = [None if k is None else k.numpy() for k in record.plan.kept.get(old, ())]
        exact = in_float64(compact(original[old], kept))
        exact[rows.to(exact.device)] *= ratio
        stored = tensor_at(copied, name)
        if bool(((stored - exact).abs() <= torch.finfo(original[old].dtype).eps * exact.abs()).all()):
            stored.data = exact
    return copied


@contextlib.contextmanager
def same_draws(model: nn.Module) -> Iterator[None]:
    """Fix the seed, so that a model that draws in eval mode (masked patches) draws the same in each run."""
    devices = cuda_devices_of(model)
    with PROCESS_LOCK, torch.random.fork_rng(devices=devices):
        seed_anew(devices)
        yield
