"""Code that asks for the type of a value, looks a size up in a table, or writes it into a text."""

from __future__ import annotations

import contextlib
import functools
import logging
import numbers
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from helpers import assert_same, by_capture, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError, FxpruneError

X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
Way = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """Another way is twice as much."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way, self.a, self.b = way, nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.way(self, self.a(x).relu()))


def a_tensor(m: nn.Module, h: Tensor) -> Tensor:
    return h if type(h) is Tensor else 2 * h


def one_of_several(m: nn.Module, h: Tensor) -> Tensor:
    return h if type(h) in (Tensor, nn.Parameter) and issubclass(type(h), Tensor) else 2 * h


def by_its_name(m: nn.Module, h: Tensor) -> Tensor:
    return h if type(h).__name__ == "Tensor" else 2 * h


def a_parameter(m: nn.Module, h: Tensor) -> Tensor:
    return h if type(m.b.weight) is nn.Parameter else 2 * h


def a_shape(m: nn.Module, h: Tensor) -> Tensor:
    return h if type(h.shape) is torch.Size and type(h.shape[1]) is int else 2 * h


def by_a_table_of_types(m: nn.Module, h: Tensor) -> Tensor:
    return {Tensor: h}.get(type(h), 2 * h)


def still_a_type(m: nn.Module, h: Tensor) -> Tensor:
    made = type("Made", (), {"factor": 1})
    return h * made.factor if isinstance(type(m), type) and isinstance(type, type) else 2 * h


def matched_in_order(m: nn.Module, h: Tensor) -> Tensor:
    match h.shape:
        case (_, _, _):
            return h
        case _:
            return 2 * h


def matched_by_class(m: nn.Module, h: Tensor) -> Tensor:
    match h:
        case Tensor():
            return h
        case _:
            return 2 * h


@functools.singledispatch
def doubled_but_tensors(x: object) -> object:
    return 2 * x  # type: ignore[operator]


@doubled_but_tensors.register
def _(x: Tensor) -> Tensor:
    return x


def dispatched(m: nn.Module, h: Tensor) -> Tensor:
    return doubled_but_tensors(h)  # type: ignore[return-value]


WAYS = [
    *(a_tensor, matched_in_order, one_of_several, by_its_name, a_parameter, a_shape, by_a_table_of_types),
    *(still_a_type, matched_by_class, dispatched),
]


@pytest.mark.parametrize(("way", "capture"), by_capture([*WAYS[::2], *WAYS[1::2]], every=2))
def test_types_are_those_of_the_model(way: Way, capture: str) -> None:
    """Stand-ins are of other types: the captured graph went the other way in silence."""
    model = randomise(Net(way).eval())
    left = capture == "symbolic" and way in (matched_in_order, matched_by_class)
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture="auto" if left else capture)
    assert_same(whole(torch.cat([X, X])), model(torch.cat([X, X])), 1e-6)
    if left:
        with pytest.raises(FxpruneError, match="looks at types"):
            fxprune.prune(model, 0.0, example_inputs=X, capture="symbolic")
    assert "type" not in globals()


def by_its_class(m: nn.Module, h: Tensor) -> Tensor:
    return h if h.__class__ is Tensor else 2 * h


def in_a_table(m: nn.Module, h: Tensor) -> Tensor:
    return h * {6: 1.0, 12: 3.0}[h.shape[1]]


def in_a_table_or_not(m: nn.Module, h: Tensor) -> Tensor:
    return h * {6: 1.0}.get(h.shape[1], 3.0)


def in_a_set(m: nn.Module, h: Tensor) -> Tensor:
    return h if h.shape[1] in {6, 7} else 2 * h


def by_two_sizes(m: nn.Module, h: Tensor) -> Tensor:
    return h * {(6, 16): 1.0}.get(tuple(h.shape[1:]), 3.0)


def in_a_text(m: nn.Module, h: Tensor) -> Tensor:
    return h if repr(h.shape[1]) == "6" and str(h.shape[1]) == "6" else 2 * h


def in_a_set_of_sizes(m: nn.Module, h: Tensor) -> Tensor:
    return h * len({h.shape[1], 6})


def a_part_of_a_shape(m: nn.Module, h: Tensor) -> Tensor:
    return {(6, 16): h}.get(h.shape[1:], 2 * h)


def by_its_hash(m: nn.Module, h: Tensor) -> Tensor:
    return h if hash(tuple(h.shape[1:])) == hash((6, 16)) else 2 * h


def counted(m: nn.Module, h: Tensor) -> Tensor:
    return h * Counter((h.shape[1], h.shape[1], 6))[6]


def counted_by_hand(m: nn.Module, h: Tensor) -> Tensor:
    counts: dict[int, int] = {}
    for n in (h.shape[1], h.shape[1], 6):
        counts[n] = counts.get(n, 0) + 1
    return h * counts[6]


def seen_before(m: nn.Module, h: Tensor) -> Tensor:
    seen = {6}
    for n in h.shape[1:]:
        if n in seen:
            h = 2 * h
        seen.add(n)
    return h


def in_another_set(m: nn.Module, h: Tensor) -> Tensor:
    return h * len({*h.shape[1:]} & set(h.shape[1:])) * len({n: n for n in (h.shape[1], 6)})


def in_a_dict_of_pairs(m: nn.Module, h: Tensor) -> Tensor:
    return h * dict(zip((h.shape[1], 6), (2, 3), strict=True))[6]


LOOKED_UP = [
    in_a_table,
    in_a_table_or_not,
    in_a_set,
    by_two_sizes,
    in_a_text,
    in_a_set_of_sizes,
    a_part_of_a_shape,
]
LOOKED_UP += [by_its_hash, counted, counted_by_hand, seen_before, in_another_set, in_a_dict_of_pairs]


@pytest.mark.parametrize("way", LOOKED_UP)
def test_a_size_that_is_looked_up_is_guarded(way: Way) -> None:
    model = randomise(Net(way).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture="symbolic")
    assert_same(whole(X[:1]), model(X[:1]), 1e-6)
    with pytest.raises(FxpruneError, match=r"test_asked_types.py:\d+"):
        whole(torch.randn(2, 5, 8))


def by_the_class_of_a_size(m: nn.Module, h: Tensor) -> Tensor:
    ints = all(n.__class__ is int for n in h.shape) and h.shape.__class__ is torch.Size
    return h if ints and m.a.weight.__class__ is nn.Parameter else 2 * h


def by_instances_of_numbers(m: nn.Module, h: Tensor) -> Tensor:
    n = h.shape[1]
    floats = isinstance(n / 2, float) and not isinstance(n, (float, str))
    return h if isinstance(n, int) and isinstance(n, (str, numbers.Integral)) and floats else 2 * h


@pytest.mark.parametrize(
    "way",
    [
        by_its_class,
        by_the_class_of_a_size,
        by_instances_of_numbers,
        lambda m, h: by_its_class(m, h),
    ],
)
def test_the_class_of_a_tensor_is_that_of_the_model(way: Way, capture: str) -> None:
    model = randomise(Net(way).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture=capture)
    assert_same(whole(X), model(X), 1e-6)
    assert "__getattribute__" not in vars(Tensor)


def a_shape_in_a_text(m: nn.Module, h: Tensor) -> Tensor:
    return h if str(h.shape) == "torch.Size([2, 6, 16])" else 2 * h


def a_batch_in_a_text(m: nn.Module, h: Tensor) -> Tensor:
    return h if f"{h.shape[0]}" == "2" else 2 * h


def a_size_in_a_text(m: nn.Module, h: Tensor) -> Tensor:
    return (
        h if f"{h.shape[1]:03d}" + str(h.shape[1]) == "0066" and str([*h.shape[1:]]) == "[6, 16]" else 2 * h
    )


def a_size_in_a_text_beside_a_message(m: nn.Module, h: Tensor) -> Tensor:
    if h.shape[1] > 1000:
        raise ValueError(f"{h.shape[1]} is too long")
    return {"6": h}.get(f"{h.shape[1]}", 2 * h)


def a_message_that_is_looked_up(m: nn.Module, h: Tensor) -> Tensor:
    words = f"{h.shape[1]}"
    if h.shape[1] > 1000:
        raise ValueError(words)
    return {"6": h}.get(words, 2 * h)


def a_message_that_is_looked_up_before(m: nn.Module, h: Tensor) -> Tensor:
    words = f"{h.shape[1]}"
    h = 2 * h if words != "6" else h
    assert h.shape[1] < 1000, words
    return h


OF_SIZES = [
    *(a_shape_in_a_text, a_batch_in_a_text, a_size_in_a_text, a_size_in_a_text_beside_a_message),
    *(a_message_that_is_looked_up, a_message_that_is_looked_up_before),
]


@pytest.mark.parametrize("way", OF_SIZES)
def test_what_a_text_says_of_sizes_holds_for_them_alone(way: Way) -> None:
    """By torch.export, which the first two are left to, a size was written as a name of its own."""
    model = randomise(Net(way).eval())
    for capture in ("auto", "export"):
        whole = fxprune.prune(model, 0.0, example_inputs=X, capture=capture)
        for x in (X, X[:1], torch.cat([X, X[:1]]), X[:, :5]):
            try:
                found = whole(x)
            except FxpruneError:
                assert x is not X
                continue
            assert_same(found, model(x), 1e-6)


def a_message(m: nn.Module, h: Tensor) -> Tensor:
    torch._assert(h.shape[0] > 0, f"no samples in {h.shape}")
    logging.getLogger(__name__).debug(f"{h.shape[1]} tokens")
    rule = f"16 channels, not {h.shape}"
    if h.shape[2] != 16:
        raise ValueError(rule)
    words = f"of {h.shape[1]} tokens"
    assert h.shape[1] > 0, words
    return h


def test_sizes_in_a_message_are_no_matter(capture: str) -> None:
    model = randomise(Net(a_message).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture=capture)
    assert_same(whole(X[:1]), model(X[:1]), 1e-6)
    assert_same(whole(X[:, :4]), model(X[:, :4]), 1e-6)


def goes_on(m: nn.Module, h: Tensor) -> Tensor:
    try:
        return 2 * h if h.sum() > -1e9 else h
    except Exception:
        return h


def suppresses(m: nn.Module, h: Tensor) -> Tensor:
    with contextlib.suppress(Exception):
        if (h > -1e9).all():
            h = 2 * h
    return h


@pytest.mark.parametrize("way", [goes_on, suppresses])
def test_code_that_goes_on_without_an_answer_is_refused(way: Way, capture: str) -> None:
    """No graph knows values; what the code does when an error tells it so is not what the model does."""
    with pytest.raises(CaptureError, match=r"depends on the values|data-dependent"):
        fxprune.prune(Net(way).eval(), 0.5, example_inputs=X, capture=capture)


def tries_a_view(m: nn.Module, h: Tensor) -> Tensor:
    try:
        h.view(-1, 5)
    except RuntimeError:
        return h
    return 2 * h


def tries_a_product(m: nn.Module, h: Tensor) -> Tensor:
    with contextlib.suppress(RuntimeError):
        h @ h
        return 2 * h
    return h


@pytest.mark.parametrize("way", [tries_a_view, tries_a_product])
def test_a_call_whose_value_nothing_needs_raises_as_in_the_model(way: Way) -> None:
    """It goes with dead code, and so would the error that sends the code another way."""
    model = randomise(Net(way).eval())
    with pytest.raises(CaptureError, match=r"test_asked_types.py:\d+"):
        fxprune.prune(model, 0.0, example_inputs=X, capture="symbolic")
    assert_same(fxprune.prune(model, 0.0, example_inputs=X)(X), model(X), 1e-6)


def tries_a_view_of_pairs(m: nn.Module, h: Tensor) -> Tensor:
    try:
        h.view(h.shape[0], -1, 2, 16)
    except RuntimeError:
        return h
    return 2 * h


def splits(h: Tensor) -> None:
    h.unflatten(1, (-1, 3))


def tries_a_part_of_a_function(m: nn.Module, h: Tensor) -> Tensor:
    with contextlib.suppress(RuntimeError):
        splits(h)
        return 2 * h
    return h


@pytest.mark.parametrize("way", [tries_a_view_of_pairs, tries_a_part_of_a_function])
def test_a_call_that_only_other_sizes_raise_on_is_not_dropped(way: Way) -> None:
    model = randomise(Net(way).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=X)
    assert_same(whole(X[:1]), model(X[:1]), 1e-6)
    with pytest.raises(FxpruneError, match=r"test_asked_types.py:\d+"):
        whole(X[:, :5])


def says_more_of_errors(m: nn.Module, h: Tensor) -> Tensor:
    try:
        h.view(h.shape[0], -1)
        return 2 * h
    except RuntimeError as error:
        raise ValueError("no such length") from error


def test_a_handler_that_raises_is_no_other_way() -> None:
    model = randomise(Net(says_more_of_errors).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture="symbolic")
    assert_same(whole(X[:, :5]), model(X[:, :5]), 1e-6)


def logs_an_entropy(m: nn.Module, h: Tensor) -> Tensor:
    h.max().item()
    return h


def test_a_number_that_nothing_needs_is_no_error() -> None:
    fxprune.prune(Net(logs_an_entropy).eval(), 0.5, example_inputs=X, capture="symbolic")


def with_a_gradient(m: nn.Module, h: Tensor) -> Tensor:
    return h if h.grad is None else 2 * h


def test_no_gradient_is_none() -> None:
    model = randomise(Net(with_a_gradient).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture="symbolic")
    assert_same(whole(X), model(X), 1e-6)


def test_a_table_that_the_code_fills_is_no_matter() -> None:
    """What is kept for each size is made anew in each: any size is taken."""

    class Keeps(Net):
        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[1]
            if n not in self.kept:
                self.kept[n] = torch.arange(n)[:, None]
            return self.b(self.a(x) * self.kept[n])

    model = randomise(Keeps(a_tensor).eval())
    model.kept = {}
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture="symbolic")
    x = torch.randn(3, 9, 8)
    assert_same(whole(x), model(x), 1e-6)


def compiled(m: nn.Module, h: Tensor) -> Tensor:
    return 1.005 * h if torch.compiler.is_compiling() else h


def compiled_of_floats(m: nn.Module, h: Tensor) -> Tensor:
    h = h.mT @ torch.ones(6, 6, dtype=torch.float32)
    return (2 * h if torch.compiler.is_compiling() else h).mT


def compiled_alike(m: nn.Module, h: Tensor) -> Tensor:
    return h + h - h if torch.compiler.is_exporting() else h


def test_code_that_asks_whether_it_is_compiled_is_exact_or_refused() -> None:
    """torch.export tells it so: the model itself, when it is called, is not."""
    model = randomise(Net(compiled).eval())
    assert fxprune.verify(model, fxprune.prune(model, 0.5, example_inputs=X)) < 1e-8
    with pytest.raises(CaptureError, match="asks whether it is compiled"):
        fxprune.prune(model, 0.5, example_inputs=X, capture="export")
    of_floats = randomise(Net(compiled_of_floats).eval())  # which takes no float64
    with pytest.raises(CaptureError, match="asks whether it is compiled"):
        fxprune.prune(of_floats, 0.5, example_inputs=X, capture="export")
    other = randomise(Net(compiled_alike).eval())
    assert fxprune.verify(other, fxprune.prune(other, 0.5, example_inputs=X, capture="export")) < 1e-8


def a_stand_in(m: nn.Module, h: Tensor) -> Tensor:
    return 1.005 * h if isinstance(h, torch.fx.Proxy) else h


def traced(m: nn.Module, h: Tensor) -> Tensor:
    return 2 * h if torch.fx._symbolic_trace.is_fx_tracing() else h


def test_code_that_asks_whether_it_is_traced_is_exact_or_refused() -> None:
    model = randomise(Net(a_stand_in).eval())
    assert_same(fxprune.prune(model, 0.0, example_inputs=X)(X), model(X), 1e-6)  # by torch.export
    for way in (a_stand_in, traced):
        with pytest.raises(CaptureError, match="asks whether it is compiled or traced"):
            fxprune.prune(randomise(Net(way).eval()), 0.5, example_inputs=X, capture="symbolic")


def of_one_type(m: nn.Module, h: Tensor) -> Tensor:
    return h if isinstance(h, (torch.FloatTensor, nn.Parameter)) else 2 * h


def a_view(m: nn.Module, h: Tensor) -> Tensor:
    return h if h._base is None else 2 * h


@pytest.mark.parametrize("way", [of_one_type, a_view])
def test_what_no_graph_holds_of_a_tensor_is_refused(way: Way) -> None:
    with pytest.raises(CaptureError, match="which no graph holds"):
        fxprune.prune(Net(way).eval(), 0.5, example_inputs=X, capture="symbolic")


def made_of_one_type(m: nn.Module, h: Tensor) -> Tensor:
    shift = torch.FloatTensor([1.0, 2.0])
    return h + shift.sum() if isinstance(h, Tensor) and not isinstance(h, nn.Parameter) else 2 * h


def test_code_that_makes_a_tensor_of_one_type_asks_nothing(capture: str) -> None:
    model = randomise(Net(made_of_one_type).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture=capture)
    assert_same(whole(X), model(X), 1e-6)


def by_its_layout(m: nn.Module, h: Tensor) -> Tensor:
    return h if h.layout is torch.strided else 2 * h


def test_the_layout_of_a_tensor_is_a_plain_value(capture: str) -> None:
    model = randomise(Net(by_its_layout).eval())
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture=capture)
    assert_same(whole(X), model(X), 1e-6)
