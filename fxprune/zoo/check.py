"""What the zoo asks of one model: pruned at 0.5 without an option, is it exact and small?"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from fxprune import model_specs
from fxprune.analysis import Analysis
from fxprune.axes import atoms_of
from fxprune.capture.inputs import Example, seeded_noise
from fxprune.certify import Certificate, certify
from fxprune.measure import macs_of, on_meta, outputs_of, parameters_of
from fxprune.plan import plan_of
from fxprune.prune import analyze, prune_analyzed, verify
from fxprune.selection import Selection
from fxprune.zoo.coverage import OpUse, ops_met
from fxprune.zoo.randomise import fit_batch_norms, randomise, uninitialised
from fxprune.zoo.result import CERTIFIED, EXCLUDED, FAILED, SHAPES, Result

__all__ = ["check"]

# Beyond this a model is pruned on the meta device, and only its shapes are checked.
NUMERIC_LIMIT = 310e6
# Where one image costs more, the certificate takes the smallest image that the model accepts.
AFFORDABLE_MACS = 1e9
# And where even that is too much, it is built anew for smaller images, or runs a single one.
SINGLE_IMAGE_MACS = 8e9
SMALLER_IMAGES = (56, 64, 96, 112, 128, 160, 192, 224, 256)
# Dimensions that are whole by what they are: a convolution's window, the input's colours.
NOT_CHANNELS = {"kernel", "input"}


def check(spec: str, ratio: float = 0.5) -> Result:
    """Prune the model that a spec names, in this process, and say what became of it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # processes run side by side
    try:
        model = _model(spec)
    except Exception as error:  # the library's own failure
        return Result(spec, EXCLUDED, note=_first_line("can't be built", error))
    try:
        return _checked(spec, model, ratio)
    except Exception as error:  # the row names whatever went wrong
        note = _first_line(type(error).__name__, error)
        return Result(spec, FAILED, params=parameters_of(model) / 1e6, note=note, ops=_ops_of_failed(model))


def _checked(spec: str, model: nn.Module, ratio: float) -> Result:
    start = time.process_time()
    analysis = analyze(model)
    pruned = prune_analyzed(model, analysis, ratio)
    seconds = time.process_time() - start

    dense_macs, macs = _macs(model, pruned), _macs(pruned, pruned)
    outcome, certificate, note = SHAPES, None, ""
    if on_meta(model):
        _check_shapes(model, pruned)
    else:
        small = _built_smaller(spec) if dense_macs > SINGLE_IMAGE_MACS else None
        if small is not None:
            certificate, note = _certificate_of_twin(*small, analysis.capture, ratio)
        else:
            certificate, note = _certificate(model, pruned, analysis, dense_macs)
        if not certificate.exact and fit_batch_norms(model, _example(model, pruned)):
            pruned = prune_analyzed(model, analysis, ratio)
            certificate, note = _certificate(model, pruned, analysis, dense_macs)
            note = "; ".join(filter(None, (note, "batch norms fitted to noise")))
        outcome = CERTIFIED if certificate.exact else FAILED
    return Result(
        spec,
        outcome,
        capture=analysis.capture,
        seconds=seconds,
        params=parameters_of(model) / 1e6,
        params_left=parameters_of(pruned) / parameters_of(model),
        macs_left=macs / dense_macs,
        certificate=certificate,
        whole=_whole_share(analysis),
        reasons=_reasons(analysis),
        note="; ".join(filter(None, (note, *_missing(analysis), *analysis.notes))),
        ops=ops_met(analysis),
    )


def _model(spec: str) -> nn.Module:
    """With random weights; a giant on the meta device, where it needs no memory."""
    try:
        with torch.device("meta"):
            outline = model_specs.build(spec)
    except Exception:  # its constructor computes with values
        outline = None
    if outline is not None and parameters_of(outline) > NUMERIC_LIMIT:
        return outline.requires_grad_(False)
    # torch's flop counter trips over parameters that ask for gradients where none are recorded.
    with uninitialised():
        model = model_specs.build(spec).requires_grad_(False)
    return model.to("meta") if parameters_of(model) > NUMERIC_LIMIT else randomise(model)


def _built_smaller(spec: str) -> tuple[nn.Module, int] | None:
    """The same architecture for the smallest images that it can be built for, and their size."""
    for size in SMALLER_IMAGES:
        try:
            with torch.device("meta"):  # quick to find out
                image = torch.empty(1, 3, size, size)
                outputs_of(model_specs.build(spec, img_size=size), Example((image,)))
            with uninitialised():
                model = model_specs.build(spec, img_size=size).requires_grad_(False)
            outputs_of(model, Example((torch.zeros_like(image, device="cpu"),)))
            return randomise(model), size
        except Exception:  # it takes no img_size, or not this one
            continue
    return None


