"""Every pass keeps the values, does nothing the second time, and nothing where there is nothing to do."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, images, mlp, randomise, run, small_conv, small_vit
from torch import Tensor, fx, nn

import fxprune
from fxprune.capture.attention import decompose_modules
from fxprune.capture.exported.capture import capture_exported
from fxprune.capture.symbolic.capture import capture_symbolic
from fxprune.choose.best import select
from fxprune.choose.budget import Budget
from fxprune.choose.budget.schedules import Uniform
from fxprune.choose.candidates import candidates
from fxprune.choose.importance.score import magnitude
from fxprune.errors import InputSizeError
from fxprune.graph.copies import structural_copy
from fxprune.graph.example import Example
from fxprune.graph.values import NodeError, propagate_values
from fxprune.passes.canonical.counts_of_sums import counts_of_sums
from fxprune.passes.canonical.divide_sums_first import divide_sums_first
from fxprune.passes.canonical.explicit_scale import explicit_scale
from fxprune.passes.canonical.explicit_squeeze import explicit_squeeze
from fxprune.passes.canonical.follow_input import follow_input
from fxprune.passes.canonical.lift_modules import lift_modules
from fxprune.passes.canonical.pack_varargs import pack_varargs
from fxprune.passes.canonical.remove_noise import remove_noise
from fxprune.passes.canonical.sizes_of_whole import sizes_of_whole
from fxprune.passes.canonical.sums_to_means import sums_to_means
from fxprune.passes.shrinking.rename import rename
from fxprune.passes.shrinking.shrink import shrink
from fxprune.passes.shrinking.steps.draft import Draft, copied
from fxprune.passes.shrinking.steps.pin_sizes import pin_sizes
from fxprune.result.selection import Selection

Pass = Callable[[fx.GraphModule], fx.GraphModule]

PASSES: dict[str, Pass] = {
    "remove_noise": remove_noise,
    "pack_varargs": pack_varargs,
    "sizes_of_whole": sizes_of_whole,
    "follow_input": follow_input,
    "explicit_scale": explicit_scale,
    "explicit_squeeze": explicit_squeeze,
    "divide_sums_first": divide_sums_first,
    "sums_to_means": sums_to_means,
    "counts_of_sums": counts_of_sums,
}


def captured(model: nn.Module, x: Tensor, capture: str) -> tuple[fx.GraphModule, nn.Module]:
    """A model's graph with values, before any pass, and the copy that it was captured from."""
    source = structural_copy(model)
    decompose_modules(source)
    example = Example((x,))
    module = (capture_symbolic if capture == "symbolic" else capture_exported)(source, example).module
    propagate_values(module, example)
    return module, source


def traced(function: Callable[..., Any], x: Tensor) -> fx.GraphModule:
    """The graph of a function of one tensor, with values."""
    module = fx.symbolic_trace(function)
    propagate_values(module, Example((x,)))
    return module


def applied(change: Pass, module: fx.GraphModule, x: Tensor) -> fx.GraphModule:
    """The module after a pass that must keep its values and be done after one time."""
    wanted = run(module, x)
    change(module)
    module.graph.lint()
    module.recompile()
    assert_same(run(module, x), wanted, tolerance=1e-5)
    assert [n.name for n in module.graph.nodes if "val" not in n.meta] == []  # later passes need it
    once = str(module.graph)
    change(module)
    assert str(module.graph) == once
    return module


def targets(module: fx.GraphModule) -> list[str]:
    """What the graph calls, by name."""
    calls = (n for n in module.graph.nodes if n.op in ("call_function", "call_method", "call_module"))
    return [n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "") for n in calls]


def layers(module: fx.GraphModule) -> list[str]:
    """The classes of the modules that the graph calls."""
    return [
        type(module.get_submodule(n.target)).__name__ for n in module.graph.nodes if n.op == "call_module"
    ]


# ---------------------------------------------------------------- laws


