"""Blocks on feature maps (b c h w): convolutions, shuffles, squeezes, concatenated branches."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_networks.norms import map_norm


class Inverted(nn.Sequential):
    """MBConv: widen, depthwise, gate, narrow."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__(
            nn.Conv2d(width, hidden, 1, bias=False),
            map_norm(norm, hidden),
            nn.Hardswish(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            map_norm(norm, hidden),
            nn.ReLU6(),
            SqueezeExcite(hidden, 2),
            nn.Conv2d(hidden, width, 1),
        )


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(s))))


class SqueezeByLayers(nn.Module):
    """The same with linear layers, on a pooled and flattened map."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Linear(width, hidden), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.shape
        s = self.expand(self.reduce(self.pool(x).view(b, c)).relu()).sigmoid()
        return x * s.view(b, c, 1, 1).expand_as(x)


class ConvNext(nn.Module):
    """A depthwise convolution, then an MLP on channels last."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.mix(x).permute(0, 2, 3, 1))
        x = self.fc2(F.gelu(self.fc1(x))) * self.gamma
        return x.permute(0, 3, 1, 2)


class Shuffled(nn.Module):
    """ShuffleNet: grouped convolutions with a shuffle of channels between."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.groups = math.gcd(width, 2)
        hidden = hidden * self.groups
        self.first = nn.Conv2d(width, hidden, 1, groups=self.groups)
        self.norm = map_norm(norm, hidden)
        self.second = nn.Conv2d(hidden, width, 3, padding=1, groups=self.groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        b, c, h, w = x.shape
        x = x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.second(x.relu())


class LibraryShuffle(Shuffled):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(F.channel_shuffle(self.norm(self.first(x)), self.groups)))


class Branches(nn.Module):
    """Inception: branches of different width, concatenated."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, hidden, 1)
        self.b = nn.Conv2d(width, 3, 3, padding=1)
        self.norm = map_norm(norm, hidden + 3 + width)
        self.join = nn.Conv2d(hidden + 3 + width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, 3, stride=1, padding=1)
        return self.join(self.norm(torch.cat([self.a(x).relu(), self.b(x), pooled], dim=1)))


class Cascade(nn.Module):
    """Res2Net, EfficientViT: chunks of the channels, each plus the result of the one before."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(width, 3 * hidden, 1), nn.Conv2d(3 * hidden, width, 1)
        self.convs = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(2))
        self.norm = map_norm(norm, 3 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.enter(x).chunk(3, dim=1)
        done = [parts[0]]
        for part, conv in zip((parts[1], parts[2]), self.convs, strict=True):
            done.append(conv(part + done[-1]).relu())
        return self.leave(self.norm(torch.cat(done, 1)))


class CrossStage(nn.Module):
    """CSP: half of the channels pass by."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.hidden = hidden
        self.enter, self.leave = nn.Conv2d(width, 2 * hidden, 1), nn.Conv2d(2 * hidden, width, 1)
        self.conv, self.norm = nn.Conv2d(hidden, hidden, 3, padding=1), map_norm(norm, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        a, b = x[:, : self.hidden], x[:, self.hidden :]
        return self.leave(torch.cat((self.norm(self.conv(a)).relu(), b), dim=1))


class Ghost(nn.Module):
    """Features and cheap copies of them, by a grouped convolution with a multiplier."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, hidden, 1)
        self.cheap = nn.Conv2d(hidden, 2 * hidden, 3, padding=1, groups=hidden)
        self.norm = map_norm(norm, 2 * hidden)
        self.join = nn.Conv2d(3 * hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.join(torch.cat([x, self.norm(self.cheap(x))], dim=1))


class PixelShuffled(nn.Module):
    """Up by a shuffle of channels into pixels, down by its inverse."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.expand, self.narrow = nn.Conv2d(width, 4 * hidden, 1), nn.Conv2d(4 * hidden, width, 1)
        self.shuffle, self.norm = nn.PixelShuffle(2), map_norm(norm, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.shuffle(self.expand(x)))
        return self.narrow(F.pixel_unshuffle(F.gelu(x), 2))


class Outlook(nn.Module):
    """VOLO: neighbourhoods taken apart, weighted, and put together."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.heads, self.dim = 2, hidden
        self.values, self.proj = nn.Linear(width, 2 * hidden), nn.Linear(2 * hidden, width)
        self.attn = nn.Linear(width, 2 * 9)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        last = x.permute(0, 2, 3, 1)
        v = F.unfold(self.values(last).permute(0, 3, 1, 2), 3, padding=1)
        v = v.reshape(b, self.heads, self.dim, 9, h * w)
        a = self.attn(last).reshape(b, h * w, self.heads, 9).permute(0, 2, 3, 1).softmax(dim=2)
        out = (v * a.unsqueeze(2)).reshape(b, self.heads * self.dim * 9, h * w)
        out = F.fold(out, (h, w), 3, padding=1)
        return self.proj(out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Focal(nn.Module):
    """Focal modulation: query, context and gates from one layer."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.hidden = hidden
        self.f, self.h = nn.Conv2d(width, 2 * hidden + 3, 1), nn.Conv2d(hidden, hidden, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False) for _ in range(2)
        )
        self.proj = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, context, gates = torch.split(self.f(x), [self.hidden, self.hidden, 3], 1)
        total = 0
        for i, conv in enumerate(self.convs):
            context = F.gelu(conv(context))
            total = total + context * gates[:, i : i + 1]
        total = total + context.mean((2, 3), keepdim=True).tanh() * gates[:, 2:]
        return self.proj(q * self.h(total))


