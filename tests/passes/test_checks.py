"""Passes are checked one by one on request; one that breaks the graph is named."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import CaptureError, PassError
from fxprune.passes import canonical, shrinking
from fxprune.passes.canonical import canonicalise as pipeline
from fxprune.passes.check import Check
from fxprune.zoo import randomise

CAPTURES = ["symbolic", "export"]


class Untidy(nn.Module):
    """Something for every pass to do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.rest, self.norm = nn.Linear(12, 36), nn.Identity(), nn.LayerNorm(12)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: float | Tensor = 2.0) -> Tensor:
        b, n, c = x.shape
        with torch.no_grad():
            shift = (x * scale).mean(-1, keepdim=True)
        q, k, v = self.qkv(self.rest(x)).reshape(b, n, 3, 3, c // 3).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c) + shift
        x = x + torch.arange(n, device=x.device, dtype=x.dtype).view(1, n, 1)
        x = F.layer_norm(x, (c,), self.norm.weight, self.norm.bias)
        return self.dropout(x.unsqueeze(1).squeeze(1).sum(1) / n)


def erase_meta(module: fx.GraphModule) -> None:
    next(n for n in module.graph.nodes if n.op == "call_function").meta.pop("val")


def double(module: fx.GraphModule) -> None:
    output = module.graph.output_node()
    (value,) = output.args
    with module.graph.inserting_before(output):
        twice = module.graph.call_function(torch.mul, (value, 2))
    twice.meta = dict(value.meta)  # type: ignore[union-attr]
    output.args = (twice,)


def transpose(module: fx.GraphModule) -> None:
    output = module.graph.output_node()
    (value,) = output.args
    with module.graph.inserting_before(output):
        turned = module.graph.call_method("t", (value,))
    turned.meta = {"val": value.meta["val"].t()}  # type: ignore[union-attr]
    output.args = (turned,)


def disorder(module: fx.GraphModule) -> None:
    first = next(n for n in module.graph.nodes if n.op == "placeholder")
    last = module.graph.output_node().prev
    last.append(first)


def fail(module: fx.GraphModule) -> None:
    raise KeyError("dim")


BREAKAGES: dict[str, tuple[Callable[[fx.GraphModule], None], Check]] = {
    "no value": (erase_meta, True),
    "shapes": (transpose, True),
    "used before it has been defined": (disorder, True),
    "KeyError": (fail, True),
    "not close": (double, "values"),
}


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("split_qkv", [False, True])
def test_every_pass_keeps_its_contract(capture: str, split_qkv: bool) -> None:
    model, x = randomise(Untidy()), torch.randn(2, 4, 12)
    checked = fxprune.trace(model, x, capture=capture, split_qkv=split_qkv, check="values")
    plain = fxprune.trace(model, x, capture=capture, split_qkv=split_qkv)
    assert str(checked.graph) == str(plain.graph)
    torch.testing.assert_close(checked(x), model.eval()(x))


@pytest.mark.parametrize("capture", ["auto", *CAPTURES])
@pytest.mark.parametrize("words", BREAKAGES)
@pytest.mark.parametrize(
    ("name", "before"), [("pack_varargs", "stop_gradients"), ("sums_to_means", "explicit_squeeze")]
)
def test_a_pass_that_breaks_the_graph_is_named(
    words: str, name: str, before: str, capture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, check = BREAKAGES[words]
    own: Callable[[fx.GraphModule], fx.GraphModule] = getattr(pipeline, name)

    def broken(module: fx.GraphModule) -> fx.GraphModule:
        change(own(module))
        return module

    assert isinstance(pipeline, ModuleType)
    monkeypatch.setattr(pipeline, name, broken)
    with pytest.raises(PassError) as caught:
        fxprune.trace(randomise(Untidy()), torch.randn(2, 4, 12), capture=capture, check=check)
    text = str(caught.value)
    assert f"the pass {name} broke the graph" in text
    assert "remove_noise, propagate_values, stop_gradients" in text
    assert f"{before};" in text
    assert words in text


def test_what_is_refused_is_not_called_a_bug() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).squeeze()

    with pytest.raises(CaptureError) as caught:
        fxprune.trace(Squeezed(), torch.randn(1, 6), capture="symbolic", check=True)
    assert not isinstance(caught.value, PassError)
    assert "two samples" in str(caught.value)


def test_inputs_by_keyword_are_run_too() -> None:
    model = randomise(Untidy())
    kwargs = {"scale": torch.tensor(3.0)}
    module = fxprune.trace(model, torch.randn(2, 4, 12), kwargs, check="values")
    x = torch.randn(3, 4, 12)
    torch.testing.assert_close(module(x, **kwargs), model.eval()(x, **kwargs))


def public_passes() -> list[Callable[..., object]]:
    """Every function that a module of passes is named for."""
    found = []
    for package in (canonical, shrinking):
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            own = getattr(module, info.name, None) or getattr(module, f"{info.name}s", None)
            found += [own] if callable(own) else []
    return found


@pytest.mark.parametrize("each", public_passes(), ids=lambda f: f.__name__)
def test_a_pass_says_what_it_needs_and_guarantees(each: Callable[..., object]) -> None:
    text = inspect.getdoc(each) or ""
    assert "Needs: " in text and "Guarantees: " in text
    first, *options = inspect.signature(each).parameters.values()
    if each.__module__.startswith(f"{canonical.__name__}.") and each is not pipeline.canonicalise:
        assert (first.annotation, inspect.signature(each).return_annotation) == ("fx.GraphModule",) * 2
        assert all(option.kind is option.KEYWORD_ONLY for option in options)
