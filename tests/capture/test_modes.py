"""Train and eval: the result draws the random numbers and keeps the statistics that the model would."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    assert_same,
    images,
    randomise,
    run,
    small_conv,
    small_hf_vit,
    small_swin,
    small_torchvision_vit,
    small_vit,
)
from torch import Tensor, fx, nn

import fxprune
from fxprune.capture.modes.follow import OTHER_CODE
from fxprune.errors import TrainingError

SEEDS = (1, 2)


def dropping_vit() -> nn.Module:
    return small_vit(drop_rate=0.3, proj_drop_rate=0.3, attn_drop_rate=0.3, drop_path_rate=0.3)


def dropping_swin() -> nn.Module:
    return small_swin(depths=(2,), num_heads=(2,), proj_drop_rate=0.3, attn_drop_rate=0.3, drop_path_rate=0.3)


def dropping_torchvision_vit() -> nn.Module:
    return small_torchvision_vit(dropout=0.3, attention_dropout=0.3)


def dropping_hf_vit(attention: str = "sdpa") -> nn.Module:
    return small_hf_vit(
        hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3, attn_implementation=attention
    )


def dropping_eager_hf_vit() -> nn.Module:
    return dropping_hf_vit("eager")


def dropping_conv() -> nn.Module:
    return small_conv(dropout=0.3)


# nn.MultiheadAttention holds its result sequence first, and dropout draws in the order of memory: the
# same numbers for one sample, as many for more.
ONE_LARGE = images(1, 224)


@pytest.mark.parametrize(
    ("build", "x", "capture"),
    [
        (dropping_vit, images(4), "symbolic"),
        (dropping_vit, images(4), "export"),
        (dropping_swin, images(4), "symbolic"),
        (dropping_swin, images(4), "export"),
        (dropping_torchvision_vit, ONE_LARGE, "symbolic"),
        (dropping_torchvision_vit, ONE_LARGE, "export"),
        (dropping_conv, images(4), "symbolic"),
        (dropping_conv, images(4), "export"),
        (dropping_hf_vit, images(4), "export"),
        (dropping_eager_hf_vit, images(4), "export"),
    ],
)
def test_a_whole_result_computes_what_the_model_does_in_both_modes(
    build: Callable[[], nn.Module], x: Tensor, capture: str
) -> None:
    model = build()
    same = fxprune.prune(model, 0.0, example_inputs=x.repeat(2, 1, 1, 1), capture=capture)
    for training in (True, False, True):
        model.train(training)
        same.train(training)
        for seed in SEEDS:
            assert_same(run(same, x, seed=seed), run(model, x, seed=seed), 1e-5)
    buffers = dict(model.named_buffers())
    for name, buffer in same.named_buffers():
        if name in buffers:
            torch.testing.assert_close(buffer, buffers[name])


def test_it_does_so_whichever_mode_the_model_was_given_in(capture: str) -> None:
    x = images(4)
    model = small_vit(depth=1, drop_rate=0.3, drop_path_rate=0.3).train()
    from_train = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    from_eval = fxprune.prune(model.eval(), 0.0, example_inputs=x, capture=capture)
    assert from_train.training
    assert not from_eval.training
    assert_same(run(from_train, x), run(from_eval.train(), x), 0)
    assert_same(run(from_train.eval(), x), run(from_eval.eval(), x), 0)
    assert_same(run(from_eval, x), run(model, x), 1e-6)


@pytest.mark.parametrize(
    ("build", "x", "capture"),
    [
        (dropping_vit, images(2), "symbolic"),
        (dropping_swin, images(2), "symbolic"),
        (dropping_conv, images(2), "export"),
        (dropping_hf_vit, images(2), "export"),
    ],
)
def test_a_pruned_model_is_random_in_train_mode_and_not_in_eval_mode(
    build: Callable[[], nn.Module], x: Tensor, capture: str
) -> None:
    pruned = fxprune.prune(build(), 0.5, example_inputs=x, capture=capture)
    first, second = (run(pruned, x, seed=seed) for seed in SEEDS)
    assert_same(first, second, 0)
    pruned.train()
    first, second = (run(pruned, x, seed=seed) for seed in SEEDS)
    with pytest.raises(AssertionError, match="not close"):
        assert_same(first, second)


def test_batch_norm_statistics_move_in_train_mode_only(capture: str) -> None:
    model, x = dropping_conv(), images(4)
    same = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    statistics = {name for name, _ in model.named_buffers()}
    assert statistics == {name for name, _ in same.named_buffers()}
    before = copy.deepcopy(same.state_dict())

    run(same.eval(), x)
    assert all(torch.equal(same.state_dict()[name], before[name]) for name in statistics)

    run(same.train(), x)
    run(model.train(), x)
    for name in statistics:
        assert not torch.equal(same.state_dict()[name], before[name])
        torch.testing.assert_close(same.state_dict()[name], model.state_dict()[name])


def test_a_pruned_batch_norm_keeps_statistics_of_its_own_width(capture: str) -> None:
    model, x = dropping_conv(), images(4)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture).train()
    before = pruned.get_buffer("stem.1.running_mean").clone()
    run(pruned, x)
    assert before.shape == (8,)
    assert not torch.equal(pruned.get_buffer("stem.1.running_mean"), before)
    assert int(pruned.get_buffer("stem.1.num_batches_tracked")) == 1


def test_a_batch_norm_that_the_model_keeps_in_eval_mode_stays_there(capture: str) -> None:
    model, x = small_conv().train(), images(4)
    model.stem.eval()
    same = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    assert_same(run(same, x), run(model, x), 1e-5)
    for name in ("stem.1.running_mean", "mix.1.running_mean"):
        torch.testing.assert_close(same.get_buffer(name), model.get_buffer(name))


def test_a_part_that_the_model_keeps_in_eval_mode_stays_there(capture: str) -> None:
    """As who freezes the first blocks does: `model.train()`, then `model.blocks[0].eval()`."""
    model, x = small_vit(attn_drop_rate=0.3, proj_drop_rate=0.3).train(), images(4)
    model.blocks[0].eval()
    same = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    assert_same(run(same, x), run(model, x), 1e-5)
    same.train().get_submodule("blocks.0").eval()
    assert_same(run(same, x), run(model, x), 1e-5)


class Branches(nn.Module):
    """Train mode runs other code, not only other constants."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 16), nn.Linear(16, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.training:
            x = x * 2 + 1
        return self.fc2(x)


