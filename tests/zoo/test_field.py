"""A small part of the field, checked as the zoo does; each is skipped where its package is missing."""

from __future__ import annotations

import importlib.util

import pytest

from fxprune.zoo import check

# A few quick ones, by the package that they need.
QUICK = {
    "hf_audio_spectrogram": "transformers",
    "hf_videomae": "transformers",
    "open_clip_vit_pair": "open_clip",
    "monai_unetr_2d": "monai",
    "smp_linknet": "segmentation_models_pytorch",
    "kornia_vit": "kornia",
    "diffusers_autoencoder_tiny": "diffusers",
    "x_transformers_images": "x_transformers",
}


@pytest.mark.parametrize("name", QUICK)
def test_certified_with_nothing_to_complain_about(name: str) -> None:
    if importlib.util.find_spec(QUICK[name]) is None:
        pytest.skip(f"{QUICK[name]} is not installed (pip install '.[field]')")
    row = check(f"field:{name}")
    assert row.passed, row.note
    assert row.complaint == ""
    assert "WRONG" not in row.batches + row.sizes + row.copies
