"""Autograd functions keep their own derivative in the pruned model, or a note says that they don't."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from exactness import certificate
from helpers import CAPTURES
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.compiler import prune_analyzed


class Round(torch.autograd.Function):
    """A straight-through estimator, as in quantisation-aware training."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return (x * scale).round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * ctx.scale, None


class Gate(torch.autograd.Function):
    """Of two tensors, with its context set up apart."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return x * y.sigmoid()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, _ = ctx.saved_tensors
        return gradients[0] * 7, gradients[0] * x * 11


class Centre(torch.autograd.Function):
    """Not elementwise: how many channels there are counts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] - gradients[0].mean(-1, keepdim=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.gate, self.fc2 = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.between(x))

    def between(self, x: Tensor) -> Tensor:
        return Round.apply(Gate.apply(Round.apply(self.fc1(x), 3.0), self.gate(x)), 2)


class Centred(Net):
    def between(self, x: Tensor) -> Tensor:
        return Centre.apply(self.fc1(x)) * self.gate(x)


class Checkpointed(Net):
    def between(self, x: Tensor) -> Tensor:
        return checkpoint(lambda y: self.fc1(y).relu() * self.gate(y), x, use_reentrant=True)


class WithoutGradients(Net):
    def between(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return Round.apply(self.fc1(x) * self.gate(x), 3.0)


def prepared(kind: type[Net]) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    return kind().double(), torch.randn(5, 6, dtype=torch.float64, requires_grad=True)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    (model(x) ** 2).sum().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "capture"),
    [(k, c) for k in (Net, Centred, Checkpointed, WithoutGradients) for c in CAPTURES],
)
def test_derivatives_are_those_of_the_original(kind: type[Net], capture: str) -> None:
    model, x = prepared(kind)
    unpruned = fxprune.prune(model, 0.0, example_inputs=x.detach(), capture=capture)
    wanted, got = gradients(model, x), gradients(unpruned, x)
    for name, gradient in got.items():
        assert (gradient is None) == (wanted[name] is None)
        torch.testing.assert_close(gradient, wanted[name])


@pytest.mark.parametrize("kind", [Net, Centred, Checkpointed, WithoutGradients])
def test_half_of_it_is_exact(kind: type[Net], capture: str) -> None:
    model, x = prepared(kind)
    analysis = fxprune.analyze(model, example_inputs=x.detach(), capture=capture)
    pruned = prune_analyzed(model, analysis, 0.5)
    assert pruned.fc1.weight.shape == (8, 6)
    assert certificate(model, pruned, analysis) < 1e-12


def test_the_forward_does_not_stand_in_the_graph_as_well(capture: str) -> None:
    model, x = prepared(Net)
    pruned = fxprune.prune(model, 0.5, example_inputs=x.detach(), capture=capture)
    assert "round" not in pruned.code
    assert "sigmoid" not in pruned.code


def test_the_pruned_model_keeps_the_derivative(capture: str) -> None:
    model, x = prepared(Net)
    pruned = fxprune.prune(model, 0.5, example_inputs=x.detach(), capture=capture)
    for clone in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        for name, gradient in gradients(clone, x).items():
            assert torch.equal(gradient, gradients(pruned, x)[name])
    assert gradients(pruned, x)["fc1.weight"].abs().sum() > 0  # rounding's own derivative is zero


@pytest.mark.parametrize(("kind", "name"), [(Centred, "Centre"), (Checkpointed, "CheckpointFunction")])
def test_a_lost_derivative_is_noted(kind: type[Net], name: str) -> None:
    model, x = prepared(kind)
    for capture in CAPTURES:
        notes = fxprune.analyze(model, example_inputs=x.detach(), capture=capture).notes
        assert any(f"the derivative of {name} is that of its forward" in note for note in notes)
    model, x = prepared(Net)
    for capture in CAPTURES:
        assert fxprune.analyze(model, example_inputs=x.detach(), capture=capture).notes == []


class Reverse(torch.autograd.Function):
    """Reverses gradients, as for domain adaptation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return -gradients[0]


class Two(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x.relu()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * 5 + gradients[1] * 7


class Reversed(Net):
    def between(self, x: Tensor) -> Tensor:
        return Reverse.apply(self.fc1(x)) * self.gate(x)


class Doubled(Net):
    def between(self, x: Tensor) -> Tensor:
        doubled, positive = Two.apply(self.fc1(x))
        return doubled * positive * self.gate(x)


def test_a_reversed_gradient_stays_reversed(capture: str) -> None:
    model, x = prepared(Reversed)
    same = fxprune.prune(model, 0.0, example_inputs=x.detach(), capture=capture)
    wanted = gradients(model, x)
    for name, gradient in gradients(same, x).items():
        torch.testing.assert_close(gradient, wanted[name])


class Normed(torch.autograd.Function):
    """Not elementwise, and straight-through: the derivative of the forward is another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign() * x.mean(-1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


class Straight(Net):
    def between(self, x: Tensor) -> Tensor:
        return Normed.apply(self.fc1(x)) * self.gate(x)


class Hidden(Net):
    """The derivative is that of the model while the scale is zero, as where training begins."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.fc2(Normed.apply(self.fc1(x)))


class InTraining(Net):
    def between(self, x: Tensor) -> Tensor:
        return Gate.apply(self.fc1(x), Normed.apply(self.gate(x)) if self.training else self.gate(x))


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Any) -> Tensor:
        return function(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * 3, None


class Given(Net):
    """A graph can't hold what the function is given."""

    def between(self, x: Tensor) -> Tensor:
        return Scaled.apply(self.fc1(x), torch.tanh) * self.gate(x)


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * 13


class Overwritten(Net):
    def between(self, x: Tensor) -> Tensor:
        return InPlace.apply(self.fc1(x).clone()) * self.gate(x)


LOST = [Doubled, Straight, Hidden, Given]


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_a_result_without_a_derivative_computes_and_refuses_to_be_trained(
    kind: type[Net], ratio: float, capture: str
) -> None:
    model, x = prepared(kind)
    pruned = fxprune.prune(model, ratio, example_inputs=x.detach(), capture=capture)
    assert fxprune.verify(model, pruned) < 1e-12
    for result in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        for training in (False, True):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                result.train(training)
            out = result(x)
            if not ratio:
                torch.testing.assert_close(out, model.train(training)(x))
            with pytest.raises(fxprune.errors.TrainingError, match="form='module'"):
                out.sum().backward()


@pytest.mark.parametrize("kind", [*LOST, Overwritten, Net])
def test_the_models_own_class_trains_by_its_own_derivative(kind: type[Net], capture: str) -> None:
    model, x = prepared(kind)
    pruned = fxprune.prune(model, 0.0, example_inputs=x.detach(), capture=capture, form="module")
    assert type(pruned) is kind
    wanted, got = gradients(model, x), gradients(pruned, x)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient)


