"""A small part of the field, checked as the zoo does; each is skipped where its package is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import field
import pytest

from fxprune.certify.zoo import check, table
from fxprune.certify.zoo.result import EXCLUDED

TABLE = table.read(Path(__file__).parents[1] / "zoo.csv")

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


def test_the_table_holds_the_field() -> None:
    rows = [TABLE.get(f"field:{name}") for name in field.__all__]
    assert len(rows) >= 60
    assert [name for name, row in zip(field.__all__, rows, strict=True) if row is None] == []


def test_none_of_the_field_is_silently_wrong() -> None:
    rows = [row for row in TABLE.values() if row.model.startswith("field:")]
    wrong = [r.model for r in rows if "WRONG" in r.batches + r.sizes + r.copies]
    inexact = [r.model for r in rows if r.certificate is not None and r.certificate > 1e-8]
    assert wrong == []
    assert inexact == []


def test_almost_all_of_the_field_has_nothing_to_complain_about() -> None:
    rows = [r for r in TABLE.values() if r.model.startswith("field:") and r.outcome != EXCLUDED]
    assert sum(r.sound for r in rows) / len(rows) > 0.95
