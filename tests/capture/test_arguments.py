"""What a capture had to fix is guarded: plain arguments, batches, what a model asserts of sizes."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from exactness import certified_at
from helpers import randomise
from torch import Tensor, _assert, nn

import fxprune
from fxprune.errors import CaptureError, InputArgumentError, InputSizeError

C = 12


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(C), nn.Linear(C, 32), nn.Linear(32, C)
        self.out = nn.Linear(C, 3)

    def body(self, x: Tensor) -> Tensor:
        return self.out(x + self.down(F.gelu(self.up(self.norm(x)))))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def made(cls: type[Base]) -> Base:
    return randomise(cls()).double().eval()


# ---------------------------------------------------------------- plain arguments


class Flagged(Base):
    def forward(self, x: Tensor, flag: bool = True, scale: float = 1.0, mode: str = "mean") -> Tensor:
        y = self.body(x) * scale
        return getattr(y if flag else -y, mode)(1)


class Masked(Base):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, keep: Any = None) -> Tensor:
        y = self.body(x)
        y = y if mask is None else y * mask[..., None]
        return y.mean(1) if keep is None else y[:, keep]


class Chosen(Base):
    WAYS: ClassVar[dict[str, Callable[[Tensor], Tensor]]] = {"gelu": F.gelu, "tanh": torch.tanh}

    def forward(self, x: Tensor, way: str, sizes: Any = (2, 3)) -> Tensor:
        return self.WAYS[way](self.body(x)).unflatten(1, sizes).mean((1, 2))


class Nested(Base):
    """Tensors and plain values in one nest."""

    def forward(self, x: Tensor, options: dict[str, Any]) -> Tensor:
        y = self.body(x + options["table"]) * options["scales"][0]
        return (y if options["flag"] else -y).mean(1)


def nest(scale: float = 2.0, flag: bool = True, by: float = 1.0) -> dict[str, Any]:
    return {"options": {"table": noise(6, C) * by, "scales": [scale, None], "flag": flag}}


X = noise(2, 6, C)
ANSWERED: list[tuple[type[Base], tuple[Any, ...], dict[str, Any], tuple[Any, ...], dict[str, Any]]] = [
    (Flagged, (X,), {}, (noise(3, 6, C), True), {"mode": "mean"}),
    (Flagged, (X, False), {"mode": "sum"}, (noise(1, 6, C),), {"flag": False, "mode": "sum"}),
    (Flagged, (X,), {"flag": False}, (noise(3, 6, C), False, 1.0), {}),
    (Masked, (X,), {}, (noise(5, 6, C), None), {"keep": None}),
    (Masked, (X, noise(2, 6)), {}, (noise(4, 6, C), noise(4, 6)), {}),
    (Masked, (X,), {"keep": 1}, (noise(3, 6, C),), {"keep": 1}),
    (Nested, (X,), nest(), (noise(3, 6, C),), nest(by=3.0)),
    (Chosen, (X, "tanh"), {}, (noise(3, 6, C), "tanh", (2, 3)), {}),
    (Chosen, (X,), {"way": "gelu", "sizes": [3, 2]}, (noise(1, 6, C), "gelu"), {"sizes": [3, 2]}),
]
REFUSED: list[tuple[type[Base], tuple[Any, ...], dict[str, Any], dict[str, Any], str]] = [
    (Flagged, (X,), {}, {"flag": False}, "flag=False"),
    (Flagged, (X,), {}, {"scale": 2.0}, "scale=2.0"),
    (Flagged, (X,), {}, {"mode": "sum"}, "mode='sum'"),
    (Flagged, (X,), {"flag": False}, {}, "flag=True"),
    (Masked, (X,), {}, {"mask": noise(2, 6)}, "mask=a tensor"),
    (Masked, (X,), {"mask": noise(2, 6)}, {}, "mask=None"),
    (Masked, (X,), {}, {"keep": 0}, "keep=0"),
    (Chosen, (X,), {"way": "tanh"}, {"way": "gelu"}, "way='gelu'"),
    (Nested, (X,), nest(), nest(flag=False), "options="),
]


@pytest.mark.parametrize(("cls", "args", "kwargs", "again", "more"), ANSWERED)
def test_the_captured_value_is_taken(
    cls: type[Base],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    again: tuple[Any, ...],
    more: dict[str, Any],
    capture: str,
) -> None:
    model = made(cls)
    whole, _ = certified_at((0.0, 0.5), model, args, capture, **kwargs)
    assert torch.allclose(whole(*again, **more), model(*again, **more), rtol=1e-10)


@pytest.mark.parametrize(("cls", "args", "kwargs", "other", "said"), REFUSED)
def test_another_value_is_refused(
    cls: type[Base],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    other: dict[str, Any],
    said: str,
    capture: str,
) -> None:
    pruned = fxprune.prune(
        made(cls), 0.5, example_inputs=args, example_kwargs=kwargs or None, capture=capture
    )
    plain = {name: value for name, value in kwargs.items() if name == "way"}
    with pytest.raises(InputArgumentError, match=f"^{said}"):
        pruned(*args, **{**plain, **other})


@pytest.mark.parametrize(("capture", "follows"), [("symbolic", True), ("export", False)])
def test_a_number_beside_tensors_is_followed_or_refused(capture: str, follows: bool) -> None:
    model = made(Nested)
    whole = fxprune.prune(model, 0.0, example_inputs=X, example_kwargs=nest(), capture=capture)
    if follows:
        assert torch.allclose(whole(X, **nest(3.0)), model(X, **nest(3.0)), rtol=1e-10)
    else:
        with pytest.raises(InputArgumentError, match=r"options=.*3\.0.* was captured with .*2\.0"):
            whole(X, **nest(3.0))


def test_other_tools_see_the_inputs_that_they_are_given() -> None:
    pruned = fxprune.prune(made(Flagged), 0.5, example_inputs=X)
    wanted = pruned(X)
    traced = torch.jit.trace(pruned, (X,))
    assert len(list(traced.graph.inputs())) == 2  # the module, x
    assert torch.allclose(traced(X), wanted)
    exported = torch.export.export(pruned, (X,), strict=False)
    assert len(exported.graph_signature.user_inputs) == 1
    assert torch.allclose(exported.module()(X), wanted)
    assert torch.allclose(torch.compile(pruned, backend="eager")(X), wanted)


# ---------------------------------------------------------------- the batch


def over_range(m: Base, x: Tensor) -> Tensor:
    return torch.stack([m.body(x[i]) for i in range(x.shape[0])]).mean(1)


def over_images(m: Base, x: Tensor) -> Tensor:
    return torch.stack([m.body(t) for t in x]).mean(1)


def over_unbound(m: Base, x: Tensor) -> Tensor:
    return torch.stack([m.body(t) for t in x.unbind(0)]).mean(1)


def over_split(m: Base, x: Tensor) -> Tensor:
    return torch.cat([m.body(t) for t in x.split(1)]).mean(1)


def over_chunks(m: Base, x: Tensor) -> Tensor:
    return torch.cat([m.body(t) for t in x.chunk(x.shape[0])]).mean(1)


def by_parity(m: Base, x: Tensor) -> Tensor:
    return m.body(x * 2 if x.shape[0] % 2 == 0 else x).mean(1)


def by_number(m: Base, x: Tensor) -> Tensor:
    return m.body(x * 2 if len(x) > 4 else x).mean(1)


class Runs(Base):
    def __init__(self, run: Callable[[Base, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


LOOPS = [over_range, over_images, over_unbound, over_split, over_chunks]


@pytest.mark.parametrize("capture", ["auto", "export"])
@pytest.mark.parametrize("run", LOOPS, ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore:.*fixes the batch size")
def test_code_that_depends_on_the_batch_is_right_or_refused(
    run: Callable[[Base, Tensor], Tensor], capture: str
) -> None:
    model = randomise(Runs(run)).double().eval()
    whole, _ = certified_at((0.0, 0.5), model, X, capture)
    assert torch.allclose(whole(X), model(X), rtol=1e-10)
    for batch in (1, 3, 5, 8):
        x = noise(batch, 6, C)
        with pytest.raises(InputSizeError, match=rf"dimension 0 of x is {batch}: .* for 2"):
            whole(x)


def for_one(m: Base, x: Tensor) -> Tensor:
    return m.body(x * 2 if x.shape[0] == 1 else x).mean(1)


@pytest.mark.parametrize("capture", ["auto", "export"])
@pytest.mark.parametrize("given", [1, 2])
@pytest.mark.parametrize("run", [by_parity, for_one, by_number], ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore:.*fixes the batch size")
def test_a_relation_that_the_code_asks_of_the_batch_is_guarded(
    run: Callable[[Base, Tensor], Tensor], given: int, capture: str
) -> None:
    model = randomise(Runs(run)).double().eval()
    whole = fxprune.prune(model, 0.0, example_inputs=X[:given], capture=capture)
    refused = 0
    for batch in (1, 2, 3, 4, 5):
        x = noise(batch, 6, C)
        try:
            out = whole(x)
        except InputSizeError:
            assert batch != given
            refused += 1
        else:
            assert torch.allclose(out, model(x), rtol=1e-10)
    assert refused


@pytest.mark.filterwarnings("ignore:.*fixes the batch size")
def test_the_refusal_names_the_line() -> None:
    pruned = fxprune.prune(randomise(Runs(over_range)), 0.5, example_inputs=torch.randn(2, 6, C))
    with pytest.raises(InputSizeError, match=r"test_arguments.py:\d+"):
        pruned(torch.randn(3, 6, C))


def joined(m: Base, x: Tensor) -> Tensor:
    """A reshape that would take five samples of one for one."""
    b, n, _ = x.shape
    return m.body(x.transpose(1, 2).reshape(b, -1, n).transpose(1, 2)).mean(1)


def test_an_example_of_one_sample_gives_any_batch(capture: str) -> None:
    model = randomise(Runs(joined)).double().eval()
    whole = fxprune.prune(model, 0.0, example_inputs=noise(1, 6, C), capture=capture)
    for batch in (1, 2, 5):
        x = noise(batch, 6, C)
        assert torch.allclose(whole(x), model(x), rtol=1e-10)


def squeezed(m: Base, x: Tensor) -> Tensor:
    return m.body(x).mean(1).squeeze()


def test_a_batch_of_one_that_would_be_squeezed_is_refused(capture: str) -> None:
    model = randomise(Runs(squeezed)).double().eval()
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture=capture)
    assert torch.allclose(whole(noise(3, 6, C)), model(noise(3, 6, C)), rtol=1e-10)
    with pytest.raises(InputSizeError):
        whole(noise(1, 6, C))
    if capture == "symbolic":
        with pytest.raises(CaptureError, match=r"squeeze\(\) at .*test_arguments.py:\d+ .* two samples"):
            fxprune.prune(model, 0.5, example_inputs=noise(1, 6, C), capture=capture)


# ---------------------------------------------------------------- what a model asserts


def by_assert(x: Tensor) -> None:
    assert x.shape[1] == 6, "six tokens"


def by_torch_assert(x: Tensor) -> None:
    torch._assert(x.shape[1] == 6, "six tokens")


def by_an_assert_imported_by_name(x: Tensor) -> None:
    _assert(x.shape[1] == 6, "six tokens")


def by_torch_check(x: Tensor) -> None:
    torch._check(x.shape[1] == 6, lambda: "six tokens")


def by_raising(x: Tensor) -> None:
    if x.size(1) != 6:
        raise ValueError("six tokens")


class Checked(Base):
    def __init__(self, check: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.check = check

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return self.body(x).mean(1)


@pytest.mark.parametrize(
    "check",
    [by_assert, by_torch_assert, by_an_assert_imported_by_name, by_torch_check, by_raising],
    ids=lambda f: f.__name__,
)
def test_what_a_model_asserts_of_sizes_is_refused(check: Callable[[Tensor], None], capture: str) -> None:
    model = randomise(Checked(check)).double().eval()
    whole = fxprune.prune(model, 0.0, example_inputs=X, capture=capture)
    assert torch.allclose(whole(noise(5, 6, C)), model(noise(5, 6, C)), rtol=1e-10)
    with pytest.raises(InputSizeError):
        whole(noise(2, 7, C))


class HandsOn(nn.Module):
    """Hands what it has no name for to the module inside it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor | None = None, **more: Any) -> Tensor:
        return self.inner(x, **more)


