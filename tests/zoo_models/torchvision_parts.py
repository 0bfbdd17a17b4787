"""The backbones and whole networks of torchvision's detection and segmentation models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torchvision
from torch import nn

from zoo_models.recorded import recorded

__all__ = ["MODELS"]

DETECTORS = torchvision.models.list_models(module=torchvision.models.detection)
SEGMENTERS = torchvision.models.list_models(module=torchvision.models.segmentation)


def _backbone(name: str) -> nn.Module:
    whole = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    size = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}.get(name, 224)
    return recorded(whole.eval().backbone, 3, size, size)


MODELS: dict[str, Callable[[], nn.Module]] = {
    f"torchvision_{name}_backbone": partial(_backbone, name) for name in (*DETECTORS, *SEGMENTERS)
}