class BranchesForMany(Branches):
    """The same, for larger batches than the example's alone."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.training and x.shape[0] > 4:
            x = x * 2 + 1
        return self.fc2(x)


class DropsSamples(Branches):
    """Draws in train mode alone, by code of its own."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x).relu()
        if self.training:
            y = y * y.new_empty((y.shape[0], 1)).bernoulli_(0.7).div_(0.7)
        return self.fc2(y)


@pytest.mark.parametrize("kind", [Branches, BranchesForMany, DropsSamples])
def test_a_model_whose_train_mode_runs_other_code_says_that_its_graph_runs_in_eval(
    kind: type[Branches], capture: str
) -> None:
    model, x = randomise(kind()).eval(), torch.randn(3, 6)
    analysis = fxprune.analyze(model, example_inputs=x, capture=capture)
    assert any("runs in eval mode alone" in note for note in analysis.notes)
    same = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    assert_same(run(same, x), run(model, x), 1e-6)


@pytest.mark.parametrize("again", [False, True])
def test_a_result_that_does_not_follow_train_mode_refuses_it(again: bool, capture: str) -> None:
    model, x = randomise(Branches()).eval(), torch.randn(3, 6)
    pruned = fxprune.prune(model, 0.0 if again else 0.5, example_inputs=x, capture=capture)
    pruned = fxprune.prune(pruned, 0.5, example_inputs=x) if again else pruned
    pruned = pickle.loads(pickle.dumps(copy.deepcopy(pruned)))
    pruned(x).sum().backward()  # in eval mode it trains, by what it computes there
    with pytest.raises(TrainingError, match=r"training runs other operations.*form='module'"):
        pruned.train()(x)
    with pytest.raises(TrainingError, match="training runs other operations"):
        fx.symbolic_trace(pruned)(x)
    assert_same(run(pruned.eval(), x), run(copy.deepcopy(pruned), x), 0.0)


