"""The places where simple pruners go wrong, one small hand-written module each (`hard_modules`).

Each case says which widths half of the channels should leave.  That they are cut is checked by shape,
that the cut is right by the certificate, in either capture, for heads and for head dims.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

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
from hard_modules import CASES, Case
from hard_modules.case import EMBED, Tokens, tokens
from hard_modules.layouts import LeViTLayout, QkvThenHeadsThenDim, SdpaDefaultScale
from hard_modules.wiring import TiedModules, TiedWeights
from helpers import randomise, widths
from torch import Tensor, nn

import fxprune
from fxprune.compiler import prune_analyzed

CASE = {case.name: case for case in CASES}


def by_both(cases: Sequence[Case]) -> Iterator[Any]:
    """All cases by the first of their captures, and one in five by both; slow tests take the rest."""
    for i, case in enumerate(cases):
        if i % 5 and len(case.captures) > 1:
            yield pytest.param(replace(case, captures=case.captures[:1]), id=case.name)
            yield pytest.param(case, id=f"{case.name}-both", marks=pytest.mark.slow)
        else:
            yield pytest.param(case, id=case.name)


class Analysed:
    """A case with its model; each capture is made when a test first asks for it."""

    def __init__(self, case: Case) -> None:
        self.case, self.model = case, case.model()

    @cache  # noqa: B019 - it lives as long as the case
    def by(self, capture: str) -> fxprune.Analysis:
        """The first of a case's captures is what `auto` finds."""
        first = capture == self.case.captures[0]
        analysis = fxprune.analyze(
            self.model, example_inputs=self.case.inputs, capture="auto" if first else capture
        )
        assert analysis.capture == capture
        return analysis


@pytest.fixture(scope="module", params=[*by_both(CASES)])
def hard(request: pytest.FixtureRequest) -> Analysed:
    """All tests of a case follow each other: they share its captures."""
    return Analysed(request.param)


def test_prunes_and_verifies(hard: Analysed) -> None:
    """The public calls, as a user makes them."""
    model = hard.case.model()
    pruned = fxprune.prune(model, 0.5, example_inputs=hard.case.inputs)
    assert_exact(model, pruned, *hard.case.batches)


def test_shrinks_what_should(hard: Analysed) -> None:
    for capture in hard.case.captures:
        pruned = prune_analyzed(hard.model, hard.by(capture), 0.5)
        got = widths(pruned)
        assert {n: got.get(n) for n in hard.case.left} == hard.case.left, capture
        for batch in hard.case.batches:
            assert_runs(pruned, batch)


def test_exact_for_heads_and_head_dims_at_any_ratio(hard: Analysed) -> None:
    assert_exact_at(hard, ((0.25, 0.5, 0.9), (0.7,)))


@pytest.mark.slow
def test_exact_for_heads_and_head_dims_at_the_other_ratios(hard: Analysed) -> None:
    assert_exact_at(hard, ((0.7,), (0.25, 0.9)))


def assert_exact_at(hard: Analysed, ratios_by_capture: Sequence[Sequence[float]]) -> None:
    """Certify a case at some ratios by the first of its captures, and at others by the second."""
    for capture, ratios in zip(hard.case.captures, ratios_by_capture, strict=False):
        analysis, plans = hard.by(capture), set()
        for ratio, attention in itertools.product(ratios, ("heads", "head_dim")):
            pruned = prune_analyzed(hard.model, analysis, ratio, attention=attention)
            plan = frozenset(widths(pruned).items())
            if plan not in plans:  # where there are no heads, it is the same again
                assert certificate(hard.model, pruned, analysis) <= TOLERANCE, (capture, ratio, attention)
                assert_slices(hard.model, pruned)
            plans.add(plan)


def test_both_captures_find_the_same_groups(hard: Analysed) -> None:
    groups = [groups_of(hard.by(capture), hard.model) for capture in hard.case.captures]
    assert groups[0] == groups[-1]


# ---------------------------------------------------------------- against a smaller model


def separate_attention(w: dict[str, Tensor], x: Tensor, heads: int, scale: float) -> Tensor:
    """Attention of the textbook, from the weights alone."""

    def project(name: str) -> Tensor:
        y = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = map(project, "qkv")
    out = (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2) @ w["proj.weight"].T + w["proj.bias"]