class Untidy(nn.Module):
    """Work for every pass: identities, sizes one by one, an unscaled attention, a sum that is a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.rest, self.bn = nn.Linear(12, 36), nn.Identity(), nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[-1] == 12, "twelve channels")
        b, n, c = x.shape
        q, k, v = self.qkv(self.rest(x)).reshape(b, n, 3, 3, c // 3).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        x = x + torch.arange(n, device=x.device, dtype=x.dtype).view(1, n, 1)
        return self.bn(x.sum(1) / n)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_keeps_the_values_and_is_idempotent(name: str, capture: str) -> None:
    x = torch.randn(2, 4, 12)
    module, _ = captured(randomise(Untidy().eval()), x, capture)
    applied(PASSES[name], module, x)


def test_lifting_keeps_the_values_and_is_idempotent(capture: str) -> None:
    x = torch.randn(2, 4, 12)
    module, source = captured(randomise(Untidy().eval()), x, capture)
    applied(lambda m: lift_modules(m, source=source), module, x)


@pytest.mark.parametrize("name", [*PASSES, "lift_modules"])
def test_a_pass_leaves_alone_what_needs_nothing(name: str) -> None:
    module, source = captured(mlp(), torch.randn(2, 6), "symbolic")
    before = str(module.graph)
    PASSES.get(name, lambda m: lift_modules(m, source=source))(module)
    assert str(module.graph) == before


@pytest.mark.parametrize("build", [small_vit, small_conv])
def test_a_canonical_graph_stays_as_it_is(build: Callable[[], nn.Module], capture: str) -> None:
    model = build()
    module = fxprune.trace(model, images(), capture=capture)
    before = str(module.graph)
    for change in PASSES.values():
        change(module)
    lift_modules(module, source=model)
    assert str(module.graph) == before
    assert_same(run(module, images()), run(model, images()))


def test_values_are_propagated_without_a_change() -> None:
    module = fx.symbolic_trace(mlp())
    before = str(module.graph)
    propagate_values(module, Example((torch.randn(2, 6),)), batch=5)
    assert str(module.graph) == before
    shapes = [tuple(n.meta["val"].shape) for n in module.graph.nodes if n.op == "call_module"]
    assert shapes == [(5, 16), (5, 16), (5, 4)]


def test_values_of_an_example_by_name() -> None:
    module = fx.symbolic_trace(Scaled())
    propagate_values(module, Example((torch.randn(2, 6),), {"scale": torch.randn(2, 1)}))
    assert [tuple(n.meta["val"].shape) for n in module.graph.nodes][1:3] == [(2, 1), (2, 6)]
    with pytest.raises(NodeError, match="no value for the model's input 'scale'"):
        propagate_values(module, Example((torch.randn(2, 6),)))


def test_a_node_that_does_not_run_is_named() -> None:
    with pytest.raises(NodeError, match=r"^mul: \w+Error: .*\[2, 5\]"):
        propagate_values(fx.symbolic_trace(Scaled()), Example((torch.randn(2, 6), torch.randn(2, 5))))


class Scaled(nn.Module):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale


# ---------------------------------------------------------------- lift_modules


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (2, 6)),
        (nn.Linear(6, 4, bias=False), (2, 3, 6)),
        (nn.Conv1d(6, 4, 3, stride=2, padding=1), (2, 6, 9)),
        (nn.Conv2d(6, 4, 3, padding="same"), (2, 6, 5, 5)),
        (nn.Conv2d(6, 12, (3, 1), (1, 2), (1, 0), groups=3, bias=False), (2, 6, 5, 5)),
        (nn.Conv2d(6, 4, 2, dilation=2), (2, 6, 5, 5)),
        (nn.Conv3d(2, 4, 2), (2, 2, 3, 3, 3)),
        (nn.LayerNorm(6, eps=1e-3), (2, 3, 6)),
        (nn.LayerNorm((3, 6), bias=False), (2, 3, 6)),
        (nn.GroupNorm(3, 6, eps=1e-3), (2, 6, 5)),
        (nn.BatchNorm1d(6), (2, 6)),
        (nn.BatchNorm2d(6, eps=1e-3, momentum=0.3), (2, 6, 3, 3)),
        (nn.BatchNorm2d(6, affine=False), (2, 6, 3, 3)),
    ],
    ids=str,
)
def test_layers_come_back_from_export(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model, x = randomise(nn.Sequential(layer).eval()), torch.randn(shape)
    module = fxprune.trace(model, x, capture="export")
    assert layers(module) == [type(layer).__name__]
    lifted = module.get_submodule("0")
    assert lifted.extra_repr() == layer.extra_repr()
    assert dict(lifted.named_parameters()) == dict(layer.named_parameters())  # the same tensors
    assert {*module.state_dict()} == {*model.state_dict()}
    assert_same(run(module, x), run(model, x), tolerance=0)


def test_a_lifted_batch_norm_trains() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, momentum=0.3)).eval())
    clone = structural_copy(model)
    clone.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    module = fxprune.trace(model, images(), capture="export")
    assert_same(module.train()(images()), clone.train()(images()))
    torch.testing.assert_close(module.get_buffer("1.running_mean"), clone[1].running_mean)
    assert int(module.get_buffer("1.num_batches_tracked")) == 1


class NormWithDropout(nn.BatchNorm2d):
    """A layer that owns another, as timm's norms do."""

    def __init__(self) -> None:
        super().__init__(6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(super().forward(x))


def test_a_module_inside_a_lifted_layer_stays() -> None:
    model, x = randomise(nn.Sequential(NormWithDropout()).eval()), torch.randn(2, 6, 3, 3)
    module = fxprune.trace(model, x, capture="export")
    assert layers(module) == ["BatchNorm2d", "Dropout"]
    assert_same(run(module, x), run(model, x), tolerance=0)


class WeightRead(nn.Module):
    """A weight that is used by more than its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.fc.weight, self.fc.bias) + self.fc.weight.sum(0)


def test_a_layer_whose_weight_is_read_elsewhere_is_not_lifted() -> None:
    x = torch.randn(2, 6)
    module = fxprune.trace(randomise(WeightRead()), x, capture="export")
    assert layers(module) == []
    assert_same(run(module, x), run(randomise(WeightRead()), x))


class TwoStrides(nn.Module):
    """One layer's weights, in two convolutions that are not the same layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv1d(x, self.conv.weight, self.conv.bias)
        return F.conv1d(x, self.conv.weight, self.conv.bias, stride=2)


def test_calls_with_other_options_are_not_one_layer(capture: str) -> None:
    model, x = randomise(TwoStrides().eval()), torch.randn(2, 6, 5)
    module = fxprune.trace(model, x, capture=capture)
    assert layers(module) == []
    assert_same(run(module, x), run(model, x))


class Shared(nn.Module):
    """One layer, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x).relu())


def test_a_layer_called_twice_is_lifted_once() -> None:
    x = torch.randn(2, 6)
    module = fxprune.trace(randomise(Shared()), x, capture="export")
    assert layers(module) == ["Linear", "Linear"]
    assert [name for name, _ in module.named_parameters()] == ["fc.weight", "fc.bias"]


class Spelled(nn.Module):
    """A layer's function, called on its weights with the options given."""

    def __init__(self, layer: nn.Module, function: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self.layer, self.function, self.options = layer, function, options

    def forward(self, x: Tensor) -> Tensor:
        tensors = {**self.layer._parameters, **self.layer._buffers}
        tensors.pop("num_batches_tracked", None)
        return self.function(input=x, **tensors, **self.options)


@pytest.mark.parametrize(
    ("layer", "function", "options", "shape"),
    [
        (nn.LayerNorm(6), F.layer_norm, dict(normalized_shape=(6,)), (2, 3, 6)),
        (nn.LayerNorm(6), F.layer_norm, dict(normalized_shape=(6,), eps=0.0), (2, 3, 6)),
        (nn.GroupNorm(2, 6), F.group_norm, dict(num_groups=2), (2, 6, 5)),
        (nn.GroupNorm(2, 6), F.group_norm, dict(num_groups=2, eps=0.0), (2, 6, 5)),
        (nn.Conv1d(6, 4, 3), F.conv1d, dict(), (2, 6, 5)),
        (nn.Conv2d(6, 4, (3, 1), groups=2), F.conv2d, dict(groups=2, padding=(1, 0)), (2, 6, 5, 5)),
        (nn.Linear(6, 4), F.linear, dict(), (2, 6)),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_a_lifted_call_keeps_its_options_and_its_defaults(
    layer: nn.Module, function: Callable[..., Tensor], options: Any, shape: tuple[int, ...], capture: str
) -> None:
    model, x = randomise(Spelled(layer, function, **options).eval()), torch.randn(shape) * 1e-3
    module = fxprune.trace(model, x, capture=capture)
    assert layers(module) == [type(layer).__name__]
    assert_same(run(module, x), run(model, x), tolerance=0)


class HalfNorm(nn.Module):
    """A layer norm with a shift alone, and a statistic that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("weight", None)
        self.bias = nn.Parameter(torch.ones(6))
        self.register_buffer("mean", torch.ones(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (6,), self.weight, self.bias)


def test_a_lifted_norm_may_have_a_shift_alone(capture: str) -> None:
    model, x = nn.Sequential(HalfNorm()), torch.randn(2, 6)
    del model[0].mean
    module = fxprune.trace(model, x, capture=capture)
    assert layers(module) == ["LayerNorm"]
    assert not module.get_submodule("0").elementwise_affine
    assert_same(run(module, x), run(model, x), tolerance=0)


def test_a_layer_with_a_tensor_that_the_call_does_not_take_is_not_lifted() -> None:
    model, x = nn.Sequential(HalfNorm()), torch.randn(2, 6)
    assert layers(fxprune.trace(model, x)) == []


class FrozenNorm(nn.Module):
    """A batch norm that is always in eval mode, its statistics not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))
        self.register_buffer("running_mean", torch.randn(6), persistent=False)
        self.register_buffer("running_var", torch.rand(6) + 0.5, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class FrozenBatchNorm(nn.BatchNorm2d):
    """The same, as a kind of BatchNorm2d."""

    forward = FrozenNorm.forward


class OwnBatchNorm(nn.BatchNorm2d):
    """One that follows the mode, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__(6)
        mean = self.running_mean
        del self.running_mean
        self.register_buffer("running_mean", mean, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._normalised(x)

    def _normalised(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
        )


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        (FrozenNorm, []),
        (lambda: FrozenBatchNorm(6), []),
        (lambda: NormWithDropout().train(False), ["BatchNorm2d", "Dropout"]),
        (OwnBatchNorm, ["BatchNorm2d"]),
    ],
    ids=["frozen", "frozen subclass", "extended", "own"],
)
def test_a_batch_norm_is_lifted_if_it_follows_the_mode(
    norm: Callable[[], nn.Module], kind: list[str], capture: str
) -> None:
    model, x = randomise(nn.Sequential(nn.Conv2d(3, 6, 1), norm()).eval()), images()
    module = fxprune.trace(model, x, capture=capture)
    assert layers(module) == ["Conv2d", *kind]
    assert {*module.state_dict()} | {"1.num_batches_tracked"} == {
        *model.state_dict(),
        "1.num_batches_tracked",
    }
    for training in (False, True):
        assert_same(run(module.train(training), x), run(model.train(training), x), tolerance=1e-6)


# ---------------------------------------------------------------- explicit_scale


def attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def test_attention_gets_the_scale_that_it_had() -> None:
    x = torch.randn(2, 3, 4, 16)
    module = applied(explicit_scale, traced(attend, x), x)
    assert [n.kwargs["scale"] for n in module.graph.nodes if n.op == "call_function"] == [0.25]


def test_an_explicit_scale_stays() -> None:
    x = torch.randn(2, 3, 4, 16)
    module = traced(lambda x: F.scaled_dot_product_attention(query=x, key=x, value=x, scale=0.7), x)
    before = str(module.graph)
    assert str(applied(explicit_scale, module, x).graph) == before


# ---------------------------------------------------------------- sums_to_means


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum(1) / 6,
        lambda x: x.sum(dim=(1, 2), keepdim=True) / 30,
        lambda x: torch.div(torch.sum(x, 1), 6),
        lambda x: x.sum(-1) * (1 / 5),
        lambda x: (1 / 5) * x.sum(-1),
        lambda x: x.sum(1) / x.shape[1],
        lambda x: x.sum(1).div(x.size(1)),
        lambda x: x.sum() / 120,
    ],
)
def test_a_sum_over_its_count_is_a_mean(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 6, 5)
    names = targets(applied(sums_to_means, traced(function, x), x))
    assert "mean" in names
    assert "sum" not in names


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum(1).unsqueeze(1) / 6,
        lambda x: x.sum(-1)[..., None] / x.shape[-1],
        lambda x: (1 / 30) * x.sum((1, 2)).view(-1, 1, 1),
    ],
)
def test_a_view_of_a_sum_is_divided_before(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 6, 5)
    module = applied(divide_sums_first, traced(function, x), x)
    assert "mean" in targets(applied(sums_to_means, module, x))


SUMS: dict[str, Callable[[Tensor], Tensor]] = {
    "literal": lambda h: h.sum((2, 3)) / 49,
    "product": lambda h: (1 / 49) * h.sum((2, 3)),
    "read": lambda h: h.sum((2, 3)) / (h.shape[2] * h.shape[3]),
    "read of the other dimension": lambda h: h.sum(2).mean(-1) / h.shape[3],
    "channels": lambda h: h.sum((2, 3)) * (h.sum(1, keepdim=True) / 8).mean((2, 3)),
}


@pytest.mark.parametrize("sums", SUMS)
def test_a_sum_over_what_follows_the_input_is_divided_as_the_model_says(sums: str, capture: str) -> None:
    """By 49, whatever the image: it is a mean for the example's size alone."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(SUMS[sums](self.b(self.a(x).relu())))

    model, (x, other) = randomise(Pooled().eval()), (torch.randn(2, 3, 7, 7), torch.randn(3, 3, 9, 7))
    whole, half = (fxprune.prune(model, ratio, example_inputs=x, capture=capture) for ratio in (0.0, 0.5))
    assert half.b.out_channels == 4
    for given in (x, other):
        assert_same(run(whole, given), run(model, given))
        assert fxprune.verify(model, half, example_inputs=given).exact


@pytest.mark.parametrize("depth", [0.0, 0.5])
def test_a_sum_that_another_tensors_size_divides_is_no_mean(depth: float, capture: str) -> None:
    """Of as many tokens in the example, and of others at a call; where a sum of two is gone as well."""

    class Paired(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.head = (
                nn.Linear(6, 8),
                *(nn.Linear(8, 8) for _ in "bc"),
                nn.Linear(8, 4),
            )

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            x, y = self.a(x), self.a(y)
            x = x + self.b(x).relu()
            x = x + self.c(x).tanh()
            x = x + self.c(x).relu().sum(1, keepdim=True) / x.shape[1]
            return self.head(x.sum(1) / y.shape[1]), self.head(y * (x.sum(-1).mean() / y.shape[-1]))

    model = randomise(Paired().eval())
    alike, others = ((torch.randn(2, n, 6), torch.randn(2, m, 6)) for n, m in [(5, 5), (7, 3)])
    pruned = fxprune.prune(model, 0.5, example_inputs=alike, capture=capture, depth=depth)
    for given in (alike, others):
        assert fxprune.verify(model, pruned, example_inputs=given).exact


@pytest.mark.parametrize("extra", [{}, {"dropout_p": 0.0}])
def test_a_scale_that_follows_the_input_stays_open(extra: dict[str, float], capture: str) -> None:
    """Attention over channels: its scale is one over the root of the number of tokens."""

    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.head = nn.Linear(6, 24), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.mT for t in self.qkv(x).chunk(3, -1))
            return self.head(F.scaled_dot_product_attention(q, k, v, **extra).mT)

    model, (x, other) = randomise(Crossed().eval()), (torch.randn(2, 5, 6), torch.randn(3, 9, 6))
    whole, half = (fxprune.prune(model, ratio, example_inputs=x, capture=capture) for ratio in (0.0, 0.5))
    for given in (x, other):
        assert_same(run(whole, given), run(model, given))
        assert fxprune.verify(model, half, example_inputs=given).exact


def test_a_scale_that_follows_the_input_stays_open_where_heads_merge(capture: str) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.crossed, self.qkv, self.out, self.head = (nn.Linear(16, n) for n in (48, 48, 16, 4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.mT for t in self.crossed(x).chunk(3, -1))
            x = F.scaled_dot_product_attention(q, k, v).mT
            q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
            return self.head(self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))

    model, (x, other) = randomise(Both().eval()), (torch.randn(2, 5, 16), torch.randn(3, 9, 16))
    half = fxprune.prune(model, 0.5, example_inputs=x, capture=capture, attention="merge")
    for given in (x, other):
        assert fxprune.verify(model, half, example_inputs=given).exact


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum(1) / 5,
        lambda x: x.sum(1) * 6,
        lambda x: x.sum(1) / x.sum(),
        lambda x: 6 / x.sum(1),
        lambda x: x.mean(1),
    ],
)
def test_other_sums_stay(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 6, 5).abs()
    module = traced(function, x)
    before = str(module.graph)
    assert str(applied(sums_to_means, module, x).graph) == before


class Centred(nn.Module):
    """Channels less their mean, which is spelled in one of two ways."""

    def __init__(self, divide: bool) -> None:
        super().__init__()
        self.fc, self.head, self.divide = nn.Linear(6, 16), nn.Linear(16, 4), divide

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        mean = x.sum(-1, keepdim=True) / 16 if self.divide else x.mean(-1, keepdim=True)
        return self.head(x - mean)


def test_a_divided_sum_is_pruned_as_the_mean_that_it_is(capture: str) -> None:
    x = torch.randn(2, 6)
    pruned = [
        fxprune.prune(randomise(Centred(divide).eval()), 0.5, example_inputs=x, capture=capture)
        for divide in (True, False)
    ]
    assert_same(run(pruned[0], x), run(pruned[1], x), tolerance=1e-6)


# ---------------------------------------------------------------- explicit_squeeze


@pytest.mark.parametrize(
    ("function", "dims"),
    [
        (lambda x: x.squeeze(), [(1, 3)]),
        (lambda x: x.squeeze(1), [(1,)]),
        (lambda x: torch.squeeze(x, dim=-1), [(3,)]),
        (lambda x: x.squeeze((0, 1)), [(1,)]),
        (lambda x: x.squeeze(2), []),
    ],
)
def test_squeezed_dimensions_are_named(function: Callable[[Tensor], Tensor], dims: list[Any]) -> None:
    x = torch.randn(4, 1, 5, 1)
    module = applied(explicit_squeeze, traced(function, x), x)
    squeezes = [n for n in module.graph.nodes if "squeeze" in str(n.target)]
    assert [tuple(d % 4 for d in n.args[1]) for n in squeezes] == dims


class SqueezesAll(nn.Module):
    """A hidden width that may shrink to one, beside a unit dimension that goes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).unsqueeze(1).squeeze())


def test_a_width_that_shrinks_to_one_is_not_squeezed(capture: str) -> None:
    x = torch.randn(3, 6)
    pruned = fxprune.prune(randomise(SqueezesAll().eval()), 0.5, example_inputs=x, capture=capture)
    assert pruned.get_parameter("fc1.weight").shape == (1, 6)
    assert run(pruned, x).shape == (3, 4)


@pytest.mark.parametrize(
    "squeeze", [lambda x: x.squeeze(), lambda x: x.squeeze(1), lambda x: x.squeeze((0, 1))]
)
def test_a_number_of_tokens_that_is_one_later_is_refused(squeeze: Callable[[Tensor], Tensor]) -> None:
    """The model squeezes that dimension then, the graph would not."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(squeeze(self.a(x)))

    model = randomise(Net().eval())
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(2, 5, 6), capture="symbolic")
    assert run(pruned, torch.randn(3, 7, 6)).shape == (3, 7, 4)
    with pytest.raises(InputSizeError, match="another branch"):
        pruned(torch.randn(2, 1, 6))


