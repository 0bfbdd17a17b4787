"""Random small vision transformers of the parts that occur in real ones: each must keep the contract.

30 networks by default, 60 others as a slow test; `FXPRUNE_NETWORKS=2000 pytest tests/test_random_networks.py`
tries more, others in every run.  A failing example prints the `Network` that it is.
"""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass

import pytest
import torch
from exactness import (
    TOLERANCE,
    assert_exact,
    assert_runs,
    assert_slices,
    certificate,
    groups_of,
)
from helpers import assert_same, run, tensors_of
from hypothesis import HealthCheck, currently_in_test_context, given, note, settings
from hypothesis import strategies as st
from random_networks import Network, alone, networks
from random_networks.spec import Brief
from torch import Tensor, fx, nn

import fxprune
from fxprune.compiler import prune_analyzed

NETWORKS = int(os.environ.get("FXPRUNE_NETWORKS", "30"))


@dataclass(frozen=True, repr=False)
class Options(Brief):
    """How a network is pruned, and which of the slow questions are asked."""

    ratio: float = 0.5
    attention: str = "auto"
    round_to: int = 1
    training: bool = False
    no_op: bool = False  # at a ratio of 0
    public: bool = False  # by the public calls, each with a capture of its own
    export: bool = False  # captured by torch.export too


options = st.builds(
    Options,
    ratio=st.sampled_from([0.5, 0.25, 0.75, 0.9]),
    attention=st.sampled_from(["auto", "heads", "head_dim"]),
    round_to=st.sampled_from([1, 1, 2, 4]),
    training=st.booleans(),
    no_op=st.booleans(),
    public=st.sampled_from([*[False] * 7, True]),
    export=st.sampled_from([*[False] * 15, True]),
)


def asked_of(count: int) -> settings:
    """Settings for so many networks, the same in every run if they are few."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, derandomize=count <= 100, suppress_health_check=checks)


@asked_of(NETWORKS)
@given(network=networks(), options=options)
def test_a_random_network_keeps_the_contract(network: Network, options: Options) -> None:
    assert_contract(network, options)


@pytest.mark.slow
@asked_of(2 * NETWORKS)
@given(network=networks(), options=options)
def test_more_random_networks_keep_the_contract(network: Network, options: Options) -> None:
    assert_contract(network, options)


@pytest.mark.slow
@pytest.mark.parametrize("network", alone(), ids=str)
def test_each_part_alone_keeps_the_contract(network: Network) -> None:
    assert_contract(network, Options(no_op=True, public=True, export=True))


def assert_contract(network: Network, options: Options) -> None:
    model, x = network.build().train(options.training), network.images()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    analysis = fxprune.analyze(model, example_inputs=x, capture="symbolic")
    tell(analysis)

    assert not analysis.missing
    if not analysis.prunable:  # a width that is returned, and nothing beside it
        assert not network.embedding_shrinks
        return
    how = {"attention": options.attention, "round_to": options.round_to}
    pruned = prune_analyzed(model, analysis, options.ratio, **how)
    tell(pruned.code)
    assert certificate(model, pruned, analysis) <= TOLERANCE
    assert_slices(model, pruned)
    assert pruned.training == options.training
    assert_shrinks(network, pruned, options)
    if options.no_op:
        assert_no_op(model, prune_analyzed(model, analysis, 0.0), x)
    assert_gradients(model, pruned, x)
    assert_runs(pruned.eval(), 5)
    assert_untouched(model, before, options.training)  # not by the uses of the results either
    if options.public:
        assert_by_the_public_calls(model.eval(), x, pruned, options)
    if options.export:
        exported = fxprune.analyze(model, example_inputs=x, capture="export")
        assert groups_of(exported, model) == groups_of(analysis, model)
        from_export = prune_analyzed(model, exported, options.ratio, **how)
        assert certificate(model, from_export, exported) <= TOLERANCE


def tell(what: object) -> None:
    """Printed for the smallest failing example alone."""
    if currently_in_test_context():
        note(str(what))


def assert_untouched(model: nn.Module, before: dict[str, Tensor], training: bool) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert all(module.training == training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def assert_shrinks(network: Network, pruned: fx.GraphModule, options: Options) -> None:
    """Exactness alone would hold if nothing were ever cut."""
    left, whole = pruned.get_parameter(embedding(network)).shape[0], network.embed
    # Of 4 heads x 3, two thirds stay where three quarters are asked for.
    sizes = [kept.size for kept in pruned.record.plan.groups.values() if whole % kept.size == 0]
    least = min(math.floor(n * (1 - options.ratio)) / n for n in (whole, *sizes))
    assert least * whole <= left <= whole
    if network.embedding_shrinks and options.round_to == 1 and options.ratio >= 0.5:
        assert left < whole


def embedding(network: Network) -> str:
    return "stem.proj.3.weight" if network.stem == "convolutions" else "stem.proj.weight"


def assert_no_op(model: nn.Module, whole: fx.GraphModule, x: Tensor) -> None:
    """At a ratio of 0, in either mode, and with the same random numbers."""
    clone = copy.deepcopy(model)
    for mode in (False, True):
        assert_same(run(whole.train(mode), x), run(clone.train(mode), x), 1e-4)


def assert_gradients(model: nn.Module, pruned: fx.GraphModule, x: Tensor) -> None:
    """The backward pass reaches every parameter that the original's reaches."""
    reached = []
    for module in (copy.deepcopy(model), copy.deepcopy(pruned)):
        torch.manual_seed(0)
        sum(t.square().sum() for t in tensors_of(module(x))).backward()
        named = module.named_parameters(remove_duplicate=False)
        reached.append({name for name, p in named if p.grad is not None})
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    assert reached[0] == reached[1]


def assert_by_the_public_calls(model: nn.Module, x: Tensor, pruned: fx.GraphModule, options: Options) -> None:
    again = fxprune.prune(
        model, options.ratio, example_inputs=x, attention=options.attention, round_to=options.round_to
    )
    assert_exact(model, again, 1, 3)
    assert_same(run(again, x), run(pruned, x), 1e-5)
