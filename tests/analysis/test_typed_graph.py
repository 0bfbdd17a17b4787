"""What the stages of an analysis hand on is data: frozen, resolved, and read by public names."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import fxprune
from fxprune.analysis.groups import build_groups
from fxprune.analysis.infer import infer
from fxprune.capture.trace import capture_model, example_of
from fxprune.rules.axes import atoms_of
from fxprune.rules.registry import DEFAULT_RULES

ROOT = Path(fxprune.__file__).parent / "analysis"


class Latents(nn.Module):
    """Learned tokens: what freezes them is known only once the groups are built."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(6, 12))
        self.fc1, self.fc2 = nn.Linear(12, 20), nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.latents + self.fc1.weight.mean() * x.mean()
        return self.fc2(self.fc1(y).relu()).mean(0)


def small_vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=2, num_classes=5
    )


@pytest.fixture(scope="module")
def analysis() -> fxprune.Analysis:
    return fxprune.analyze(small_vit())


def test_nothing_of_an_analysis_can_be_set(analysis: fxprune.Analysis) -> None:
    for fact in (analysis, analysis.graph, analysis.groups[0], next(iter(analysis.steps.values()))):
        for name in (field.name for field in dataclasses.fields(fact)):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(fact, name, None)


def test_groups_refer_to_each_other_and_to_no_stranger(analysis: fxprune.Analysis) -> None:
    own = set(analysis.groups)
    linked = [g for g in analysis.groups if g.inside or g.outer or g.inner]
    assert linked
    for group in linked:
        assert {*group.outer, *group.inner, *([group.inside] if group.inside else [])} <= own
        assert all(group in outer.inner for outer in group.outer)
        assert all(group in inner.outer for inner in group.inner)


def test_a_renamed_analysis_keeps_its_links_and_leaves_the_other_alone(analysis: fxprune.Analysis) -> None:
    heads = next(g for g in analysis.groups if g.role == "heads" and g.frozen is None)
    other = analysis.renamed({heads: "mine"})
    assert [g.name for g in analysis.groups if g is not heads] == [
        g.name for g in other.groups if g.name != "mine"
    ]
    mine = other.by_atom[heads.atom]
    assert mine.name == "mine" and heads.name != "mine"
    assert {g.atom for g in mine.inner} == {g.atom for g in heads.inner}
    assert all(mine in g.outer and heads not in g.outer for g in mine.inner)


def test_axes_are_resolved(analysis: fxprune.Analysis) -> None:
    """Inference once more, with its solver at hand, finds nothing that is left to solve."""
    found = infer(analysis.captured, DEFAULT_RULES)
    for node, values in analysis.axes.items():
        wanted = [[axis.size for axis in axes] for axes in found.axes_of(node)]
        assert [[axis.size for axis in axes] for axes in values] == wanted
    carried = {a for values in analysis.axes.values() for axes in values for x in axes for a in atoms_of(x)}
    carried |= {a for axes in analysis.weights.values() for x in axes for a in atoms_of(x)}
    for step in analysis.steps.values():
        reduced = {a for axis in step.flow.reduced for a in atoms_of(axis)}
        assert reduced <= carried | {a for a in reduced if a.size == 1}


def test_building_groups_changes_nothing_in_the_graph() -> None:
    model = Latents()
    analysis = fxprune.analyze(model, example_inputs=torch.randn(2, 5))
    tokens = analysis.group_of("latents[0]")[0]
    assert tokens.frozen is not None and tokens.frozen.kind == "tokens"
    assert analysis.frozen(tokens.atom) is tokens.frozen
    assert analysis.graph.frozen(tokens.atom) is None  # the rules alone say nothing of it
    before = dict(analysis.graph.reasons)
    again = build_groups(analysis.graph)
    assert dict(analysis.graph.reasons) == before
    assert [(g.name, g.sites, g.frozen) for g in again] == [
        (g.name, g.sites, g.frozen) for g in analysis.groups
    ]


def test_inference_leaves_what_was_captured_alone() -> None:
    model = small_vit()
    captured = capture_model(model, example_of(model, None, None))
    metas = [dict(node.meta) for node in captured.module.graph.nodes]
    infer(captured, DEFAULT_RULES)
    assert [dict(node.meta) for node in captured.module.graph.nodes] == metas


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")), ids=lambda path: path.stem)
def test_no_private_member_is_read_across_modules(path: Path) -> None:
    found = []
    tree = ast.parse(path.read_text())
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fxprune"):
            found += [alias.name for alias in node.names if alias.name.startswith("_")]
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not of_self and node.attr not in own:
                found.append(ast.unparse(node))
    assert not found
