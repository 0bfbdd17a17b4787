"""What people do with a result, tried on one model: other batches and sizes, copies, files, a training step.

The original itself says what is right: each use is asked only of a model whose own code allows it.  Where
values are compared, the model is rewritten at ratio 0, which must compute what it computes.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import FxpruneError, first_line
from fxprune.graph.copies import structural_copy
from fxprune.graph.example import Example
from fxprune.result.pruned_module import PrunedModule

__all__ = ["Uses", "copied_in_turn", "uses_of"]

# Single precision, and the same ops in the same order but for what export decomposes.
TOLERANCE = 1e-3
BATCHES = (1, 3)
RIGHT, REFUSED = "right", "refused"


class Uses(NamedTuple):
    """What came of each use, in words; "right" is all that one can wish for, "" was not to be had.

    batches: one sample, and three, where two were traced: "refused" (an error of fxprune's), "WRONG" (other
        values, no error), or the error of something else.
    sizes: the same for larger images or shorter sequences, of a model that takes them.
    copies: deepcopy, pickle, torch.save and tracing again.
    training: a step's gradients: every parameter that gets one in the original must get one.
    """

    batches: str = ""
    sizes: str = ""
    copies: str = ""
    training: str = ""

    @property
    def complaints(self) -> list[str]:
        """What went wrong; a size that is refused in so many words is the contract's own answer."""
        fine = {"sizes": ("", RIGHT, REFUSED)}
        uses = self._asdict().items()
        return [f"{name}: {said}" for name, said in uses if said not in fine.get(name, ("", RIGHT))]


def uses_of(model: nn.Module, whole: fx.GraphModule, pruned: fx.GraphModule, example: Example) -> Uses:
    """Try every use.

    Args:
        model: the original, in eval mode.
        whole: the model rewritten at ratio 0.
        pruned: its result.
        example: noise of the shapes that it was traced with.
    """
    return Uses(
        batches=_first_bad(_same(model, whole, pruned, example.with_batch(n)) for n in BATCHES),
        sizes=_sizes(model, whole, pruned, example),
        copies=_copies(model, pruned, example),
        training=_training(model, pruned, example),
    )


def _sizes(model: nn.Module, whole: fx.GraphModule, pruned: fx.GraphModule, example: Example) -> str:
    """Try the first other size that the original takes: larger images, else shorter sequences."""
    for change in (_larger, _shorter):
        other = example.map(change(example))
        said = _same(model, whole, pruned, other) if _shapes(other) != _shapes(example) else ""
        if said:
            return said
    return ""


def _larger(example: Example) -> Callable[[Tensor], Tensor]:
    """Return what makes images half as large again; of a volume, its last two dimensions."""

    def change(t: Tensor) -> Tensor:
        if t.ndim < 4 or not t.is_floating_point() or t.shape[-1] < 8:
            return t
        for dim in (t.ndim - 2, t.ndim - 1):
            t = torch.cat([t, t.narrow(dim, 0, t.shape[dim] // 2)], dim)
        return t

    return change


def _shorter(example: Example) -> Callable[[Tensor], Tensor]:
    """Return what makes sequences three places shorter, in the first dimension after the batch."""
    found = [t for t in _tensors((example.args, example.kwargs)) if t.ndim in (2, 3)]
    length = found[0].shape[1] if found else 0

    def change(t: Tensor) -> Tensor:
        return t[:, : length - 3] if t.ndim in (2, 3) and t.shape[1] == length > 4 else t

    return change


def _shapes(example: Example) -> list[torch.Size]:
    return [t.shape for t in _tensors((example.args, example.kwargs))]


def _same(model: nn.Module, whole: fx.GraphModule, pruned: fx.GraphModule, example: Example) -> str:
    """Compare the rewritten model with the original, and run the pruned one; "" if the original refuses."""
    try:
        wanted = _run(model, example)
    except Exception:  # its own code refuses this
        return ""
    try:
        got = _run(whole, example)
        _ = _run(pruned, example)
    except FxpruneError:
        return REFUSED
    except Exception as error:
        return _words(error)
    return RIGHT if _equal(wanted, got, TOLERANCE) else "WRONG"


def _copies(model: nn.Module, pruned: fx.GraphModule, example: Example) -> str:
    wanted = _run(pruned, example)
    failed = []
    for name, copied in COPIES.items():
        try:
            if name != "tracing":
                copied(model)
        except Exception:  # neither can the original be copied that way
            continue
        try:
            if not _equal(wanted, _run(copied(pruned), example), 1e-5):
                failed.append(f"{name}: WRONG")
        except Exception as error:
            failed.append(f"{name}: {_words(error)}")
    return "; ".join(failed) or RIGHT


def copied_in_turn(pruned: fx.GraphModule, example: Example) -> str:
    """Copy in every way, each the copy before, and run the last: what `Uses.copies` says, in less time."""
    last: nn.Module = pruned
    for name, copied in COPIES.items():
        try:
            last = copied(last)
        except Exception as error:
            return f"{name}: {_words(error)}"
    try:
        same = _equal(_run(pruned, example), _run(last, example), 1e-5)
    except Exception as error:
        return f"a copy: {_words(error)}"
    return RIGHT if same else "a copy: WRONG"


def _saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": _saved,
    "tracing": fx.symbolic_trace,
}


def _training(model: nn.Module, pruned: fx.GraphModule, example: Example) -> str:
    try:
        wanted = _with_gradients(model, example)
    except Exception:  # the model itself can't be trained by its outputs
        return ""
    try:
        got = _with_gradients(pruned, example)
    except Exception as error:
        return _words(error)
    lost = sorted((wanted & {name for name, _ in pruned.named_parameters()}) - got)
    return f"no gradient for {', '.join(lost[:3])} ({len(lost)} of {len(wanted)})" if lost else RIGHT


def _with_gradients(module: nn.Module, example: Example) -> set[str]:
    """Return the parameters that a step moves, in train mode where it may."""
    trained = structural_copy(module) if not isinstance(module, fx.GraphModule) else copy.deepcopy(module)
    trained.train(not (isinstance(module, PrunedModule) and module.record.untrained))
    for parameter in trained.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    with _seeded():
        outputs = trained(*example.args, **example.kwargs)
    losses = [t.abs().square().mean() for t in _tensors(outputs) if t.requires_grad]
    torch.stack([loss.float() for loss in losses]).sum().backward()
    return {name for name, p in trained.named_parameters() if p.grad is not None}


def _run(module: nn.Module, example: Example) -> list[Tensor]:
    with torch.no_grad(), _seeded():
        return _tensors(module(*example.args, **example.kwargs))


def _tensors(values: object) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(values) if isinstance(t, Tensor)]


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _equal(wanted: list[Tensor], got: list[Tensor], tolerance: float) -> bool:
    if [t.shape for t in wanted] != [t.shape for t in got]:
        return False
    return all(
        (a.double() - b.double()).abs().max() <= tolerance * a.double().abs().max().clamp_min(1e-30)
        for a, b in zip(wanted, got, strict=True)
        if a.numel() and a.is_floating_point()
    )


def _first_bad(said: Iterator[str]) -> str:
    found = list(said)
    return next((s for s in found if s not in ("", RIGHT)), RIGHT if RIGHT in found else "")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)[:160]}"
