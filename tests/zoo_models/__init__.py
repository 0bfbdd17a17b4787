"""Models that no name builds: small configurations, one factory without arguments each.

`fxprune.certify.zoo` takes them as `zoo_models:hf_beit`, or all of them as `zoo_models:*`.
"""

from zoo_models import hugging_face, torchvision_parts, vit_pytorch_models

_MODELS = {**hugging_face.MODELS, **vit_pytorch_models.MODELS, **torchvision_parts.MODELS}
globals().update(_MODELS)
__all__ = sorted(_MODELS)
