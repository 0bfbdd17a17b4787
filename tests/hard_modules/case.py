"""What a hard case is, and the small networks around its module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from helpers import CAPTURES, randomise
from torch import Tensor, nn

EMBED, HEADS, DIM, TOKENS, CLASSES = 24, 4, 6, 9, 7


@dataclass
class Case:
    """A model, its input, and the widths that are left of it at a ratio of 0.5."""

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    left: dict[str, tuple[int, ...]]
    captures: tuple[str, ...] = CAPTURES
    batches: tuple[int, ...] = (1, 5)

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return randomise(self.build().eval())


CASES: list[Case] = []


def tokens(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, TOKENS, 5)))


def pixels(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, 8, 8)))


class Tokens(nn.Module):
    """A residual block between an embedding and a classifier; its width is free to shrink."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(5, EMBED)
        self.norm = nn.LayerNorm(EMBED)
        self.block = block
        self.head = nn.Linear(EMBED, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.block(self.norm(x))
        return self.head(x.mean(1))


class Pixels(nn.Module):
    """The same for feature maps, 16 channels wide."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block = block
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        return self.head(x.mean((2, 3)))


def case(
    wrap: Callable[[nn.Module], nn.Module] = Tokens,
    inputs: tuple[Tensor, ...] | None = None,
    captures: tuple[str, ...] = CAPTURES,
    batches: tuple[int, ...] = (1, 5),
    **left: tuple[int, ...],
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register the decorated module; `left` names its weights with "__" for dots."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        given = inputs or ((pixels(),) if wrap is Pixels else (tokens(),))
        expected = {name.replace("__", "."): shape for name, shape in left.items()}
        CASES.append(Case(cls.__name__, lambda: wrap(cls()), given, expected, captures, batches))
        return cls

    return register


def alone(block: nn.Module) -> nn.Module:
    """No wrapper: the module is the model."""
    return block


def only(*captures: str) -> tuple[str, ...]:
    return captures
