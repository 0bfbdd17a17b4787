"""What `analyze` finds, prints and explains; and that both captures find the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import torch
from helpers import (
    images,
    mlp,
    randomise,
    small_conv,
    small_swin,
    small_torchvision_vit,
    small_vit,
)
from torch import Tensor, nn

import fxprune
from fxprune.analysis.freedom.regions import Freedom
from fxprune.errors import OptionError

FC1, FC2 = "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"


# ---------------------------------------------------------------- groups


def test_the_groups_of_a_vision_transformer(vit_analysis: fxprune.Analysis) -> None:
    found = {group.name: (group.size, group.role) for group in vit_analysis.prunable}
    assert found == {
        "embed": (48, "embed"),
        "blocks.0.attn.heads": (4, "heads"),
        "blocks.0.attn.head_dim": (12, "head_dim"),
        "blocks.0.mlp.hidden": (192, "hidden"),
        "blocks.1.attn.heads": (4, "heads"),
        "blocks.1.attn.head_dim": (12, "head_dim"),
        "blocks.1.mlp.hidden": (192, "hidden"),
    }
    (hidden,) = (g for g in vit_analysis.groups if g.name == "blocks.0.mlp.hidden")
    assert {str(site) for site in hidden.sites} == {f"{FC1}[0]", "blocks.0.mlp.fc1.bias[0]", f"{FC2}[1]"}


def test_group_names_are_unique(vit_analysis: fxprune.Analysis) -> None:
    names = [group.name for group in vit_analysis.groups]
    assert len(names) == len(set(names))


def test_a_dimension_is_made_of_its_groups(vit_analysis: fxprune.Analysis) -> None:
    qkv = [group.name for group in vit_analysis.group_of("blocks.0.attn.qkv.weight[0]")]
    assert qkv[1:] == ["blocks.0.attn.heads", "blocks.0.attn.head_dim"]
    assert vit_analysis.group_of("blocks.0.attn.qkv.weight[0]")[0].frozen is not None  # the three
    assert [g.name for g in vit_analysis.group_of("cls_token[2]")] == ["embed"]
    assert vit_analysis.group_of(fxprune.Site("cls_token", 2)) == vit_analysis.group_of("cls_token[2]")


def test_what_reaches_the_output_is_frozen_and_says_so(vit_analysis: fxprune.Analysis) -> None:
    (classes,) = vit_analysis.group_of("head.weight[0]")
    assert classes.role == "output"
    assert "reaches the output" in str(classes.frozen)


def test_outputs_that_are_features_shrink_when_asked_to() -> None:
    model, x = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 8)), torch.randn(2, 6)
    kept = fxprune.analyze(model, example_inputs=x)
    free = fxprune.analyze(model, example_inputs=x, outputs="prune")
    assert [g.frozen is None for g in kept.group_of("2.weight[0]")] == [False]
    assert [g.frozen is None for g in free.group_of("2.weight[0]")] == [True]
    pruned = fxprune.prune(model, 0.5, example_inputs=x, outputs="prune")
    assert pruned(x).shape == (2, 4)
    assert fxprune.verify(model, pruned) < 1e-8


@pytest.mark.parametrize(
    "site", ["blocks.0.mlp.fc9.weight[0]", "head.weight[2]", "head.weight[-1]", "head.weight[x]"]
)
def test_a_dimension_that_there_is_not(vit_analysis: fxprune.Analysis, site: str) -> None:
    with pytest.raises(OptionError, match=re.escape(site.partition("[")[0])):
        vit_analysis.group_of(site)


# ---------------------------------------------------------------- print


def test_it_prints_as_a_table(vit_analysis: fxprune.Analysis) -> None:
    header, *rows, summary = str(vit_analysis).splitlines()
    assert header.split() == ["group", "size", "role", "sites", "freedom"]
    assert len(rows) == len(vit_analysis.groups)
    for row, group in zip(rows, vit_analysis.groups, strict=True):
        name, size, role, sites, freedom, *why = row.split(maxsplit=5)
        assert (name, size, role, sites) == (group.name, str(group.size), group.role, str(len(group.sites)))
        assert freedom == str(group.freedom)
        assert why == ([group.why] if group.freedom is not Freedom.ANY else [])
        if group.frozen is not None:
            assert freedom == "none" and why[0].startswith(f"frozen: {group.frozen.text}")
    assert summary == f"{len(rows)} groups, {len(vit_analysis.prunable)} can shrink (symbolic capture)"


def test_the_columns_line_up(vit_analysis: fxprune.Analysis) -> None:
    header, *rows, _ = str(vit_analysis).splitlines()
    for column in ("size", "role", "sites", "freedom"):
        at = header.index(column)
        assert all(row[at - 1] == " " and row[at] != " " for row in rows)


def test_frozen_reasons_name_the_users_line() -> None:
    class Softmax(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.fc1(x).softmax(-1))

    for capture in ("symbolic", "export"):
        table = str(fxprune.analyze(Softmax(), example_inputs=torch.randn(2, 6), capture=capture))
        assert re.search(r"16 .*frozen: .*softmax.*\(test_analysis\.py:\d+\)", table), table


# ---------------------------------------------------------------- the graph


def test_it_becomes_a_networkx_graph(vit_analysis: fxprune.Analysis) -> None:
    graph = vit_analysis.to_networkx()
    assert isinstance(graph, nx.Graph)
    for group in vit_analysis.groups:
        attributes = graph.nodes[group.name]
        assert attributes["kind"] == "group"
        assert attributes["size"] == group.size
        assert bool(attributes["frozen"]) == (group.frozen is not None)
        for site in group.sites:
            assert graph.nodes[str(site)]["kind"] == "site"
            assert graph.edges[group.name, str(site)]["kind"] == "member"
    through = [g for _, _, g in graph.edges(data="group") if g is not None]
    assert set(through) <= {group.name for group in vit_analysis.groups}
    assert graph.edges["blocks_0_mlp_fc1", "blocks_0_mlp_act"]["kind"] == "carried"


def test_every_node_of_the_networkx_graph_has_a_kind(vit_analysis: fxprune.Analysis) -> None:
    kinds = {kind for _, kind in vit_analysis.to_networkx().nodes(data="kind")}
    assert None not in kinds


# ---------------------------------------------------------------- why


def test_why_a_layer_and_the_next_are_coupled(vit_analysis: fxprune.Analysis) -> None:
    chain = vit_analysis.why(f"{FC1}[0]", f"{FC2}[1]")
    assert chain[0] == f"{FC1}[0]"
    assert chain[-1] == f"{FC2}[1]"
    nodes = chain[1:-1]
    assert nodes[0] == "blocks_0_mlp_fc1"
    assert nodes[-1] == "blocks_0_mlp_fc2"
    assert "blocks_0_mlp_act" in nodes
    assert set(nodes) <= {node.name for node in vit_analysis.module.graph.nodes}
    assert vit_analysis.why(f"{FC2}[1]", f"{FC1}[0]") == chain[::-1]


def test_why_two_writers_of_the_residual_stream_are_coupled(vit_analysis: fxprune.Analysis) -> None:
    first, second = "blocks.0.mlp.fc2.weight[0]", "blocks.1.mlp.fc2.weight[0]"
    chain = vit_analysis.why(first, second)
    assert (chain[0], chain[-1]) == (first, second)
    added = [name for name in chain if re.fullmatch(r"add(_\d+)?", name)]
    assert len(added) >= 2
    assert not any("mlp_fc1" in name or "qkv" in name for name in chain)


def test_a_dimension_is_coupled_with_itself(vit_analysis: fxprune.Analysis) -> None:
    chain = vit_analysis.why(f"{FC1}[0]", f"{FC1}[0]")
    assert chain == [f"{FC1}[0]"]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (f"{FC1}[0]", f"{FC1}[1]"),
        (f"{FC1}[0]", "blocks.1.mlp.fc1.weight[0]"),
        ("head.weight[0]", "head.weight[1]"),
        ("blocks.0.attn.qkv.weight[0]", "blocks.1.attn.qkv.weight[0]"),
    ],
)
def test_no_chain_between_uncoupled_dimensions(vit_analysis: fxprune.Analysis, a: str, b: str) -> None:
    assert vit_analysis.why(a, b) == []


def test_why_by_the_second_name_of_a_tied_weight() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model[2].weight = model[0].weight
    analysis = fxprune.analyze(model, example_inputs=torch.randn(2, 8))
    assert analysis.group_of("0.weight[0]") == analysis.group_of("2.weight[0]")
    assert analysis.why("2.weight[0]", "4.weight[1]") != []


def test_every_coupled_pair_has_a_chain(vit_analysis: fxprune.Analysis) -> None:
    for group in vit_analysis.prunable:
        first, *others = group.sites
        for other in others:
            assert vit_analysis.why(first, other), (str(first), str(other))


# ---------------------------------------------------------------- both captures


class Gated(nn.Module):
    """A chunked gate, a concatenation, a shared norm."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 32), nn.Linear(16, 12)
        self.norm, self.side = nn.LayerNorm(12), nn.Linear(6, 8)
        self.out = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, dim=-1)
        y = self.norm(self.down(torch.sigmoid(a) * b))
        return self.out(torch.cat([y, self.side(x)], dim=-1))


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (mlp, torch.randn(2, 6)),
        (lambda: randomise(Gated()), torch.randn(2, 6)),
        (small_conv, images()),
        (lambda: small_vit(depth=1), images()),
        (lambda: small_vit(depth=1, qk_norm=True, init_values=0.1, global_pool="avg"), images()),
        (small_torchvision_vit, images(2, 224)),
        (small_swin, images()),
    ],
    ids=["mlp", "gated", "conv", "vit", "vit with qk norm", "torchvision vit", "swin"],
)
def test_both_captures_find_the_same_groups(build: Callable[[], nn.Module], x: Tensor) -> None:
    model = build()
    symbolic, export = (
        fxprune.analyze(model, example_inputs=x, capture=capture) for capture in ("symbolic", "export")
    )
    assert (symbolic.capture, export.capture) == ("symbolic", "export")
    assert groups_of(symbolic) == groups_of(export)


def groups_of(analysis: fxprune.Analysis) -> set[Any]:
    return {(frozenset(map(str, g.sites)), g.size, g.frozen is None) for g in analysis.groups}
