"""Convolutions and their norms, standardised weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hard_modules.case import Pixels, case

# ---------------------------------------------------------------- convolutions and their norms


@case(Pixels, block__0__weight=(16, 8, 3, 3), block__1__running_var=(16,), block__3__weight=(8, 16, 1, 1))
class BatchNorms(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32, eps=0.1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 16, 1),
        )


@case(Pixels, block__0__weight=(16, 8, 1, 1), block__1__weight=(16,), block__3__weight=(8, 16, 1, 1))
class GroupNorms(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(16, 32, 1), nn.GroupNorm(8, 32), nn.GELU(), nn.Conv2d(32, 16, 1))


@case(Pixels, block__0__weight=(16, 8, 1, 1), block__1__weight=(16,), block__3__weight=(8, 16, 1, 1))
class GroupNormOfOneGroup(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(16, 32, 1), nn.GroupNorm(1, 32), nn.GELU(), nn.Conv2d(32, 16, 1))


@case(Pixels, block__0__weight=(16, 8, 1, 1), block__1__weight=(16, 1, 3, 3))
class Depthwise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 16, 1)
        )


@case(Pixels, block__0__weight=(16, 8, 1, 1), block__1__weight=(32, 1, 3, 3))
class DepthwiseWithMultiplier(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(16, 32, 1), nn.Conv2d(32, 64, 3, padding=1, groups=32), nn.Conv2d(64, 16, 1)
        )


@case(Pixels, block__0__weight=(16, 8, 1, 1), block__1__weight=(16, 8, 3, 3))
class GroupedConvolution(nn.Sequential):
    """4 groups of 8: two groups stay."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.Conv2d(32, 16, 1)
        )


@case(Pixels, block__0__weight=(8, 16, 2, 2), block__1__weight=(8, 16, 2, 2))
class TransposedConvolution(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.ConvTranspose2d(16, 32, 2, 2), nn.Conv2d(32, 16, 2, 2))


@case(Pixels, block__conv__weight=(8, 8, 3, 3), block__gain=(8, 1, 1, 1))
class WeightStandardised(nn.Module):
    """(weight - mean) / std by hand: statistics over an axis that shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(16, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        mean = w.mean(dim=(1, 2, 3), keepdim=True)
        std = w.std(dim=(1, 2, 3), keepdim=True)
        w = self.gain * (w - mean) / (std + 1e-6)
        return F.conv2d(x, w, self.conv.bias, padding=1)


@case(Pixels, block__weight=(8, 8, 3, 3))
class WeightStandardisedByBatchNorm(nn.Conv2d):
    """timm's StdConv2d: a batch norm in training mode, over the weight."""

    def __init__(self) -> None:
        super().__init__(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        w = F.batch_norm(self.weight.reshape(1, 16, -1), None, None, training=True, momentum=0.0)
        return F.conv2d(x, w.reshape_as(self.weight), self.bias, padding=1)


@case(Pixels, block__norm__weight=(8,), block__fc1__weight=(32, 8))
class ChannelsLast(nn.Module):
    """ConvNeXt: a depthwise convolution, then an MLP on permuted pixels, scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.norm = nn.LayerNorm(16, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(16, 64), nn.Linear(64, 16)
        self.gamma = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.mix(x).permute(0, 2, 3, 1))
        x = self.fc2(F.gelu(self.fc1(x))) * self.gamma
        return x.permute(0, 3, 1, 2)


@case(Pixels, block__weight=(8,), block__bias=(8,))
class LayerNormOverChannels(nn.Module):
    """LayerNorm2d by hand, on the channels-first map."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]