class Constants(nn.Module):
    """The mode chooses a constant that is no number."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b = kind, nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.kind == "word":
            return self.b(F.gelu(x, approximate="none" if self.training else "tanh"))
        if self.kind == "slice":
            return self.b(x)[:, slice(0, 2) if self.training else slice(1, 3)]
        return self.b(x.to(torch.bfloat16 if self.training else torch.float64).float())


@pytest.mark.parametrize("kind", ["word", "slice", "dtype"])
def test_a_constant_that_the_mode_chooses_is_followed_or_refused(kind: str, capture: str) -> None:
    model, x = randomise(Constants(kind).eval()), torch.randn(3, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert fxprune.verify(model, pruned) < 1e-8
    with pytest.raises(TrainingError):
        pruned.train()(x)


def test_a_model_in_train_mode_is_pruned_and_its_graph_refuses_that_mode(capture: str) -> None:
    model, x = randomise(Branches()).train(), torch.randn(3, 6)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert pruned.training and fxprune.verify(model, pruned).exact
    assert fxprune.report(model, pruned).macs[0] > fxprune.report(model, pruned).macs[1]
    with pytest.raises(TrainingError, match="training runs other operations"):
        pruned(x)
    assert fxprune.prune(model, 0.5, example_inputs=x, capture=capture, form="module")(x).shape == (3, 6)


def test_a_result_that_follows_train_mode_trains_without_a_word(capture: str) -> None:
    model, x = (
        randomise(nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.1), nn.Linear(12, 4))),
        torch.randn(3, 6),
    )
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned.train()


class Halved(nn.Module):
    """One of two branches, and what is made of sizes, under `torch.no_grad()`."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped, self.live, self.head = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = self.stopped(x).relu()
            half = fixed.shape[-1] // 2
            left, right = fixed.split(half, -1)
            swapped = torch.cat([right, left], -1)
            pieces = fixed.chunk(2, -1)
            listed = fixed.chunk(2, -1)
        apart = torch.cat([part + 1.0 for part in listed], -1)  # taken out of the list outside
        return self.head(self.live(x) * swapped + torch.cat([pieces[1] * 2.0, pieces[0]], -1) + apart)


def test_no_gradient_passes_where_the_model_lets_none_pass(capture: str) -> None:
    model, x = randomise(Halved()), torch.randn(3, 6)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert "detach" in pruned.code
    assert pruned(x).requires_grad
    pruned.live.requires_grad_(False)
    pruned.head.requires_grad_(False)
    assert not pruned(x).requires_grad


def test_gradients_pass_to_all_the_rest(capture: str) -> None:
    model, x = randomise(Halved()), torch.randn(3, 6)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    pruned(x).sum().backward()
    moved = {name.partition(".")[0] for name, p in pruned.named_parameters() if p.grad is not None}
    assert moved == {"live", "head"}
    assert fxprune.verify(model, pruned) < 1e-8


class Dropping(nn.Module):
    """Not a layer, and it branches on the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), 0.5, self.training)


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(5, 8), Dropping(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.inner(self.stem(x)).relu()))


def test_a_module_that_is_called_twice_follows_the_mode_twice(capture: str) -> None:
    """Tracing calls the second call `inner@1`, which is no module."""
    x = torch.randn(2, 5)
    pruned = fxprune.prune(randomise(CalledTwice()), 0.5, example_inputs=x, capture=capture)
    drops = [n.meta["module"] for n in pruned.graph.nodes if "dropout" in str(n.target)]
    assert drops == ["inner", "inner"]
    torch.testing.assert_close(pruned.eval()(x), pruned(x))
    assert not torch.equal(pruned.train()(x), pruned(x))


class Layerdrop(nn.Module):
    """Train mode decides by chance which code runs: no graph of it can be made."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.rand([]) < 0.5:
            return x
        return self.fc(x)


@pytest.mark.parametrize("other", [Layerdrop, lambda: Branches(8)])
def test_the_part_that_runs_other_code_is_named(other: Callable[[], nn.Module]) -> None:
    model, x = randomise(nn.Sequential(Dropping(), other(), nn.Linear(8, 4))), torch.randn(3, 8)
    analysis = fxprune.analyze(model, example_inputs=x, capture="symbolic")
    assert analysis.notes == [OTHER_CODE.format(f" in {type(model[1]).__name__}")]
    same = fxprune.prune(model, 0.0, example_inputs=x, capture="symbolic")
    with pytest.raises(TrainingError, match=f"in {type(model[1]).__name__}: .*: train it in eval mode"):
        same.train()(x)
    assert_same(run(same.eval(), x), run(model.eval(), x), 1e-6)


def drop(x: Tensor, module: nn.Module) -> Tensor:
    return F.dropout(x, 0.5, module.training)


class InHelper(Dropping):
    def forward(self, x: Tensor) -> Tensor:
        return drop(self.fc(x), self)


class InComprehension(Dropping):
    def forward(self, x: Tensor) -> Tensor:
        return sum(F.dropout(self.fc(y), 0.5, self.training) for y in (x, x.relu()))


