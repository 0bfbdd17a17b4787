"""What a model's code asserts of values: the result checks it in each call, and takes the one way on."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hard_modules import checks
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune.capture.other_shapes import refuse_other_values
from fxprune.errors import CaptureError, ExampleInputError, InputArgumentError
from fxprune.graph.example import Example

X = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
BAD = X.clone()
BAD[0, 0, 0] = float("nan")


class Net(nn.Module):
    """A layer, what code asserts of what goes in and comes out, a head."""

    def __init__(
        self, of_input: Callable[..., None], of_hidden: Callable[..., None] = lambda x: None
    ) -> None:
        super().__init__()
        self.a, self.norm, self.head = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 3)
        self.of_input, self.of_hidden = of_input, of_hidden

    def forward(self, x: Tensor) -> Tensor:
        self.of_input(x)
        h = self.a(x)
        self.of_hidden(h)
        return self.head(self.norm(h))


CHECKS = [
    *(checks.asserted, checks.raised, checks.both, checks.as_truth, checks.by_torch, checks.of_all),
    checks.within_no_grad,
]


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_is_held(check: Callable[..., None], tmp_path: Path) -> None:
    model = randomise(Net(check)).double()
    pruned = fxprune.prune(model, 0.5, example_inputs=X, capture="symbolic")
    assert pruned.a.out_features == 8
    for batch in (X, X[:1], torch.cat([X, X, X])):
        fxprune.verify(model, pruned, example_inputs=batch)
    fxprune.save(pruned, tmp_path / "pruned")
    loaded = fxprune.load(tmp_path / "pruned", Net(check).double())
    again = fxprune.prune(pruned, 0.5, example_inputs=X)
    for held in (pruned, loaded, again, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        with pytest.raises(InputArgumentError, match=r"own check at .*checks.py:\d+ does not hold"):
            held(BAD)


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_of_hidden_values_lets_them_shrink(check: Callable[..., None]) -> None:
    model = randomise(Net(type, check)).double()
    pruned = fxprune.prune(model, 0.5, example_inputs=X, capture="symbolic")
    assert pruned.a.out_features == 8 and len(pruned(X[:1])) == 1
    fxprune.verify(model, pruned, example_inputs=X)  # whose removed channels are zeros, or hold what is none
    own = fxprune.prune(model, 0.5, example_inputs=X, form="module")
    assert type(own) is Net and own.a.out_features == 8
    for held in (pruned, own):
        with pytest.raises((AssertionError, ValueError, RuntimeError)):
            held(BAD)


def test_tools_that_record_take_it() -> None:
    pruned = fxprune.prune(randomise(Net(checks.asserted)).double(), 0.5, example_inputs=X)
    expected = pruned(X)
    assert torch.equal(torch.jit.trace(pruned, X)(X), expected)
    for held in (
        torch.compile(pruned, fullgraph=True, backend="aot_eager"),
        torch.export.export(pruned, (X,)).module(),
    ):
        assert torch.allclose(held(X), expected)
        with pytest.raises(
            Exception, match=r"own does not hold|trace generator"
        ):  # torch's words, or of its wrapper
            held(BAD)


@pytest.mark.parametrize("check", checks.MAY_GO_ON)
def test_what_may_go_on_is_refused(check: Callable[..., None]) -> None:
    with pytest.raises(CaptureError, match="depends on the values"):
        fxprune.prune(randomise(Net(check)).double(), 0.5, example_inputs=X, capture="symbolic")


def test_a_graph_is_held_against_its_model_where_noise_is_refused() -> None:
    """On what was given: the checks of the model refuse noise."""
    model = randomise(Net(checks.of_a_range)).double().eval()
    given = torch.rand(2, 5, 8, dtype=torch.float64)
    graph = fxprune.trace(model, given, capture="symbolic")
    refuse_other_values(model, graph, Example((given,)))
    with torch.no_grad():
        graph.head.weight.mul_(2)
    with pytest.raises(CaptureError, match="computes something else"):
        refuse_other_values(randomise(Net(checks.of_a_range)).double().eval(), graph, Example((given,)))


@pytest.mark.parametrize("form", ["graph", "module"])
def test_what_needs_noise_takes_such_as_images_hold(form: str, tmp_path: Path) -> None:
    model = randomise(Net(checks.of_a_range)).double().eval()
    given = torch.rand(2, 5, 8, dtype=torch.float64)
    pruned = fxprune.prune(model, 0.5, example_inputs=given, form=form, target="macs")
    assert fxprune.verify(model, pruned) < 1e-10 and fxprune.report(model, pruned).batch == 1
    fxprune.save(pruned, tmp_path, build="mine:make")
    loaded = fxprune.load(tmp_path, model=Net(checks.of_a_range).double())
    torch.testing.assert_close(loaded(given), pruned(given))


def test_where_no_noise_passes_examples_are_asked_for() -> None:
    model = randomise(Net(checks.far_from_zero)).double().eval()
    given = 5 + torch.rand(2, 5, 8, dtype=torch.float64)
    pruned = fxprune.prune(model, 0.5, example_inputs=given)
    with pytest.raises(ExampleInputError, match="give example_inputs= that do"):
        fxprune.verify(model, pruned)
    assert fxprune.verify(model, pruned, example_inputs=given) < 1e-10
