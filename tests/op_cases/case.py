"""One call of one op, on operands of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Operand = Any  # a shape, or a tensor: whole numbers and truth values become buffers


@dataclass(frozen=True)
class Case:
    """One call of one op.

    statistic: a mean or norm over a shrinking axis; the reference is the certificate's masked form.
    frozen: nothing is left to shrink.
    values: False where the op returns random or uninitialised numbers: only shapes are compared.
    """

    op: str
    run: Callable[..., Any]
    operands: tuple[Operand, ...]
    statistic: bool = False
    frozen: bool = False
    values: bool = True
    captures: tuple[str, ...] = ("symbolic",)
    label: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.label}" if self.label else self.op


@dataclass
class Cases:
    """A list that numbers the cases of one op."""

    all: list[Case] = field(default_factory=list)

    def __call__(self, op: str, run: Callable[..., Any], *operands: Operand, **flags: Any) -> None:
        count = sum(case.op == op for case in self.all)
        self.all.append(Case(op, run, operands, label=str(count) if count else "", **flags))


BOTH = ("symbolic", "export")
EXPORT = ("export",)


def signed(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int) -> Tensor:
    """Numbers within 0.1 .. 0.9: for logarithms, roots and inverse functions."""
    return 0.1 + 0.8 * torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def indices(*shape: int, below: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(6))


def flags(*shape: int, seed: int = 7) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5


DUMMY = torch.zeros(2, 1)  # an input, which no case reads


class Probe(nn.Module):
    """Calls one op on tensors of its own."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.names = [f"p{i}" for i in range(len(case.operands))]
        for i, (name, operand) in enumerate(zip(self.names, case.operands, strict=True)):
            tensor = operand.clone() if isinstance(operand, Tensor) else signed(operand, i)
            if tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        self.run = case.run

    def forward(self, x: Tensor) -> Any:
        return self.run(*(getattr(self, name) for name in self.names))
