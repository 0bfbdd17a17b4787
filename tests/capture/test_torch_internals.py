"""What fxprune reads of torch beyond its public names: a torch without it is refused; lines are users'."""

from __future__ import annotations

import builtins
import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune.capture.exported import program, torch_internals
from fxprune.capture.symbolic import patches
from fxprune.errors import CaptureError, ExampleInputError, InputSizeError

X = torch.randn(2, 6, 8)


class Asks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.shape[1] % 2 == 0:  # even
            x = x + 1
        if x.shape[0] > 3:  # many
            x = x * 2
        return self.head(x.relu())


def line_of(text: str) -> str:
    lines, first = inspect.getsourcelines(Asks)
    return f"{__file__}:{first + next(i for i, line in enumerate(lines) if text in line)}"


@pytest.mark.filterwarnings("ignore:.*fixes the batch size")
@pytest.mark.parametrize(
    ("shape", "text"), [((2, 5, 8), "# even"), ((5, 6, 8), "# many"), ((2, 6, 7), "x = self.stem(x)")]
)
def test_a_guard_of_an_export_names_the_line(shape: tuple[int, ...], text: str) -> None:
    pruned = fxprune.prune(randomise(Asks().eval()), 0.5, example_inputs=X, capture="export")
    with pytest.raises(InputSizeError) as raised:
        pruned(torch.randn(shape))
    assert line_of(text) in str(raised.value)
    assert "example_inputs" in str(raised.value)


def test_a_torch_that_lacks_what_is_needed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ((torch_internals, "no_such_name"),)
    monkeypatch.setattr(torch_internals, "_NEEDED", (*torch_internals._NEEDED, *missing))
    model = randomise(Asks().eval())
    with pytest.raises(CaptureError, match=r"torch .* has no .*no_such_name.*capture='symbolic'"):
        fxprune.prune(model, 0.5, example_inputs=X, capture="export")
    plain = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 5))  # symbolic tracing needs none of it
    assert fxprune.verify(plain, fxprune.prune(plain, 0.5, example_inputs=X)) < 1e-8


def test_an_export_that_does_not_say_what_it_relies_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    export = torch.export.export

    def silent(*args: Any, **kwargs: Any) -> Any:
        program = export(*args, **kwargs)
        del program._guards_code
        return program

    monkeypatch.setattr(torch.export, "export", silent)
    with pytest.raises(CaptureError, match="_guards_code"):
        fxprune.prune(randomise(Asks().eval()), 0.5, example_inputs=X, capture="export")


def test_nothing_stays_patched() -> None:
    def known() -> list[Any]:
        owners = (*torch_internals._NEEDED, *torch_internals._LAYOUT, (Tensor, "__len__"), (nn.Module, "to"))
        return [getattr(owner, name) for owner, name in owners]

    before = known()
    fxprune.trace(nn.Linear(8, 4), X, capture="export")
    with pytest.raises(ExampleInputError):
        fxprune.trace(nn.Identity(), (X, X), capture="export")
    assert all(a is b or a == b for a, b in zip(before, known(), strict=True))


def test_what_a_library_patched_stays_patched(monkeypatch: pytest.MonkeyPatch, capture: str) -> None:
    """On torch's class itself, as profilers and tools do, for what either capture patches there."""

    def other(of: Any) -> Any:
        return property(of.__get__) if inspect.isdatadescriptor(of) else lambda *args, **kw: of(*args, **kw)

    names = ("view", "expand", "new_zeros", "to", "contiguous", "item", "is_cuda", "is_leaf", "stride")
    own = {name: other(getattr(Tensor, name)) for name in names}
    for name, patched in own.items():
        monkeypatch.setattr(Tensor, name, patched)
    model = randomise(nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 5)).eval())
    assert torch.allclose(fxprune.trace(model, X, capture=capture)(X), model(X), rtol=0, atol=1e-6)
    assert {name: vars(Tensor).get(name) for name in names} == own


class LongInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            n = x.shape[1]
            x = x[:, : n // 2 + n // 3 + n // 5]
        return self.head(self.stem(x).relu())


def test_sizes_that_train_mode_computes_at_length_leave_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomise(LongInTraining()).double().eval()
    monkeypatch.setattr(program, "LONGEST", 8)
    pruned = fxprune.prune(model, 0.5, capture="export", example_inputs=X.double())
    assert fxprune.verify(model, pruned) < 1e-8
    with pytest.raises(fxprune.FxpruneError, match="eval mode alone"):
        pruned.train()(X.double())


def test_torchs_compiler_is_loaded_before_builtins_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # It notes them then, and would break the graph at each `isinstance` of a user's code ever after.
    own, loaded = builtins.isinstance, []

    def load(name: str) -> Any:
        loaded.append((name, builtins.isinstance is own))
        return importlib.import_module(name)

    monkeypatch.setattr(patches, "importlib", SimpleNamespace(import_module=load))
    fxprune.prune(randomise(nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 5)).eval()), 0.5, example_inputs=X)
    assert loaded[0] == ("torch._dynamo", True)
