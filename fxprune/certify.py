"""The certificate: the pruned model against the masked original, in float64.

The masked original is the captured graph at full size and depth in which every removed branch adds zero,
removed channels are set to zero after every node, and every statistic (mean, variance) over a shrinking
axis counts kept channels only.  It knows nothing of slicing, reshape constants or module attributes: what
the rewrite gets wrong shows.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.analysis import Analysis
from fxprune.axes import with_sizes
from fxprune.calls import Weight
from fxprune.capture.inputs import PRIME_BATCH, Example
from fxprune.capture.modes import structural_copy
from fxprune.errors import CertificateError
from fxprune.infer import Step
from fxprune.masked import MASKED
from fxprune.passes.propagate_values import bound_arguments
from fxprune.selection import Selection

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
    _check_capture(model, analysis.captured, example)
    example = example.map(lambda t: t.double() if t.is_floating_point() else t)
    with torch.no_grad(), _default_float64():
        with _same_draws(model):
            wanted = _Masked(analysis, selection, example.batch).run(*_positional(analysis.module, example))
        with _same_draws(model):
            got = Float64Interpreter(_unrounded(_double(pruned), model)).run(*_positional(pruned, example))
    pairs = zip(_floats(wanted), _floats(got), strict=True)
    output = next(n for n in analysis.module.graph.nodes if n.op == "output")
    kept = _kept_outputs(analysis, selection, output)
    if not analysis.inference.prune_outputs and any(k is not None for dims in kept for k in dims):
        raise CertificateError("an output lost elements, though outputs are to stay whole")
    return Certificate(
        max((_error(_compact(a, k), b) for (a, b), k in zip(pairs, kept, strict=True)), default=0.0)
    )


def same_function(pruned: fx.GraphModule, stock: nn.Module, example: Example) -> float:
    """The largest relative error between a rewritten graph and a module's own code, in float64."""
    example = example.map(lambda t: t.double() if t.is_floating_point() else t)
    device = next((p.device for p in pruned.parameters()), torch.device("cpu"))
    eager = copy.deepcopy(stock).to(device).double().eval()
    with torch.no_grad(), _default_float64():
        with _same_draws(pruned):
            wanted = _floats(eager(*example.args, **example.kwargs))
        with _same_draws(pruned):
            got = _floats(Float64Interpreter(_double(pruned)).run(*_positional(pruned, example)))
    return max((_error(a, b) for a, b in zip(wanted, got, strict=True)), default=0.0)


def _error(wanted: Tensor, got: Tensor) -> float:
    if wanted.shape != got.shape:
        raise CertificateError(
            f"an output has shape {tuple(got.shape)}, the masked original's {tuple(wanted.shape)}"
        )
    scale = wanted.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    error = ((wanted - got).abs().max() / scale).item()
    return error if error == error else float("inf")


def _floats(value: Any) -> list[Tensor]:
    """Every floating-point tensor of a nest of tuples, lists, dicts and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if dataclasses.is_dataclass(value) and not isinstance(value, dict):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _floats(v)] if isinstance(value, (list, tuple)) else []


def _kept_outputs(analysis: Analysis, selection: Selection, output: fx.Node) -> list[list[Any]]:
    """For each output tensor, the kept positions per dimension (outputs shrink only when asked to)."""
    kept = []
    for node in _leaves(output.args[0]):
        value = node.meta.get("val")
        for t, axes in zip(pytree.tree_leaves(value), analysis.axes[node], strict=True):
            if t.is_floating_point():
                kept.append([selection.positions(axis) for axis in axes])
    return kept


def _leaves(value: Any) -> list[fx.Node]:
    """The nodes that an output is made of, through a dataclass's own call."""
    found: list[fx.Node] = []

    def visit(n: fx.Node) -> fx.Node:
        if n.op == "call_function" and isinstance(n.target, type):
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


def _check_capture(model: nn.Module, captured: fx.GraphModule, example: Example) -> None:
    """A capture that took another branch than the model does would certify the wrong function."""
    eager = structural_copy(model).eval()
    with torch.no_grad():
        with _same_draws(model):
            wanted = _floats(eager(*example.args, **example.kwargs))
        with _same_draws(model):
            got = _floats(captured(*_positional(captured, example)))
    if len(wanted) != len(got):
        raise CertificateError(f"the model returns {len(wanted)} tensors, its capture {len(got)}")
    for a, b in zip(wanted, got, strict=True):
        tolerance = 10 * torch.finfo(a.dtype).eps ** 0.5
        if a.shape != b.shape or (a - b).abs().max() > tolerance * a.abs().max().clamp_min(1e-30):
            raise CertificateError(
                f"the {captured.meta['capture']} capture computes something else than the model itself: "
                f"prune it with the other one (capture='symbolic' or 'export')"
            )


def _positional(module: fx.GraphModule, example: Example) -> list[Any]:
    return bound_arguments(module, example)


def _double(module: fx.GraphModule) -> fx.GraphModule:
    twin = copy.copy(module)
    shell = nn.Module()
    shell._modules = module._modules
    shell._parameters, shell._buffers = module._parameters, module._buffers
    shell = copy.deepcopy(shell).double().eval()
    twin.__dict__ = {
        **module.__dict__,
        **{k: shell.__dict__[k] for k in ("_modules", "_parameters", "_buffers")},
    }
    return twin


