"""The field: models of packages that pip installs, as their users build them, in small configurations.

The zoo takes them as `field:monai_unetr`, or all of them as `field:*`.  A package is imported when one
of its models is built.
"""

from field import (
    diffusion,
    geometry,
    medical,
    pairs,
    pictures,
    restoration,
    segmentation,
    sequences,
    texts,
)
from field.row import Row

MODELS: dict[str, Row] = {
    **diffusion.MODELS,
    **geometry.MODELS,
    **medical.MODELS,
    **pairs.MODELS,
    **pictures.MODELS,
    **restoration.MODELS,
    **segmentation.MODELS,
    **sequences.MODELS,
    **texts.MODELS,
}
globals().update(MODELS)
__all__ = sorted(MODELS)