# ---------------------------------------------------------------- remove_noise, pack_varargs


def test_asserts_and_identities_go(capture: str) -> None:
    module = fxprune.trace(randomise(Untidy().eval()), torch.randn(2, 4, 12), capture=capture)
    assert "Identity" not in layers(module)
    assert not [name for name in targets(module) if "assert" in name or "constrain" in name]


@pytest.mark.parametrize("shape", [(2, 4, 12), (3, 5, 12)])
def test_a_graph_without_asserts_takes_other_sizes(shape: tuple[int, ...]) -> None:
    model = randomise(Untidy().eval())
    module = fxprune.trace(model, torch.randn(2, 4, 12), capture="symbolic")
    x = torch.randn(shape)
    if shape[1] == 4:  # the mean over 4 tokens is divided by what the input has
        assert_same(run(module, x), run(model, x))
    assert run(module, x).shape == (shape[0], 12)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(4, 30),
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x.permute(2, 0, 1),
        lambda x: x[:, :1].expand(-1, 3, x.size(2)),
        lambda x: x.repeat(1, 2, 1),
        lambda x: x.flip(0, 1),
        lambda x: x.new_ones(2, 3),
    ],
)
def test_sizes_given_one_by_one_become_one_argument(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 6, 5)
    module = applied(pack_varargs, traced(function, x), x)
    last = next(n for n in reversed(module.graph.nodes) if n.op == "call_method")
    assert len(last.args) == 2
    assert isinstance(last.args[1], (list, tuple))


