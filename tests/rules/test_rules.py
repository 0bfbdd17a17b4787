"""Rules are validated by execution: slicing the operands of an op must be slicing its result.

Each case is a tiny model whose operands are parameters, so that every axis may shrink.  Whatever axes
the rule says are free get random kept elements; then the sliced model must return what the full-size op
returns for zero-masked operands, at the positions that are kept.  Of the same capture, every spelling of the
call is read alike.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tensors_of
from op_cases import CASES
from op_cases.case import DUMMY, Case, Probe, signed
from op_cases.spellings import assert_read_alike
from torch import Tensor, fx, nn

import fxprune
from fxprune import DEFAULT_RULES, Flow, RuleSet
from fxprune.certify.certificate import Certificate
from fxprune.certify.comparison import Comparison
from fxprune.graph.example import Example
from fxprune.graph.tensors import in_float64
from fxprune.passes.shrinking.shrink import shrink
from fxprune.result.selection import Selection
from fxprune.rules import Typed
from fxprune.rules.axes import Atom, atoms_of
from fxprune.rules.contractions import linear_axes

# Registered, and not run here: why.
NOT_RUN = {
    "cuda": "needs a GPU",
}


# ---------------------------------------------------------------- the check


class Carried(Probe):
    """The same, and each result meets a parameter of its own shape, whose axes may shrink as well."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        with torch.no_grad():
            self.met = self._parameters_for(super().forward(DUMMY))

    def _parameters_for(self, results: Any) -> Any:
        """A nest of names, one for each tensor."""
        if isinstance(results, (list, tuple)):
            return [self._parameters_for(result) for result in results]
        name = f"q{len(self._parameters)}"
        self.register_parameter(name, nn.Parameter(signed(tuple(results.shape), 90 + len(name))))
        return name

    def forward(self, x: Tensor) -> Any:
        return self._meet(super().forward(x), self.met)

    def _meet(self, results: Any, met: Any) -> Any:
        if isinstance(met, list):
            return [self._meet(results[i], name) for i, name in enumerate(met)]
        return results * getattr(self, met)


def check(
    case: Case, capture: str = "symbolic", rules: RuleSet = DEFAULT_RULES, seed: int = 0
) -> fxprune.Analysis:
    """Slice what the rule says can be sliced: the op must not see the difference."""
    model, analysis = analysed(case, capture, rules)
    assert not analysis.missing
    used = {step.rule.op for step in analysis.steps.values() if step.rule}
    assert case.op in used or capture != case.captures[0], f"the call was read as {used}"
    selection = random_selection(analysis, seed)
    assert bool(selection.masks) != case.frozen, "the rule freezes all of it"
    compare(case, model, analysis, selection)
    return analysis


def analysed(
    case: Case, capture: str, rules: RuleSet, probe: type[Probe] = Probe
) -> tuple[nn.Module, fxprune.Analysis]:
    """The case as a model, and what inference says about it."""
    model = probe(case).eval()
    return model, fxprune.analyze(model, example_inputs=DUMMY, outputs="prune", capture=capture, rules=rules)


def compare(case: Case, model: nn.Module, analysis: fxprune.Analysis, selection: Selection) -> None:
    """Sliced, then the op; zero-masked, then the op, then sliced; and the certificate's masked form."""
    pruned = shrink(analysis, selection=selection, original=model)
    with torch.no_grad():
        got = tensors_of(pruned(DUMMY))
        wanted = compacted(tensors_of(masked(model, analysis, selection)(DUMMY)), analysis, selection)
    assert [t.shape for t in got] == [t.shape for t in wanted]
    if not case.values:
        return
    if not case.statistic:
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, equal_nan=True)
    # (A certificate would say that it saw nothing: no output depends on the dummy.)
    look = Comparison(model, pruned, analysis, selection).look(Example((DUMMY,)).map(in_float64))
    assert look.error <= Certificate.tolerance


def random_selection(analysis: fxprune.Analysis, seed: int) -> Selection:
    """Random kept elements of every atom that the solver leaves free; two of one size keep others."""
    met: Counter[int] = Counter()
    masks = {}
    for a in free_atoms(analysis):
        fewest = min(2, a.size - 1)  # a variance needs two
        count = fewest + (met[a.size] + seed) % (a.size - fewest)
        order = np.random.default_rng([seed, a.size]).permutation(a.size)
        masks[a] = np.zeros(a.size, dtype=bool)
        masks[a][np.roll(order, met[a.size])[:count]] = True
        met[a.size] += 1
    return Selection(masks, {})


def free_atoms(analysis: fxprune.Analysis) -> list[Atom]:
    """Atoms of the operands that may shrink by the rules alone: a probe's operands are no layers' weights."""
    carried = (a for axes in analysis.weights.values() for axis in axes for a in atoms_of(axis))
    return [a for a in dict.fromkeys(carried) if a.size > 1 and analysis.graph.frozen(a) is None]


