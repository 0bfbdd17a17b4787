"""Pruned backbones where they are used: multi-scale features, a feature pyramid, a whole detector."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache

import pytest
import timm
import torch
from exactness import TOLERANCE, assert_slices
from helpers import parameter_count, randomise
from torch import Tensor, fx, nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

import fxprune

SIZE = 64

# Small relatives of timm's models: a pyramid transformer, one of windows, two convnets.
SWIN = {"img_size": SIZE, "window_size": 4, "embed_dim": 24, "depths": (2, 2, 2), "num_heads": (2, 4, 8)}
PVT = {"embed_dims": (16, 32, 48, 64), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
BACKBONES = {
    "swin_tiny_patch4_window7_224": SWIN | {"out_indices": (0, 1, 2)},
    "pvt_v2_b0": PVT | {"out_indices": (1, 2, 3)},
    "resnet18": {"channels": (16, 32, 48, 64), "out_indices": (1, 2, 3, 4)},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48), "out_indices": (0, 1, 2, 3)},
}
EACH = pytest.mark.parametrize("name", BACKBONES)


@cache
def backbone(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model(name, features_only=True, **BACKBONES[name]).eval())


def image(n: int = 2, size: int = SIZE) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@cache
def pruned_backbone(name: str, outputs: str) -> fx.GraphModule:
    return fxprune.prune(backbone(name), 0.5, example_inputs=image(), outputs=outputs)


def widths(features: list[Tensor], channel: int) -> list[int]:
    return [f.shape[channel] for f in features]


def channel_dim(name: str) -> int:
    return 3 if name.startswith("swin") else 1


# ---------------------------------------------------------------- multi-scale features


@EACH
def test_features_are_whole_by_default(name: str) -> None:
    model, pruned = backbone(name), pruned_backbone(name, "keep")
    assert float(fxprune.verify(model, pruned)) <= TOLERANCE
    assert_slices(model, pruned)
    assert [f.shape for f in pruned(image())] == [f.shape for f in model(image())]
    assert parameter_count(pruned) < 0.75 * parameter_count(model)


@EACH
def test_features_shrink_when_asked(name: str) -> None:
    model, pruned = backbone(name), pruned_backbone(name, "prune")
    assert float(fxprune.verify(model, pruned)) <= TOLERANCE
    assert_slices(model, pruned)
    before, after = model(image()), pruned(image())
    dim = channel_dim(name)
    assert widths(after, dim) == [w // 2 for w in widths(before, dim)]
    # nothing but the channels
    assert [f.movedim(dim, 0).shape[1:] for f in after] == [f.movedim(dim, 0).shape[1:] for f in before]
    assert parameter_count(pruned) < 0.35 * parameter_count(model)


def test_a_dict_of_features() -> None:
    """By torchvision's extractor."""
    nodes = {"layer2": "mid", "layer4": "last"}
    model = randomise(create_feature_extractor(resnet18(weights=None), nodes).eval())
    x = image(size=32)
    whole = fxprune.prune(model, 0.5, example_inputs=x)
    small = fxprune.prune(model, 0.5, example_inputs=x, outputs="prune")
    assert max(float(fxprune.verify(model, p)) for p in (whole, small)) <= TOLERANCE
    assert {k: v.shape[1] for k, v in whole(x).items()} == {"mid": 128, "last": 512}
    assert {k: v.shape[1] for k, v in small(x).items()} == {"mid": 64, "last": 256}


# ---------------------------------------------------------------- a whole detector


class WithPyramid(nn.Module):
    """Any list of feature maps as the backbone of torchvision's detectors."""

    def __init__(self, body: nn.Module, channels: list[int], out_channels: int = 16) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(channels, out_channels)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), f) for i, f in enumerate(self.body(x))))


def detector(cls: type[nn.Module], outputs: str) -> nn.Module:
    """Around the pruned transformer, whose three maps are whole or half as wide."""
    body = pruned_backbone("pvt_v2_b0", outputs)
    channels = [f.shape[1] for f in body(image())]
    anchors = AnchorGenerator(sizes=((8,), (16,), (32,)), aspect_ratios=((1.0,),) * 3)
    if cls is RetinaNet:
        options = {"anchor_generator": anchors, "score_thresh": 0.0}
    else:
        options = {"rpn_anchor_generator": anchors}
        options["box_score_thresh"] = 0.0
        options["box_roi_pool"] = MultiScaleRoIAlign(["0", "1", "2"], output_size=3, sampling_ratio=2)
    torch.manual_seed(0)
    return cls(WithPyramid(body, channels), num_classes=4, min_size=64, max_size=128, **options)


DETECTORS = pytest.mark.parametrize("cls", [FasterRCNN, RetinaNet])
OUTPUTS = pytest.mark.parametrize("outputs", ["keep", "prune"])


@DETECTORS
@OUTPUTS
def test_a_detector_runs_at_two_image_sizes(cls: type[nn.Module], outputs: str) -> None:
    model = detector(cls, outputs).eval()
    for height, width in ((64, 64), (64, 128)):
        x = torch.rand(3, height, width)
        with torch.no_grad():
            seen = model.transform([x])[0].tensors
            found = model([x])[0]
        assert seen.shape[-2:] == (height, width)  # the backbone is given the size that we mean
        assert {"boxes", "labels", "scores"} <= set(found)
        assert len(found["boxes"]) > 0
        assert all(t.isfinite().all() for t in found.values())


@DETECTORS
@OUTPUTS
def test_a_detector_trains(cls: type[nn.Module], outputs: str) -> None:
    """A training step: a finite loss, and gradients for every weight of the pruned backbone."""
    model = detector(cls, outputs).train()
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1])} for _ in images]

    losses = model(images, targets)
    loss = sum(losses.values())
    loss.backward()

    assert loss.isfinite()
    body = dict(model.backbone.body.named_parameters())
    without = [name for name, p in body.items() if p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in body.values())
    assert all(p.grad.any() for name, p in body.items() if name.endswith("mlp.fc1.weight"))
