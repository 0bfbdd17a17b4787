"""The certificate finds what is wrong: of results spoilt in many ways, none passes for the right one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from exactness import certificate
from hard_modules import CASES
from helpers import (
    CAPTURES,
    images,
    randomise,
    small_conv,
    small_hf_vit,
    small_swin,
    small_torchvision_vit,
    small_vit,
)
from torch import Tensor, fx, nn

import fxprune
from fxprune.certify.certificate import certified
from fxprune.certify.comparison import Comparison
from fxprune.certify.mutants import survivors, without_a_guard
from fxprune.certify.weights import PlannedWeights
from fxprune.compiler import prune_analyzed
from fxprune.graph.example import seeded_noise
from fxprune.graph.op_names import op_name
from fxprune.graph.own_nodes import is_guard
from fxprune.graph.tensors import tensor_at
from fxprune.result.selection import Selection

MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "vit": (small_vit, images()),
    "swin": (small_swin, images()),
    "hugging face": (small_hf_vit, images()),
    "torchvision": (small_torchvision_vit, images(size=224)),
    "conv": (small_conv, images()),
}
MODELS |= {case.name: (case.model, case.inputs) for case in CASES[::4]}
SAME_SHAPE = {"gelu", "relu", "silu", "tanh", "sigmoid", "layer_norm", "softmax", "hardswish", "batch_norm"}
SIZES = {"reshape", "view", "unflatten", "chunk", "split", "expand", "_unsafe_view"}
# The families' models in both captures, the cases in one capture each.
BY_CAPTURE = [(name, capture) for name in list(MODELS)[:5] for capture in CAPTURES]
BY_CAPTURE += [(case.name, case.captures[i % len(case.captures)]) for i, case in enumerate(CASES[::4])]
EACH = 2  # mutants of a kind for a model


class Setting:
    """A model with its analysis and its result, of which mutants are copies."""

    def __init__(self, name: str, capture: str) -> None:
        make, self.inputs = MODELS[name]
        self.model = make().eval()
        self.analysis = fxprune.analyze(self.model, example_inputs=self.inputs, capture=capture)
        self.pruned = prune_analyzed(self.model, self.analysis, 0.5)

    def error_of(self, mutant: fx.GraphModule) -> float:
        """The certificate of a mutant; inf where it does not run."""
        try:
            return certificate(self.model, mutant, self.analysis)
        except Exception:
            return float("inf")


@cache
def setting(name: str, capture: str) -> Setting:
    return Setting(name, capture)


def some(values: list[Any]) -> list[Any]:
    """One in the middle, and the last."""
    return values if len(values) <= EACH else [values[len(values) // 2], values[-1]]


def edited(pruned: fx.GraphModule, edit: Callable[[Tensor], None], name: str) -> fx.GraphModule:
    mutant = copy.deepcopy(pruned)
    with torch.no_grad():
        edit(tensor_at(mutant, name))
    return mutant


def weights(s: Setting) -> list[str]:
    """Those that were cut, and hold several numbers."""
    kept = fxprune.plan_of(s.pruned).kept
    present = dict(s.pruned.named_parameters())
    return [name for name in kept if name in present and present[name].numel() > 1]


def a_sign(s: Setting) -> Iterator[fx.GraphModule]:
    for name in some(weights(s)):
        yield edited(s.pruned, lambda t: t.neg_(), name)


def one_element(s: Setting) -> Iterator[fx.GraphModule]:
    for name in some(weights(s)):
        yield edited(s.pruned, lambda t: t.view(-1)[t.numel() // 2].add_(1e-3), name)


def two_channels_swapped(s: Setting) -> Iterator[fx.GraphModule]:
    for name in some(weights(s)):
        dim = next(d for d, k in enumerate(fxprune.plan_of(s.pruned).kept[name]) if k is not None)
        if s.pruned.get_parameter(name).shape[dim] > 1:
            yield edited(s.pruned, lambda t, d=dim: t.copy_(t.roll(1, d)), name)


def another_slice(s: Setting) -> Iterator[fx.GraphModule]:
    """One of several coupled tensors keeps another element in place of one."""
    state = s.model.state_dict()
    for name in some(weights(s)):
        kept = list(fxprune.plan_of(s.pruned).kept[name])
        dim = next(d for d, k in enumerate(kept) if k is not None)
        removed = sorted({*range(state[name].shape[dim])} - {*kept[dim].tolist()})
        kept[dim] = torch.cat([kept[dim][:-1], torch.tensor(removed[:1])])
        wrong = state[name]
        for d, indices in enumerate(kept):
            wrong = wrong if indices is None else wrong.index_select(d, indices)
        yield edited(s.pruned, lambda t, w=wrong: t.copy_(w), name)


def nodes_of(graph: fx.Graph, root: nn.Module, names: set[str]) -> list[int]:
    """Where in a graph ops of these names stand."""
    return [i for i, n in enumerate(graph.nodes) if _op(n, root) in names]


def _op(node: fx.Node, root: nn.Module) -> str:
    if node.op == "call_module":
        name = type(root.get_submodule(str(node.target))).__name__
        return {"LayerNorm": "layer_norm", "BatchNorm2d": "batch_norm"}.get(name, name.lower())
    return op_name(node.target) if node.op.startswith("call") else node.op


def changed_graph(s: Setting, place: int, change: Callable[[fx.Node], bool]) -> Iterator[fx.GraphModule]:
    mutant = copy.deepcopy(s.pruned)
    if change([*mutant.graph.nodes][place]):
        mutant.recompile()
        yield mutant


def a_size(s: Setting) -> Iterator[fx.GraphModule]:
    """A number that a call spells is another one."""

    def change(node: fx.Node) -> bool:
        spelled = [(i, a) for i, a in enumerate(node.args) if i and isinstance(a, (int, tuple, list))]
        for i, a in spelled:
            sizes = list(a) if isinstance(a, (tuple, list)) else [a]
            at = next((j for j, n in enumerate(sizes) if type(n) is int and n > 1), None)
            if at is not None:
                sizes[at] += 1
                node.update_arg(i, type(a)(sizes) if isinstance(a, (tuple, list)) else sizes[0])
                return True
        return False

    for place in some(nodes_of(s.pruned.graph, s.pruned, SIZES)):
        yield from changed_graph(s, place, change)


def a_dropped_guard(s: Setting) -> Iterator[fx.GraphModule]:
    def change(node: fx.Node) -> bool:
        node.graph.erase_node(node)
        return True

    for place in some([i for i, n in enumerate(s.pruned.graph.nodes) if is_guard(n)]):
        yield from changed_graph(s, place, change)


def a_dropped_node(s: Setting) -> Iterator[fx.GraphModule]:
    def change(node: fx.Node) -> bool:
        node.replace_all_uses_with(node.all_input_nodes[0])
        node.graph.erase_node(node)  # it may work in place
        return True

    for place in some(nodes_of(s.pruned.graph, s.pruned, SAME_SHAPE)):
        yield from changed_graph(s, place, change)


def another_eps(s: Setting) -> Iterator[fx.GraphModule]:
    paths = [name for name, m in s.pruned.named_modules() if getattr(m, "eps", None)]
    used = {n.target for n in s.pruned.graph.nodes if n.op == "call_module"}
    for path in some([p for p in paths if p in used]):
        mutant = copy.deepcopy(s.pruned)
        mutant.get_submodule(path).eps += 1e-3
        yield mutant


MUTATIONS = [
    *(a_sign, one_element, two_channels_swapped, another_slice),
    *(a_size, a_dropped_guard, a_dropped_node, another_eps),
]


@pytest.mark.parametrize(("name", "capture"), BY_CAPTURE)
def test_mutants_are_found(name: str, capture: str) -> None:
    s = setting(name, capture)
    assert certificate(s.model, s.pruned, s.analysis) <= 1e-8
    made = {mutate.__name__: [*mutate(s)] for mutate in MUTATIONS}
    survivors = {k: sum(s.error_of(m) <= 1e-8 for m in mutants) for k, mutants in made.items()}
    assert not any(survivors.values()), survivors
    assert made["a_sign"]


@pytest.mark.slow
def test_weights_are_no_part_of_how_structure_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs alone tell of wrong weights too."""
    monkeypatch.setattr(PlannedWeights, "changed", lambda self, pruned: {})
    for name in ("vit", "swin", "conv"):
        s = setting(name, "symbolic")
        for mutate in (a_sign, one_element, two_channels_swapped, another_slice):
            assert all(s.error_of(mutant) > 1e-8 for mutant in mutate(s)), (name, mutate.__name__)