def test_packed_sizes_stay() -> None:
    x = torch.randn(4, 6, 5)
    module = traced(lambda x: x.view((4, 30)).view(torch.int32), x)
    before = str(module.graph)
    assert str(applied(pack_varargs, module, x).graph) == before


# ---------------------------------------------------------------- sizes_of_whole


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.new_ones(x[:, :, -1].shape),
        lambda x: x.new_ones(x[:, :, 0].size()),
        lambda x: x.new_ones(x[:, 0, -1].size(-1), x[:, :, -1].size(1)),
        lambda x: x.new_ones(x[:, :, -1].shape[-1], 2),
    ],
)
def test_a_part_that_is_asked_for_its_shape_alone_is_not_taken(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 6, 5)
    module = applied(sizes_of_whole, traced(function, x), x)
    indexed = [n for n in module.graph.nodes if n.target is operator.getitem]
    assert not any(isinstance(n.meta["val"], Tensor) for n in indexed)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (lambda y: y + y.shape[0])(x[:, :, -1]),
        lambda x: x.new_ones(x[:, :, 3].shape),
        lambda x: x.new_ones(x[:, -1].shape),
        lambda x: x.new_ones(x[:, 1:, -1].shape),
        lambda x: x.new_ones(x[..., -1].shape),
    ],
)
def test_a_part_whose_values_count_or_whose_shape_is_another_stays(
    function: Callable[[Tensor], Tensor],
) -> None:
    x = torch.randn(4, 6, 5)
    module = traced(function, x)
    before = str(module.graph)
    assert str(applied(sizes_of_whole, module, x).graph) == before


