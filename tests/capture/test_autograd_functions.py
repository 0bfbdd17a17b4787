"""Autograd functions keep their own derivative in the pruned model, or a note says that they don't."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from helpers import CAPTURES
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune


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
    [(Net, "symbolic"), *((k, c) for k in (Centred, Checkpointed, WithoutGradients) for c in CAPTURES)],
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
    pruned = fxprune.prune(model, 0.5, example_inputs=x.detach(), capture=capture)
    assert pruned.fc1.weight.shape == (8, 6)
    assert fxprune.verify(model, pruned) < 1e-12


def test_the_forward_does_not_stand_in_the_graph_as_well() -> None:
    model, x = prepared(Net)
    pruned = fxprune.prune(model, 0.5, example_inputs=x.detach())
    assert "round" not in pruned.code
    assert "sigmoid" not in pruned.code


def test_the_pruned_model_keeps_the_derivative() -> None:
    model, x = prepared(Net)
    pruned = fxprune.prune(model, 0.5, example_inputs=x.detach())
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
    assert fxprune.analyze(model, example_inputs=x.detach()).notes == []
    notes = fxprune.analyze(model, example_inputs=x.detach(), capture="export").notes
    assert any("the derivative of Round is that of its forward" in note for note in notes)


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


def test_a_reversed_gradient_stays_reversed() -> None:
    model, x = prepared(Reversed)
    same = fxprune.prune(model, 0.0, example_inputs=x.detach())
    wanted = gradients(model, x)
    for name, gradient in gradients(same, x).items():
        torch.testing.assert_close(gradient, wanted[name])


@pytest.mark.parametrize(
    ("kind", "capture"), [(Reversed, "export"), (Net, "export"), *((Doubled, c) for c in CAPTURES)]
)
def test_training_with_a_lost_derivative_warns(kind: type[Net], capture: str) -> None:
    model, x = prepared(kind)
    pruned = fxprune.prune(model, 0.5, example_inputs=x.detach(), capture=capture)
    with pytest.warns(UserWarning, match="training follows another derivative than the model's own"):
        pruned.train()


@pytest.mark.parametrize("kind", [Centred, Checkpointed])
def test_a_derivative_that_is_the_same_warns_of_nothing(kind: type[Net], capture: str) -> None:
    model, x = prepared(kind)
    pruned = fxprune.prune(model, 0.5, example_inputs=x.detach(), capture=capture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned.train()
