"""What torch raises where code asks for values, and where fake tensors can't do what real ones can."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fxprune
from fxprune.capture.torch_errors import fakes_can_not
from fxprune.errors import CaptureError


class After(nn.Module):
    """A layer, and what a function makes of its result."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> object:
        return self.function(self.layer(x))


ASK_VALUES: dict[str, Callable[[Tensor], object]] = {
    "a branch": lambda x: x * 2 if x.sum() > 0 else x,
    "a number": lambda x: x * x.sum().item(),
    "a size": lambda x: x[:, : int(x.abs().max()) % 3 + 1],
    "a mask": lambda x: x[x > 0],
    "rows that are not zero": lambda x: x[x[:, 0].nonzero().squeeze(1)],
    "a loop": lambda x: [x for _ in range(int(x[0, 0].abs()) + 1)],
    "different numbers": lambda x: x * 2 if torch.unique(x).numel() > 3 else x,
}


@pytest.mark.parametrize("name", ASK_VALUES)
@pytest.mark.parametrize("way", ["symbolic", "export", "auto"])
def test_code_that_asks_for_values_is_told_the_cure(name: str, way: str) -> None:
    if (name, way) == ("different numbers", "symbolic"):
        pytest.skip("what is traced stops at the op before")
    with pytest.raises(CaptureError, match="depends on the values of a tensor, which differ"):
        fxprune.trace(After(ASK_VALUES[name]), torch.randn(3, 4), capture=way)


def test_another_failure_is_told_no_such_cure() -> None:
    def unsteady(x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            raise RuntimeError("only plain tensors are taken")
        return x

    with pytest.raises(CaptureError, match="only plain tensors") as failed:
        fxprune.trace(After(unsteady), torch.randn(3, 4), capture="export")
    assert "on the values" not in str(failed.value)


FAKES_CAN_NOT: dict[str, Callable[[Tensor], object]] = {
    "values as an array": lambda x: x.numpy(),
    "values as a list": lambda x: x.tolist(),
    "a value as a number": lambda x: x.sum().item(),
    "a size of values": lambda x: x.nonzero(),
}


@pytest.mark.parametrize("name", FAKES_CAN_NOT)
def test_what_fake_tensors_refuse_is_told_from_what_is_wrong(name: str) -> None:
    FAKES_CAN_NOT[name](torch.ones(2, 3))  # right for a real tensor
    with FakeTensorMode(), pytest.raises(Exception) as refused:
        FAKES_CAN_NOT[name](torch.ones(2, 3))
    assert fakes_can_not(refused.value), repr(refused.value)


def test_a_mistake_is_no_weakness_of_fake_tensors() -> None:
    with FakeTensorMode(), pytest.raises(RuntimeError) as refused:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not fakes_can_not(refused.value)
