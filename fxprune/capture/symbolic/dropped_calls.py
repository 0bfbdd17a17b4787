"""Run what the code calls and whose answer it drops: `try: x.view(-1, 5)` asks whether that raises."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
)

from fxprune.capture.symbolic.tried_calls import Place, tried_at
from fxprune.graph.example import Example
from fxprune.graph.guards import is_guard
from fxprune.graph.values import FakeRun, NodeError

__all__ = ["refuse_dropped_errors"]

_OF_FAKES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)
_NEVER_RAISE = {
    *("size", "dim", "numel", "stride", "is_contiguous", "contiguous", "detach", "clone"),
    *(getattr, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.not_),
}


def refuse_dropped_errors(
    model: nn.Module, graph: fx.Graph, example: Example, tries: Mapping[fx.Node, Iterable[Place]]
) -> None:
    """Refuse a graph of which a call raises whose value nothing needs: it goes with dead code.

    tries: the functions that handle errors in which a call stands, each with its line.

    Raises:
        NodeError: the call, with the user's line; the model's code went on in a handler.
        NotImplementedError: it raises nothing for the example, and a handler waits for other sizes.
    """
    dropped = [*filter(_is_dropped_call, graph.nodes)]
    if not dropped:
        return
    run = FakeRun(model, graph, example, None)
    try:
        run.value(graph.output_node())
    except NodeError as error:
        if not isinstance(error.__cause__, _OF_FAKES):  # `x.max().item()` for a log: it raises nothing
            raise
    for node in dropped:
        of_tensors = any(isinstance(run.env.get(given), Tensor) for given in node.all_input_nodes)
        if of_tensors and any(tried_at(*place) for place in tries.get(node, ())):
            raise NotImplementedError(
                f"the code tries {node.name} at {node.meta.get('where')} to see whether it raises, which no "
                f"graph holds for other sizes"
            )


def _is_dropped_call(node: fx.Node) -> bool:
    if node.users or node.op not in ("call_function", "call_method", "call_module") or is_guard(node):
        return False
    if node.target is operator.getitem:  # `b, n, c = x.shape`
        return not any(map(_is_shape, node.all_input_nodes[:1]))
    return node.target not in _NEVER_RAISE


def _is_shape(node: fx.Node) -> bool:
    return bool(node.target is getattr and node.args[1] == "shape") or node.target == "size"