class AsksTheLast(nn.Module):
    """Hands one channel on, of which only the shape is asked (positions of words)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(9, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        one = x[:, :, -1]
        places = torch.arange(one.shape[:2][1]).expand(one.size(0), -1)
        return self.head(self.norm(x + self.places(places)))


def test_a_channel_whose_shape_alone_is_asked_is_no_reason_to_stay() -> None:
    model, x = randomise(AsksTheLast().eval()), torch.arange(14).reshape(2, 7)
    for form in ("graph", "module"):
        pruned = fxprune.prune(model, 0.5, example_inputs=x, capture="symbolic", form=form)
        assert pruned.words.weight.shape == (20, 8)
        assert fxprune.verify(model, pruned, example_inputs=x[:1, :4]) < 1e-8


# ---------------------------------------------------------------- stop_gradients


class Stopped(nn.Module):
    """One branch under `torch.no_grad()`, the other not."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.live = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = self.fixed(x)
        return self.live(x) * fixed


def test_what_has_no_gradient_is_detached(capture: str) -> None:
    module = fxprune.trace(Stopped(), torch.randn(2, 6), capture=capture)
    detached = [str(n.args[0]) for n in module.graph.nodes if "detach" in str(n.target)]
    assert detached == ["fixed"]


# ---------------------------------------------------------------- follow_input


