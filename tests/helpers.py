"""Small models and small questions about modules, shared by the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from fxprune.certify.zoo import randomise

CAPTURES = ("symbolic", "export")


def by_capture(cases: Iterable[Any], every: int) -> list[tuple[Any, ...]]:
    """Each case (a value, or a tuple of them) with a capture: all symbolic, one in `every` by export as well.

    By export a small model takes three to ten times as long.
    """
    given = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [*((*case, "symbolic") for case in given), *((*case, "export") for case in given[::every])]


# ---------------------------------------------------------------- models


def small_vit(**options: Any) -> VisionTransformer:
    """timm's ViT on 32 x 32 images; it records no input shape."""
    usual = {"img_size": 32, "patch_size": 8, "num_classes": 10}
    usual |= {"embed_dim": 48, "depth": 2, "num_heads": 4}
    return randomise(VisionTransformer(**usual | options).eval())


def small_swin(**options: Any) -> nn.Module:
    """timm's Swin on 32 x 32 images: windows, shifts, relative positions, patch merging."""
    from timm.models.swin_transformer import SwinTransformer

    usual = {"img_size": 32, "patch_size": 4, "num_classes": 10, "window_size": 4}
    usual |= {"embed_dim": 24, "depths": (2, 1), "num_heads": (2, 4)}
    return randomise(SwinTransformer(**usual | options).eval())


def small_hf_vit(**options: Any) -> nn.Module:
    """Hugging Face's ViT on 32 x 32 images."""
    from transformers import ViTConfig, ViTForImageClassification

    usual = {"image_size": 32, "patch_size": 8, "num_labels": 10, "hidden_size": 48}
    usual |= {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    return randomise(ViTForImageClassification(ViTConfig(**usual | options)).eval())


def small_torchvision_vit(**options: Any) -> nn.Module:
    """torchvision's ViT (nn.MultiheadAttention), with few patches at the recorded 224 x 224."""
    from torchvision.models import VisionTransformer

    usual = {"image_size": 224, "patch_size": 56, "num_classes": 10, "num_layers": 1}
    usual |= {"num_heads": 4, "hidden_dim": 48, "mlp_dim": 96}
    return randomise(VisionTransformer(**usual | options).eval())


class ConvNet(nn.Module):
    """A residual block with a depthwise convolution, batch norms, dropout as a module and as a function."""

    def __init__(self, dropout: float = 0.0, width: int = 16) -> None:
        super().__init__()
        wide = 2 * width
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width))
        self.widen = nn.Sequential(nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU())
        self.mix = nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1, groups=wide), nn.BatchNorm2d(wide))
        self.narrow = nn.Conv2d(wide, width, 1)
        self.dropout, self.drop = dropout, nn.Dropout(dropout)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.stem(x), self.dropout, self.training)
        x = x + self.narrow(self.drop(self.mix(self.widen(x)).relu()))
        return self.head(x.mean((2, 3)))


def small_conv(**options: Any) -> ConvNet:
    return randomise(ConvNet(**options).eval())


def mlp(inputs: int = 6, hidden: int = 16, outputs: int = 4) -> nn.Sequential:
    return randomise(nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs)))


def images(batch: int = 2, size: int = 32, seed: int = 0) -> Tensor:
    """Normal noise, [batch, 3, size, size]."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def draw_classes(folder: Path, each: int = 6) -> None:
    """Render two classes of `each` images: discs and squares, each at another place."""
    from PIL import Image, ImageDraw

    for label, shape in enumerate(("ellipse", "rectangle")):
        (folder / str(label)).mkdir(parents=True)
        for i in range(each):
            image = Image.new("RGB", (40, 40), (40 * i, 90, 60))
            getattr(ImageDraw.Draw(image), shape)((4 + i, 6, 24 + i, 26), fill=(250, 240, 10 * i))
            image.save(folder / str(label) / f"{i}.png")


# ---------------------------------------------------------------- questions


def counted_macs(model: nn.Module, x: Tensor) -> float:
    """By torch's own counter, which does not know every fused attention in every release."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(x)
    return counter.get_total_flops() / 2


def tensors_of(output: Any) -> list[Tensor]:
    """Every tensor of an output, through tuples, dicts and dataclasses."""
    nest = dict(output) if isinstance(output, dict) else output
    return [leaf for leaf in pytree.tree_leaves(nest) if isinstance(leaf, Tensor)]


def assert_same(got: Any, wanted: Any, tolerance: float = 1e-4) -> None:
    """Equal outputs, up to a tolerance relative to the largest element; 0 for bitwise."""
    pairs = list(zip(tensors_of(got), tensors_of(wanted), strict=True))
    assert pairs
    for a, b in pairs:
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * b.abs().max().item())


def run(model: nn.Module, *inputs: Tensor, seed: int = 0, **options: Any) -> Any:
    """One call without gradients, with the random state fixed."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(*inputs, **options)


def widths(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes by state name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class Body(nn.Module):
    """Two convolutions and a head around what the code in question does to a map of 16 channels."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.between(self.conv1(x)).relu())
        return self.head(x.mean((2, 3)))