def _certificate_of_twin(twin: nn.Module, size: int, capture: str, ratio: float) -> tuple[Certificate, str]:
    """Where a model can be built for smaller images: that one, pruned in the same way."""
    analysis = analyze(twin, example_inputs=torch.zeros(2, 3, size, size), capture=capture)
    return _certificate(twin, prune_analyzed(twin, analysis, ratio), analysis, 0)[
        0
    ], f"certified as built for {size} x {size}"


def _certificate(
    model: nn.Module, pruned: fx.GraphModule, analysis: Analysis, macs: float
) -> tuple[Certificate, str]:
    """In float64, at a batch size other than the traced one; and run at a third one."""
    record = pruned.meta["fxprune"]
    example, note = seeded_noise(record["example"], model), ""
    if macs > AFFORDABLE_MACS and analysis.capture == "symbolic":
        example, note = _smallest(model, pruned, example)
    if record["dynamic"]:
        few, many = (3, 1) if macs > SINGLE_IMAGE_MACS and not note else (1, 3)
        _ = outputs_of(pruned, example.with_batch(few))
        example = example.with_batch(many)
        note = note or ("certified with one image" if many == 1 else "")
    if "certified at" in note:  # axes of that image size
        return verify(model, pruned, example_inputs=example.args, example_kwargs=example.kwargs), note
    selection = Selection.from_plan(analysis, plan_of(pruned))
    return certify(model, pruned, analysis, selection, example), note


def _smallest(model: nn.Module, pruned: fx.GraphModule, example: Example) -> tuple[Example, str]:
    """The smallest square images that both take, and what to say of it."""
    recorded = max(t.shape[-1] for t in example.args if isinstance(t, Tensor))
    for size in (s for s in SMALLER_IMAGES if s < recorded):
        smaller = example.map(lambda t, n=size: t[..., :n, :n] if t.ndim == 4 else t)
        try:
            shapes = [[t.shape for t in outputs_of(m, smaller)] for m in (model, pruned)]
        except Exception:  # this size is too small for its windows, or other than its positions
            continue
        if shapes[0] == shapes[1]:
            return smaller, f"certified at {size} x {size}"
    return example, ""


def _check_shapes(model: nn.Module, pruned: fx.GraphModule) -> None:
    example = pruned.meta["fxprune"]["example"].with_batch(3)
    wanted, got = ([tuple(t.shape) for t in outputs_of(m, example)] for m in (model, pruned))
    if wanted != got:
        raise ValueError(f"the pruned model's outputs have shapes {got}, the original's {wanted}")


def _macs(model: nn.Module, pruned: fx.GraphModule) -> float:
    """Multiply-accumulates of one image."""
    return macs_of(model, _example(model, pruned, 1))


def _example(model: nn.Module, pruned: fx.GraphModule, batch: int = 4) -> Example:
    record = pruned.meta["fxprune"]
    example = record["example"].with_batch(batch if record["dynamic"] else None)
    return example if on_meta(model) else seeded_noise(example, model)


def _whole_share(analysis: Analysis) -> float:
    """The share of parameters in tensors of which no dimension can shrink."""
    sizes = {name: (p.numel(), analysis.weights.get(name)) for name, p in _parameters(analysis)}
    frozen = analysis.inference.solver.frozen
    whole = sum(
        n
        for n, axes in sizes.values()
        if axes is None or all(frozen(a) is not None for axis in axes for a in atoms_of(axis))
    )
    return whole / max(1, sum(n for n, _ in sizes.values()))


def _reasons(analysis: Analysis, most: int = 4) -> str:
    """What keeps channels whole, each reason with the share of parameters that have such a dimension."""
    frozen = analysis.inference.solver.frozen
    total, share = 0, Counter[str]()
    for name, parameter in _parameters(analysis):
        total += parameter.numel()
        reasons = set()
        for axis in analysis.weights.get(name, ()):
            of_axis = [frozen(a) for a in atoms_of(axis) if a.size > 1]
            if all(of_axis):
                reasons |= {reason.text for reason in of_axis if reason}
        share.update(dict.fromkeys(reasons - NOT_CHANNELS, parameter.numel()))
    common = [(text, n / total) for text, n in share.most_common(most) if n / total >= 0.01]
    return "; ".join(f"{text} {part:.2f}" for text, part in common)


def _missing(analysis: Analysis) -> list[str]:
    ops = sorted(analysis.inference.missing)
    return [f"no rule for {', '.join(ops)}"] if ops else []


def _parameters(analysis: Analysis) -> Iterator[tuple[str, Tensor]]:
    return analysis.module.named_parameters()


def _ops_of_failed(model: nn.Module) -> tuple[OpUse, ...]:
    """What it calls, if it can be captured at all: an op without a rule may be why it failed."""
    try:
        return ops_met(analyze(model))
    except Exception:  # the row already names what went wrong
        return ()


def _first_line(what: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{what}: {' '.join(lines)[:300]}"
