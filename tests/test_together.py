"""Everything that prunes, with everything that looks at the result: saved, loaded, reported, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same, images, parameter_count, run, small_vit
from torch import nn

import fxprune

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "depth": {"depth": 0.3},
    "depth in steps": {"depth": 0.3, "steps": 2},
    "blocks only": {"ratio": 0.0, "depth": 0.5, "unit": "block"},
    "depth and macs": {"depth": 0.3, "target": "macs"},
    "merged heads": {"attention": "merge"},
    "split": {"split_qkv": True, "attention": "head_dim"},
    "like": {"like": lambda: small_vit(embed_dim=24, depth=2, num_heads=2)},
    "global": {"scope": "global", "target": "params"},
}


@pytest.fixture(scope="module", params=WAYS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """A model and what became of it; no test changes either."""
    model = small_vit(depth=4)
    options = {"ratio": 0.5} | WAYS[request.param]
    if "like" in options:
        options["like"] = options["like"]()
    return model, fxprune.prune(model, example_inputs=images(), **options)


def test_it_is_certified_reported_and_drawn(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    model, pruned = pair
    assert fxprune.verify(model, pruned) < 1e-8
    found = fxprune.report(model, pruned)
    assert found.parameters == (parameter_count(model), parameter_count(pruned))
    assert 0 < found.macs[1] < found.macs[0]
    for group in found.groups:
        assert 0 < group.parameters[1] <= group.parameters[0]
    fxprune.draw(model, tmp_path / "both.html", pruned=pruned, example_inputs=images())
    fxprune.draw(pruned, tmp_path / "alone.html")


def test_it_comes_back_from_a_folder(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    _, pruned = pair
    fxprune.save(pruned, tmp_path / "saved")
    with torch.device("meta"):
        outline = small_vit(depth=4)
    loaded = fxprune.load(tmp_path / "saved", model=outline)
    assert_same(run(loaded, images(3)), run(pruned, images(3)), tolerance=0)
