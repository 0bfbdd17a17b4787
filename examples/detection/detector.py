"""torchvision's FCOS on a pyramid transformer (PVTv2) at two widths, and the part of it that is pruned.

Feature maps of strides 8, 16 and 32 go through torchvision's FPN.  What is traced, pruned and trained is
`Maps`: backbone, FPN and head, from a batch of images to scores and boxes of every place.  What FCOS does
before (resizing) and after (decoding boxes, suppressing all but the best) has no weights.
"""

from __future__ import annotations

import timm
import torch
from shapes import KINDS, SIZE, Target
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork

PYRAMID = 64  # channels of the FPN and the head, in the large detector and in the small one
LARGE, SMALL = (48, 96, 192, 256), (24, 48, 96, 128)  # channels of the four stages
STRIDES = (8, 16, 32)


class Backbone(nn.Module):
    """A small PVTv2 (overlapping patches, attention with reduced keys and values) and an FPN."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.body = timm.create_model(
            "pvt_v2_b0",
            features_only=True,
            out_indices=(1, 2, 3),
            embed_dims=widths,
            depths=(1, 1, 2, 2),
            num_heads=(1, 2, 4, 8),
            sr_ratios=(4, 2, 1, 1),
            mlp_ratios=(4, 4, 4, 4),
        )
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), PYRAMID)
        self.out_channels = PYRAMID

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(i): features for i, features in enumerate(self.body(images))})


def detector(widths: tuple[int, ...]) -> FCOS:
    """Make FCOS, for images that are normalised and of the right size already."""
    anchors = AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * len(STRIDES))
    return FCOS(
        Backbone(widths),
        len(KINDS),
        min_size=SIZE,
        max_size=SIZE,
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
        anchor_generator=anchors,
        score_thresh=0.05,
    )


class Maps(nn.Module):
    """What a detector says of every place: images [n, 3, h, w] -> scores, boxes, centredness."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        made = detector(widths)
        self.backbone, self.head = made.backbone, made.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.head(list(self.backbone(images).values()))
        return maps


def whole(maps: nn.Module) -> FCOS:
    """Put a backbone and a head, pruned or not, back into torchvision's detector."""
    made = detector(SMALL)
    made.backbone, made.head = maps.backbone, maps.head
    return made.eval()


class Loss:
    """FCOS's own loss of what `Maps` returned, given the targets of a batch."""

    def __init__(self) -> None:
        self.detector = detector(SMALL)
        sides = [SIZE // stride for stride in STRIDES]
        blank = torch.zeros(1, 3, SIZE, SIZE)
        features = [torch.zeros(1, 1, side, side) for side in sides]
        (self.anchors,) = self.detector.anchor_generator(ImageList(blank, [(SIZE, SIZE)]), features)
        self.places = [side * side for side in sides]

    def __call__(self, maps: dict[str, Tensor], targets: list[Target]) -> Tensor:
        anchors = [self.anchors.to(maps["cls_logits"].device)] * len(targets)
        losses = self.detector.compute_loss(targets, maps, anchors, self.places)
        return torch.stack(list(losses.values())).sum()
