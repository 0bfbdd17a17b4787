"""Run passes in order and, on request, check what each promises: an error names the pass that broke it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.errors import FxpruneError, PassError
from fxprune.graph.example import Example, seeded_noise
from fxprune.graph.tensors import cuda_devices_of, on_meta
from fxprune.graph.values import NodeError

__all__ = ["Check", "Pass", "run_passes"]

Check = Literal[False, True, "shapes"]
Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Pass:
    """One pass of a pipeline, with its options bound.

    run: takes a graph module, changes it, and hands it on.
    has_values: every node has its `meta["val"]` afterwards.
    same_outputs: the outputs keep their shapes and values; False where channels go.
    """

    name: str
    run: Callable[[fx.GraphModule], fx.GraphModule]
    has_values: bool = True
    same_outputs: bool = True


@dataclass
class _Checker:
    """What is known of the graph before a pass, to be found again after it; not frozen: passes follow."""

    example: Example
    check: Check
    shapes: Shapes | None = None
    outputs: list[Tensor] | None = None
    done: list[str] = field(default_factory=list)

    def start(self, module: fx.GraphModule) -> None:
        if self.check != "shapes" and not on_meta(module):
            self.example = seeded_noise(self.example, module)
            self.outputs = _run(module, self.example)

    def after(self, step: Pass, module: fx.GraphModule) -> None:
        """Raise an error that says what of its contract the graph lacks."""
        module.graph.lint()
        without = [n.name for n in module.graph.nodes if n.op != "output" and "val" not in n.meta]
        if step.has_values and without:
            raise ValueError(f"no value for {', '.join(without[:5])}")
        if not without:
            shapes = _output_shapes(module)
            if self.shapes is not None and step.same_outputs and shapes != self.shapes:
                raise ValueError(f"the outputs' shapes were {self.shapes}, and are {shapes}")
            self.shapes = shapes
        if self.outputs is not None:
            outputs = _run(module, self.example)
            if step.same_outputs:
                _compare(self.outputs, outputs)
            self.outputs = outputs


def run_passes(
    module: fx.GraphModule, passes: Sequence[Pass], example: Example, *, check: Check = False
) -> fx.GraphModule:
    """Run passes in order.

    check: True verifies the graph after every pass: it is well-formed, each node has its `meta["val"]` where
        that is promised, the outputs keep their shapes, and their values, on noise of the example's shapes
        and with a random state that every run starts from; "shapes": all but the values, without a run, as
        for a model on the meta device.

    Raises:
        PassError: with `check`, a pass fails or breaks its contract; names it and those that ran before it.
    """
    if not check:
        for step in passes:
            module = step.run(module)
        return module
    checker = _Checker(example, check)
    checker.start(module)
    for step in passes:
        try:
            module = step.run(module)
            checker.after(step, module)
        except (NotImplementedError, FxpruneError):
            raise  # a model that is refused
        except Exception as error:  # whatever breaks is this pass's
            if isinstance(error, NodeError) and checker.shapes is None:
                raise  # the graph rejected the example before any pass relied on its values
            before = ", ".join(checker.done) or "none"
            raise PassError(
                f"the pass {step.name} broke the graph ({type(error).__name__}: {error}); passes before it: "
                f"{before}; this is a bug in fxprune: please report it"
            ) from error
        checker.done.append(step.name)
    return module


def _output_shapes(module: fx.GraphModule) -> Shapes:
    returned = pytree.tree_leaves(module.graph.output_node().args)
    values = [n.meta["val"] for n in returned if isinstance(n, fx.Node)]
    return [tuple(t.shape) for t in pytree.tree_leaves(values) if isinstance(t, Tensor)]


def _run(module: fx.GraphModule, example: Example) -> list[Tensor]:
    by_name = [n for n in module.graph.nodes if n.op == "placeholder"][len(example.args) :]
    rest = [example.kwargs[str(n.target)] for n in by_name if str(n.target) in example.kwargs]
    devices = cuda_devices_of(module)
    with torch.no_grad(), torch.random.fork_rng(devices):  # what is drawn is drawn again in the next run
        out = fx.Interpreter(module).run(*itertools.chain(example.args, rest))
    return [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]


def _compare(before: list[Tensor], after: list[Tensor]) -> None:
    """Raise AssertionError, saying how far apart they are, where values differ by more than rounding."""
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5, equal_nan=True)
