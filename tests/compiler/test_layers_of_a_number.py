"""Numbers that source builds layers of: they are what those layers became, whatever else is as large."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import UnsupportedModuleError

X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


class Classifier(nn.Module):
    """As many classes as channels; `forward` reads neither number."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.num_features = self.dim = dim
        self.classes = classes
        self.fc, self.norm = nn.Linear(12, dim), nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes) if classes > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.fc(x)))

    def one_hot(self, y: Tensor) -> Tensor:
        return F.one_hot(y, self.classes)

    def reset(self, classes: int) -> None:
        self.classes = classes
        self.head = nn.Linear(self.num_features, classes)


class Late(Classifier):
    """Its layers are built by methods, of attributes."""

    def __init__(self, width: int, out: int) -> None:
        nn.Module.__init__(self)
        self.width, self.classes = width, out
        self.build(width)
        self.head = nn.Linear(self.width, self.classes)

    def build(self, d: int) -> None:
        self.fc, self.norm = nn.Linear(12, d), nn.LayerNorm(d)

    def reset(self, classes: int) -> None:
        self.classes = classes
        self.head = nn.Linear(self.width, classes)


class Projected(nn.Module):
    """What it gives is projected by a parameter, to as many channels as there are inside."""

    def __init__(self, width: int, output_dim: int) -> None:
        super().__init__()
        self.classes = output_dim
        self.fc, self.norm = nn.Linear(12, width), nn.LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, output_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x)) @ self.proj

    def one_hot(self, y: Tensor) -> Tensor:
        return F.one_hot(y, self.classes)


@pytest.mark.parametrize("size", [16, 48, 96, 128])
@pytest.mark.parametrize("cls", [Classifier, Late, Projected])
def test_a_count_of_classes_is_no_width(cls: type[Classifier], size: int) -> None:
    own = fxprune.prune(randomise(cls(size, size)), 0.5, example_inputs=X, form="module")
    assert own.fc.out_features == size // 2 and own.classes == own(X).shape[-1] == size
    assert own.one_hot(torch.tensor([1])).shape == (1, size)


@pytest.mark.parametrize("cls", [Classifier, Late])
def test_another_head_fits(cls: type[Classifier]) -> None:
    own = fxprune.prune(randomise(cls(96, 96)), 0.5, example_inputs=X, form="module")
    own.reset(7)
    assert own.head.in_features == 48 and own(X).shape == (2, 5, 7)


