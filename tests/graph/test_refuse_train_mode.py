"""A graph of eval mode alone refuses train mode through every tool, and costs them nothing."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import aot_module
from helpers import CAPTURES, assert_same, randomise
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fxprune
from fxprune.errors import TrainingError
from fxprune.graph.refuse_train_mode import drop_refusals, refusals_in
from fxprune.result.fingerprint import graph_digest

SIZES = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
X = torch.randn(2, 7, 8)


class Helped(nn.Module):
    """A second head helps in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.helper = nn.Linear(8, 12), nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(x) + self.helper(x) if self.training else self.head(x)


class Counts(nn.Module):
    """Train mode writes to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 12), nn.Linear(12, 5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.head(self.stem(x).relu())


@functools.cache
def made(kind: type[nn.Module], capture: str) -> tuple[nn.Module, fx.GraphModule]:
    model = randomise(kind().eval())
    return model, fxprune.prune(model, 0.5, example_inputs=X, capture=capture)


def traced_by_onnx(module: nn.Module) -> object:
    mode = torch.onnx.TrainingMode.PRESERVE  # else it exports eval mode, by its own word
    return torch.onnx.export(module, (X,), io.BytesIO(), dynamo=False, training=mode)


def compiled(module: nn.Module, backend: str = "eager") -> Tensor:
    torch._dynamo.reset()
    out: Tensor = torch.compile(module, backend=backend, dynamic=True)(X)
    return out


def replaced_by_itself(module: nn.Module) -> nn.Module:
    """Save and load the whole result."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


TOOLS: dict[str, Callable[[Any], object]] = {
    "call": lambda m: m(X),
    "export": lambda m: torch.export.export(m, (X,), dynamic_shapes=[SIZES]),
    "export, strict": lambda m: torch.export.export(m, (X,), strict=True),
    "export, inside": lambda m: torch.export.export(nn.Sequential(m), (X,)),
    "jit.trace": lambda m: torch.jit.trace(m, X),
    "onnx": lambda m: torch.onnx.export(m, (X,), dynamo=True, verbose=False),
    "onnx, torchscript": traced_by_onnx,
    "compile": compiled,
    "compile, aot": functools.partial(compiled, backend="aot_eager"),
    "aot": lambda m: aot_module(m, fw_compiler=lambda graph, _: graph)(X),
    "make_fx": lambda m: make_fx(m)(X),
    "traced again": lambda m: fx.symbolic_trace(m)(X),
    "traced inside": lambda m: fx.symbolic_trace(nn.Sequential(m))(X),
    "traced again in eval mode": lambda m: fx.symbolic_trace(m.eval()).train()(X),
    "interpreter": lambda m: fx.Interpreter(m).run(X),
    "transformer": lambda m: fx.Transformer(m).transform()(X),
    "another graph module": lambda m: fx.GraphModule(m, m.graph).train()(X),
    "functional": lambda m: torch.func.functional_call(m, dict(m.named_parameters()), (X,)),
    "vmap": lambda m: torch.vmap(m)(X),
    "deepcopy": lambda m: copy.deepcopy(m)(X),
    "pickle": lambda m: pickle.loads(pickle.dumps(m))(X),
    "torch.save": lambda m: replaced_by_itself(m)(X),
    "pruned again": lambda m: fxprune.prune(m, 0.5, example_inputs=X)(X),
    "pruned inside": lambda m: fxprune.prune(nn.Sequential(m, nn.Linear(5, 3)), 0.5, example_inputs=X)(X),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "tool"), [*((Helped, tool) for tool in TOOLS), (Counts, "call"), (Counts, "export")]
)
def test_train_mode_is_refused_through_every_tool(kind: type[nn.Module], tool: str) -> None:
    pytest.importorskip("onnxscript")
    _, result = made(kind, "symbolic")
    with pytest.raises(Exception, match="runs in eval mode alone") as raised:
        TOOLS[tool](copy.deepcopy(result).train())
    causes: list[BaseException | None] = [raised.value]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__)
    words = " ".join(f"{type(cause).__name__} {cause}" for cause in causes)
    assert "TrainingError" in words
    assert "form='module'" in words


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("capture", CAPTURES)
def test_a_capture_of_it_refuses_train_mode(inside: bool, capture: str) -> None:
    model, result = made(Helped, capture)
    assert not refusals_in(model)
    traced = fxprune.trace(nn.Sequential(result) if inside else model, example_inputs=X, capture=capture)
    assert_same(traced(X), (result if inside else model)(X), 1e-6)
    with pytest.raises(TrainingError, match="runs in eval mode alone"):
        traced.train()(X)


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_result_in_a_larger_model_is_pruned_with_it(capture: str) -> None:
    """Its graph's refusal is the refusal of the whole; said once, however often it is pruned."""
    _, result = made(Helped, "symbolic")
    larger = randomise(nn.Sequential(copy.deepcopy(result), nn.ReLU(), nn.Linear(5, 3)).eval())
    pruned = fxprune.prune(larger, 0.5, example_inputs=X, capture=capture)
    twice = fxprune.prune(pruned, 0.5, example_inputs=X)
    assert fxprune.verify(larger, pruned) < 1e-8
    assert fxprune.verify(pruned, twice) < 1e-8
    assert pruned.record.untrained == twice.record.untrained == refusals_in(twice) == result.record.untrained


