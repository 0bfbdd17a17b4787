"""A graph beside its model on noise, in the example's shapes and in others: a wrong capture shows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.beside_model import CopyToRun, alike, computes_another
from fxprune.capture.sketches import Sketched
from fxprune.errors import CaptureError
from fxprune.graph.example import Example, resized, seeded_noise
from fxprune.graph.guards import guard_values
from fxprune.graph.tensors import on_meta

__all__ = ["refuse_other_values"]

_MANY = 1 << 20  # numbers of one sample: of so large ones no second one is computed


def refuse_other_values(model: nn.Module, graph: fx.GraphModule, example: Example) -> None:
    """Raise CaptureError if a graph does not compute what its model does, where both take an input.

    Whatever the tracing was told wrong shows for the example's shapes, and what it fixed without a guard for
    others: of each, the first that both take is compared.  A model that draws is not compared.
    """
    if on_meta(model):
        return
    copies, sketched = (CopyToRun(model), CopyToRun(graph)), Sketched(model)
    compared = _compare(copies, sketched, _others(example), sketched_alone=True)
    own = example.with_batch(1), example
    compared = compared or _compare(copies, sketched, own, sketched_alone=False)
    checks = any(node.target is guard_values for node in graph.graph.nodes)  # which may refuse noise
    if checks and not compared and not _compare(copies, sketched, own, sketched_alone=False, as_given=True):
        raise CaptureError("the code refuses all values on which the graph could be held against it")


def _compare(
    copies: tuple[CopyToRun, CopyToRun],
    sketched: Sketched,
    examples: Iterable[Example],
    *,
    sketched_alone: bool,
    as_given: bool = False,
) -> bool:
    """Compare on the first of some examples that both take, if there is one; on noise, or as given."""
    of_model, of_graph = copies
    for shapes in examples:
        noise = shapes if as_given else seeded_noise(shapes, of_model.module)
        same = _same(copies, sketched, noise, sketched_alone)
        if same is False and computes_another(of_model.module, of_graph.module, noise, training=False):
            said = ", ".join(str(tuple(t.shape)) for t in _tensors(shapes))
            raise CaptureError(f"the graph computes something else than the model's code does on {said}")
        if same is not None:
            return True
    return False


def _same(
    copies: tuple[CopyToRun, CopyToRun], sketched: Sketched, noise: Example, sketched_alone: bool
) -> bool | None:
    """Do both give the same?  None: one of them raises.

    Products are computed where their sketches differ, since the graph may spell them otherwise.
    """
    of_model, of_graph = copies
    same: bool | None = None
    for mode in (sketched, contextlib.nullcontext()):
        try:
            with mode:
                same = alike(of_model(noise), of_graph(noise), rounding=1e4)
        except Exception:  # whatever the model's code raises for noise, or another shape
            same = None
        if same or (same is None and sketched_alone):
            break
    return same


def _tensors(example: Example) -> list[Tensor]:
    return [t for t in pytree.tree_leaves((example.args, example.kwargs)) if isinstance(t, Tensor)]


def _others(example: Example) -> Iterator[Example]:
    """Yield the example in other sizes, all at once or one alone, each in another batch as well."""
    tensors = _tensors(example)
    sizes = {s: None for t in tensors for s in t.shape[_first_size(t) :] if s > 1}
    batch = example.batch
    large = batch is None or sum(t.numel() for t in tensors) // batch > _MANY
    other = None if batch is None or (large and batch == 1) else 1 if batch > 1 else 2
    images = any(t.ndim > 3 for t in tensors)
    changes = [{s: _other(s, images) for s in sizes}]
    if images and max(sizes, default=0) >= 64:
        changes.append({s: s + 32 for s in sizes})
    if len(sizes) > 1:
        changes += [{s: _other(s, images)} for s in sizes]
    for change in changes if sizes else ():
        yield _changed(example, change).with_batch(other)
    if other is not None:
        yield example.with_batch(other)


def _other(size: int, images: bool) -> int:
    return size + 1 if not images else size // 2 if size >= 32 else 2 * size


def _changed(example: Example, change: Mapping[int, int]) -> Example:
    """Return the example with dimensions of some sizes in others; not the batch, nor channels of images."""

    def changed(t: Tensor) -> Tensor:
        for d in range(_first_size(t), t.ndim):
            t = resized(t, change.get(t.shape[d], t.shape[d]), d)
        return t

    return example.map(changed)


def _first_size(t: Tensor) -> int:
    """Return the first dimension that may count places: after the batch, and the channels of images."""
    return 2 if t.ndim > 3 else 1
