"""Score residual branches by what the model predicts without each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from tqdm import tqdm

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.branches import Branch
from fxprune.choose.importance.bars import hidden
from fxprune.choose.importance.copied import copied_operands
from fxprune.choose.importance.data import batches_of, few_at_once
from fxprune.choose.importance.predictions import LogProbabilities
from fxprune.choose.importance.reading import reading_of
from fxprune.graph.example import seeded_noise
from fxprune.graph.tensors import on_meta
from fxprune.graph.values import bound_arguments
from fxprune.graph.writes import writes_in_place

__all__ = ["branch_divergences", "branch_shares"]

Unit = tuple[Branch, ...]  # branches that go together


def branch_divergences(
    analysis: Analysis,
    units: Sequence[Unit],
    data: Iterable[Any] | None,
    *,
    log_probabilities: LogProbabilities | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Return the KL divergence that leaving each unit out causes, averaged over the samples: float64 [units].

    Measured, not estimated: one run of what lies after the branch for each batch, as in UP-ViTs
    (https://arxiv.org/abs/2111.15127).  Features are compared by squared error, see `Reading`.
    """
    batches = few_at_once(batches_of(data, analysis, "depth"), analysis)
    runner, read = _WithoutBranches(analysis.module), reading_of(analysis, log_probabilities)
    totals = np.zeros(len(units))
    bar = tqdm(total=len(units) * len(batches), desc="branches", disable=hidden(progress))
    with torch.no_grad(), bar:
        for batch in batches:
            reference = read(runner.whole(*batch.arguments()), batch.size)
            for i, unit in enumerate(units):
                without = read(runner.without(unit), batch.size)
                totals[i] += reference.divergence(without).clamp_min(0).double().sum().item()
                bar.update()
    return totals / sum(batch.size for batch in batches)


def branch_shares(analysis: Analysis, units: Sequence[Unit]) -> np.ndarray:
    """Score units without data: how large their branches are beside the stream, on noise.

    The sum of |f(x)| / |x| for one sample of normal noise: it sees the weights' and layer scales' sizes,
    and nothing of what the branch is good for.  A model without values keeps its first branches.
    """
    if on_meta(analysis.module):
        return -np.arange(len(units), dtype=float)
    module = analysis.module
    example = seeded_noise(analysis.captured.example, module)
    example = example if analysis.captured.fixed_batch else example.with_batch(1)
    runner = _WithoutBranches(module)
    with torch.no_grad():
        runner.whole(*bound_arguments(module, example))
    return np.array([sum(_share(runner.kept, branch) for branch in unit) for unit in units])


def _share(values: dict[fx.Node, Any], branch: Branch) -> float:
    result, source = (float(values[n].double().norm()) for n in (branch.result, branch.source))
    return result / max(source, 1e-300)


class _WithoutBranches(fx.Interpreter):
    """Keeps every value of one whole run, and runs again only what lies after what is left out."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.kept: dict[fx.Node, Any] = {}

    def whole(self, *args: Any) -> Any:
        output = self.run(*args)
        self.kept = dict(self.env)
        return output

    def without(self, unit: Unit) -> Any:
        sources = {branch.add: branch.source for branch in unit}
        self.env = dict(self.kept)
        changed: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node in sources:
                self.env[node] = self.env[sources[node]]
            elif not changed.isdisjoint(node.all_input_nodes):
                self.env[node] = self.run_node(node)
            else:
                continue
            changed.add(node)
        return self.env[next(n for n in reversed(self.graph.nodes) if n.op == "output")]

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; one that writes in place gets copies, since the values before it are needed again."""
        if not writes_in_place(n, self.module):
            return super().run_node(n)
        with copied_operands(self.env, n):
            return super().run_node(n)
