"""Measure what a model costs: parameters, multiply-accumulates, and time beside another model."""

from __future__ import annotations

import contextlib
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from fxprune.graph.example import Example
from fxprune.graph.quiet import quiet_torch

__all__ = [
    "counting",
    "eval_copy",
    "latency_ratio",
    "macs_of",
    "outputs_of",
    "parameters_of",
    "seconds_of",
    "taking_turns",
    "threads_of",
    "without_fused_layers",
]


def parameters_of(module: nn.Module) -> int:
    """Return the number of parameters; a shared one counts once."""
    return sum(p.numel() for p in module.parameters())


def macs_of(module: nn.Module, example: Example) -> float:
    """Count the multiply-accumulates of one call, by torch's own flop counter.

    Shapes alone decide: they run on the meta device, and values only where the model reads some.
    """
    try:
        with quiet_torch():
            return _counted(_outline(module), example.map(lambda t: t.to("meta")))
    except Exception:  # whatever a model does with values, it says so when it really runs
        return _counted(module, example)


def _counted(module: nn.Module, example: Example) -> float:
    with counting() as counter:
        outputs_of(module, example)
    return counter.get_total_flops() / 2


@contextlib.contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count with torch's counter, on ops that it knows: neither fused attention nor fused encoder layers."""
    counter = FlopCounterMode(display=False)
    with without_fused_layers(), counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def _outline(module: nn.Module) -> nn.Module:
    """Return the module without values: a copy on the meta device, which takes no memory."""
    tensors = list(itertools.chain(module.parameters(), module.buffers()))
    return copy.deepcopy(module, {id(t): _on_meta(t) for t in tensors})


def _on_meta(tensor: Tensor) -> Tensor:
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta


def eval_copy(module: nn.Module) -> nn.Module:
    """Return the module in eval mode: a copy that shares all tensors, so that the module's own mode stays."""
    shared = {id(t): t for t in itertools.chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared).eval()


def outputs_of(module: nn.Module, example: Example) -> list[Tensor]:
    """Return all tensors that a call returns, without gradients."""
    with torch.no_grad():
        out = module(*example.args, **example.kwargs)
    return [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]


def latency_ratio(
    first: nn.Module, second: nn.Module, example: Example, *, threads: int | None = None, rounds: int = 9
) -> float:
    """Return the time of `second` over that of `first`: the median of runs that take turns.

    Turns cancel what slows the whole machine; the first run of each is not counted.
    """
    with threads_of(threads):
        before, after = taking_turns((first, second), example, runs=rounds, warmup=1)
    return statistics.median(b / a for a, b in zip(before, after, strict=True))


def taking_turns(
    modules: Sequence[nn.Module],
    example: Example,
    *,
    runs: int,
    warmup: int,
    progress: Callable[[int], object] = lambda run: None,
) -> list[list[float]]:
    """Time `runs` calls of each module on the same input, taking turns; seconds, by module.

    The first `warmup` turns are not counted.
    """
    taken: list[list[float]] = [[] for _ in modules]
    for run in range(warmup + runs):
        for module, seconds in zip(modules, taken, strict=True):
            seconds.append(seconds_of(module, example))
        progress(run)
    return [seconds[warmup:] for seconds in taken]


def seconds_of(module: nn.Module, example: Example) -> float:
    """Return the time of one call, without gradients."""
    _synchronise(example)
    start = time.perf_counter()
    outputs_of(module, example)
    _synchronise(example)
    return time.perf_counter() - start


def _synchronise(example: Example) -> None:
    if any(isinstance(a, Tensor) and a.is_cuda for a in pytree.tree_leaves((example.args, example.kwargs))):
        torch.cuda.synchronize()


@contextlib.contextmanager
def threads_of(count: int | None) -> Iterator[None]:
    """Set how many threads torch uses meanwhile; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def without_fused_layers() -> Iterator[None]:
    """Run nn.TransformerEncoderLayer layer by layer, as it is written."""
    fused = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(fused)
