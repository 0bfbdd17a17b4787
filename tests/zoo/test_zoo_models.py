"""The libraries' models as the zoo takes them: none left out, a sample of them checked as the zoo does."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch
import vit_pytorch
from torch import nn
from zoo_models import vit_pytorch_models as small

from fxprune.certify.zoo import check, table
from fxprune.certify.zoo.result import EXCLUDED
from fxprune.result.saved import model_specs

TABLE = Path(__file__).parents[1] / "zoo.csv"
# A list of images, packed into sequences whose lengths it reads from the values of a mask.
OPEN = ["zoo_models:vit_pytorch_na_vit"]
# Parts of models that are listed themselves.
PARTS = {"cct.TransformerClassifier", "cct_3d.TransformerClassifier"}
# Those with a factory of their own.
SPECIAL = {"learnable_memory_vit.Adapter", "efficient.ViT", "na_vit.NaViT", "normalized_vit.nViT"}
SPECIAL |= {"vaat.AST", "vaat.ViT"}


def class_conditional() -> set[str]:
    """Every class of the package that is told a number of classes, as `module.Class`."""
    found = set()
    for info in pkgutil.iter_modules(vit_pytorch.__path__):
        try:
            module = importlib.import_module(f"vit_pytorch.{info.name}")
        except ModuleNotFoundError:  # torchaudio, which this release asks for in one file
            continue
        for name, cls in inspect.getmembers(module, inspect.isclass):
            own = cls.__module__ == module.__name__ and issubclass(cls, nn.Module)
            if own and "num_classes" in inspect.signature(cls.__init__).parameters:
                found.add(f"{info.name}.{name}")
    return found


def test_no_class_conditional_model_of_vit_pytorch_is_left_out() -> None:
    listed = {path for path, *_ in small.ROWS.values()} | SPECIAL
    assert class_conditional() - PARTS <= listed


@pytest.mark.parametrize("name", small.REFUSED)
def test_torch_export_itself_refuses(name: str) -> None:
    model, args = small.refused(name)
    with torch.no_grad():
        assert model(*args).shape == (2, 10)
    with pytest.raises(Exception, match=small.REFUSED[name]):
        torch.export.export(model, args, strict=False)


@pytest.mark.parametrize(
    "name",
    [
        "hf_dinov2_backbone",  # hooks of the library's own
        "hf_dinov3_vit",  # no register tokens
        "hf_hiera",  # queries pooled by a maximum
        "hf_segformer",  # any image size
        "vit_pytorch_simple_vit_fft",
        "torchvision_lraspp_mobilenet_v3_large_backbone",
    ],
)
def test_certified(name: str) -> None:
    result = check(f"zoo_models:{name}")
    assert result.outcome == "certified", result.note
    assert result.params_left is not None and result.params_left < 0.7


def test_the_table_holds_every_model() -> None:
    rows = table.read(TABLE)
    specs = [*model_specs.expand("torchvision:*"), *model_specs.expand("zoo_models:*")]
    assert [s for s in specs if s not in rows] == []
    assert [s for s in specs if not rows[s].passed and rows[s].outcome != EXCLUDED] == OPEN
