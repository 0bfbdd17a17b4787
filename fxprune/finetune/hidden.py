"""Hidden states of student and teacher, paired: the plan says which teacher channels the student's are.

What is compared is what norms read (the residual stream, where norms come before the layers), or what
linear layers and convolutions read in a model without norms.  A read is known by the weight that takes part
in it: so it is the same place in a graph, in a class of one's own, and in the dense model.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune.choose.planned import analysis_behind
from fxprune.compiler.rebase import rebased
from fxprune.errors import TrainingError, listed
from fxprune.finetune.renormalised import Renormalised
from fxprune.graph.tensors import at_least_float32, named_tensors
from fxprune.result.fingerprint import layout_digest
from fxprune.result.forms import graph_form
from fxprune.result.plan import Plan
from fxprune.result.pruned_module import record_of
from fxprune.result.record import Record

__all__ = ["HiddenStates", "Reads"]

# op -> the dimension of its input that holds the channels
NORMS = {"layer_norm": -1, "rms_norm": -1, "batch_norm": 1, "group_norm": 1, "instance_norm": 1}
LAYERS = {"linear": -1, "conv1d": 1, "conv2d": 1, "conv3d": 1}

Dims = tuple[Tensor | None, ...]


class Reads(TorchFunctionMode):
    """Record what is read beside each of some weights, while a model runs.

    model: whose weights they are; looked for once more when others are met: sharded ones are whole tensors
        only while they are used.
    names: a weight's name in the model -> the name to record it by.
    found: (is it a norm?, name of the weight) -> what was read and the dimension of its channels, in order.
    without_gradient: the keys of what was read where no gradients are taken.
    """

    def __init__(self, model: nn.Module | None, names: Mapping[str, str]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.met: dict[int, tuple[Tensor, str | None]] = {}
        self._look()
        self.without_gradient: list[tuple[bool, str]] = []
        self.found: dict[tuple[bool, str], list[tuple[Tensor, int]]] = defaultdict(list)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op = getattr(func, "__name__", "").partition(".")[0]
        for places in (NORMS, LAYERS):
            if op in places:
                self._take(places is NORMS, places[op], [*args, *kwargs.values()])
        return func(*args, **kwargs)

    def _take(self, norm: bool, dim: int, given: list[Any]) -> None:
        name = next((name for value in given if (name := self._name(value)) is not None), None)
        if name is not None and isinstance(given[0], Tensor):
            if not torch.is_grad_enabled():
                self.without_gradient.append((norm, name))
            self.found[norm, name].append((given[0], dim))

    def _name(self, value: object) -> str | None:
        """Return the name of a weight; None for others, and for what is no weight."""
        if id(value) not in self.met and isinstance(value, nn.Parameter):
            self.met[id(value)] = (value, None)
            self._look()
        return self.met.get(id(value), (None, None))[1]

    def _look(self) -> None:
        if self.model is not None and self.names:
            self.met |= {id(t): (t, self.names.get(name)) for name, t in named_tensors(self.model)}


class HiddenStates:
    """Where one student's hidden states say what one teacher's do.

    kept: name of a weight of the teacher -> what the student keeps of each of its dimensions.
    ours, theirs: name of a weight of the student, of the teacher -> that name.
    teacher: what to run for the teacher's states.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        """Pair the weights of a pruned model with those of what it was pruned from.

        Where the plan changed bases first, the teacher's hidden states are those of a copy in the same
        coordinates, which computes the same: see `teacher`.

        Raises:
            PlanError: the student was not made by fxprune.
            TrainingError: it was pruned from another model than the teacher.
        """
        dense, prefix = (teacher.model, "model.") if isinstance(teacher, Renormalised) else (teacher, "")
        plans = _plans_since(layout_digest(dense.state_dict()), record_of(student))
        if plans is None:
            raise TrainingError(
                "the teacher is none of the models that the student was pruned from, so that no hidden state "
                "of one is known to be that of the other: give such a teacher, or hidden=0"
            )
        dense = _in_coordinates_of(plans, student, dense)
        self.teacher = _around(dense, teacher)
        pairs = list(_pairs(plans, dict(named_tensors(student)), dict(named_tensors(dense))))
        self.kept: dict[str, Dims] = {name: dims for name, _, dims in pairs}
        self.ours = {new: name for name, new, _ in pairs}
        self.theirs = {prefix + name: name for name, _, _ in pairs}

    def error(self, ours: Reads, theirs: Reads) -> Tensor:
        """Return the mean squared error of the kept channels, relative to their mean square: a scalar.

        Raises:
            TrainingError: the two have no hidden state in common, or the student's have no gradient.
        """
        for norm in (True, False):
            errors = list(self._errors(norm, ours, theirs))
            if errors:
                if torch.is_grad_enabled():
                    _refuse_fixed([name for kind, name in ours.without_gradient if kind is norm])
                return torch.stack(errors).mean()
        raise TrainingError(
            "no norm, linear layer or convolution reads the same in student and teacher: use hidden=0"
        )

    def _errors(self, norm: bool, ours: Reads, theirs: Reads) -> Iterable[Tensor]:
        for (is_norm, name), reads in ours.found.items():
            others = theirs.found.get((is_norm, name), [])
            if is_norm is not norm or len(others) != len(reads):
                continue
            index = self.kept[name][0 if norm else 1]
            for (x, dim), (y, _) in zip(reads, others, strict=True):
                y = y if index is None else y.index_select(dim, index.to(y.device))
                # Shapes differ where a norm over head_dim reads heads, and some of them went: left out.
                if x.shape == y.shape and x.ndim > 1:
                    yield _relative_error(at_least_float32(x), at_least_float32(y))


def _refuse_fixed(names: Sequence[str]) -> None:
    """Refuse to train by hidden states that are read without gradients.

    Raises:
        TrainingError: there are some.
    """
    if names:
        raise TrainingError(
            f"what is read beside {listed(names)} has no gradient (checkpointing by use_reentrant=True, or "
            f"code of its own), so that hidden states would not be learned: use use_reentrant=False, or "
            f"hidden=0"
        )


def _relative_error(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean over samples: so the mean over parts of a batch is that over the batch."""
    error, scale = (t.square().flatten(1).mean(1) for t in (x - y, y))
    return (error / scale.clamp_min(1e-12)).mean()


