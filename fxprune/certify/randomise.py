"""Random numbers in every weight: no zero-initialised layer is left to hide a wrong rewrite."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.graph.example import Example

__all__ = ["fit_batch_norms", "randomise", "uninitialised"]

Model = TypeVar("Model", bound=nn.Module)

_aten = torch.ops.aten
_DRAWS = {_aten.normal_.default, _aten.uniform_.default, _aten.erfinv_.default}


class uninitialised(TorchDispatchMode):
    """Leave large weights that are made meanwhile zero, for `randomise`: half the time of making a model."""

    def __init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DRAWS and args[0].numel() > 10_000:
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


def randomise(model: Model, seed: int = 0) -> Model:
    """Put normal numbers in every parameter and floating-point buffer, of a size that keeps signals alive.

    Changes the model in place and returns it.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor, scale: float) -> Tensor:
        dtype = torch.complex64 if like.is_complex() else torch.float32
        return torch.randn(like.shape, generator=generator, dtype=dtype).mul_(scale)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            owner = model.get_submodule(name.rpartition(".")[0])
            if "Norm" in type(owner).__name__ and name.endswith("weight"):
                parameter.copy_(1 + noise(parameter, 0.2))
            elif parameter.ndim >= 2 and math.prod(parameter.shape[:-1]) > 1:
                fan_in = max(1, parameter[0].numel())
                parameter.copy_(noise(parameter, fan_in**-0.5))
            else:
                parameter.copy_(noise(parameter, 0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + noise(buffer, 1.0).abs())
            elif buffer.is_floating_point():
                change = noise(buffer, 0.2).to(buffer)  # no sign is lost: some are variances
                buffer.copy_(torch.where(buffer == 0, change, buffer * change.exp()))
    return model


def fit_batch_norms(model: nn.Module, example: Example) -> bool:
    """Give every batch norm the statistics of what reaches it, so that deep signals neither fade nor grow.

    Where random weights let activations grow to 1e9, rounding alone breaks a certificate.  False if the
    model has no batch norm.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(*example.args, **example.kwargs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
    return bool(norms)
