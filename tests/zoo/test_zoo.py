"""The model zoos that the README lists: pruned at three ratios, each certified in float64.

`make test` runs the small and fast ones, `make zoo` the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
import vit_pytorch
from exactness import TOLERANCE, assert_certified, assert_runs, assert_slices, certificate, groups_of
from helpers import CAPTURES, parameter_count, randomise
from torch import Tensor, nn

import fxprune
from fxprune.compiler import prune_analyzed

RATIOS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Entry:
    """A model of a library: how to build it, and the image size if it records none."""

    name: str
    build: Callable[[], nn.Module]
    size: int | None = None
    slow: bool = False
    captures: tuple[str, ...] = CAPTURES
    features: bool = False  # there is no classifier: the embedding is the output

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return randomise(self.build().eval())

    @property
    def example(self) -> Tensor | None:
        return None if self.size is None else torch.zeros(2, 3, self.size, self.size)


class Analysed:
    """A model with its analysis, made when a test first asks for it."""

    def __init__(self, entry: Entry) -> None:
        self.entry, self.model = entry, entry.model()

    @cached_property
    def analysis(self) -> fxprune.Analysis:
        return fxprune.analyze(self.model, example_inputs=self.entry.example)

    def by(self, capture: str) -> fxprune.Analysis:
        if capture == self.analysis.capture:
            return self.analysis
        return fxprune.analyze(self.model, example_inputs=self.entry.example, capture=capture)


def from_timm(name: str, size: int | None = None, resize: bool = True, **flags: Any) -> Entry:
    """A model of timm for images of `size`; those that take any size (`resize=False`) are not told."""
    options = {"img_size": size} if size and resize else {}
    return Entry(f"timm:{name}", lambda: timm.create_model(name, **options), size, **flags)


def from_torchvision(name: str, **flags: Any) -> Entry:
    return Entry(f"torchvision:{name}", lambda: torchvision.models.get_model(name), **flags)


def from_hf(name: str, config: str, model: str, **options: Any) -> Entry:
    """A model of Hugging Face from a small configuration."""

    def build() -> nn.Module:
        return getattr(transformers, model)(getattr(transformers, config)(num_labels=10, **options))

    size = None if "image_size" in options else 64
    return Entry(f"hf:{name}", build, size)


HF_VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 2}
HF_VIT |= {"num_attention_heads": 4, "intermediate_size": 96}
VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 48, "depth": 2}
VIT |= {"heads": 4, "dim_head": 12, "mlp_dim": 96}

ENTRIES = [
    from_timm("deit_tiny_patch16_224", 64),
    from_timm("deit_base_distilled_patch16_224", 64, slow=True),
    from_timm("vit_base_patch16_224", slow=True),
    from_timm("vit_small_patch14_reg4_dinov2", 56, features=True, slow=True),
    from_timm("vit_base_patch16_siglip_224", 64, slow=True),
    from_timm("swin_tiny_patch4_window7_224", slow=True),
    from_timm("swinv2_tiny_window8_256", slow=True),
    from_timm("pvt_v2_b0", 64, resize=False, slow=True),
    from_timm("pvt_v2_b2", 64, resize=False, slow=True),
    from_timm("pvt_v2_b2_li", 64, resize=False, slow=True),
    from_timm("cait_xxs24_224", 64, slow=True),
    from_timm("eva02_tiny_patch14_224", 56, features=True, slow=True),
    from_timm("beit_base_patch16_224", 64, slow=True),
    from_timm("levit_128s", slow=True),
    from_timm("xcit_nano_12_p8_224", 64, resize=False, slow=True),
    from_timm("poolformer_s12", 64, resize=False, slow=True),
    from_timm("twins_pcpvt_small", 64, slow=True),
    from_timm("convnext_atto", 64, resize=False),
    from_timm("resnet18", 64, resize=False),
    from_torchvision("vit_b_16", slow=True),
    from_torchvision("swin_t", slow=True),
    # it writes through a slice of a bias
    from_torchvision("swin_v2_t", slow=True, captures=("export",)),
    from_torchvision("maxvit_t", slow=True),
    from_hf("vit", "ViTConfig", "ViTForImageClassification", **HF_VIT),
    from_hf("deit", "DeiTConfig", "DeiTForImageClassificationWithTeacher", **HF_VIT),
    from_hf("dinov2", "Dinov2Config", "Dinov2ForImageClassification", mlp_ratio=2, **HF_VIT),
    from_hf(
        "swin",
        "SwinConfig",
        "SwinForImageClassification",
        image_size=32,
        embed_dim=24,
        depths=[2, 1],
        num_heads=[2, 4],
        window_size=4,
    ),
    from_hf(
        "pvt_v2",
        "PvtV2Config",
        "PvtV2ForImageClassification",
        image_size=64,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 4, 8],
    ),
    from_hf(
        "segformer",
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 4, 8],
        decoder_hidden_size=32,
    ),
    # einops takes sizes out of shapes as plain numbers
    Entry("vit_pytorch:ViT", lambda: vit_pytorch.ViT(**VIT), 32),
    Entry("vit_pytorch:SimpleViT", lambda: vit_pytorch.SimpleViT(**VIT), 32),
]

PARAMS = [pytest.param(e, id=e.name, marks=[pytest.mark.slow] if e.slow else []) for e in ENTRIES]


@pytest.fixture(scope="module", params=PARAMS)
def zoo(request: pytest.FixtureRequest) -> Analysed:
    return Analysed(request.param)


def test_certified_at_a_half(zoo: Analysed) -> None:
    """The public call; few parameters are left, unless the features themselves are the output."""
    model = zoo.model
    pruned = fxprune.prune(model, 0.5, example_inputs=zoo.entry.example)
    assert_certified(model, pruned, zoo.analysis)
    assert_slices(model, pruned)
    if pruned.record.dynamic:
        assert_runs(pruned, 5)

    before = parameter_count(model)
    if zoo.entry.features:
        (embed,) = zoo.analysis.group_of("pos_embed[2]")
        assert embed.frozen is not None
        assert "reaches the output" in embed.frozen.text
        assert parameter_count(pruned) < before
    else:
        assert parameter_count(pruned) <= (0.35 if before >= 6e6 else 0.40) * before


@pytest.mark.parametrize("ratio", [r for r in RATIOS if r != 0.5])
def test_certified(zoo: Analysed, ratio: float) -> None:
    pruned = prune_analyzed(zoo.model, zoo.analysis, ratio)
    assert certificate(zoo.model, pruned, zoo.analysis) <= TOLERANCE


@pytest.mark.slow
def test_both_captures_find_the_same_groups(zoo: Analysed) -> None:
    if len(zoo.entry.captures) == 1:
        pytest.skip("only torch.export traces it")
    symbolic, export = (groups_of(zoo.by(capture), zoo.model) for capture in CAPTURES)
    assert symbolic == export
