"""A result with guards goes through torch's own tools, and computes what the model does for other sizes."""

from __future__ import annotations

import copy
import functools
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import CAPTURES, randomise
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import InputSizeError
from fxprune.graph.own_nodes import is_guard

Run = Callable[[Tensor], Tensor]


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden, self.head = nn.Linear(8, 12), nn.Linear(12, 16), nn.Linear(16, 5)
        self.places = nn.Parameter(torch.randn(24, 12))

    def rest(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu().mean(1))


class Pads(Layers):
    """Another branch for lengths that windows do not divide."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.shape[1] % 4:
            x = F.pad(x, (0, 0, 0, 4 - x.shape[1] % 4))
        batch, length, width = x.shape
        return self.rest(x.view(batch, length // 4, 4, width).softmax(2).reshape(batch, length, width))


class Asserts(Layers):
    """Sizes that it asserts, a table that must be long enough."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] <= len(self.places), "too long"
        torch._assert(x.shape[1] >= 3, "too short")
        return self.rest(self.stem(x) + self.places[: x.shape[1]])


class Computes(Layers):
    """Branches on a number that is computed of the batch and of the length."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        windows = x.reshape(-1, 2, 12)
        batch = int(windows.shape[0] / (x.shape[1] / 2))
        return self.rest(windows.sigmoid().view(batch, -1, 12) * (x.shape[1] > 2))


class Plain(Layers):
    """A plain argument and a flag beside the tensor, both as they are by default."""

    def forward(self, x: Tensor, scale: float = 2.0, average: bool = True) -> Tensor:
        x = self.stem(x) * scale
        return self.rest(x - x.mean(1, keepdim=True) if average else x)


KINDS = [Pads, Asserts, Computes, Plain]


@functools.cache
def made(kind: type[Layers], capture: str) -> tuple[nn.Module, fx.GraphModule]:
    model = randomise(kind().eval())
    return model, fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 8, 8), capture=capture)


def exported(result: nn.Module, x: Tensor) -> Run:
    sizes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    return torch.export.export(result, (x,), dynamic_shapes=[sizes]).module()


def compiled(result: nn.Module, x: Tensor) -> Run:
    torch._dynamo.reset()
    return torch.compile(result, backend="eager", dynamic=True, fullgraph=True)


def traced(result: nn.Module, x: Tensor) -> Run:
    with warnings.catch_warnings(action="ignore"):  # of what the model's own code computes in Python
        return torch.jit.trace(result, x)


# `int` of a size is a number to torch.jit.trace, in the model itself as well.
@pytest.mark.parametrize(
    ("kind", "tool"),
    [(k, t) for k in KINDS for t in (traced, exported, compiled) if (k, t) != (Computes, traced)],
)
@pytest.mark.parametrize("capture", CAPTURES)
def test_other_sizes_through_a_tool(kind: type[Layers], capture: str, tool: Any) -> None:
    _, result = made(kind, capture)
    through = tool(result, torch.randn(2, 8, 8))
    for shape in ((2, 8, 8), (3, 8, 8), (5, 12, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(through(x), result(x))


@pytest.mark.parametrize("capture", CAPTURES)
def test_what_is_refused_is_refused_compiled_as_well(capture: str) -> None:
    _, result = made(Pads, capture)
    through = compiled(result, torch.randn(2, 8, 8))
    torch.testing.assert_close(through(x := torch.randn(3, 16, 8)), result(x))
    with pytest.raises(Exception, match="test_guards_in_tools") as raised:
        through(torch.randn(2, 9, 8))
    assert isinstance(raised.value, InputSizeError) or "InputSizeError" in str(raised.value)


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("kind", [Pads, Asserts, Plain])
def test_guards_cost_no_operation(kind: type[Layers], capture: str) -> None:
    """Without its guards, a result is recorded as the same operations."""
    _, result = made(kind, capture)
    bare = copy.deepcopy(result)
    guards = [node for node in bare.graph.nodes if is_guard(node)]
    for node in guards:
        bare.graph.erase_node(node)
    bare.graph.eliminate_dead_code()
    bare.recompile()
    x = torch.randn(2, 8, 8)

    def operations(module: nn.Module) -> list[str]:
        return sorted(node.kind() for node in traced(module, x).inlined_graph.nodes())

    assert guards
    assert operations(result) == operations(bare)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "dynamo"), [(k, d) for k in KINDS for d in (False, True) if d or k is not Computes]
)
@pytest.mark.parametrize("capture", CAPTURES)
def test_onnx_with_dynamic_sizes(kind: type[Layers], capture: str, dynamo: bool) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, result = made(kind, capture)
    x, file = torch.randn(2, 8, 8), io.BytesIO()
    if dynamo:
        sizes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
        program = torch.onnx.export(result, (x,), dynamo=True, dynamic_shapes=[sizes], verbose=False)
        assert program is not None
        content = program.model_proto.SerializeToString()
    else:
        axes = {"x": {0: "batch", 1: "length"}}
        around = nn.Sequential(result)  # of a graph's own `.graph`, torch asks what only TorchScript has
        torch.onnx.export(around, (x,), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
        content = file.getvalue()
    session = runtime.InferenceSession(content)
    name = session.get_inputs()[0].name
    for shape in ((2, 8, 8), (3, 8, 8), (5, 12, 8)):
        given = torch.randn(shape)
        (found,) = session.run(None, {name: given.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), result(given).detach(), rtol=1e-4, atol=1e-4)
