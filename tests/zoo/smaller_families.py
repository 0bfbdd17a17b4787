"""Smaller models of families whose smallest takes long: the same code of the same parts, fewer and narrower.

`smaller_families:NAME` names one, as `timm:NAME` does the model itself, which slow tests check.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import timm
from torch import nn

__all__ = ["SMALLER"]


@dataclass(frozen=True)
class Smaller:
    """How a model is made smaller.

    left: the share of parameters that is left at half of the channels.
    options: of timm's factory.
    alike: of layers that follow each other in a list and are of one class and shape, keep so many; None: all.
    size: of the images that it says it takes.
    taps: how many of the feature maps that it offers it is computed for; None: all.  The classifier follows.
    """

    left: float
    options: dict[str, Any] = field(default_factory=dict)
    alike: int | None = None
    size: int | None = None
    taps: int | None = None

    def build(self, name: str, **options: Any) -> nn.Module:
        model = timm.create_model(name, **self.options | options)
        if self.alike is not None:
            for module in model.modules():
                _shorten(module, self.alike)
        if self.taps is not None:
            model.prune_intermediate_layers([self.taps - 1])
            model.num_features = model.feature_info[self.taps - 1]["num_chs"]
            model.reset_classifier(model.num_classes or 10, "avg")
        if self.size is not None:
            model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, self.size, self.size)}
        return model


def _shorten(module: nn.Module, alike: int) -> None:
    if not isinstance(module, (nn.Sequential, nn.ModuleList)):
        return
    kept: list[nn.Module] = []
    for child in module:
        if not child.state_dict() or [*map(_outline, kept[-alike:])] != [_outline(child)] * alike:
            kept.append(child)
    module._modules = dict(zip([*module._modules][: len(kept)], kept, strict=True))


def _outline(module: nn.Module) -> Any:
    return type(module), [(name, t.shape) for name, t in module.state_dict().items()]


def _deep(**depths: Any) -> dict[str, Any]:
    return {"img_size": 64, **depths}


_NARROW: dict[str, Any] = {"depth": 2, "embed_dim": 192, "num_heads": 3}
_ONES = (1, 1, 1, 1)

SMALLER: dict[str, Smaller] = {
    "beit_base_patch16_224": Smaller(0.323, _NARROW),
    "samvit_base_patch16_224": Smaller(0.304, _NARROW | {"depth": 3, "global_attn_indexes": (2,)}),
    "qwen3_vit_88m": Smaller(0.786, {"depth": 2, "embed_dim": 96, "num_heads": 3}),
    "gemma4_vit_167m": Smaller(0.758, _NARROW),
    "deepseek_vit_412m": Smaller(0.556, _NARROW),
    "naflexvit_base_patch16_parfac_gap": Smaller(0.322, _NARROW),
    "vgg11": Smaller(0.299, {"mlp_ratio": 1 / 16}),
    "cait_xxs24_224": Smaller(0.292, _deep(depth=2), size=64),
    "coat_tiny": Smaller(0.279, _deep(serial_depths=_ONES, parallel_depth=1), size=64),
    "convit_tiny": Smaller(0.302, _deep(depth=3, local_up_to_layer=2), size=64),
    "convmixer_768_32": Smaller(0.363, alike=2, size=64),
    "crossvit_tiny_240": Smaller(0.353, {"depth": [[1, 1, 0]]}),
    "csatv2": Smaller(0.589, {"depths": (1, 1, 2, 2), "transformer_depths": (0, 0, 1, 1)}, size=256),
    "davit_tiny": Smaller(0.261, {"depths": _ONES}, size=64),
    "densenet121": Smaller(0.317, {"block_config": (2, 2, 2, 2)}, size=64),
    "efficientformer_l1": Smaller(0.283, {"depths": (1, 1, 1, 2)}),
    "efficientvit_m0": Smaller(0.290, {"depth": (1, 1, 1)}),
    "focalnet_tiny_srf": Smaller(0.268, alike=1, size=64),
    "halonet_h1": Smaller(0.274, alike=1, taps=3, size=128),
    "hiera_tiny_224": Smaller(0.274, {"stages": (1, 1, 2, 1)}),
    "iformer_t": Smaller(0.283, alike=1, size=64),
    "inception_resnet_v2": Smaller(0.273, alike=1, size=96),
    "inception_v4": Smaller(0.276, alike=1, size=96),
    "nasnetalarge": Smaller(0.268, taps=3, size=96),
    "nest_tiny": Smaller(0.307, alike=1),
    "repvit_m0_9": Smaller(0.320, {"depth": (1, 1, 2, 1)}, size=64),
    "rexnet_100": Smaller(0.354, {"depth_mult": 0.5}, size=64),
    "sam2_hiera_tiny": Smaller(0.386, {"stages": (1, 1, 2, 1), "global_att_blocks": (3,)}, size=128),
    "sequencer2d_s": Smaller(0.408, _deep(layers=_ONES), size=64),
    "swin_tiny_patch4_window7_224": Smaller(0.267, _deep(depths=(2, 1, 1, 1), window_size=4), size=64),
    "swinv2_cr_tiny_224": Smaller(0.267, _deep(depths=(2, 1, 1, 1)), size=64),
    "swinv2_tiny_window16_256": Smaller(0.267, _deep(depths=(2, 1, 1, 1), window_size=4), size=64),
    "tiny_vit_5m_224": Smaller(0.446, {"depths": _ONES}, size=64),
    "tnt_s_legacy_patch16_224": Smaller(0.273, _deep(depth=2), size=64),
    "tresnet_m": Smaller(0.305, {"layers": [*_ONES]}, size=64),
    "twins_svt_small": Smaller(0.266, _deep(depths=(2, 1, 1, 2)), size=64),
    "visformer_tiny": Smaller(0.286, _deep(depth=(1, 1, 1)), size=64),
    "vit_tiny_patch16_dinov3_qkvb": Smaller(0.573, _deep(depth=2), size=64),
    "vitamin_small_224": Smaller(0.282, _deep(depth=2), alike=1, size=64),
    "volo_d1_224": Smaller(0.276, _deep(), alike=1, size=64),
    "pnasnet5large": Smaller(0.268, taps=3, size=96),
    "mobilenetv5_base": Smaller(0.302, {"channel_multiplier": 0.25}, alike=1, size=128),
    "mvitv2_tiny": Smaller(0.262, _deep(), alike=1, size=64),
    "gcvit_xxtiny": Smaller(0.252, _deep(), taps=3, size=64),
    "xcit_nano_12_p16_224": Smaller(0.287, _deep(depth=2), size=64),
    "rdnet_tiny": Smaller(0.319, {"num_blocks_list": [1] * 7}, size=64),
    "efficientformerv2_s0": Smaller(0.292, _deep(depths=(1, 1, 2, 2)), size=64),
    "fastvit_t8": Smaller(0.345, {"layers": _ONES}, size=64),
    "hrnet_w18_small": Smaller(0.291, alike=1, size=64),
    "res2next50": Smaller(0.314, {"layers": [*_ONES]}, size=64),
    "repghostnet_050": Smaller(0.394, alike=1, size=64),
    "dpn48b": Smaller(0.352, {"k_sec": _ONES}, size=64),
    "shvit_s1": Smaller(0.278, {"depth": (1, 1, 1)}, size=96),
    "gmlp_ti16_224": Smaller(0.362, _deep(), alike=2, size=64),
    "levit_128s": Smaller(0.298, _deep(depth=(1, 1, 1)), size=64),
    "efficientvim_m1": Smaller(0.306, {"depths": (1, 1, 1)}, size=64),
    "ghostnet_050": Smaller(0.379, alike=1, size=64),
    "mobilevit_xxs": Smaller(0.340, alike=1, size=64),
    "cspnext_tiny": Smaller(0.287, {"deepen_factor": 0.05}, alike=1, size=64),
    "lowformer_b0": Smaller(0.302, alike=1, size=64),
    "pvt_v2_b0": Smaller(0.284, alike=1, size=64),
    "vit_tiny_r_s16_p8_224": Smaller(0.288, alike=1, size=64),
    # Whole, on smaller images: a certificate at another size than the model's own captures it once more.
    "inception_v3": Smaller(0.272, size=96),
    "legacy_seresnet18": Smaller(0.261, size=64),
    "legacy_xception": Smaller(0.275, size=64),
    "nextvit_small": Smaller(0.272, size=64),
    "poolformerv2_s12": Smaller(0.261, size=64),
    "resnest14d": Smaller(0.299, size=64),
    "resnetv2_18": Smaller(0.261, size=64),
    "selecsls42": Smaller(0.261, size=64),
    "skresnet18": Smaller(0.261, size=64),
    "xception41p": Smaller(0.272, size=64),
}


def __getattr__(name: str) -> functools.partial[nn.Module]:
    if name not in SMALLER:
        raise AttributeError(name)
    return functools.partial(SMALLER[name].build, name)
