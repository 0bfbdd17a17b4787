"""Models that tests name by a spec, `odd_models:tiny`: sound ones and such as break the zoo's engine."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor, nn

__all__ = [
    "crashing",
    "literal",
    "literal_attention",
    "tiny",
    "unbuildable",
    "uncapturable",
    "unending",
    "unknown",
    "unknown_alone",
]


class Images(nn.Module):
    """Says what it takes, as timm's models do: 3 x 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.default_cfg = {"input_size": (3, 8, 8)}
        self.embed, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)

    def between(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.embed(x).flatten(2).mT).mean(1))


class Unknown(Images):
    """An op that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)

    def between(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(torch.native_layer_norm(x, (16,), None, None, 1e-5)[0]).relu())


class UnknownAlone(Images):
    """All of it is frozen for want of a rule."""

    def between(self, x: Tensor) -> Tensor:
        return torch.native_layer_norm(x, (16,), None, None, 1e-5)[0]


class DependsOnValues(Images):
    """A branch on the data, which no capture takes."""

    def between(self, x: Tensor) -> Tensor:
        return x.relu() if x.sum() > 0 else -x


def in_rows(x: Tensor) -> Tensor:
    return x.unflatten(-1, (24,))


def in_heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)


class Literal(nn.Module):
    """A function that it calls has a width for a literal, which no size on `self` can change."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(in_rows(self.fc1(x)).relu())


class LiteralAttention(nn.Module):
    """Its heads are a literal, in a function that it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = in_heads(self.qkv(x))
        return self.proj(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Around(Images):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.middle = module

    def between(self, x: Tensor) -> Tensor:
        return x + self.middle(x)


def literal() -> nn.Module:
    return Around(Literal())


def literal_attention() -> nn.Module:
    return Around(LiteralAttention())


def tiny() -> nn.Module:
    return Images()


def unknown() -> nn.Module:
    return Unknown()


def unknown_alone() -> nn.Module:
    return UnknownAlone()


def uncapturable() -> nn.Module:
    return DependsOnValues()


def unbuildable() -> nn.Module:
    raise OSError("its weights\ncan't be downloaded here")


def unending() -> nn.Module:
    time.sleep(3600)
    return Images()


def crashing() -> nn.Module:
    if torch.get_num_threads():  # the process ends as by a fault in native code
        os._exit(3)
    return Images()
