"""The paper's importance, measured: the KL divergence that removing each channel alone causes.

UP-ViTs (https://arxiv.org/abs/2111.15127) rebuilds and reruns the model for every channel.  Here the
captured model runs under masks, many channels in one batch, and only from the first op that the
channels' group reaches: what comes before is computed once.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from tqdm import tqdm

from fxprune.analysis.analysis import Analysis, Group
from fxprune.choose.importance.bars import hidden
from fxprune.choose.importance.data import Batch, batches_of, few_at_once
from fxprune.choose.importance.function_parts import parts_of_function
from fxprune.choose.importance.predictions import LogProbabilities
from fxprune.choose.importance.reading import Reading, reading_of
from fxprune.choose.importance.scores import Scores, shape_of
from fxprune.choose.importance.soft_masks import SoftMasked
from fxprune.errors import DataError
from fxprune.graph.nests import PLAIN, leaves
from fxprune.graph.op_names import op_name
from fxprune.graph.tensors import like_weights, named_tensors
from fxprune.result.files import write_whole
from fxprune.rules.axes import Atom, Axis, Product, with_batch
from fxprune.rules.registry import Axes

__all__ = ["divergences", "kl_exact"]


def kl_exact(
    analysis: Analysis,
    groups: Sequence[Group],
    data: Iterable[Any] | None,
    *,
    log_probabilities: LogProbabilities | None = None,
    elements: dict[Group, Sequence[int]] | None = None,
    at_once: int = 32,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Scores:
    """Return the mean KL divergence over the samples, element by element.

    Args:
        elements: measure only these (flat) elements of each group; the others score NaN.
        at_once: samples (batch size times channels) that run together.
        resume: a file in which every finished group and batch is kept; a run that was interrupted goes
            on from it.  It belongs to one model and one data set.
    """
    return divergences(
        analysis,
        groups,
        few_at_once(batches_of(data, analysis, "kl-exact"), analysis),
        log_probabilities=log_probabilities,
        elements=elements,
        at_once=at_once,
        resume=resume,
        progress=progress,
    )


def divergences(
    analysis: Analysis,
    groups: Sequence[Group],
    batches: list[Batch],
    *,
    log_probabilities: LogProbabilities | None = None,
    elements: dict[Group, Sequence[int]] | None = None,
    at_once: int = 32,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Scores:
    """Measure `kl_exact` on batches that are calls of the captured model already."""
    runner, read = _Suffix(analysis, groups), reading_of(analysis, log_probabilities)
    shared = runner.without_batch()
    wanted = {g: list((elements or {}).get(g, range(int(np.prod(shape_of(g)))))) for g in groups}
    done = _Progress(resume, _fingerprint(analysis, batches, log_probabilities, elements) if resume else "")
    total = sum(len(wanted[g]) for g in groups) * len(batches)
    with tqdm(total=total, desc="exact importance", unit="mask", disable=hidden(progress)) as bar:
        for i, batch in enumerate(batches):
            with torch.no_grad():
                _measure(runner, batch, i, wanted, shared, at_once, read, done, bar)
    count = sum(batch.size for batch in batches)
    scores = {}
    for group in groups:
        values = np.full(int(np.prod(shape_of(group))), np.nan)
        values[wanted[group]] = sum(done[group, i] for i in range(len(batches))) / count
        scores[group] = values.reshape(shape_of(group))
    return scores


def _measure(
    runner: _Suffix,
    batch: Batch,
    i: int,
    wanted: dict[Group, list[int]],
    shared: set[Group],
    at_once: int,
    read: Reading,
    done: _Progress,
    bar: Any,
) -> None:
    """Measure all groups on one batch: the sum over samples of each element's divergence."""
    if all((group, i) in done for group in wanted):
        bar.update(sum(map(len, wanted.values())))
        return
    before = runner.whole(batch)
    reference = read(before, batch.size)
    for group, elements in wanted.items():
        if (group, i) in done:
            bar.update(len(elements))
            continue
        # A group that is used without samples takes one mask per run.
        step = 1 if group in shared else max(1, at_once // batch.size)
        found = []
        for start in range(0, len(elements), step):
            chosen = elements[start : start + step]
            output = runner.without(group, chosen)
            size = len(chosen) * batch.size
            masked = read(output, size)
            divergence = reference.repeated(len(chosen)).divergence(masked).clamp_min(0)
            found.append(divergence.double().reshape(len(chosen), batch.size).sum(1).cpu().numpy())
            bar.update(len(chosen))
        done.add(group, i, np.concatenate(found))


class _Suffix(SoftMasked):
    """Runs what lies after a group's first use only; the values before it are kept from one whole run."""

    def whole(self, batch: Batch) -> Any:
        """Return the unmasked outputs; keeps every value."""
        self.given, self.kept = batch, {}
        self.garbage_collect_values = False
        output = self.forward({}, batch.size, *batch.arguments())
        self.kept = dict(self.env)
        return output

    def without(self, group: Group, elements: Sequence[int]) -> Any:
        """Run with one element removed in each repetition of the batch: [elements * b, ...]."""
        times, size = len(elements), self.given.size
        like = like_weights(self.module)
        mask = torch.ones(times, int(np.prod(shape_of(group))), device=like.device, dtype=like.dtype)
        mask[torch.arange(times), torch.tensor(elements)] = 0
        mask = mask.repeat_interleave(size, 0).reshape(times * size, *shape_of(group))
        affected = self._affected(group)
        self.masks, self.size = {group: mask}, times * size
        self.env = {}
        for node in self.graph.nodes:
            if node not in affected:
                continue
            for operand in node.all_input_nodes:
                if operand not in self.env:
                    self.env[operand] = self._again(operand, times)
            if node.op == "output":
                return self.run_node(node)
            self.env[node] = self.run_node(node)
        raise AssertionError("a graph without an output")

    def _affected(self, group: Group) -> set[fx.Node]:
        """Return the nodes that apply the group's mask, all after them, and the output."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            applies = group in self.groups_at(node)
            if applies or node.op == "output" or any(n in found for n in node.all_input_nodes):
                found.add(node)
        return found

    def _again(self, node: fx.Node, times: int) -> Any:
        """Return a value from before the mask, once for each repetition."""
        kept = self.kept[node]
        if isinstance(kept, int) and not isinstance(kept, bool):
            return self._size_again(node, kept, times)
        leaves, spec = pytree.tree_flatten(kept)
        axes = iter(self.analysis.axes.get(node, []))
        again = [self._repeated(v, next(axes, ()), times) if isinstance(v, Tensor) else v for v in leaves]
        return pytree.tree_unflatten(again, spec)

    def _repeated(self, t: Tensor, axes: Axes, times: int) -> Tensor:
        """Repeat the samples: only dimensions that count them grow, wherever samples are in them."""
        for dim, axis in enumerate(axes):
            if self._has_batch(axis):
                at = _positions_again(axis, self.given.size, times)
                return t.index_select(dim, torch.from_numpy(at).to(t.device))
        return t

    def _size_again(self, node: fx.Node, value: int, times: int) -> int:
        """Return a number that was read off a shape: it grows with the batch if its stand-in did."""
        stand_in = node.meta.get("val")
        samples = self.analysis.captured.samples
        counts = samples and isinstance(stand_in, int) and stand_in % samples == 0 and stand_in > 0
        return value * times if counts else value


def _positions_again(axis: Axis, size: int, times: int) -> np.ndarray:
    """Return where along an axis of `size` samples each position of `times` as many comes from."""
    if isinstance(axis, Atom):
        own = np.arange(with_batch(axis, size).size)
        return np.tile(own, times) if axis.per_sample else own
    found, start = np.zeros(1 if isinstance(axis, Product) else 0, dtype=int), 0
    for part in axis.parts:
        count, at = with_batch(part, size).size, _positions_again(part, size, times)
        if isinstance(axis, Product):
            found = (found[:, None] * count + at).reshape(-1)
        else:
            found, start = np.concatenate([found, start + at]), start + count
    return found


class _Progress:
    """Finished (group, batch) pairs, in memory and, if asked for, in a file that is replaced whole."""

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.values: dict[str, np.ndarray] = {}
        if path is None or not os.path.exists(path):
            return
        try:
            with np.load(path) as file:
                self.values = dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} holds no whole record of an exact run: {error}; delete it") from error
        if str(self.values.pop("fingerprint", "")) != fingerprint:
            raise DataError(f"{path} is of another model or other data; give another file, or delete it")

    def __contains__(self, key: tuple[Group, int]) -> bool:
        return _key(*key) in self.values

    def __getitem__(self, key: tuple[Group, int]) -> np.ndarray:
        return self.values[_key(*key)]

    def add(self, group: Group, batch: int, values: np.ndarray) -> None:
        self.values[_key(group, batch)] = values
        if self.path is not None:
            buffer = io.BytesIO()
            np.savez(buffer, fingerprint=np.array(self.fingerprint), **self.values)  # type: ignore[arg-type]
            write_whole(self.path, buffer.getvalue())


def _key(group: Group, batch: int) -> str:
    return f"{batch}/{group.name}"


def _fingerprint(
    analysis: Analysis,
    batches: list[Batch],
    log_probabilities: LogProbabilities | None,
    elements: dict[Group, Sequence[int]] | None,
) -> str:
    """Return a digest of all that the values of a run depend on: graph, tensors, data, and options."""
    digest = hashlib.sha256()

    def add(*values: Any) -> None:
        for value in values:
            if isinstance(value, Tensor):
                numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                digest.update(f"{value.dtype} {tuple(value.shape)}".encode() + numbers.numpy().tobytes())
            else:
                digest.update(f"{value!r};".encode())

    for node in analysis.module.graph.nodes:
        add(node.op, op_name(node.target), *leaves((node.args, node.kwargs), PLAIN))
    for name, tensor in named_tensors(analysis.module):
        add(name, tensor)
    add(*(repr(layer) for layer in analysis.module.modules() if not layer._modules))
    for batch in batches:
        add(batch.size, *leaves(batch.args, (Tensor, *PLAIN)))
    if log_probabilities is not None:
        add(*parts_of_function(log_probabilities))
    add(*sorted((group.name, tuple(some)) for group, some in (elements or {}).items()))
    return digest.hexdigest()
