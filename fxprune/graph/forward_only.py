"""A value whose derivative a graph doesn't know: it can be computed and used, not trained through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import TrainingError

__all__ = ["ForwardOnly"]


class ForwardOnly(nn.Module):
    """Passes on what an autograd function of the user's computes, and refuses to be trained through.

    armed: the backward pass raises.  An analysis's own graph, whose derivatives are read for scores alone,
    goes without; the rewrite sets it.
    """

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function, self.armed = function, False

    def forward(self, x: Tensor) -> Tensor:
        # By another tool, for inference.
        recorded = torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()
        if not self.armed or recorded or not (torch.is_grad_enabled() and x.requires_grad):
            return x
        passed: Tensor = _RefuseBackward.apply(x, self.function)
        return passed

    def extra_repr(self) -> str:
        return self.function


class _RefuseBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, function: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.function = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return torch.ops.fxprune.refuse_backward(gradients[0], ctx.function), None


@torch.library.custom_op("fxprune::refuse_backward", mutates_args=())
def _refuse_backward(gradient: Tensor, function: str) -> Tensor:
    """Raise when it runs, not when a compiler looks at it: a compiled forward is right."""
    raise TrainingError(
        f"the graph does not hold the derivative that {function} defines (an autograd function of the "
        f"model's code): its results are right, its gradients would not be; form='module' of fxprune.prune "
        f"gives an instance that trains by its own code"
    )


@_refuse_backward.register_fake
def _(gradient: Tensor, function: str) -> Tensor:
    return torch.empty_like(gradient)