def comparison(s: Setting) -> Comparison:
    """One that holds."""
    example = seeded_noise(s.pruned.record.example, s.model).with_batch(3)
    selection = Selection.from_plan(s.analysis, fxprune.plan_of(s.pruned))
    made = Comparison(s.model, s.pruned, s.analysis, selection)
    assert certified(made, example).exact
    return made


@pytest.mark.parametrize("name", ["vit", "hugging face", "conv"])
def test_what_the_zoo_asks_of_every_certificate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing survives; a certificate that looks away is told on, whichever part of it does."""
    s = setting(name, "symbolic")
    before = {key: t.clone() for key, t in s.pruned.state_dict().items()}
    made = comparison(s)
    assert survivors(made) == []
    assert all(torch.equal(t, before[key]) for key, t in s.pruned.state_dict().items())

    with monkeypatch.context() as blind:
        blind.setattr(PlannedWeights, "changed", lambda self, pruned: {})
        assert [words for words in survivors(made) if "no slices" in words]
    with monkeypatch.context() as blind:
        look = made.look(made.first[0])  # type: ignore[index]
        blind.setattr(made, "look", lambda example: look)
        words = survivors(made)
        assert len(words) == 2
        assert words[0].endswith(" spoilt") and words[1].startswith("another slice of ")


class UnderTwoNames(nn.Module):
    """Every layer is held by a list as well, as nets that nest their levels do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 4)
        self.levels = nn.ModuleList([self.up, self.norm, self.down])

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x)).relu())


def test_a_spoilt_layer_is_told_under_all_its_names() -> None:
    model, x = randomise(UnderTwoNames()).eval(), torch.randn(3, 6)
    analysis = fxprune.analyze(model, example_inputs=x)
    pruned = prune_analyzed(model, analysis, 0.5)
    made = Comparison(model, pruned, analysis, Selection.from_plan(analysis, fxprune.plan_of(pruned)))
    assert certified(made, seeded_noise(pruned.record.example, model).with_batch(3)).exact
    assert survivors(made) == []


def test_a_guard_that_is_left_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    s = setting("swin", "symbolic")
    assert any(is_guard(node) for node in s.pruned.graph.nodes)
    guards = len(s.pruned.graph.nodes)
    assert not without_a_guard(s.pruned, s.analysis)
    assert len(s.pruned.graph.nodes) == guards
    monkeypatch.setattr("fxprune.certify.mutants.refuse_missing_guards", lambda *given: None)
    assert without_a_guard(s.pruned, s.analysis)


def test_every_kind_of_mutant_is_made() -> None:
    s = setting("swin", "symbolic")
    assert all([*mutate(s)] for mutate in MUTATIONS)