class Selective(nn.Module):
    """SKNet: two branches, weighed channel by channel by a softmax over the branches."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, hidden, 3, padding=1)
        self.b = nn.Conv2d(width, hidden, 3, padding=2, dilation=2)
        self.weigh, self.norm = nn.Conv2d(hidden, 2 * hidden, 1), map_norm(norm, hidden)
        self.proj = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.a(x), self.b(x)], dim=1)
        b, _, c, _, _ = both.shape
        weights = self.weigh(both.sum(1).mean((2, 3), keepdim=True)).view(b, 2, c, 1, 1).softmax(dim=1)
        return self.proj(self.norm((both * weights).sum(dim=1)))


class GatedConvolution(nn.Module):
    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, 2 * hidden, 1)
        self.mix = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.norm, self.project = map_norm(norm, 2 * hidden), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.norm(self.mix(self.expand(x))).chunk(2, dim=1)
        return self.project(F.gelu(a) * b)


class Standardised(nn.Module):
    """A convolution whose weight is standardised first."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.conv, self.narrow = nn.Conv2d(width, hidden, 3, padding=1), nn.Conv2d(hidden, width, 1)
        self.gain, self.norm = nn.Parameter(torch.empty(hidden, 1, 1, 1)), map_norm(norm, hidden)

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        var, mean = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
        w = self.gain * (w - mean) * torch.rsqrt(var + 1e-3)
        return self.narrow(self.norm(F.conv2d(x, w, self.conv.bias, padding=1)).relu())


class UpAndDown(nn.Module):
    """A transposed convolution up, a strided one down, a skip concatenated between."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, hidden, 2, 2)
        self.norm, self.act = map_norm(norm, hidden + width), nn.PReLU(hidden + width)
        self.down = nn.Conv2d(hidden + width, width, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.down(self.act(self.norm(torch.cat((self.up(x), wide), 1))))


class Pooled(nn.Module):
    """PoolFormer: a pooled map less itself."""

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.pool, self.norm = nn.AvgPool2d(3, 1, 1, count_include_pad=False), map_norm(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.pool(x) - x


MAPS: dict[str, type[nn.Module]] = {
    "inverted": Inverted,
    "convnext": ConvNext,
    "squeezed": SqueezeByLayers,
    "shuffled": Shuffled,
    "library shuffle": LibraryShuffle,
    "branches": Branches,
    "cascade": Cascade,
    "cross stage": CrossStage,
    "ghost": Ghost,
    "pixel shuffle": PixelShuffled,
    "outlook": Outlook,
    "focal": Focal,
    "selective": Selective,
    "gated": GatedConvolution,
    "standardised": Standardised,
    "up and down": UpAndDown,
    "pooled": Pooled,
}


SHUFFLES = ("shuffled", "library shuffle")  # in two groups
JOINING = ("branches", "up and down")  # their norms are over the map's channels and others


class OnMap(nn.Module):
    """A block on maps, on the patches of b n c; the first tokens pass by."""

    def __init__(self, inner: nn.Module, first: int, side: int) -> None:
        super().__init__()
        self.inner, self.first, self.side = inner, first, side

    def forward(self, x: Tensor) -> Tensor:
        b, _, c = x.shape
        patches = x[:, self.first :].transpose(1, 2).reshape(b, c, self.side, self.side)
        y = self.inner(patches).flatten(2).transpose(1, 2)
        return torch.cat((x[:, : self.first], y), dim=1) if self.first else y
