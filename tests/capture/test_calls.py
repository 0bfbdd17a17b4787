"""Plain arguments of a result: all spellings of a call, unknown keywords, and what other tools see."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError, InputArgumentError, UnsupportedModuleError

X = torch.randn(2, 6, 12, dtype=torch.float64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 4)

    def body(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Options(Net):
    """A flag, a factor, a word, and a mask that may be missing."""

    def forward(
        self, x: Tensor, flag: bool = True, scale: float = 2.0, kind: str = "mean", mask: Tensor | None = None
    ) -> Tensor:
        y = self.body(x) * scale
        y = y if mask is None else y * mask
        return getattr(y if flag else -y, kind)(1)


class Nested(Net):
    def forward(self, x: Tensor, sizes: Any, *, how: Any = None) -> Tensor:
        y = self.body(x) * sizes[0] + sizes[1]
        return y.mean(1) if how is None else y * how["factor"] if how["on"] else y


class AnyWord(Net):
    def forward(self, x: Tensor, **words: Any) -> Tensor | dict[str, Tensor]:
        y = self.body(x)
        return {"y": y} if words.get("as_dict") else y


def halved(model: nn.Module, capture: str, *args: Any, **kwargs: Any) -> nn.Module:
    return fxprune.prune(
        model, 0.5, example_inputs=args, example_kwargs=kwargs or None, capture=capture
    ).eval()


def dense(kind: type[nn.Module]) -> nn.Module:
    return randomise(kind().eval()).double()


@pytest.mark.parametrize(
    "other", [{"flag": False}, {"scale": 3.0}, {"kind": "sum"}, {"mask": torch.ones(2, 6, 4).double()}]
)
@pytest.mark.parametrize("spelled", [False, True])
def test_defaults(capture: str, other: dict[str, Any], spelled: bool) -> None:
    """Omitted or given as they are in the example, by name or by place; else refused by name."""
    example = {"flag": True, "kind": "mean"} if spelled else {}
    model = dense(Options)
    result = halved(model, capture, X, **example)
    assert fxprune.verify(model, result) < 1e-8
    want = result(X)
    for args, kwargs in (((X, True, 2.0, "mean", None), {}), ((X,), {"mask": None, "kind": "mean"})):
        assert_same(result(*args, **kwargs), want)
        assert_same(pickle.loads(pickle.dumps(result))(*args, **kwargs), want)
        assert_same(copy.deepcopy(result)(*args, **kwargs), want)
    name = next(iter(other))
    with pytest.raises(InputArgumentError, match=rf"{name}=.*{name}=.*example_kwargs="):
        result(X, **other)


def test_another_value_may_be_captured(capture: str) -> None:
    model, mask = dense(Options), torch.rand(2, 6, 4, dtype=torch.float64)
    whole = fxprune.prune(
        model, 0.0, example_inputs=X, example_kwargs={"flag": False, "mask": mask}, capture=capture
    ).eval()
    assert_same(whole(X, False, mask=mask), model(X, False, mask=mask))
    with pytest.raises(InputArgumentError, match="flag"):
        whole(X, mask=mask)  # the original's default is another
    with pytest.raises(InputArgumentError, match=r"mask=None.*a tensor"):
        whole(X, flag=False)


def test_nests(capture: str) -> None:
    model = dense(Nested)
    how = {"factor": 2.0, "on": True}
    whole = fxprune.prune(
        model, 0.0, example_inputs=(X, [1, 2]), example_kwargs={"how": how}, capture=capture
    ).eval()
    assert_same(whole(X, [1, 2], how=how), model(X, [1, 2], how=how))
    for sizes, words in (
        ([3, 2], how),
        ([1, 2], {"factor": 0.5, "on": True}),
        ([1, 2], {"factor": 2.0, "on": False}),
        ([1, 2, 3], how),
        ([1, 2], None),
    ):
        try:  # a number is followed or refused
            got = whole(X, sizes, how=words)
        except InputArgumentError:
            continue
        assert capture == "symbolic"
        assert_same(got, model(X, sizes, how=words))
    with pytest.raises(InputArgumentError, match="on"):
        whole(X, [1, 2], how={"factor": 2.0, "on": False})


def test_unknown_words(capture: str) -> None:
    result = halved(dense(AnyWord), capture, X)
    with pytest.raises(InputArgumentError, match=r"as_dict.*example_kwargs="):
        result(X, as_dict=True)
    named = halved(dense(AnyWord), capture, X, as_dict=True)
    assert named(X, as_dict=True)["y"].shape == (2, 6, 4)
    with pytest.raises(InputArgumentError, match="as_dict"):
        named(X, as_dict=False)


def test_one_is_no_flag() -> None:
    result = halved(dense(Options), "symbolic", X)
    with pytest.raises(InputArgumentError):
        result(X, 1)


def test_other_tools_see_tensors_only(capture: str) -> None:
    """What a result takes beside tensors is no input of what other tools make of it."""
    result = halved(dense(Options), capture, X)
    want = result(X)
    assert_same(torch.jit.trace(result, X)(X), want)
    assert_same(torch.export.export(result, (X,)).module()(X), want)
    assert_same(torch.fx.symbolic_trace(result)(X), want)
    torch._dynamo.reset()
    compiled = torch.compile(result, backend="eager")
    assert_same(compiled(X), want)
    with pytest.raises(InputArgumentError):
        compiled(X, flag=False)
    again = fxprune.prune(result, 0.25, example_inputs=X)
    with pytest.raises(InputArgumentError, match="flag"):
        again(X, flag=False)


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_inputs(dynamo: bool) -> None:
    onnx = pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    result = halved(dense(Options), "symbolic", X)
    file = io.BytesIO()
    torch.onnx.export(result, (X,), file, dynamo=dynamo, verbose=False)
    assert len(onnx.load_from_string(file.getvalue()).graph.input) == 1


def test_vmap_is_refused_in_words() -> None:
    class Mapped(Net):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(self.body)(x)

    with pytest.raises(CaptureError, match="vmap is not followed"):
        halved(dense(Mapped), "auto", X)


def test_a_derivative_inside_of_a_call_is_refused_and_leaves_nothing() -> None:
    """Run as a graph, it stayed inside of a level of derivatives, and no other model could be called."""

    class Slope(Net):
        def forward(self, x: Tensor) -> Tensor:
            value, slope = torch.func.jvp(self.body, (x,), (torch.ones_like(x),))
            return value + slope

    with pytest.raises(CaptureError, match=r"torch.func .* at .*test_calls.py:\d+, which no graph holds"):
        halved(dense(Slope), "auto", X)
    with torch.autograd.forward_ad.dual_level():  # of which there is one at a time
        assert torch._C._functorch.peek_interpreter_stack() is None


def test_an_exported_module_is_refused_in_words() -> None:
    module = torch.export.export(nn.Linear(12, 4).double(), (X,)).module()
    with pytest.raises(UnsupportedModuleError, match=r"torch\.export.*prune the module"):
        fxprune.prune(module, 0.5, example_inputs=X)


class Missing:
    """What stands for a part of a library that is not installed."""

    def __getattr__(self, name: str) -> object:
        raise ImportError("no such library")


MISSING = Missing()


class NamesWhatIsMissing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return MISSING(x) if x.ndim > 5 else self.b(self.a(x))  # type: ignore[operator]


def test_what_stands_for_a_missing_library_is_not_asked(capture: str) -> None:
    model = NamesWhatIsMissing().eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 6), capture=capture)
    assert fxprune.verify(model, pruned) < 1e-8