def _plans_since(layout: str, record: Record | None) -> list[Plan] | None:
    """Return the plans that led from a model of this layout to the student, in order; None if none did."""
    plans: list[Plan] = []
    while record is not None:
        plans.insert(0, record.plan)
        if record.origin["layout"] == layout:
            return plans
        record = record.before
    return None


def _in_coordinates_of(plans: Sequence[Plan], student: nn.Module, teacher: nn.Module) -> nn.Module:
    """Return the teacher, or a copy of it in the coordinates that the student was cut in."""
    if not any(plan.bases for plan in plans):
        return teacher
    if len(plans) > 1:
        raise TrainingError(
            "the student was pruned more than once, in coordinates of its own: hidden states say the same in "
            "the model that it was pruned from last; give that for a teacher, or hidden=0"
        )
    analysis = analysis_behind(teacher, graph_form(student))
    return rebased(teacher, analysis, plans[0].bases)[0]


def _around(dense: nn.Module, teacher: nn.Module) -> nn.Module:
    """Return the model in place of the one that was given, fed as that was."""
    if not isinstance(teacher, Renormalised):
        return dense
    fed = copy.copy(teacher)  # which is not changed
    fed._modules = {**teacher._modules, "model": dense}
    return fed


def _pairs(
    plans: Sequence[Plan], own: Mapping[str, Tensor], dense: Mapping[str, Tensor]
) -> Iterator[tuple[str, str, Dims]]:
    """Yield weight of the teacher, of the student, and what is kept; not of layers that were replaced."""
    for name, tensor in dense.items():
        new, dims = name, _all_of(tensor)
        for plan in plans:
            dims = tuple(map(_then, dims, plan.kept.get(new, _all_of(tensor))))
            new = plan.renamed.get(new, new)
        sizes = [s if index is None else len(index) for s, index in zip(tensor.shape, dims, strict=True)]
        if new in own and list(own[new].shape) == sizes:
            yield name, new, dims


def _all_of(tensor: Tensor) -> Dims:
    return (None,) * tensor.ndim


def _then(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first if second is None else second if first is None else first[second]