class InProperty(Dropping):
    @property
    def rate(self) -> float:
        return 0.5 if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), self.rate)


class Decorated(Dropping):
    @functools.wraps(Dropping.forward)
    def forward(self, *args: Tensor) -> Tensor:
        return Dropping.forward(self, *args)


@pytest.mark.parametrize("kind", [Dropping, InHelper, InComprehension, InProperty, Decorated])
def test_the_mode_is_followed_wherever_it_is_read(kind: Callable[[], nn.Module], capture: str) -> None:
    model, x = randomise(nn.Sequential(kind(), nn.Linear(8, 4))), torch.randn(3, 8)
    same = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    for training in (True, False):
        wanted = run(model.train(training), x, seed=1)
        assert_same(run(same.train(training), x, seed=1), wanted, 1e-6)


class Centring(Dropping):
    """Keeps a running mean of its own, in one mode or in both; spelled in one of three ways."""

    def __init__(self, spelled: str, always: bool) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(8))
        self.spelled, self.always = spelled, always

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if self.training or self.always:
            with torch.no_grad():
                self._follow(x.mean(0))
        return F.dropout(x - self.centre, 0.5, self.training)

    def _follow(self, mean: Tensor) -> None:
        if self.spelled == "method":
            self.centre.mul_(0.5).add_(mean)
        elif self.spelled == "operator":
            self.centre += mean
        else:
            self.centre = 0.5 * self.centre + mean


SPELLINGS = pytest.mark.parametrize("spelled", ["method", "operator", "assignment"])


@SPELLINGS
def test_what_only_train_mode_keeps_is_said_and_refused(spelled: str, capture: str) -> None:
    model, x = nn.Sequential(Centring(spelled, always=False), nn.Linear(8, 4)).eval(), torch.randn(3, 8)
    analysis = fxprune.analyze(model, example_inputs=x, capture=capture)
    said = [
        "train mode writes to 0.centre: the result runs in eval mode alone",
        OTHER_CODE.format(" in Centring"),
    ]
    assert any(note in said for note in analysis.notes)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture=capture)
    assert fxprune.verify(model, pruned) < 1e-8
    with pytest.raises(TrainingError, match="runs in eval mode alone"):
        pruned.train()(x)


@SPELLINGS
def test_what_every_call_keeps_is_kept(spelled: str) -> None:
    model, x = (
        nn.Sequential(nn.Linear(8, 8), Centring(spelled, always=True), nn.Linear(8, 4)),
        torch.randn(3, 8),
    )
    pruned = fxprune.prune(model.eval(), 0.5, example_inputs=x)
    assert pruned.get_buffer("1.centre").shape == (4,)
    first, second = run(pruned, x), run(pruned, x)
    assert not torch.equal(first, second)
    assert pruned.get_buffer("1.centre").any()
    assert not model[1].centre.any()


class Noisy(nn.Module):
    """Draws numbers in every call, in either mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(x) * torch.rand(1) + torch.randn([1, 1]))


def test_numbers_are_drawn_in_every_call(capture: str) -> None:
    model, x = randomise(Noisy()), torch.randn(3, 8)
    same = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    for seed in SEEDS:
        assert_same(run(same, x, seed=seed), run(model, x, seed=seed), 1e-6)


# ---------------------------------------------------------------- code beside modules


class Given(nn.Module):
    """What happens to the features is a function's, or an object's, that the model holds."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self, self.a(x)))


def drops(m: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, m.training)


class Drops:
    def __init__(self, rate: float) -> None:
        self.rate = rate

    def apply(self, m: nn.Module, x: Tensor) -> Tensor:
        return F.dropout(x, self.rate, training=m.training)

    def __call__(self, m: nn.Module, x: Tensor) -> Tensor:
        return self.apply(m, x)


@pytest.mark.parametrize("function", [drops, lambda m, x: drops(m, x.relu()), Drops(0.5), Drops(0.5).apply])
def test_functions_beside_modules_follow_the_mode(
    function: Callable[[nn.Module, Tensor], Tensor], capture: str
) -> None:
    model, x = randomise(Given(function).eval()), torch.randn(4, 8)
    whole = fxprune.prune(model, 0.0, example_inputs=x, capture=capture)
    for training in (True, False):
        got = [run(m.train(training), x, seed=1) for m in (whole, model)]
        assert_same(*got)
    assert not torch.equal(run(whole.train(), x, seed=1), run(whole, x, seed=2))