class Constants(nn.Module):
    """Devices and dtypes taken from the input, which export writes down as constants."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        x = x + torch.zeros(x.shape[1:], device=x.device, dtype=x.dtype) + place.sin()[:, None]
        return self.fc(x).softmax(-1).to(self.fc.weight.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_a_result_moves_to_another_dtype(ratio: float, dtype: torch.dtype, capture: str) -> None:
    model, x = randomise(nn.Sequential(nn.Linear(6, 6), Constants()).eval()), torch.randn(2, 3, 6)
    pruned = fxprune.prune(model, ratio, example_inputs=x, capture=capture)
    wanted = run(pruned, x)
    got = run(pruned.to(dtype), x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), wanted, atol=0.05, rtol=0.05)


def test_a_graph_reads_device_and_dtype_of_its_input() -> None:
    module = fxprune.trace(randomise(Constants().eval()), torch.randn(2, 3, 6), capture="export")
    constants = [a for n in module.graph.nodes for a in (*n.args, *n.kwargs.values())]
    assert not [a for a in constants if isinstance(a, (torch.device, torch.dtype))]


class Upcast(nn.Module):
    """A statistic in float32 whatever the model's dtype is, and one in the dtype of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x.to(next(self.parameters()).dtype))
        scale = x.to(torch.float32).pow(2).mean(-1, keepdim=True).rsqrt()
        return (x * scale).to(x.dtype).softmax(-1, dtype=torch.float32)