@pytest.mark.parametrize("attention", ["heads", "head_dim"])
@pytest.mark.parametrize("cls", [SdpaDefaultScale, QkvThenHeadsThenDim, LeViTLayout])
def test_equals_a_model_written_for_the_smaller_widths(
    cls: type[nn.Module], capture: str, attention: str
) -> None:
    """Nothing of fxprune's own in the comparison: plain code, the sliced weights, the old scale."""
    model = randomise(Tokens(cls()).double().eval())
    x = tokens().double()
    pruned = fxprune.prune(model, 0.5, example_inputs=x, attention=attention, capture=capture)
    w = pruned.state_dict()
    heads = 2 if attention == "heads" else 4
    block = {n.removeprefix("block."): t for n, t in w.items() if n.startswith("block.")}

    if "qkv.weight" in block:
        for kind in ("weight", "bias"):
            split = _qkv(cls, block[f"qkv.{kind}"], heads, block["proj.weight"].shape[1])
            block |= {f"{n}.{kind}": t for n, t in zip("qkv", split, strict=True)}
    activate = nn.Hardswish() if cls is LeViTLayout else nn.Identity()
    scale = {LeViTLayout: 3**-0.5}.get(cls, 6**-0.5)
    x0 = x @ w["embed.weight"].T + w["embed.bias"]
    normed = nn.functional.layer_norm(x0, x0.shape[-1:], w["norm.weight"], w["norm.bias"])
    identity = block | {"proj.weight": torch.eye(_width(block)).double(), "proj.bias": torch.zeros(1)}
    mixed = activate(separate_attention(identity, normed, heads, scale))
    x1 = x0 + mixed @ block["proj.weight"].T + block["proj.bias"]
    wanted = x1.mean(1) @ w["head.weight"].T + w["head.bias"]

    torch.testing.assert_close(pruned(x), wanted, rtol=1e-10, atol=1e-10)


def _width(block: dict[str, Tensor]) -> int:
    return block["v.weight"].shape[0]


def _qkv(cls: type[nn.Module], rows: Tensor, heads: int, width: int) -> list[Tensor]:
    """The rows of a fused projection as three, each (heads dim)."""
    if cls is LeViTLayout:
        per_head = rows.unflatten(0, (heads, -1))
        value = width // heads
        key = (per_head.shape[1] - value) // 2
        sizes = [key, key, value]
        return [part.flatten(0, 1) for part in per_head.split(sizes, dim=1)]
    return list(rows.chunk(3))


# ---------------------------------------------------------------- sharing


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (TiedWeights, ("encode", "decode")),
        (TiedModules, ("up", "down")),
    ],
)
def test_tied_weights_stay_tied(cls: type[nn.Module], names: tuple[str, str], capture: str) -> None:
    model = randomise(Tokens(cls()).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens(), capture=capture)

    first, second = (pruned.get_parameter(f"block.{name}.weight") for name in names)
    assert first is second
    assert set(pruned.state_dict()) == set(model.state_dict())


def test_shared_buffers_keep_both_names(capture: str) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.rand(EMBED))
            self.register_buffer("also", self.scale)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale + self.also

    model = Tokens(Shared()).eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens(), capture=capture)

    assert widths(pruned)["block.scale"] == widths(pruned)["block.also"] == (EMBED // 2,)
    assert pruned.get_buffer("block.scale") is pruned.get_buffer("block.also")
    assert_exact(model, pruned)


# ---------------------------------------------------------------- Python on the batch


class SampleBySample(nn.Module):
    """A Python loop over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(EMBED, 40), nn.Linear(40, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.fc2(self.fc1(x[i]).relu()) for i in range(len(x))])


def test_a_loop_over_the_batch_fixes_its_size_and_says_so() -> None:
    model = randomise(Tokens(SampleBySample()).eval())
    with pytest.warns(UserWarning, match="batch size"):
        pruned = fxprune.prune(model, 0.5, example_inputs=tokens())
    with pytest.warns(UserWarning, match="batch size"):
        assert float(fxprune.verify(model, pruned)) <= TOLERANCE
        analysis = fxprune.analyze(model, example_inputs=tokens())

    assert any("batch size" in note for note in analysis.notes)
    assert widths(pruned)["block.fc1.weight"] == (20, 12)
    assert pruned(tokens()).shape == (2, 7)


class LastOfTheBatch(nn.Module):
    """`len` of a batch in arithmetic, which leaves the batch free."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(EMBED, 40), nn.Linear(40, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(len(x) * x.shape[1], EMBED)
        return self.fc2(self.fc1(flat).relu()).reshape(len(x), -1, EMBED)


def test_len_of_the_batch_keeps_it_free() -> None:
    model = randomise(Tokens(LastOfTheBatch()).eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens())

    assert widths(pruned)["block.fc1.weight"] == (20, 12)
    assert_exact(model, pruned, 1, 5)


# ---------------------------------------------------------------- what is frozen


def reasons(model: nn.Module, site: str, x: Any, **options: Any) -> list[str]:
    analysis = fxprune.analyze(model, example_inputs=x, **options)
    return [group.frozen.text for group in analysis.group_of(site) if group.frozen]


@pytest.mark.parametrize("name", ["TupleOutput", "NamedTupleOutput", "DictOutput", "DataclassOutput"])
def test_every_output_stays_whole(name: str) -> None:
    case = CASE[name]
    for site in ("a.weight[0]", "b.weight[0]"):
        assert reasons(case.model(), site, case.inputs) == ["reaches the output"]


def test_channels_under_a_softmax_stay_whole_and_say_why() -> None:
    case = CASE["CrossCovariance"]
    analysis = fxprune.analyze(case.model(), example_inputs=case.inputs)
    three, heads, dim = analysis.group_of("block.qkv.weight[0]")

    assert three.frozen is not None
    assert heads.frozen is None
    assert dim.frozen is not None and dim.frozen.text == "softmax over it"


def test_what_no_rule_covers_stays_whole_and_says_why() -> None:
    case = CASE["UnknownStaysWhole"]
    assert "has no rule" in reasons(case.model(), "embed.weight[0]", case.inputs)[0]
