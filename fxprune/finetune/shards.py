"""FSDP2: a student whose weights are shared out among the processes, each of which holds a part.

Accelerate shards (`fully_shard`).  What is here: asking for it on CPUs as well, an average of weights that
is sharded as they are, and whole weights at the end.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import TrainingError, listed
from fxprune.graph.tensors import called_modules

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["WholeAverage", "copy_to_shard", "refuse_other_shards", "sharded", "sharded_on_cpu", "take_whole"]

OTHERS = ("DEEPSPEED", "MEGATRON_LM")


def refuse_other_shards(accelerator: Accelerator) -> None:
    """Refuse an accelerator that shares out weights in another way than FSDP2.

    Raises:
        TrainingError: it does.
    """
    kind = accelerator.distributed_type.value
    if kind in OTHERS or (kind == "FSDP" and not sharded(accelerator)):
        name = "FSDP1" if kind == "FSDP" else kind
        raise TrainingError(
            f"{name} leaves each process a part of the student's weights in a way that is not supported: use "
            f"FSDP2 (accelerate launch --use_fsdp --fsdp_version 2), or several processes without it (DDP)"
        )


def sharded(accelerator: Accelerator) -> bool:
    """Return whether weights are shared out among the processes."""
    return bool(getattr(accelerator, "is_fsdp2", False))  # Accelerate before 1.6 knows FSDP1 alone


@contextlib.contextmanager
def sharded_on_cpu(accelerator: Accelerator, precision: str) -> Iterator[None]:
    """Let an accelerator of several CPU processes shard where FSDP is asked for in the environment.

    Accelerate would go on without a word, and keep the whole model in every process; the rest of its code
    for FSDP2 runs on CPUs as it does on GPUs.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asked or accelerator.distributed_type is not DistributedType.MULTI_CPU:
        yield
        return
    plugin = FullyShardedDataParallelPlugin()
    if precision != "no":
        plugin.set_mixed_precision(precision)
    shared = PartialState._shared_state
    before = shared["distributed_type"]
    shared["distributed_type"] = DistributedType.FSDP  # where every object of Accelerate reads it
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    try:
        yield
    finally:
        shared["distributed_type"] = before


def copy_to_shard(student: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return a copy for Accelerate to shard, which changes a model for good.

    Every process has the weights already, so that the first one need not send them round.
    """
    accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False
    return copy.deepcopy(student).to(accelerator.device)


def refuse_uncalled_units(model: nn.Module) -> None:
    """Refuse units of sharding that a graph never calls: their weights would stay in parts.

    Raises:
        TrainingError: there are some.
    """
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, fx.GraphModule):
        return
    called = set(called_modules(model))
    units = [name for name, m in model.named_modules() if name and isinstance(m, FSDPModule)]
    never = [name for name in units if name not in called]
    if never:
        raise TrainingError(
            f"FSDP2 would shard {listed(never)} on its own, and the graph never calls it as a module: shard "
            f"another class (such as Linear), or prune with form='module'"
        )


def shard_average(average: Any, accelerator: Accelerator) -> None:
    """Split timm's average as the student is split, so that each process averages its own part."""
    from accelerate.utils import fsdp2_prepare_model

    fsdp2_prepare_model(accelerator, average.module)


class WholeAverage:
    """An average that is sharded, as checkpoints hold it: whole."""

    def __init__(self, average: Any) -> None:
        self.average = average

    def state_dict(self) -> dict[str, Tensor]:
        """Return whole weights, gathered from all processes."""
        return {name: t.cpu() for name, t in _whole(self.average.module)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.average.module, {**state}, options=whole)


def take_whole(student: nn.Module, model: nn.Module) -> None:
    """Copy the weights of a sharded model, gathered one after the other, to a whole one of its kind."""
    own = student.state_dict()
    with torch.no_grad():
        for name, value in _whole(model):
            own[name].copy_(value)


def _whole(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    from torch.distributed.tensor import DTensor

    for name, value in model.state_dict().items():
        yield name, value.full_tensor() if isinstance(value, DTensor) else value