def _unrounded(twin: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """A float64 twin of a pruned module, with scales folded into its weights in float64 too.

    The module's own weights hold the folded products as rounded to their dtype; those that are off by
    no more than that are taken for what they stand for.
    """
    record = twin.meta.get("fxprune", {})
    if not record.get("folded"):
        return twin
    original = model.state_dict()
    old_of = {new: old for old, new in record["plan"].renamed.items()}
    for name, (rows, ratio) in record["folded"].items():
        old = old_of.get(name, name)
        kept = [None if k is None else k.numpy() for k in record["plan"].kept.get(old, ())]
        exact = _compact(original[old], kept).double()
        exact[rows.to(exact.device)] *= ratio
        path, _, leaf = name.rpartition(".")
        stored = getattr(twin.get_submodule(path), leaf)
        if bool(((stored - exact).abs() <= torch.finfo(original[old].dtype).eps * exact.abs()).all()):
            stored.data = exact
    return twin


@contextlib.contextmanager
def _same_draws(model: nn.Module) -> Iterator[None]:
    """A model that draws random numbers in eval mode (masked patches) draws the same in each run."""
    devices = {t.device for t in model.parameters() if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(0)
        yield


@contextlib.contextmanager
def _default_float64() -> Iterator[None]:
    """For tensors that the model's code makes on the way (`torch.zeros(n)`)."""
    was = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(was)


_LOW = (torch.float16, torch.bfloat16, torch.float32)
_CASTS = {"float", "half", "bfloat16"}


class Float64Interpreter(fx.Interpreter):
    """Runs a graph in float64, casts to a lower precision that its code makes included."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(target, *_raised(args, kwargs))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in _CASTS:
            return args[0].double()
        return super().call_method(target, *_raised(args, kwargs))


def _raised(args: Any, kwargs: Any) -> tuple[Any, Any]:
    def up(value: Any) -> Any:
        return torch.float64 if isinstance(value, torch.dtype) and value in _LOW else value

    return pytree.tree_map(up, (args, kwargs))


class _Masked(Float64Interpreter):
    """The captured original under masks."""

    def __init__(self, analysis: Analysis, selection: Selection, batch: int | None) -> None:
        removal = analysis.removal
        whole = analysis.module if removal is None else removal.whole
        super().__init__(_double(whole))
        self.analysis, self.selection, self.batch = analysis, selection, batch
        analysed = {n: n for n in whole.graph.nodes} if removal is None else removal.twins
        # A node of a removed branch has no counterpart that was analysed.
        self.mirror = {n: analysed.get(w) for n, w in zip(self.graph.nodes, whole.graph.nodes, strict=True)}
        own = dict(zip(whole.graph.nodes, self.graph.nodes, strict=True))
        self.removed = {own[b.add]: own[b.result] for b in removal.branches} if removal else {}
        self.masks: dict[Any, Tensor | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        node = self.mirror[n]
        if n in self.removed:
            self.env[self.removed[n]] = torch.zeros_like(self.env[self.removed[n]])
        if n in self.removed or node is None:
            return super().run_node(n)
        step = self.analysis.inference.steps.get(node)
        statistic = self._statistic(node, step) if step else None
        value = statistic() if statistic else super().run_node(n)
        if node.op in ("output", "placeholder") or node not in self.analysis.axes:
            return value
        return _map_tensors(value, iter(self.analysis.axes[node]), self._apply)

    def _statistic(self, node: fx.Node, step: Step) -> Callable[[], Any] | None:
        """The masked form of a mean or norm, where the tensor that it is taken of shrinks."""
        function = MASKED.get(step.call.op.removeprefix("aten."))
        source = step.call.args[0] if step.call.args else None
        if function is None or step.rule is None or not isinstance(source, fx.Node):
            return None
        mask = self._mask(self.analysis.axes[source][0])
        if mask is None:
            return None
        bound = {k: self._value(v) for k, v in step.call.bind(step.rule).items()}
        return lambda: function(mask=mask.to(bound["input"]), **bound)

    def _value(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.env[self._twin(value)]
        if isinstance(value, Weight):
            return self.fetch_attr(value.name)
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._value, value))
        return value

    def _twin(self, node: fx.Node) -> fx.Node:
        """One that holds its value: a stream is the same before and after a branch that adds zero."""
        if not hasattr(self, "_twins"):
            self._twins: dict[Any, list[fx.Node]] = {}
            for new, old in self.mirror.items():
                self._twins.setdefault(old, []).append(new)
        return next(twin for twin in self._twins[node] if twin in self.env)

    def _apply(self, t: Tensor, axes: Any) -> Tensor:
        mask = self._mask(axes)
        return t if mask is None else t.masked_fill(~mask.to(t.device), 0)

    def _mask(self, axes: Any) -> Tensor | None:
        if axes not in self.masks:
            true = [with_sizes(axis, {PRIME_BATCH: self.batch}) for axis in axes] if self.batch else axes
            self.masks[axes] = self.selection.mask(true)
        return self.masks[axes]


def _map_tensors(value: Any, axes: Any, function: Callable[[Tensor, Any], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value, next(axes))
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [_map_tensors(v, axes, function) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) is dict:
        return {k: _map_tensors(v, axes, function) for k, v in value.items()}
    return value
