"""Is a pruned model of the zoo exact?  At the smallest cost that still says so: small images, few of them."""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.analyze import analyze
from fxprune.certify.certificate import Certificate, certified
from fxprune.certify.comparison import Comparison
from fxprune.certify.mutants import survivors, without_a_guard
from fxprune.certify.randomise import randomise, uninitialised
from fxprune.choose.planned import analysis_behind, as_planned
from fxprune.compiler import prune_analyzed
from fxprune.graph.example import Example, seeded_noise
from fxprune.result.measure import outputs_of
from fxprune.result.pruned_module import plan_of, record_of
from fxprune.result.saved import model_specs
from fxprune.result.selection import Selection
from fxprune.rules.registry import DEFAULT_RULES

__all__ = ["Exactness", "check_shapes", "exactness", "exactness_built_smaller"]

# Where one image costs more, the smallest images are taken that the model accepts.
AFFORDABLE_MACS = 1e9
# And where even that is too much, it is built anew for smaller images, or runs a single one.
SINGLE_IMAGE_MACS = 8e9
SMALLER_IMAGES = (56, 64, 96, 112, 128, 160, 192, 224, 256)


class Exactness(NamedTuple):
    """A certificate, what it was made with where that is not the model's own example, and what fools it.

    survivors: results that were spoilt on purpose, and that pass for the right one (see `certify.mutants`).
    """

    certificate: Certificate
    note: str = ""
    survivors: tuple[str, ...] = ()


def exactness(
    model: nn.Module, pruned: fx.GraphModule, analysis: Analysis, macs: float, brief: bool = False
) -> Exactness:
    """Compare in float64, at a batch size other than the traced one; unless `brief`, run a third one."""
    smaller = None
    if macs > AFFORDABLE_MACS and analysis.capture == "symbolic":
        smaller = _smallest(model, pruned)
    example = smaller or _noise(model, pruned)
    note = f"certified at {_size(smaller)} x {_size(smaller)}" if smaller else ""
    if record_of(pruned).dynamic:
        single = not smaller and macs > SINGLE_IMAGE_MACS
        if not brief:
            _ = outputs_of(pruned, example.with_batch(3 if single else 1))
        example = example.with_batch(1 if single else 2 if brief else 3)
        note = note or ("certified with one image" if single else "")
    plan, as_captured = plan_of(pruned), analysis
    if smaller:  # the axes of that image size
        analysis = as_planned(analysis_behind(model, pruned, example, DEFAULT_RULES), plan)
    comparison = Comparison(model, pruned, analysis, Selection.from_plan(analysis, plan))
    certificate = certified(comparison, example)
    if not certificate.exact:
        return Exactness(certificate, note)
    found = survivors(comparison)
    if without_a_guard(pruned, as_captured):
        found.append("a guard left out")
    return Exactness(certificate, note, tuple(found))


def exactness_built_smaller(
    spec: str, macs: float, capture: str, ratio: float, brief: bool = False
) -> Exactness | None:
    """Compare the same architecture built for smaller images and pruned alike, where that is needed."""
    if macs <= SINGLE_IMAGE_MACS:
        return None
    for size in SMALLER_IMAGES:
        small = _built_for(spec, size)
        if small is not None:
            analysis = analyze(small, example_inputs=torch.zeros(2, 3, size, size), capture=capture)
            found = exactness(small, prune_analyzed(small, analysis, ratio), analysis, 0, brief)
            return found._replace(note=f"certified as built for {size} x {size}")
    return None


def check_shapes(model: nn.Module, pruned: fx.GraphModule) -> None:
    """Raise ValueError where the outputs have other shapes; all that can be told on the meta device."""
    example = record_of(pruned).example.map(lambda t: t.to("meta")).with_batch(3)
    wanted, got = ([tuple(t.shape) for t in outputs_of(m, example)] for m in (model, pruned))
    if wanted != got:
        raise ValueError(f"the pruned model's outputs have shapes {got}, the original's {wanted}")


def _built_for(spec: str, size: int) -> nn.Module | None:
    image = torch.zeros(1, 3, size, size)
    try:
        with torch.device("meta"):  # quick to find out
            outputs_of(model_specs.build(spec, img_size=size), Example((image.to("meta"),)))
        with uninitialised():
            model = model_specs.build(spec, img_size=size).requires_grad_(False)
        outputs_of(model, Example((image,)))
    except Exception:  # it takes no img_size, or not this one
        return None
    return randomise(model)


def _noise(model: nn.Module, pruned: fx.GraphModule) -> Example:
    return seeded_noise(record_of(pruned).example, model)


def _size(example: Example) -> int:
    return max(t.shape[-1] for t in example.args if isinstance(t, Tensor))


def _smallest(model: nn.Module, pruned: fx.GraphModule) -> Example | None:
    """Cut the images of the example to the smallest square that both models take; None if there is none."""
    example = _noise(model, pruned)
    for size in (s for s in SMALLER_IMAGES if s < _size(example)):
        smaller = example.map(lambda t, n=size: t[..., :n, :n] if t.ndim == 4 else t)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # torch prints the graph's line where it raises
                shapes = [[t.shape for t in outputs_of(m, smaller)] for m in (pruned, model)]
        except Exception:  # this size is too small for its windows, or other than its positions
            continue
        if shapes[0] == shapes[1]:
            return smaller
    return None
