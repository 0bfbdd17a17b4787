"""Code that asks for a precision: what follows it is followed, another way is refused, none is ignored."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
from exactness import certified_at
from helpers import assert_same, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError, InputArgumentError
from fxprune.graph.own_nodes import is_guard

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
BIG = {torch.float16: 3.0, torch.bfloat16: 2.0}


class Net(nn.Module):
    """A layer, what code does that asks for a precision, a head."""

    def __init__(self, ask: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.ask = ask

    @property
    def head_dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.ask(self, self.a(x)))

    def was_cast(self, dtype: torch.dtype) -> bool:
        """Compare in code that no call runs: that fixes no dtype."""
        return self.head.weight.dtype is not dtype


def equal(m: Net, x: Tensor) -> Tensor:
    return x * 3 if x.dtype == torch.float16 else x


def unequal(m: Net, x: Tensor) -> Tensor:
    return x if x.dtype != torch.bfloat16 else x * 3


def among(m: Net, x: Tensor) -> Tensor:
    return x * 3 if x.dtype in (torch.float16, torch.bfloat16) else x


def in_a_set(m: Net, x: Tensor) -> Tensor:
    return x if x.dtype in {torch.float32, torch.float64} else x * 3


def in_a_table(m: Net, x: Tensor) -> Tensor:
    return x * BIG.get(x.dtype, 1.0)


def identical(m: Net, x: Tensor) -> Tensor:
    return x if x.dtype is torch.float32 else x * 3


def identical_later(m: Net, x: Tensor) -> Tensor:
    dtype = x.dtype
    return x * 3 if dtype is torch.half else x


def is_half(dtype: torch.dtype) -> bool:
    return dtype is torch.float16


def alike(a: torch.dtype, b: torch.dtype) -> bool:
    return is_half(a) or a is not b.to_real()


class Policy:
    """Compares in a method of an object."""

    def __init__(self) -> None:
        self.low_dtypes = [torch.float16, torch.bfloat16]

    def factor(self, of: torch.dtype) -> float:
        return 3.0 if any(of is dtype for dtype in self.low_dtypes) else 1.0


POLICY = Policy()


def identical_in_a_function(m: Net, x: Tensor) -> Tensor:
    return x * 3 if is_half(x.dtype) else x


def identical_in_a_called_one(m: Net, x: Tensor) -> Tensor:
    return x * 3 if alike(x.dtype, m.head.weight.dtype) else x


def identical_in_an_object(m: Net, x: Tensor) -> Tensor:
    return x * POLICY.factor(x.dtype)


def identical_by_property(m: Net, x: Tensor) -> Tensor:
    return x * 3 if m.head_dtype is torch.bfloat16 else x


def identical_by_a_computed_name(m: Net, x: Tensor) -> Tensor:
    return x * 3 if globals()["is_" + "half"](x.dtype) else x


def in_words(m: Net, x: Tensor) -> Tensor:
    return x * 3 if str(x.dtype).endswith("16") else x


def in_a_text(m: Net, x: Tensor) -> Tensor:
    return x if f"{x.dtype}" == "torch.float32" else x * 3


def by_width(m: Net, x: Tensor) -> Tensor:
    return x / x.element_size()


def by_bits(m: Net, x: Tensor) -> Tensor:
    return x * 3 if x.dtype.itemsize < 4 else x


def by_promotion(m: Net, x: Tensor) -> Tensor:
    return x * 3 if torch.result_type(x, m.head.weight) == torch.bfloat16 else x


def by_promoted_type(m: Net, x: Tensor) -> Tensor:
    return x * 3 if torch.promote_types(x.dtype, torch.half) == torch.half else x


def of_the_weight(m: Net, x: Tensor) -> Tensor:
    return x * 3 if m.head.weight.dtype == torch.bfloat16 else x


def of_the_weights(m: Net, x: Tensor) -> Tensor:
    return x * 3 if m.dtype == torch.float16 else x


def under_autocast(m: Net, x: Tensor) -> Tensor:
    return x * 3 if torch.is_autocast_enabled("cpu") else x


def clamped(m: Net, x: Tensor) -> Tensor:
    if x.dtype == torch.float16:
        limit = torch.where(torch.isinf(x).any(), torch.finfo(x.dtype).max - 1000, torch.finfo(x.dtype).max)
        x = torch.clamp(x, min=-limit, max=limit)
    return x


def within_half(m: Net, x: Tensor) -> Tensor:
    return (1e4 * x).clamp(-torch.finfo(x.dtype).max / 2, torch.finfo(x.dtype).max / 2)


ASKING = [
    *(equal, unequal, among, in_a_set, in_a_table, identical, identical_later, in_words, in_a_text),
    *(
        by_width,
        by_bits,
        by_promotion,
        by_promoted_type,
        of_the_weight,
        of_the_weights,
        under_autocast,
        clamped,
        within_half,
    ),
    *(identical_in_a_function, identical_in_a_called_one, identical_in_an_object, identical_by_property),
    identical_by_a_computed_name,
]
OF_ONE_PRECISION = (
    *(identical, identical_later, in_a_text, in_a_set, in_a_table, by_width, in_words),
    *(identical_in_a_function, identical_in_a_called_one, identical_in_an_object, identical_by_property),
    identical_by_a_computed_name,
)


def cast_to_weight(m: Net, x: Tensor) -> Tensor:
    return x.to(m.head.weight.dtype) + torch.zeros(16, dtype=x.dtype)


def cast_to_weights(m: Net, x: Tensor) -> Tensor:
    return x.sigmoid().to(m.dtype) + torch.ones(1, 16, dtype=m.dtype)


def softmax_in_float32(m: Net, x: Tensor) -> Tensor:
    return x.softmax(-1, dtype=torch.float32).to(x.dtype) @ x.mT @ x


def norm_in_float32(m: Net, x: Tensor) -> Tensor:
    high = (300 * x).to(torch.float32)  # its squares are beyond float16
    return (high * torch.rsqrt(high.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def masked_to_least(m: Net, x: Tensor) -> Tensor:
    scores = x @ x.mT
    mask = torch.ones(scores.shape[-1], scores.shape[-1], dtype=torch.bool).triu(1)
    return scores.masked_fill(mask, torch.finfo(scores.dtype).min).softmax(-1) @ x


def mask_added(m: Net, x: Tensor) -> Tensor:
    mask = torch.ones(x.shape[1], x.shape[1]).triu(1).to(m.dtype) * torch.finfo(m.dtype).min
    return (x @ x.mT + mask).softmax(-1) @ x


def away_from_zero(m: Net, x: Tensor) -> Tensor:
    return x / x.abs().sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).eps)


def within(m: Net, x: Tensor) -> Tensor:
    limits = torch.finfo(x.dtype)
    return torch.nan_to_num(x, posinf=limits.max, neginf=limits.min).clamp(limits.min, limits.max)


FOLLOWED = [
    *(cast_to_weight, cast_to_weights, softmax_in_float32, norm_in_float32, masked_to_least, mask_added),
    *(away_from_zero, within),
]
STATES = ["float64", "float16", "bfloat16", "autocast"]


def in_state(module: nn.Module, state: str) -> Tensor:
    """What a copy gives in another precision, in float64."""
    if state == "autocast":
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            found: Tensor = module(X)
        return found.double()
    dtype = getattr(torch, state)
    with torch.no_grad():
        found = copy.deepcopy(module).to(dtype)(X.to(dtype))
    return found.double()


def results(ask: Callable[[Net, Tensor], Tensor], capture: str) -> tuple[nn.Module, nn.Module]:
    model = randomise(Net(ask).eval())
    (whole,) = certified_at((0.0,), model, X, capture)
    assert_same(whole(X), model(X), 1e-5)
    return model, whole


ASKED_OF_NODES = [("symbolic", ask) for ask in ASKING]
ASKED_OF_PLAIN = [
    equal,
    in_a_table,
    by_promotion,
    of_the_weights,
    under_autocast,
    clamped,
    within_half,
]  # all dtypes are


@pytest.mark.parametrize(("capture", "ask"), [*ASKED_OF_NODES, *(("export", ask) for ask in ASKED_OF_PLAIN)])
def test_another_way_is_taken_or_refused(ask: Callable[[Net, Tensor], Tensor], capture: str) -> None:
    model, whole = results(ask, capture)
    refused = []
    for state in STATES:
        with contextlib.suppress(InputArgumentError):
            refused.append(state)
            assert_same(in_state(whole, state), in_state(model, state), 3e-2)
            refused.remove(state)
    assert refused or (capture == "symbolic" and ask in (by_width, within_half))  # which are followed
    assert "float64" not in refused or ask in (
        *OF_ONE_PRECISION,
        *((within_half,) if capture == "export" else ()),
    )


@pytest.mark.parametrize("ask", FOLLOWED)
def test_what_follows_a_precision_is_not_refused(ask: Callable[[Net, Tensor], Tensor], capture: str) -> None:
    model, whole = results(ask, capture)
    for state in STATES:
        assert_same(in_state(whole, state), in_state(model, state), 1e-12 if state == "float64" else 3e-2)


def test_a_model_that_asks_nothing_has_no_guard(capture: str) -> None:
    _, whole = results(lambda m, x: x.relu(), capture)
    assert not any(is_guard(n) and "dtype" in n.name + "precision" in n.name for n in whole.graph.nodes)


def test_the_error_names_the_line(capture: str) -> None:
    _, whole = results(equal, capture)
    with pytest.raises(
        InputArgumentError, match=r"test_precisions.py:\d+ asks .*prune the model in this precision"
    ):
        in_state(whole, "float16")


@pytest.mark.parametrize("ask", [equal, masked_to_least])
def test_tools_see_no_guard(ask: Callable[[Net, Tensor], Tensor], capture: str) -> None:
    model, whole = results(ask, capture)
    wanted = model(X)
    assert_same(torch.jit.trace(whole, X)(X), wanted, 1e-5)
    assert_same(torch.export.export(whole, (X,)).module()(X), wanted, 1e-5)
    assert_same(torch.compile(whole, backend="eager", fullgraph=True)(X), wanted, 1e-5)


def rotated(m: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        angles = (300 * x[..., :1].float()) @ torch.linspace(1, 0.01, 16, device=x.device)[None]
        turned = angles.sin()
    return x * turned


def test_a_part_without_autocast_stays_without(capture: str) -> None:
    model, whole = results(rotated, capture)
    wanted = in_state(model, "autocast")
    assert_same(in_state(whole, "autocast"), wanted, 3e-2)
    bare = copy.deepcopy(whole)
    for node in [n for n in bare.graph.nodes if "autocast" in n.name][::-1]:
        bare.graph.erase_node(node)
    bare.recompile()
    with pytest.raises(AssertionError):
        assert_same(in_state(bare, "autocast"), wanted, 3e-2)
    assert_same(torch.compile(whole, backend="eager", fullgraph=True)(X), model(X), 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
        whole(X)
        assert torch.is_autocast_enabled("cpu")


def test_a_question_in_a_part_without_autocast_leaves_the_callers_on() -> None:
    def part(m: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return x * 3 if x.shape[1] > 2 else x

    with torch.autocast("cpu", torch.bfloat16):
        fxprune.trace(Net(part).eval(), X, capture="symbolic")
        assert torch.is_autocast_enabled("cpu")


def test_a_part_under_autocast_is_refused(capture: str) -> None:
    def part(m: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return (m.head.weight.sum() * (x @ x.mT) @ x).float()

    with pytest.raises(CaptureError, match="turns autocast on"):
        fxprune.prune(Net(part), 0.0, example_inputs=X, capture=capture)
