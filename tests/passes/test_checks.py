"""Passes are checked one by one on request; one that breaks the graph is named."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import images, small_vit
from torch import Tensor, fx, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.errors import CaptureError, PassError
from fxprune.passes import canonical, shrinking
from fxprune.passes.canonical import canonicalise as pipeline
from fxprune.passes.check import Check
from fxprune.passes.shrinking import steps

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
    "no value": (erase_meta, "shapes"),
    "shapes": (transpose, "shapes"),
    "used before it has been defined": (disorder, "shapes"),
    "KeyError": (fail, "shapes"),
    "not close": (double, True),
}


@pytest.mark.parametrize("split_qkv", [False, True])
def test_every_pass_keeps_its_contract(capture: str, split_qkv: bool) -> None:
    model, x = randomise(Untidy()), torch.randn(2, 4, 12)
    checked = fxprune.trace(model, x, capture=capture, split_qkv=split_qkv, check=True)
    plain = fxprune.trace(model, x, capture=capture, split_qkv=split_qkv)
    assert str(checked.graph) == str(plain.graph)
    torch.testing.assert_close(checked(x), model.eval()(x))


@pytest.mark.parametrize("capture", ["auto", *CAPTURES])
@pytest.mark.parametrize("words", BREAKAGES)
@pytest.mark.parametrize(
    ("name", "before"), [("pack_varargs", "stop_gradients"), ("sums_to_means", "divide_sums_first")]
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


class Scaled(nn.Module):
    """Zero for zeros, which an example is where no one gives one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_a_pass_that_keeps_shapes_is_found_where_the_example_is_zeros(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "pack_varargs", lambda module: (double(module), module)[1])
    fxprune.trace(Scaled(), torch.zeros(2, 6), check="shapes")
    with pytest.raises(PassError, match=r"(?s)pack_varargs broke .*not close.*before it: .*stop_gradients;"):
        fxprune.trace(Scaled(), torch.zeros(2, 6), check=True)


def test_what_a_graph_draws_is_the_same_after_every_pass(capture: str) -> None:
    class Noisy(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x))

    assert "rand_like" in str(fxprune.trace(Noisy(), torch.zeros(2, 6), capture=capture, check=True).graph)


def test_a_model_without_numbers_is_checked_by_its_shapes() -> None:
    with torch.device("meta"):
        model, x = Untidy(), torch.zeros(2, 4, 12)
    assert fxprune.trace(model, x, check=True).graph.output_node()


def test_inputs_by_keyword_are_run_too() -> None:
    model = randomise(Untidy())
    kwargs = {"scale": torch.tensor(3.0)}
    module = fxprune.trace(model, torch.randn(2, 4, 12), kwargs, check=True)
    x = torch.randn(3, 4, 12)
    torch.testing.assert_close(module(x, **kwargs), model.eval()(x, **kwargs))


def planned_by_a_smaller_model() -> tuple[nn.Module, fxprune.Plan, Tensor]:
    """A plan that needs every pass that shrinks: channels, attention scales and names change."""
    large, small = randomise(small_vit(depth=3)), small_vit(depth=2, embed_dim=24, num_heads=4)
    x = images(2, 32)
    pruned = fxprune.prune(large, like=small, example_inputs=x)
    renamed = {name: name.replace("blocks.1.", "blocks.7.") for name in pruned.state_dict()}
    return large, replace(fxprune.plan_of(pruned), renamed=renamed), x


@pytest.mark.parametrize("check", [True, "shapes"])
def test_a_rewrite_that_is_checked_is_the_same(check: Check) -> None:
    model, plan, x = planned_by_a_smaller_model()
    assert plan.scales and plan.renamed
    checked = fxprune.apply(model, plan, example_inputs=x, check=check)
    plain = fxprune.apply(model, plan, example_inputs=x)
    assert str(checked.graph) == str(plain.graph)
    assert all(torch.equal(plain.state_dict()[n], t) for n, t in checked.state_dict().items())
    assert fxprune.verify(model, checked) < 1e-4


BEFORE = {"shrink": "none", "fold_scales": "shrink", "rename": "shrink, fold_scales"}


@pytest.mark.parametrize(  # what a shrunk model computes is the certificate's to compare
    ("change", "name"),
    [(c, n) for c in (double, disorder, fail) for n in BEFORE if (c, n) != (double, "shrink")],
)
def test_a_pass_that_breaks_the_rewrite_is_named(
    change: Callable[[fx.GraphModule], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan, x = planned_by_a_smaller_model()
    module = importlib.import_module("fxprune.compiler.rewrite")
    own: Callable[..., fx.GraphModule] = getattr(module, name)

    def broken(*arguments: Any, **options: Any) -> fx.GraphModule:
        made = own(*arguments, **options)
        change(made)
        return made

    monkeypatch.setattr(module, name, broken)
    monkeypatch.setattr(module, "refuse_broken", lambda *_: None)  # it names the node, before any check
    with pytest.raises(PassError) as caught:
        fxprune.apply(model, plan, example_inputs=x, check=True)
    assert f"the pass {name} broke the graph" in str(caught.value)
    assert f"passes before it: {BEFORE[name]};" in str(caught.value)


NO_PASSES = {"canonicalise"}  # the pipeline itself


def modules_of(package: ModuleType) -> list[ModuleType]:
    names = [info.name for info in pkgutil.iter_modules(package.__path__) if not info.ispkg]
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def own_function(module: ModuleType) -> Callable[..., object]:
    """The function that a file is named for."""
    function: Callable[..., object] = getattr(module, module.__name__.rpartition(".")[2])
    return function


PASSES = [
    own_function(module)
    for module in (*modules_of(canonical), *modules_of(shrinking))
    if module.__name__.rpartition(".")[2] not in NO_PASSES
]
STEPS = [module for module in modules_of(steps) if module.__name__.rpartition(".")[2] != "draft"]


@pytest.mark.parametrize("each", PASSES, ids=lambda f: f.__name__)
def test_passes_have_one_shape(each: Callable[..., object]) -> None:
    text = inspect.getdoc(each) or ""
    assert "Needs: " in text and "Guarantees: " in text
    signature = inspect.signature(each)
    first, *options = signature.parameters.values()
    is_canonical = each.__module__.startswith(f"{canonical.__name__}.")
    taken = {"fx.GraphModule"} if is_canonical else {"fx.GraphModule", "PrunedModule", "Analysis"}
    assert first.annotation in taken
    assert signature.return_annotation in taken - {"Analysis"}
    assert all(option.kind is option.KEYWORD_ONLY for option in options)


@pytest.mark.parametrize("module", STEPS, ids=lambda m: m.__name__.rpartition(".")[2])
def test_steps_are_no_passes(module: ModuleType) -> None:
    if module.__name__.endswith("slice_weights"):
        return  # it makes the root that a draft is made with
    (draft,) = inspect.signature(step := own_function(module)).parameters.values()
    assert (draft.annotation, inspect.signature(step).return_annotation) == ("Draft", "None")
    text = inspect.getdoc(step) or ""
    assert "Needs: " in text and "Guarantees: " in text
