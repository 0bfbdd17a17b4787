"""The proof of what analyses say of freedom: random bases of each axis leave what a model computes the same.

Random networks, the smallest models of timm's families, and a part of the libraries' and of the field: the
dense model in other coordinates, in float64, against itself.  What a rule claims too much shows here.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import field  # noqa: F401  (its rows are built by name)
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from random_networks import Network, alone, networks
from torch import nn

import fxprune
from fxprune.analysis.analysis import Analysis
from fxprune.certify.zoo import table
from fxprune.certify.zoo.check import built
from fxprune.compiler.rebase import difference
from fxprune.passes.rebasing.change import changed_weights
from fxprune.passes.rebasing.random import random_bases

TOLERANCE = 1e-10
NETWORKS = int(os.environ.get("FXPRUNE_NETWORKS", "25"))
TABLE = table.read(Path(__file__).parent / "zoo.csv")


def assert_same_in_other_coordinates(analysis: Analysis, seed: int = 0) -> int:
    """Change every basis that may change; returns how many."""
    bases = random_bases(analysis, seed)
    for name in bases:  # those that are wrong by themselves are named
        assert bases[name].isfinite().all()
    if bases and not difference(analysis, changed_weights(analysis, bases)) < TOLERANCE:
        errors = {n: difference(analysis, changed_weights(analysis, {n: m})) for n, m in bases.items()}
        raise AssertionError(f"{errors}\n{analysis}")
    return len(bases)


@pytest.mark.slow
@settings(
    max_examples=NETWORKS,
    deadline=None,
    derandomize=NETWORKS <= 100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(network=networks())
def test_a_random_network(network: Network) -> None:
    analysis = fxprune.analyze(network.build(), example_inputs=network.images())
    note(str(analysis))
    assert_same_in_other_coordinates(analysis)


@pytest.mark.slow
@pytest.mark.parametrize("network", alone(), ids=str)
def test_each_part_alone(network: Network) -> None:
    for capture in ("symbolic", "export"):
        model = network.build()
        analysis = fxprune.analyze(model, example_inputs=network.images(), capture=capture)
        assert_same_in_other_coordinates(analysis)


# Each with the number of bases that must be free at least, or a rule has lost its law.
QUICK = {
    "timm:test_vit": 13,
    "timm:test_coatnet": 9,
    "timm:test_mambaout": 3,
    "timm:test_vit_relpos": 10,
    "timm:mobilevit_xxs": 12,
    "zoo_models:hf_beit_relative": 5,
    "zoo_models:hf_segformer": 10,
    "zoo_models:vit_pytorch_vit_5": 3,
    "zoo_models:vit_pytorch_rvt": 2,
    "zoo_models:vit_pytorch_wwt": 3,
}


@pytest.mark.parametrize("spec", QUICK)
def test_a_model_of_the_zoo(spec: str) -> None:
    assert assert_same_in_other_coordinates(fxprune.analyze(built(spec))) >= QUICK[spec]


def small() -> list[str]:
    """Every model of the table that is small enough to run in float64 in a moment."""
    return sorted(spec for spec, row in TABLE.items() if spec not in QUICK and 0 < (row.params or 0) < 6)


@pytest.mark.slow
@pytest.mark.parametrize("spec", small())
def test_every_small_model_of_the_zoo(spec: str) -> None:
    if importlib.util.find_spec(spec.partition(":")[0]) is None:
        pytest.skip("its package is not installed")
    try:
        model: nn.Module = built(spec)
        analysis = fxprune.analyze(model)
    except Exception as error:
        pytest.skip(f"it is not captured here: {error}")
    assert_same_in_other_coordinates(analysis)


def test_a_wrong_claim_would_show() -> None:
    analysis = fxprune.analyze(built("timm:test_vit"))
    bases = random_bases(analysis)
    weights = changed_weights(analysis, bases)
    name = next(n for n in weights if n.endswith("qkv.weight"))
    weights[name] = weights[name] + 1e-6 * torch.randn_like(weights[name])
    assert difference(analysis, weights) > TOLERANCE
