"""Guards where other tools record the result: free of cost there, and as strict as elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, randomise
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import InputSizeError
from fxprune.graph.own_nodes import guard_branch, is_guard


class Net(nn.Module):
    """Two convolutions around code that looks at the size of a map."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)).relu())


def padded(x: Tensor) -> Tensor:
    """A truth."""
    return F.pad(x, (0, 4 - x.shape[-1] % 4)) if x.shape[-1] % 4 != 0 else x


def halved(x: Tensor) -> Tensor:
    """A truth that the example's size makes true."""
    if x.shape[2] % 4 == 0 and x.shape[3] >= 8:
        return F.avg_pool2d(x, 2)
    return x


def by_rows(x: Tensor) -> Tensor:
    """A shape beside a shape."""
    same = x.shape[2] == x.shape[3]
    return x.transpose(2, 3) if not same else x


def pruned(between: Callable[[Tensor], Tensor]) -> tuple[nn.Module, fx.GraphModule]:
    model = randomise(Net(between).eval())
    result = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 3, 8, 8), capture="symbolic")
    assert any(map(is_guard, result.graph.nodes))
    return model, result.eval()


BRANCHES = [padded, halved, by_rows]
EXAMPLE, LARGER = torch.randn(2, 3, 8, 8), torch.randn(3, 3, 16, 16)
REFUSED = {
    padded: torch.randn(2, 3, 8, 10),
    halved: torch.randn(2, 3, 6, 8),
    by_rows: torch.randn(2, 3, 8, 12),
}


@pytest.mark.parametrize("between", BRANCHES)
def test_another_branch_is_refused_in_words(between: Callable[[Tensor], Tensor]) -> None:
    _, result = pruned(between)
    says = r"another branch at .*test_guards\.py:\d+ than the example did; .*example_inputs= of this size"
    with pytest.raises(InputSizeError, match=says):
        result(REFUSED[between])


@pytest.mark.parametrize("between", BRANCHES)
def test_a_trace_of_torchscript(between: Callable[[Tensor], Tensor]) -> None:
    """No operation of the guard is in it; an example of another branch is refused."""
    _, result = pruned(between)
    traced = torch.jit.trace(result, EXAMPLE)
    assert_same(traced(LARGER), result(LARGER))
    assert not {"aten::eq", "prim::RaiseException"} & {node.kind() for node in traced.graph.nodes()}
    with pytest.raises(InputSizeError):
        torch.jit.trace(result, REFUSED[between])
    assert not torch.jit.is_tracing()


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("between", BRANCHES)
def test_compiled(between: Callable[[Tensor], Tensor], dynamic: bool | None) -> None:
    """Sizes may be symbolic; one of another branch is refused as it would be without the compiler."""
    _, result = pruned(between)
    torch._dynamo.reset()
    compiled = torch.compile(result, backend="eager", dynamic=dynamic)
    for x in (EXAMPLE, LARGER, torch.randn(1, 3, 24, 24)):
        assert_same(compiled(x), result(x))
    with pytest.raises(InputSizeError):
        compiled(REFUSED[between])


@pytest.mark.parametrize("strict", [False, True])
def test_exported_with_a_dynamic_width(strict: bool) -> None:
    _, result = pruned(padded)
    width = 4 * torch.export.Dim("width", min=1, max=64)
    batch, height = torch.export.Dim("batch", min=1), torch.export.Dim("height", min=2, max=512)
    exported = torch.export.export(
        result, (EXAMPLE,), dynamic_shapes=({0: batch, 2: height, 3: width},), strict=strict
    )
    for x in (LARGER, torch.randn(5, 3, 10, 12)):
        assert_same(exported.module()(x), result(x))


def test_exported_with_sizes_that_the_guard_decides() -> None:
    _, result = pruned(halved)
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(result, (EXAMPLE,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    assert_same(exported.module()(LARGER), result(LARGER))


@pytest.mark.parametrize("value", [3, True, (2, 3), "word", None])
def test_a_guard_of_any_value(value: object) -> None:
    guard_branch(value, value, where="model.py:1")
    with pytest.raises(InputSizeError, match=r"model\.py:1"):
        guard_branch(4, value if value is not True else False, where="model.py:1")


def test_a_guard_stays_where_a_graph_is_traced_again() -> None:
    _, result = pruned(padded)
    again = fx.symbolic_trace(result)
    with pytest.raises(InputSizeError):
        again(REFUSED[padded])
    again.graph.eliminate_dead_code()
    assert any(map(is_guard, again.graph.nodes))
