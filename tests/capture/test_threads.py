"""Several threads prune at once; others run models meanwhile.  What tracing patches lies in all their way."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.certify.zoo import randomise
from fxprune.graph.process_lock import PROCESS_LOCK

INPUT = torch.randn(2, 6, 8)


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


class Block(nn.Module):
    """Asks what tracing answers for: `isinstance`, `len`, sizes, fresh tensors, functions of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(8), nn.Dropout(0.1)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(x, Tensor) and len(x.shape) == 3
        x = x + torch.zeros(x.shape[0], 1, 1)
        return x + self.drop(self.down(Round.apply(self.up(self.norm(x)) * 8)))


def model(seed: int) -> nn.Module:
    return randomise(nn.Sequential(Block(), Block(), nn.Linear(8, 4)), seed).eval()


def shared_state() -> list[Any]:
    function = torch.autograd.Function
    return [
        *(builtins.isinstance, builtins.len, builtins.callable),
        *(torch.zeros, torch.ones, torch.empty, torch.finfo, torch.randn, torch.rand),
        *(nn.Module.__call__, nn.Module.__getattr__, nn.Module.__setattr__),
        *(torch.no_grad.__enter__, torch.no_grad.__exit__, vars(function)["apply"]),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    ]


def in_threads(*tasks: Callable[[], Any]) -> list[Any]:
    """What each returns, all at once; the first error is raised."""
    results: list[Any] = [None] * len(tasks)
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            results[i] = tasks[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize("captures", [("symbolic",) * 3, ("export",) * 3, ("symbolic", "export", "auto")])
def test_prunes_in_threads_are_exact_and_leave_nothing_patched(captures: tuple[str, ...]) -> None:
    before = shared_state()
    models = [model(seed) for seed in range(len(captures))]

    def task(i: int) -> float:
        pruned = fxprune.prune(models[i], 0.5, example_inputs=INPUT, capture=captures[i])
        assert pruned(INPUT[:1]).shape == (1, 6, 4)
        return fxprune.verify(models[i], pruned)

    errors = in_threads(*(lambda i=i: task(i) for i in range(len(captures))))
    assert max(errors) < 1e-8
    assert all(a is b for a, b in zip(before, shared_state(), strict=True))


def test_one_model_pruned_in_several_threads() -> None:
    one = model(0)
    ratios = (0.25, 0.5, 0.75)
    found = in_threads(*(lambda r=r: fxprune.prune(one, r, example_inputs=INPUT) for r in ratios))
    assert [p.get_submodule("0.up").out_features for p in found] == [9, 6, 3]
    assert max(fxprune.verify(one, p) for p in found) < 1e-8


def test_other_threads_run_models_while_one_traces(capture: str) -> None:
    """The same model, too: its tensors are those that the tracer knows by name."""
    one = model(0)
    with torch.no_grad():
        wanted = one(INPUT)
    done = threading.Event()

    def traces() -> None:
        try:
            for _ in range(3):
                fxprune.trace(one, INPUT, capture=capture)
        finally:
            done.set()

    def runs() -> int:
        count = 0
        while not done.is_set():
            with torch.no_grad():
                out = one(INPUT)
            assert type(out) is Tensor and not out.requires_grad and torch.equal(out, wanted)
            assert type(torch.randn(2)) is Tensor and type(torch.randperm(3)) is Tensor
            assert isinstance(Round.apply(INPUT), Tensor)
            count += 1
        return count

    _, count, _ = in_threads(traces, runs, runs)
    assert count > 0


def test_a_failed_capture_lets_go_of_the_lock() -> None:
    class Refused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not today")

    with pytest.raises(fxprune.errors.FxpruneError):
        fxprune.trace(Refused(), INPUT)
    assert in_threads(lambda: PROCESS_LOCK.acquire(timeout=10) and not PROCESS_LOCK.release()) == [True]


class Fresh(nn.Module):
    """Makes tensors of torch's default dtype on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        count = torch.arange(x.shape[1]) / x.shape[1]
        x = x + count[None, :, None] + torch.linspace(0, 1, 8) + torch.tensor([0.1])
        table = torch.zeros(x.shape[0], x.shape[1], 12)
        table[:, 1:] = self.up(x)[:, 1:]
        return self.down(table @ torch.eye(12))


@pytest.mark.parametrize("form", ["graph", "module"])
def test_other_threads_compute_in_their_own_precision_while_one_certifies(capture: str, form: str) -> None:
    one = randomise(nn.Sequential(Fresh(), nn.Linear(8, 4)), 0).eval()
    wanted = one(INPUT)
    pruned = fxprune.prune(one, 0.5, example_inputs=INPUT, capture=capture, form=form)
    done = threading.Event()

    def certifies() -> None:
        try:
            assert fxprune.verify(one, pruned) < 1e-8
        finally:
            done.set()

    def runs() -> int:
        count = 0
        while not done.is_set():
            assert torch.zeros(3).dtype is torch.get_default_dtype() is torch.float32
            assert torch.equal(one(INPUT), wanted)
            count += 1
        return count

    _, count = in_threads(certifies, runs)
    assert count > 0