def test_a_model_in_train_mode_has_all_that_one_in_eval_mode_has(tmp_path: Path) -> None:
    """What fxprune itself asks of a graph is asked whatever its mode; `form="module"` trains."""
    model = randomise(Helped()).train()
    data = [torch.randn(32, 7, 8)]
    own = fxprune.prune(model, 0.5, example_inputs=X, form="module")
    assert type(own) is Helped
    assert own.training
    assert own(X).shape == (2, 7, 5)
    pruned = fxprune.prune(model, 0.5, example_inputs=X, data=data, importance="activation")
    assert fxprune.verify(model, pruned) < 1e-8
    assert fxprune.report(model, pruned).macs[1] < fxprune.report(model, pruned).macs[0]
    fxprune.draw(model, tmp_path / "page.html", pruned=pruned, example_inputs=X)
    assert fxprune.apply(model, fxprune.plan_of(own), example_inputs=X, form="module").training


def test_a_saved_one_is_the_same(tmp_path: Path) -> None:
    """Of a folder that was saved before graphs refused train mode as well: no digest reads the node."""
    model, result = made(Helped, "symbolic")
    bare = copy.deepcopy(result)
    drop_refusals(bare.graph, bare)
    assert graph_digest(bare) == graph_digest(result)
    with warnings.catch_warnings(action="ignore"):  # it can be loaded with model= alone
        fxprune.save(result, tmp_path / "half")
    loaded = fxprune.load(tmp_path / "half", model=model)
    assert_same(loaded(X), result(X), 0.0)
    with pytest.raises(TrainingError, match="runs in eval mode alone"):
        torch.export.export(loaded.train(), (X,))


def operations(result: nn.Module) -> list[list[str]]:
    """List what tools record of a graph in eval mode, sizes dynamic."""
    onnx = pytest.importorskip("onnx")
    program = torch.export.export(result, (X,), dynamic_shapes=[SIZES])
    file = io.BytesIO()
    torch.onnx.export(nn.Sequential(result).eval(), (X,), file, dynamo=False)
    seen: list[str] = []

    def backend(graph: fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph

    torch._dynamo.reset()
    torch.compile(result, backend=backend, dynamic=True, fullgraph=True)(X)
    kinds = [node.kind() for node in torch.jit.trace(result, X).inlined_graph.nodes()]
    return [
        sorted(kind for kind in kinds if kind.startswith("aten")),  # beside the names of modules
        [str(node.target) for node in program.graph.nodes if node.op == "call_function"],
        [node.op_type for node in onnx.load_from_string(file.getvalue()).graph.node],
        seen,
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "capture"), [(Helped, "symbolic"), (Counts, "export")])
def test_in_eval_mode_it_costs_no_operation(kind: type[nn.Module], capture: str) -> None:
    _, result = made(kind, capture)
    bare = copy.deepcopy(result)
    drop_refusals(bare.graph, bare)
    bare.recompile()
    assert len(bare.graph.nodes) == len(result.graph.nodes) - 1
    assert operations(result) == operations(bare)
    through = torch.export.export(result, (X,), dynamic_shapes=[SIZES]).module()
    for shape in ((1, 7, 8), (5, 4, 8)):
        x = torch.randn(shape)
        assert_same(through(x), result(x), 1e-6)
