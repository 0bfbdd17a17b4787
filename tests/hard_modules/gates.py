"""Gates, shuffles and neighbourhoods: channels taken apart and put together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from helpers import CAPTURES
from torch import Tensor, nn

from hard_modules.case import EMBED, Pixels, case, only

# ---------------------------------------------------------------- gates, shuffles, unfolding


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(EMBED, 64), nn.Linear(32, EMBED)


GATED = {"block__fc1__weight": (32, 12), "block__fc2__weight": (12, 16)}


@case(**GATED)
class GluByChunk(Gate):
    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(a) * b)


# An older torch.export writes by index_put, which does not tell a mask from positions: all is frozen.
@case(captures=CAPTURES if torch.__version__ >= "2.15" else only("symbolic"), **GATED)
class MaskedWrites(Gate):
    """`x[x < 0] = 0`, and some tokens cleared whole."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, dim=-1)
        a = a.clone()
        a[a < 0] = 0
        b = b * 2
        b[b.mean(-1) > 0] = 1.0
        return self.fc2(a * b)


@case(**GATED)
class GluByOp(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.glu(self.fc1(x), dim=-1))


@case(**GATED)
class GluBySlices(Gate):
    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x[..., :32].sigmoid() * x[..., 32:])


@case(**GATED)
class GluByStrides(Gate):
    """Gate and value alternate."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x[..., ::2] * x[..., 1::2].sigmoid())


@case(**GATED)
class GluByUnflatten(Gate):
    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).unflatten(-1, (2, -1)).unbind(-2)
        return self.fc2(a * b.tanh())


@case(Pixels, block__expand__weight=(16, 8, 1, 1), block__mix__weight=(16, 1, 3, 3))
class GatedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(16, 32, 1)
        self.mix = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.project = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.mix(self.expand(x)).chunk(2, dim=1)
        return self.project(F.gelu(a) * b)


@case(Pixels, block__expand__weight=(32, 8, 1, 1), block__narrow__weight=(8, 8, 1, 1))
class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.narrow = nn.Conv2d(16, 64, 1), nn.Conv2d(16, 16, 1)
        self.shuffle, self.pool = nn.PixelShuffle(2), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.pool(self.shuffle(self.expand(x)).relu()))


@case(Pixels, block__reduce__weight=(6, 32, 1, 1), block__widen__weight=(8, 6, 1, 1))
class PixelUnshuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.widen = nn.Conv2d(64, 12, 1), nn.Conv2d(12, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(F.pixel_unshuffle(x, 2)).relu()
        return F.interpolate(self.widen(x), scale_factor=2.0, mode="nearest")


@case(Pixels, block__first__weight=(16, 2, 1, 1), block__second__weight=(8, 4, 1, 1))
class ChannelShuffle(nn.Module):
    """ShuffleNet: grouped convolutions with a shuffle by reshapes between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 32, 1, groups=4)
        self.second = nn.Conv2d(32, 16, 1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, c, h, w = x.shape
        x = x.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.second(x.relu())


@case(Pixels, block__narrow__weight=(8, 72, 1))
class Unfolding(nn.Module):
    """Neighbourhoods as channels: (c 3 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv1d(16 * 9, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        return self.narrow(F.unfold(x, 3, padding=1)).view(b, -1, h, w)


@case(Pixels, block__values__weight=(8, 8), block__proj__weight=(8, 8))
class UnfoldAndFold(nn.Module):
    """VOLO's outlook attention, with its weights left out."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.proj = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        v = self.values(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        v = F.unfold(v, 3, padding=1).reshape(b, 4, c // 4, 9, h * w).relu()
        out = F.fold(v.reshape(b, c * 9, h * w), (h, w), 3, padding=1)
        return self.proj(out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@case(Pixels, block__reduce__weight=(2, 8, 1, 1), block__expand__weight=(8, 2, 1, 1))
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(s), inplace=True)))