@pytest.mark.parametrize("kind", [Overwritten, InTraining])
def test_trains_by_the_models_derivative_or_not_at_all(kind: type[Net], capture: str) -> None:
    model, x = prepared(kind)
    pruned = fxprune.prune(model, 0.0, example_inputs=x.detach(), capture=capture)
    for training in (False, True):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            pruned.train(training)
        torch.testing.assert_close(pruned.eval()(x), model.eval()(x))
        try:
            got = gradients(pruned.train(training), x)
        except fxprune.errors.TrainingError:
            continue
        wanted = gradients(model.train(training), x)
        if not told:
            for name, gradient in wanted.items():
                torch.testing.assert_close(got[name], gradient)


class Mode(nn.Module):
    def __init__(self, fine: float, coarse: float) -> None:
        super().__init__()
        self.fine, self.coarse = fine, coarse

    def forward(self, x: Tensor) -> Tensor:
        return Round.apply(x, self.fine if self.training else self.coarse)


def test_a_model_that_goes_through_its_children_meets_none_of_ours(capture: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), Mode(3.0, 5.0), nn.Linear(16, 8), Mode(7.0, 2.0), nn.Linear(8, 3))
    model, x = model.double(), torch.randn(5, 6, dtype=torch.float64)
    pruned = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    for training in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = gradients(pruned.train(training), x)
        torch.testing.assert_close(pruned(x), model.train(training)(x))
        for name, gradient in gradients(model.train(training), x).items():
            torch.testing.assert_close(got[name], gradient)


class Other(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        return x - scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


class OtherInTraining(Net):
    def between(self, x: Tensor) -> Tensor:
        return (Other if self.training else Round).apply(self.fc1(x) * self.gate(x), 3.0)


def test_eval_mode_does_not_call_what_train_mode_calls(capture: str) -> None:
    model, x = prepared(OtherInTraining)
    pruned = fxprune.prune(model, 0.0, example_inputs=x.detach(), capture=capture)
    torch.testing.assert_close(pruned.eval()(x), model.eval()(x))


@pytest.mark.parametrize("kind", [Straight, Doubled])
def test_a_refusal_survives_another_prune(kind: type[Net], capture: str) -> None:
    model, x = prepared(kind)
    pruned = fxprune.prune(model, 0.25, example_inputs=x.detach(), capture=capture)
    for way in CAPTURES:
        again = fxprune.prune(pruned, 0.25, example_inputs=x.detach(), capture=way)
        with pytest.raises(fxprune.errors.TrainingError):
            again(x).sum().backward()


def test_scores_take_the_derivative_of_the_forward(capture: str) -> None:
    model, x = prepared(Straight)
    data = [(torch.randn(4, 6, dtype=torch.float64), torch.zeros(4, dtype=torch.long)) for _ in range(2)]
    pruned = fxprune.prune(
        model, 0.5, example_inputs=x.detach(), importance="taylor", data=data, capture=capture
    )
    assert fxprune.verify(model, pruned) < 1e-12


def test_other_tools_get_what_a_result_computes() -> None:
    model, x = prepared(Straight)
    pruned, x = fxprune.prune(model, 0.5, example_inputs=x.detach()), x.detach()
    wanted = pruned(x).detach()
    torch.testing.assert_close(torch.jit.trace(pruned, x)(x), wanted)
    torch.testing.assert_close(torch.export.export(pruned, (x,)).module()(x), wanted)
    compiled = torch.compile(pruned, backend="aot_eager")
    torch.testing.assert_close(compiled(x), wanted)
    with pytest.raises(fxprune.errors.TrainingError, match="Normed"):
        compiled(x).sum().backward()
    torch.testing.assert_close(torch.func.vmap(pruned)(x), wanted)


@pytest.mark.parametrize("kind", [Centred, Checkpointed])
def test_a_derivative_that_is_the_same_warns_of_nothing(kind: type[Net], capture: str) -> None:
    model, x = prepared(kind)
    pruned = fxprune.prune(model, 0.5, example_inputs=x.detach(), capture=capture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned.train()
    gradients(pruned, x)