def masked(model: nn.Module, analysis: fxprune.Analysis, selection: Selection) -> nn.Module:
    """The full-size model with removed elements of its operands set to zero."""
    clone = copy.deepcopy(model)
    for name, tensor in clone.state_dict().items():  # shares the clone's memory
        mask = selection.mask(analysis.weights.get(name, ()))
        if mask is not None:
            tensor.masked_fill_(~mask, 0)
    return clone


def compacted(tensors: list[Tensor], analysis: fxprune.Analysis, selection: Selection) -> list[Tensor]:
    """The kept positions of every output."""
    output = next(n for n in analysis.module.graph.nodes if n.op == "output")
    nodes: list[fx.Node] = []
    fx.map_arg(output.args, lambda n: nodes.append(n))
    out = []
    for t, axes in zip(tensors, [axes for n in nodes for axes in analysis.axes[n]], strict=True):
        for dim, axis in enumerate(axes):
            kept = selection.positions(axis)
            if kept is not None:
                t = t.index_select(dim, torch.from_numpy(kept))
        out.append(t)
    return out


# ---------------------------------------------------------------- tests


SYMBOLIC = [case for case in CASES if "symbolic" in case.captures]


def sliced() -> Iterator[Any]:
    """Of each op every other case: `carried` takes those between; the rest are left to slow tests."""
    met: Counter[str] = Counter()
    for case, seed in zip(SYMBOLIC, itertools.cycle((0, 1))):
        quick = met[case.op] % 2 == 1
        yield pytest.param(case, seed, id=f"{case}-{seed}", marks=[] if quick else [pytest.mark.slow])
        met[case.op] += 1


@pytest.mark.parametrize(("case", "seed"), [*sliced()])
def test_slicing_commutes_with_the_op(case: Case, seed: int) -> None:
    assert_read_alike(check(case, seed=seed).module)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "seed"), zip(SYMBOLIC, itertools.cycle((1, 0))), ids=str)
def test_slicing_commutes_for_other_elements(case: Case, seed: int) -> None:
    check(case, seed=seed)


@pytest.mark.parametrize("case", [c for c in CASES if "export" in c.captures], ids=str)
def test_slicing_commutes_with_the_exported_op(case: Case) -> None:
    assert_read_alike(check(case, "export").module)


def carried() -> Iterator[Any]:
    """Of each op the first case, and every other one; the rest are left to slow tests, and other elements."""
    met: Counter[str] = Counter()
    for case, seed in zip(SYMBOLIC, itertools.cycle((1, 0))):
        quick = met[case.op] % 2 == 0
        yield pytest.param(case, seed, id=str(case), marks=[] if quick else [pytest.mark.slow])
        yield pytest.param(case, 1 - seed, id=f"{case}-others", marks=pytest.mark.slow)
        met[case.op] += 1


@pytest.mark.parametrize(("case", "seed"), [*carried()])
def test_what_meets_the_result_shrinks_with_it(case: Case, seed: int) -> None:
    """The result's axes are what the rule says: one that it makes up would shrink in the parameter alone."""
    model, analysis = analysed(case, "symbolic", DEFAULT_RULES, Carried)
    compare(case, model, analysis, random_selection(analysis, seed))


def test_each_head_keeps_elements_of_its_own() -> None:
    def scores(q: Tensor, k: Tensor) -> Tensor:
        return q.view(5, 3, 4).transpose(0, 1) @ k.view(7, 3, 4).permute(1, 2, 0)

    case = Case("matmul", scores, ((5, 12), (7, 12)))
    model, analysis = analysed(case, "symbolic", DEFAULT_RULES)
    heads, inner = atoms_of(analysis.weights["p0"][1])
    assert analysis.weights["p1"][1] == analysis.weights["p0"][1]
    own = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 1]], dtype=bool)
    compare(case, model, analysis, Selection({inner: own}, {inner: heads}))


def test_every_registered_op_has_a_case() -> None:
    covered = {case.op for case in CASES}
    assert covered <= {*DEFAULT_RULES}
    assert {*DEFAULT_RULES} - covered == {*NOT_RUN}


def free_softmax(input: Typed, dim: int = -1, **options: Any) -> Flow:
    """Wrong: the axis that is normalised may shrink."""
    return Flow(input.axes)


def loose_linear(input: Typed, weight: Typed, bias: Typed | None = None) -> Flow:
    """Wrong: the axes that are contracted may shrink apart."""
    flow = linear_axes(input, weight, bias)
    return Flow(flow.out, flow.same[1:])


def unordered_roll(input: Typed, shifts: Any, dims: Any = None) -> Flow:
    """Wrong: what is rolled may shrink."""
    return Flow(input.axes)


@pytest.mark.parametrize(
    ("op", "wrong"), [("softmax", free_softmax), ("linear", loose_linear), ("roll", unordered_roll)]
)
def test_a_rule_that_claims_too_much_is_caught(op: str, wrong: Callable[..., Flow]) -> None:
    case = next(case for case in CASES if case.op == op)
    check(case)
    with pytest.raises((AssertionError, RuntimeError)):
        check(case, rules=DEFAULT_RULES.extended({op: wrong}))
