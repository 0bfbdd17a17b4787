"""Code that branches on sizes: captured symbolically, checked by the result, dynamic in the rest."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import groups_of
from helpers import Body, assert_same, mlp, randomise, run
from torch import Tensor, nn

import fxprune
from fxprune.capture.symbolic.decisions import Decisions
from fxprune.errors import CaptureError, FxpruneError, InputSizeError
from fxprune.graph.own_nodes import guard_branch
from fxprune.graph.source_files import is_users
from fxprune.result.fingerprint import graph_digest


def padded(x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    down, right = (4 - h % 4) % 4, (4 - w % 4) % 4
    if down > 0 or right > 0:
        x = F.pad(x, (0, right, 0, down))
    return x


def windowed(x: Tensor) -> Tensor:
    x = padded(x).permute(0, 2, 3, 1)
    b, h, w, c = x.shape
    x = x.view(b, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
    x = x - x.amax(1, keepdim=True)
    x = x.view(b, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(b, h, w, c)
    return x.permute(0, 3, 1, 2)


def squared(x: Tensor) -> Tensor:
    side = int((x.shape[2] * x.shape[3]) ** 0.5)
    return x.flatten(2).unflatten(2, (side, side))


def starred(x: Tensor) -> Tensor:
    return x.flatten(2).reshape(*x.shape[:2], -1, *[s // 2 for s in x.shape[2:]]).amax(2)


def masked(x: Tensor) -> Tensor:
    mask = torch.ones(1, 1, x.shape[2], x.shape[3], device=x.device)
    mask[..., :2, 1:] = 0.25
    return x * mask


def written_and_read(x: Tensor) -> Tensor:
    x = x.tanh()
    x[:, :, :2] = x[:, :, 2:4] * 2
    x.mul_(3)
    return x + x[:, :, :1]


def by_device(x: Tensor) -> Tensor:
    return x * {"cpu": 2, "cuda": 2}[x.device.type] if x.dtype != torch.int64 else x


def through_a_view(x: Tensor) -> Tensor:
    first = x.tanh()
    first[:, :, 0].mul_(3)
    return first


def through_a_view_of_a_view(x: Tensor) -> Tensor:
    x = x.tanh()
    x[:, :, 1:][..., 0, :].copy_(x[:, :, 1] * 2)
    x[:, :, 0][:, :, 1:] = 5
    return x


def seen_in_the_whole(x: Tensor) -> Tensor:
    x = x.tanh()
    row = x[:, :, :2]
    row[:, :, 0] = 2
    return x * row.amax((2, 3), keepdim=True)


def emptied(x: Tensor) -> Tensor:
    x = x.tanh()
    x[:, :, ::2].zero_()
    y = x[:, :, 1:4] + 0
    y.fill_(3)
    return x + y.mean((2, 3), keepdim=True) + torch.empty_like(x).copy_(x.cos())


class Remembering(nn.Module):
    """Makes a table for an image size once, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.register_buffer("rows", torch.zeros(1, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.rows.shape[2] != x.shape[2]:
            rows = torch.zeros(1, 1, x.shape[2], 1)
            rows[:, :, :, 0] = torch.arange(8.0).repeat(2)
            self.rows = rows.to(device=x.device, dtype=x.dtype)
        if self.table is None:
            self.table = x.new_ones(x.shape[2:]).cumsum(0)
        return x * self.rows + self.table + torch.tensor(0.25)


KINDS = [padded, windowed, squared, starred, masked, written_and_read, by_device]
KINDS += [through_a_view, through_a_view_of_a_view, seen_in_the_whole, emptied]


def built(between: Callable[[Tensor], Tensor]) -> nn.Module:
    return randomise(Body(between)).eval()


@pytest.mark.parametrize("between", KINDS, ids=lambda f: f.__name__)
def test_symbolic_exact_and_dynamic(between: Callable[[Tensor], Tensor]) -> None:
    model, example = built(between), torch.zeros(2, 3, 16, 16)
    analysis = fxprune.analyze(model, example_inputs=example)
    assert analysis.capture == "symbolic"
    pruned = fxprune.prune(model, 0.5, example_inputs=example)
    assert pruned.conv1.out_channels == 8
    for shape in ((1, 3, 16, 16), (3, 3, 16, 16), (2, 3, 24, 24)):
        if between is squared and shape[-1] != 16:
            continue
        x = torch.randn(shape, dtype=torch.float64)
        assert fxprune.verify(model, pruned, example_inputs=x.float()) < 1e-12


@pytest.mark.parametrize("between", KINDS, ids=lambda f: f.__name__)
def test_the_same_groups_as_by_export(between: Callable[[Tensor], Tensor]) -> None:
    model, example = built(between), torch.zeros(2, 3, 16, 16)
    analyses = (fxprune.analyze(model, example_inputs=example, capture=way) for way in ("symbolic", "export"))
    symbolic, export = (groups_of(analysis, model) for analysis in analyses)
    assert symbolic == export


@pytest.mark.parametrize(("traced", "given"), [(16, 18), (18, 16)])
def test_another_branch_is_refused(traced: int, given: int) -> None:
    """Never the wrong branch in silence."""
    model = built(padded)
    pruned = fxprune.prune(model, 0.5, example_inputs=torch.zeros(2, 3, traced, traced))
    with pytest.raises(InputSizeError, match=r"test_decisions.py:\d+ .*example_inputs= of this size"):
        pruned(torch.zeros(2, 3, given, given))
    other = fxprune.prune(model, 0.5, example_inputs=torch.zeros(2, 3, given, given))
    assert fxprune.verify(model, other, example_inputs=torch.randn(2, 3, given, given)) < 1e-12


def rows(x: Tensor) -> Tensor:
    return torch.stack([x[:, :, i] * (i + 1) for i in range(x.shape[2])], 2)


def test_a_loop_over_a_size_is_refused_when_it_changes() -> None:
    pruned = fxprune.prune(built(rows), 0.5, example_inputs=torch.zeros(2, 3, 16, 16), capture="symbolic")
    assert pruned(torch.zeros(3, 3, 16, 20)).shape == (3, 5)
    with pytest.raises(InputSizeError, match=r"test_decisions.py:\d+ "):
        pruned(torch.zeros(2, 3, 20, 20))


def checked(x: Tensor) -> Tensor:
    """What every batch size answers alike; a check that compilers know; the limits of a dtype."""
    y = x.flatten(1).view(x.shape)
    if y.size() != (x.shape[0], x.shape[1], *x.shape[2:]):
        raise ValueError("no such size")
    torch._check(y.shape[0] * 2 == x.shape[0] + y.shape[0], lambda: "no such batch")
    torch._check_tensor_all(x == x, lambda: "not a number")
    condition = y.shape[1] == 16
    assert not callable(condition)
    return y.clamp(max=torch.finfo(x.dtype).max)


@pytest.mark.parametrize("batch", [1, 3])
def test_what_every_batch_size_answers_alike_is_decided(batch: int) -> None:
    model = built(checked)
    same = fxprune.prune(model, 0.0, example_inputs=torch.zeros(2, 3, 16, 16), capture="symbolic")
    x = torch.randn(batch, 3, 20, 20)
    assert_same(run(same, x), run(model, x))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


def met_between_two_questions(x: Tensor) -> Tensor:
    """A function and a constant that were not there when the first question was asked."""
    x = padded(x)
    x = Doubled.apply(x) + torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(x.shape[-1] // 4)
    return padded(x[..., :-1])


def test_what_is_met_after_a_question_is_known_at_the_next() -> None:
    model, x = built(met_between_two_questions), torch.randn(2, 3, 16, 16)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture="symbolic")
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-12


def test_a_branch_on_the_batch_is_not_decided() -> None:
    """torch.export takes it, and says that the batch is fixed where it is."""

    def between(x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] % 2 else x

    with pytest.raises(CaptureError, match="depends on the batch size"):
        fxprune.trace(built(between), torch.zeros(2, 3, 16, 16), capture="symbolic")


@pytest.mark.parametrize(
    "condition",
    [lambda x: x.sum() > 0, lambda x: bool((x > 0).any()), lambda x: int(x.amax()) > 1],
    ids=["greater", "any", "int"],
)
def test_a_branch_on_values_is_not_decided(condition: Callable[[Tensor], bool]) -> None:
    def between(x: Tensor) -> Tensor:
        return x * 2 if condition(x) else x

    with pytest.raises(CaptureError, match="depends on the values"):
        fxprune.trace(built(between), torch.zeros(2, 3, 16, 16), capture="symbolic")


def seen_in_a_view(x: Tensor) -> Tensor:
    x = x.tanh()
    row = x[:, :, :1]
    x[:, :, 0] = 2
    return x * row


def seen_in_another_view(x: Tensor) -> Tensor:
    x = x.tanh()
    row, rest = x[:, :, 0], x[:, :, :2]
    row.zero_()
    return x * rest.amax()


def seen_in_another_layout(x: Tensor) -> Tensor:
    x = x.tanh()
    x.transpose(2, 3).mul_(3)
    return x


def only_a_copy(x: Tensor) -> Tensor:
    x = x.tanh()
    picked = x[:, :, [0, 2]]
    picked.zero_()
    return x + picked.mean()


@pytest.mark.parametrize(
    "between", [seen_in_a_view, seen_in_another_view, seen_in_another_layout, only_a_copy]
)
def test_writes_through_memory_go_to_export(between: Callable[[Tensor], Tensor]) -> None:
    model, example = built(between), torch.zeros(2, 3, 16, 16)
    with pytest.raises(CaptureError, match="writes in place"):
        fxprune.trace(model, example, capture="symbolic")
    pruned = fxprune.prune(model, 0.5, example_inputs=example)
    assert fxprune.verify(model, pruned, example_inputs=torch.randn(2, 3, 16, 16)) < 1e-12


def test_what_a_model_keeps_between_calls_is_made_in_each() -> None:
    model, x = randomise(Body(Remembering())), torch.randn(2, 3, 16, 16)
    model.eval()
    for _ in range(2):
        analysis = fxprune.analyze(model, example_inputs=x)
        assert (analysis.capture, analysis.notes) == ("symbolic", [])
    pruned = fxprune.prune(model, 0.5, example_inputs=x)
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-12
    assert model.between.table is None


def test_nothing_is_worked_out_that_the_model_does_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch and Python's own library ask of every argument what it is: what a proxy says is enough."""
    asked = []
    monkeypatch.setattr(Decisions, "structure", lambda self, proxy: asked.append(proxy))
    fxprune.analyze(mlp(), example_inputs=torch.zeros(2, 6), capture="symbolic")
    assert asked == []


@pytest.mark.parametrize(
    ("file", "users"),
    [
        (torch.nn.functional.__file__, False),
        (fxprune.__file__, False),
        (dataclasses.__file__, False),
        ("<string>", True),
        ("<eval_with_key>.3", False),
        ("<stdin>", True),
        ("<ipython-input-1-0>", True),
        (__file__, True),
        (f"{Path(dataclasses.__file__).parent}/site-packages/library/vit.py", True),
        ("/home/user/fxprune/vit.py", True),
    ],
)
def test_whose_code_a_file_is(file: str, users: bool) -> None:
    assert is_users(file) == users


def test_tracing_leaves_python_as_it_was() -> None:
    before = [isinstance, callable, len, torch.zeros, torch.rand, torch.finfo]
    fxprune.trace(built(starred), torch.zeros(2, 3, 16, 16))
    assert before == [isinstance, callable, len, torch.zeros, torch.rand, torch.finfo]


class Asks(nn.Module):
    """One way for what is so, another for what is not."""

    def __init__(self, question: Callable[[nn.Module, Tensor], bool]) -> None:
        super().__init__()
        self.question, self.yes, self.no = question, nn.Linear(6, 8), nn.Linear(6, 8)
        self.register_buffer("shift", torch.randn(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.yes(x) if self.question(self, x) else self.no(x)
        return self.head(x.relu() + self.shift)


QUESTIONS: dict[str, Callable[[Any, Any], bool]] = {
    "a tensor": lambda m, x: isinstance(x, Tensor),
    "is_tensor": lambda m, x: torch.is_tensor(x.abs()),
    "a parameter": lambda m, x: isinstance(m.head.weight, nn.Parameter) and isinstance(m.shift, Tensor),
    "no parameter": lambda m, x: isinstance(x, nn.Parameter) or isinstance(m.shift, nn.Parameter),
    "a sequence": lambda m, x: isinstance(x, (list, tuple, Sequence)),
    "parts": lambda m, x: isinstance(x.chunk(2, -1), tuple) and isinstance(x.chunk(2, -1)[0], Tensor),
    "a number": lambda m, x: isinstance(x.shape[-1], int) and not isinstance(x.ndim, Tensor),
    "a shape": lambda m, x: isinstance(x.shape, torch.Size),
    "a dtype": lambda m, x: isinstance(x.dtype, torch.dtype),
    "an attribute": lambda m, x: hasattr(x, "tensors"),
    "an attribute's default": lambda m, x: getattr(x, "mask", None) is None,
    "callable": lambda m, x: callable(x),
    "typed in": eval("lambda m, x: isinstance(x, torch.Tensor)"),
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_what_a_value_is_is_known(question: Callable[[Any, Any], bool]) -> None:
    model, x = randomise(Asks(question)).eval(), torch.randn(3, 6)
    taken, other = ("yes", "no") if question(model, x) else ("no", "yes")
    pruned = fxprune.prune(model, 0.5, example_inputs=x, capture="symbolic")
    names = {name.partition(".")[0] for name, _ in pruned.named_parameters()}
    assert taken in names
    assert other not in names
    assert fxprune.verify(model, pruned) < 1e-8


@pytest.mark.parametrize("between", [windowed, written_and_read])
def test_the_result_is_an_ordinary_module(between: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    model, example = built(between), torch.randn(2, 3, 16, 16)
    pruned = fxprune.prune(model, 0.5, example_inputs=example)
    wanted = pruned(example)
    copies = [
        copy.deepcopy(pruned),
        pickle.loads(pickle.dumps(pruned)),
        torch.compile(pruned, backend="aot_eager", fullgraph=True),
        torch.export.export(pruned, (example,), dynamic_shapes=[{0: torch.export.Dim.AUTO}]).module(),
    ]
    fxprune.save(pruned, tmp_path / "saved", build="package.module:factory")
    copies.append(fxprune.load(tmp_path / "saved", model=built(between)))
    for clone in copies:
        torch.testing.assert_close(clone(example), wanted)


def test_the_digest_of_a_graph_knows_no_paths() -> None:
    """A folder saved on one machine loads on another, where the library's code lies elsewhere."""
    graph = fxprune.prune(built(padded), 0.5, example_inputs=torch.zeros(2, 3, 16, 16))
    digest = graph_digest(graph)
    for node in graph.graph.nodes:
        if node.target is guard_branch:
            node.kwargs = {"where": "/elsewhere.py:1"}
    assert graph_digest(graph) == digest
    assert any(node.target is guard_branch for node in graph.graph.nodes)


def test_how_an_input_lies_in_memory_is_guarded() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x if x[:, 1:].is_contiguous() or x.is_contiguous() else 2 * x)
            return self.b(y if y.mT.is_contiguous() else y.relu())

    model, x = randomise(Net().eval()), torch.randn(2, 5, 8)
    whole = fxprune.prune(model, 0.0, example_inputs=x, capture="symbolic")
    assert_same(run(whole, x), run(model, x))
    with pytest.raises(FxpruneError, match=r"at .*test_decisions.py:\d+"):
        whole(torch.randn(2, 8, 5).mT)