class TwoWidths(nn.Module):
    """One number for two streams."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.a, self.b = nn.Linear(12, dim), nn.Linear(dim, dim)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.b(F.gelu(self.a(x)))))

    def reset(self, classes: int) -> None:
        self.head = nn.Linear(self.dim, classes)


def test_a_number_of_layers_that_differ_now_is_refused() -> None:
    model = randomise(TwoWidths(96))
    with torch.no_grad():  # its channels go first
        model.a.weight[:40] *= 1e-3
        model.b.weight[:, :40] *= 1e-3
    own = fxprune.prune(model, 0.5, example_inputs=X, form="module", scope="global")
    assert own.a.out_features != own.b.out_features
    assert any("reset" in line for line in fxprune.report(model, own).refused)
    with pytest.raises(UnsupportedModuleError, match="reset reads dim"):
        own.reset(7)
    fxprune.verify(model, own, example_inputs=X)


class Depthwise(nn.Module):
    """A depthwise layer, which code builds again from numbers, into one without its normalisation."""

    def __init__(self, w: int, groups: int, listed: bool) -> None:
        super().__init__()
        self.width, self.groups = w, groups
        made = self.make()
        self.conv = nn.ModuleList([made]) if listed else made
        self.norm = nn.BatchNorm2d(w)

    def make(self) -> nn.Conv2d:
        return nn.Conv2d(self.width, self.width, 3, padding=1, groups=self.groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv[0] if isinstance(self.conv, nn.ModuleList) else self.conv
        return self.norm(conv(x))

    def fuse(self) -> nn.Conv2d:
        conv = self.conv[0] if isinstance(self.conv, nn.ModuleList) else self.conv
        fused = nn.Conv2d(self.width, self.width, 3, padding=1, groups=self.groups).double()
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        with torch.no_grad():
            fused.weight.copy_(conv.weight * scale[:, None, None, None])
            fused.bias.copy_(self.norm.bias - self.norm.running_mean * scale)
        return fused


class Straight(Depthwise):
    """As many groups as channels, for a normalisation alone: it is written as a depthwise layer."""

    def __init__(self, w: int, groups: int) -> None:
        nn.Module.__init__(self)
        self.width, self.groups = w, groups
        self.norm = nn.BatchNorm2d(w)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def fuse(self) -> nn.Conv2d:
        fused = nn.Conv2d(self.width, self.width, 1, groups=self.groups).double()
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        with torch.no_grad():
            fused.weight.copy_(scale[:, None, None, None])
            fused.bias.copy_(self.norm.bias - self.norm.running_mean * scale)
        return fused


@pytest.mark.parametrize("w", [16, 48, 128])
def test_groups_follow_layers_that_are_built_anew_of_them(w: int) -> None:
    parts = Depthwise(w, w, False), Depthwise(w, w, True), Straight(w, w)
    model = randomise(nn.Sequential(nn.Conv2d(3, w, 3), *parts, nn.Conv2d(w, 3, 1))).double().eval()
    x = torch.randn(2, 3, 9, 9).double()
    own = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    expected = own(x)
    for i in (1, 2, 3):
        own[i] = own[i].fuse()
    assert own[1].groups == w // 2 and torch.allclose(own(x), expected)


class Contained(Classifier):
    """Its layers stand in containers."""

    def __init__(self, dim: int, places: int, spelling: str) -> None:
        nn.Module.__init__(self)
        self.dim, self.classes, self.places = dim, 7, places
        if spelling == "sequential":
            self.parts = nn.Sequential(nn.Linear(12, dim), nn.Embedding(places, dim), nn.Linear(dim, 7))
        elif spelling == "list":
            self.parts = nn.ModuleList(
                [nn.Linear(12, dim), nn.Embedding(places, dim), nn.Linear(dim, self.classes)]
            )
        else:
            self.parts = nn.ModuleDict(
                dict(fc=nn.Linear(12, dim), places=nn.Embedding(places, dim), head=nn.Linear(dim, 7))
            )

    def forward(self, x: Tensor) -> Tensor:
        fc, places, head = self.parts.children()
        return head(fc(x) + places.weight[: x.shape[1]])

    def most(self) -> int:
        return self.places


@pytest.mark.parametrize("spelling", ["sequential", "list", "dict"])
def test_layers_in_containers_are_found(spelling: str) -> None:
    model = randomise(Contained(96, 96, spelling))
    own = fxprune.prune(model, 0.5, example_inputs=X, form="module")
    assert own.dim == 48 and own.places == own.most() == 96
    fxprune.verify(model, own, example_inputs=X)


class Optional(nn.Module):
    """Reads numbers under optional arguments alone, and in methods of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.tokens, self.classes = (32 // 4) ** 2, 16
        self.patch, self.head = nn.Conv2d(3, dim, 4, 4), nn.Linear(dim, self.classes)

    def forward(self, x: Tensor, masked: float | None = None, labels: Tensor | None = None) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        if masked is not None:
            x = x * (torch.rand(len(x), self.tokens, 1) > masked).to(x)
        scores = self.head(x.mean(1))
        return scores if labels is None else F.cross_entropy(scores.view(-1, self.classes), labels)

    def mask(self, n: int) -> Tensor:
        return torch.ones(n, self.tokens)


@pytest.mark.parametrize("dim", [16, 64])
def test_numbers_of_optional_arguments_are_no_widths_for_being_as_large(dim: int) -> None:
    model, x = randomise(Optional(dim)), torch.randn(3, 3, 32, 32)
    own = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    assert own.patch.out_channels == dim // 2
    assert own.tokens == 64 and own.classes == 16 and own.mask(2).shape == (2, 64)
    if dim == 16:  # else the call is refused: its code may read the other number
        assert own(x, labels=torch.tensor([1, 2, 3])).ndim == 0


class Patches(nn.Module):
    """A patch as large as the width, which no method reads."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.dim, self.patch_size, self.stride = dim, patch_size, (patch_size, patch_size)
        self.embed = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x).flatten(2).mean(-1))


def test_sides_of_patches_are_no_widths() -> None:
    model, x = randomise(Patches(16, 16)), torch.randn(2, 3, 32, 32)
    own = fxprune.prune(model, 0.5, example_inputs=x, form="module")
    assert own.dim == own.embed.out_channels == 8
    assert own.patch_size == 16 and own.stride == (16, 16) and own.embed.kernel_size == (16, 16)
