"""A user's own ops: taught under any name of theirs, certified with a masked form or none, mistakes shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

import fxprune
import fxprune.rules.axes
from fxprune import DEFAULT_RULES, Flow, NotCovered, Op
from fxprune.errors import CertificateError, FxpruneError, RuleError
from fxprune.rules import Typed


@torch.library.custom_op("taught::rms", mutates_args=())
def rms(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """A root-mean-square norm over the last dimension."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * scale


@rms.register_fake
def _(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("taught::groups", mutates_args=())
def groups(x: Tensor, count: int, dim: int) -> Tensor:
    """The last dimension (`dim` elements in `count` groups), each group less its mean."""
    grouped = x.reshape(*x.shape[:-1], count, dim // count)
    return (grouped - grouped.mean(-1, keepdim=True)).reshape(*x.shape[:-1], dim)


@groups.register_fake
def _(x: Tensor, count: int, dim: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("taught::ramp", mutates_args=())
def ramp(x: Tensor) -> Tensor:
    """Every element times its place: no norm, and no op that may lose elements."""
    return x * torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)


@ramp.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Normed(nn.Module):
    """Two layers with a norm of one's own between them, on [batch, tokens, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(6, 24), nn.Linear(24, 4)
        self.scale = nn.Parameter(torch.ones(24))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.ops.taught.rms(self.up(x), self.scale, eps=1e-5))


class Grouped(Normed):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.ops.taught.groups(self.up(x) * self.scale, 4, dim=24))


class Ramped(Normed):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.ops.taught.ramp(self.up(x) * self.scale))


def rms_axes(x: Typed, scale: Typed, eps: float) -> Flow:
    return Flow(x.axes, same=[(x.axes[-1], scale.axes[0])], reduced=[x.axes[-1]])


def masked_rms(x: Tensor, scale: Tensor, eps: float, mask: Tensor) -> Tensor:
    mean = (x.square() * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    return x / (mean + eps).sqrt() * scale


def unmasked_rms(x: Tensor, scale: Tensor, eps: float, mask: Tensor) -> Tensor:
    """Wrong: the mean over all elements."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * scale


def groups_axes(x: Typed, count: int, dim: int) -> Flow:
    from fxprune.rules.axes import Product, atom

    group, inner = atom(count), atom(dim // count)
    whole = Product.of((group, inner))
    return Flow(x.axes, [(x.axes[-1], whole)], sizes={"count": group, "dim": whole}, reduced=[inner])


def ramp_axes(x: Typed) -> Flow:
    """Wrong: it says that the op is a statistic."""
    return Flow(x.axes, reduced=[x.axes[-1]])


X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))


def pruned_with(model: nn.Module, ops: dict[str, Any], capture: str = "symbolic") -> Any:
    rules = DEFAULT_RULES.extended(ops)
    pruned = fxprune.prune(model, 0.5, example_inputs=X, capture=capture, rules=rules)
    return pruned, fxprune.verify(model, pruned, rules=rules)


@pytest.mark.parametrize("name", ["rms", "taught.rms", "taught::rms"])
@pytest.mark.parametrize(
    "op", [rms_axes, Op(rms_axes), Op(rms_axes, masked_rms)], ids=["rule", "op", "masked"]
)
def test_a_norm_of_ones_own(op: Any, name: str, capture: str) -> None:
    model = randomise(Normed().eval())
    pruned, certificate = pruned_with(model, {name: op}, capture)
    assert pruned.get_parameter("scale").shape == (12,)
    assert certificate.exact
    assert pruned(X[:1]).shape == (1, 5, 4)


def test_sizes_that_a_norm_of_ones_own_spells(capture: str) -> None:
    model = randomise(Grouped().eval())
    pruned, certificate = pruned_with(model, {"taught::groups": groups_axes}, capture)
    assert pruned.get_parameter("up.weight").shape == (12, 6)
    assert certificate.exact


def test_importance_sees_a_norm_of_ones_own() -> None:
    model, rules = randomise(Normed().eval()), DEFAULT_RULES.extended({"rms": Op(rms_axes, masked_rms)})
    pruned = fxprune.prune(model, 0.5, example_inputs=X, data=[X], importance="activation", rules=rules)
    assert fxprune.verify(model, pruned, rules=rules).exact


def test_a_wrong_masked_form_shows() -> None:
    model = randomise(Normed().eval())
    assert not pruned_with(model, {"rms": Op(rms_axes, unmasked_rms)})[1].exact


def test_a_statistic_that_the_rule_does_not_name() -> None:
    model = randomise(Normed().eval())
    unnamed = {"rms": lambda x, scale, eps: Flow(x.axes, same=[(x.axes[-1], scale.axes[0])])}
    with pytest.raises(CertificateError, match=r"rms at .*test_taught_ops.py.*reduced=.*masked="):
        pruned_with(model, unnamed)


def test_an_order_that_matters_is_no_statistic() -> None:
    with pytest.raises(CertificateError, match=r"taught.ramp at .*the order of the elements"):
        pruned_with(randomise(Ramped().eval()), {"taught.ramp": ramp_axes})


def test_a_masked_form_that_fails() -> None:
    model = randomise(Normed().eval())
    with pytest.raises(
        RuleError, match=r"masked form that you taught for 'rms' fails at .*x, scale, eps"
    ) as raised:
        pruned_with(model, {"rms": Op(rms_axes, lambda x, mask: x)})
    assert isinstance(raised.value.__cause__, TypeError)


def no_attribute(x: Typed, scale: Typed, eps: float) -> Flow:
    return Flow(x.axis)  # type: ignore[attr-defined]


def no_index(x: Typed, scale: Typed, eps: float) -> Flow:
    return Flow(x.axes, same=[(x.axes[7], scale.axes[0])])


def no_sum(x: Typed, scale: Typed, eps: float) -> Flow:
    return Flow(x.axes + eps)  # type: ignore[operator]


def other_shape(x: Typed, scale: Typed, eps: float) -> Flow:
    return Flow(x.axes[1:])


def other_sizes(x: Typed, scale: Typed, eps: float) -> Flow:
    return Flow(x.axes, same=[(x.axes[1], scale.axes[0])])


def nothing(x: Typed, scale: Typed, eps: float) -> None:
    return None


def too_few(x: Typed) -> Flow:
    return Flow(x.axes)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (no_attribute, "AttributeError"),
        (no_index, "IndexError"),
        (no_sum, "TypeError"),
        (other_shape, "it claims"),
        (other_sizes, "elements"),
        (nothing, "it returned NoneType, not a Flow"),
        (too_few, "TypeError"),
    ],
)
def test_a_mistake_in_a_rule_is_shown(wrong: Any, what: str, capture: str) -> None:
    with pytest.raises(RuleError) as raised:
        pruned_with(Normed().eval(), {"taught::rms": wrong}, capture)
    text = str(raised.value)
    assert "'taught.rms'" in text and what in text
    assert f"the rule is {wrong.__name__} at {__file__}:" in text
    assert raised.value.__cause__ is not None and isinstance(raised.value, FxpruneError)
    assert text.count(__file__) >= 2 or capture == "export"  # the rule's line, and the model's


def test_a_rule_may_have_nothing_to_say() -> None:
    def knows_nothing(x: Typed, scale: Typed, eps: float) -> Flow:
        raise NotCovered("an eps of its own")

    rules = DEFAULT_RULES.extended({"taught.rms": knows_nothing})
    analysis = fxprune.analyze(Normed().eval(), example_inputs=X, rules=rules)
    assert not analysis.prunable
    assert "an eps of its own" in str(analysis.group_of("scale[0]")[0].frozen)


def test_the_former_names_of_fields() -> None:
    x, one = Typed(()), fxprune.rules.axes.ONE
    assert Flow(x.axes, sums=[one]).reduced == [one]
    assert list(Flow(x.axes, frozen=[(one, "a")], whole=[(one, "b")]).frozen) == [(one, "a"), (one, "b")]