def test_a_dtype_that_the_model_spells_stays() -> None:
    model, x = nn.Sequential(nn.Linear(6, 6), Upcast()), torch.randn(2, 3, 6)
    with torch.no_grad():
        model[0].weight.mul_(300)  # its square is more than a float16 holds
    same = fxprune.prune(model, 0.0, example_inputs=x)
    for other in (torch.float16, torch.float64, torch.float32):
        wanted = model.to(other)(x.to(other))
        got = same.to(other)(x.to(other))
        assert got.dtype == wanted.dtype == torch.float32
        assert_same(got, wanted, tolerance=0)


# ---------------------------------------------------------------- pin_sizes


class Attention(nn.Module):
    """`head_dim ** -0.5` and every size read from shapes at run time."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(6, width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        out = attention.softmax(-1) @ v
        out = out.transpose(1, 2).reshape(B, N, C)
        return self.head(x + torch.mul(self.proj(out), other=C**-0.5))


def selected(model: nn.Module, x: Tensor, capture: str, ratio: float) -> tuple[fxprune.Analysis, Selection]:
    """An analysis and a magnitude selection on it."""
    analysis = fxprune.analyze(model, example_inputs=x, capture=capture)
    budget = Budget(ratio)
    groups = candidates(analysis, [], "head_dim", budget)
    counts = Uniform(analysis, {group: {group: 1} for group in groups}, budget).counts(ratio)
    return analysis, select(analysis, magnitude(analysis, groups), counts)


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_pinned_sizes_mean_the_originals(ratio: float, capture: str) -> None:
    model, x = randomise(Attention().eval()), torch.randn(2, 4, 6)
    analysis, selection = selected(model, x, capture, ratio)
    graph, new_of = copied(analysis.module.graph)
    before = str(graph)
    pin_sizes(Draft(analysis, selection, graph, new_of, analysis.module))
    graph.lint()
    if ratio == 0:
        assert str(graph) == before
    assert_same(run(fx.GraphModule(analysis.module, graph), x), run(model, x), tolerance=1e-5)


def test_no_arithmetic_on_pinned_sizes_is_left(capture: str) -> None:
    model, x = randomise(Attention().eval()), torch.randn(2, 4, 6)
    # (Where whole heads go, head_dim stays, and is read as before.)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture, attention="head_dim")
    assert not {*targets(pruned)} & {"floordiv", "pow", "truediv"}
    reads = [n for n in pruned.graph.nodes if n.target in (getattr, "size", torch.ops.aten.sym_size.int)]
    assert all(node.users for node in reads)


@pytest.mark.parametrize("attention", ["heads", "head_dim"])
def test_sizes_read_at_run_time_prune_exactly(attention: str, capture: str) -> None:
    model, x = randomise(Attention().eval()), torch.randn(2, 4, 6)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, attention=attention, capture=capture)
    shapes = {name: tuple(p.shape) for name, p in pruned.named_parameters()}
    assert shapes["embed.weight"] == (8, 6)
    assert shapes["qkv.weight"] == (24, 8)
    assert float(fxprune.verify(model, pruned)) <= 1e-8
    for batch in (1, 3):
        assert run(pruned, torch.randn(batch, 4, 6)).shape == (batch, 4, 5)
    if capture == "symbolic":  # and the number of tokens is the input's
        assert run(pruned, torch.randn(2, 7, 6)).shape == (2, 7, 5)


def test_the_result_knows_the_lines_that_it_comes_from(capture: str) -> None:
    model, x = randomise(Attention().eval()), torch.randn(2, 4, 6)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    lines = [str(n.meta.get("where")) for n in pruned.graph.nodes if n.op == "call_module"]
    assert len(lines) == 4
    assert all(line.startswith(__file__) for line in lines)
    assert {key for n in pruned.graph.nodes for key in n.meta} == {"where", "module"}  # old shapes are gone


# ---------------------------------------------------------------- shrink


class NormWithAct(nn.BatchNorm2d):
    """An activation with weights lives in a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def test_the_analysed_graph_may_be_shrunk_again(capture: str) -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), NormWithAct(8), nn.Conv2d(8, 4, 3)).eval())
    x = images(2)
    analysis, selection = selected(model, x, capture, 0.5)
    held = {name: id(m) for name, m in analysis.module.named_modules(remove_duplicate=False)}
    first, second = (shrink(analysis, selection=selection, original=model) for _ in range(2))
    assert {name: id(m) for name, m in analysis.module.named_modules(remove_duplicate=False)} == held
    assert not {*map(id, first.modules())} & {*map(id, second.modules()), *held.values()}
    assert_same(run(first, x), run(second, x), 0)
    assert_same(run(analysis.module, x), run(model, x), 1e-5)


# ---------------------------------------------------------------- rename


class Named(nn.Module):
    """A layer, an activation, a table that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4)
        self.register_buffer("table", torch.rand(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x) + self.table))


def test_renaming_keeps_what_is_not_saved_and_the_modes() -> None:
    model, x = randomise(Named()).train(), torch.randn(2, 6)
    model.act.eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=x)
    names = {"fc1": "stem", "fc2": "act"}  # where the activation stands
    tensors = {f"{old}.{t}": f"{new}.{t}" for old, new in names.items() for t in ("weight", "bias")}
    renamed = rename(pruned, names=tensors | {"table": "places"})
    assert {*renamed.state_dict()} == {*tensors.values()}
    assert [name for name, _ in renamed.named_buffers()] == ["places"]
    assert isinstance(renamed.get_submodule("act_"), nn.Dropout)
    modes = {name: m.training for name, m in renamed.named_modules()}
    assert modes == {"": True, "stem": True, "act": True, "act_": False}
    assert_same(renamed(x), pruned(x), tolerance=0)
    assert not any(m.training for m in rename(pruned.eval(), names=tensors | {"table": "places"}).modules())
