"""What people do with a result: each check finds what it is there to find."""

from __future__ import annotations

import copy
import sys
import warnings

import torch
from helpers import randomise
from torch import Tensor, fx, nn

import fxprune
from fxprune.certify.zoo.quiet import listening
from fxprune.certify.zoo.uses import RIGHT, Uses, copied_in_turn, uses_of
from fxprune.errors import InputSizeError
from fxprune.graph.example import Example

EXAMPLE = Example((torch.randn(2, 3, 8, 8),))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu().mean((2, 3)))


def tried(change: object = None) -> Uses:
    """The uses of a sound result, or of one that a function spoilt."""
    model = randomise(Small().eval())
    whole, pruned = (fxprune.prune(model, r, example_inputs=EXAMPLE.args) for r in (0.0, 0.5))
    if change is not None:
        whole, pruned = change(whole), change(pruned)  # type: ignore[operator]
    return uses_of(model, whole, pruned, EXAMPLE)


class Spoilt(fx.GraphModule):
    """A result whose call goes through a function."""

    def __init__(self, inner: fx.GraphModule) -> None:
        super().__init__(inner, copy.deepcopy(inner.graph))

    def __call__(self, x: Tensor) -> Tensor:
        return self.spoil(super().__call__(x), x)

    def spoil(self, out: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class FixedBatch(Spoilt):
    def spoil(self, out: Tensor, x: Tensor) -> Tensor:
        if len(x) != 2:
            raise InputSizeError("two samples only")
        return out


class WrongForOne(Spoilt):
    def spoil(self, out: Tensor, x: Tensor) -> Tensor:
        return out * 2 if len(x) == 1 else out


class WrongForLarger(Spoilt):
    def spoil(self, out: Tensor, x: Tensor) -> Tensor:
        return out * 2 if x.shape[-1] > 8 else out


class Untrainable(Spoilt):
    def spoil(self, out: Tensor, x: Tensor) -> Tensor:
        return out.detach() + self.head.bias.sum()  # type: ignore[union-attr]


class Unpicklable(Spoilt):
    def spoil(self, out: Tensor, x: Tensor) -> Tensor:
        return out

    def __reduce__(self) -> object:  # type: ignore[override]
        raise TypeError("cannot be pickled")


def test_a_sound_result_has_nothing_to_complain_about() -> None:
    uses = tried()
    assert uses == Uses(RIGHT, RIGHT, RIGHT, RIGHT)
    assert uses.complaints == []


def test_a_batch_that_is_refused_or_wrong_is_found() -> None:
    assert tried(FixedBatch).batches == "refused"
    assert tried(FixedBatch).complaints == ["batches: refused"]
    assert tried(WrongForOne).batches == "WRONG"


def test_a_wrong_size_is_found() -> None:
    uses = tried(WrongForLarger)
    assert (uses.batches, uses.sizes) == (RIGHT, "WRONG")


def test_lost_gradients_are_named() -> None:
    said = tried(Untrainable).training
    assert said.startswith("no gradient for head.weight, stem.bias, stem.weight")


class Forgetful(Spoilt):
    """A copy of it is another model."""

    def spoil(self, out: Tensor, x: Tensor) -> Tensor:
        return out

    def __deepcopy__(self, memo: object) -> Forgetful:
        other = Forgetful(self)
        other.head = copy.deepcopy(self.head)
        with torch.no_grad():
            other.head.bias.add_(1)  # type: ignore[union-attr, operator]
        return other


def test_copies_in_turn_find_what_each_does() -> None:
    pruned = fxprune.prune(randomise(Small().eval()), 0.5, example_inputs=EXAMPLE.args)
    assert copied_in_turn(pruned, EXAMPLE) == RIGHT
    assert copied_in_turn(Forgetful(pruned), EXAMPLE) == "a copy: WRONG"
    assert "cannot be pickled" in copied_in_turn(Unpicklable(pruned), EXAMPLE)


def test_a_copy_that_fails_is_named() -> None:
    said = tried(Unpicklable).copies
    assert "pickle: TypeError: cannot be pickled" in said
    assert "torch.save: TypeError: cannot be pickled" in said


def test_a_size_that_is_refused_in_so_many_words_is_right() -> None:
    assert Uses(sizes="refused").complaints == []
    assert Uses(sizes="RuntimeError: shape").complaints == ["sizes: RuntimeError: shape"]


def test_what_a_call_prints_and_warns_of_is_heard() -> None:
    with listening() as said:
        print("a stack trace", file=sys.stderr)
        warnings.warn("careful", stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert said.lines == ("a stack trace", "careful")
    with listening() as said:
        pass
    assert said.lines == ()