class Weighed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        x = self.fc1(x).relu()
        return self.fc2(x if weights is None else x * weights[:, None])


def test_what_is_handed_on_by_keyword_is_an_input_behind_those_with_defaults(capture: str) -> None:
    model, x, weights = randomise(HandsOn(Weighed()).eval()), torch.randn(2, 12), torch.rand(2)
    given = {"x": x, "weights": weights}
    pruned = fxprune.prune(model, 0.5, example_kwargs=given, capture=capture)
    assert fxprune.verify(model, pruned, example_kwargs=given) < 1e-8
    if capture == "symbolic":  # torch.export asks for a batch of its own here
        assert pruned(x=x[:1], weights=weights[:1]).shape == (1, 4)
    with pytest.raises(InputArgumentError, match="weights"):
        pruned(x)
    assert not torch.allclose(pruned(**given), pruned(x=x, weights=weights * 2))


# ---------------------------------------------------------------- what Python itself looks at


class Mode(Enum):
    PLAIN = 1
    DOUBLED = 2


class Options:
    def __init__(self, causal: bool, mask: Tensor | None = None, kind: Mode = Mode.PLAIN) -> None:
        self.causal, self.mask, self.kind = causal, mask, kind


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, options: Options, mode: Mode) -> Tensor:
        y = self.last(self.first(x).relu())
        y = y * 2 if mode is Mode.DOUBLED else y
        y = y.cumsum(1) if options.causal else y
        y = y + 1 if options.kind is Mode.PLAIN else y
        return y if options.mask is None else y * options.mask


def test_members_of_enumerations_and_flags_of_objects_are_guarded() -> None:
    model, x, mask = randomise(Optional().eval()), torch.randn(2, 4, 6), torch.rand(4, 1)
    for mode, other in (tuple(Mode), tuple(Mode)[::-1]):
        for options in (Options(True), Options(False, mask)):
            pruned = fxprune.prune(model, 0.0, example_inputs=(x, options, mode))
            torch.testing.assert_close(pruned(x, options, mode), model(x, options, mode))
            third = Options(options.causal, options.mask, Mode.DOUBLED)
            second = Options(not options.causal, options.mask)
            for refused in ((options, other), (second, mode), (third, mode)):
                with pytest.raises(InputArgumentError, match="the model was captured with"):
                    pruned(x, *refused)
    options.mask = 2 * mask
    torch.testing.assert_close(pruned(x, options, mode), model(x, options, mode))
