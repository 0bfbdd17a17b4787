"""What the zoo asks of one model: pruned at 0.5 without an option, is it exact and small?"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.analyze import analyze
from fxprune.capture.example_of import example_of
from fxprune.certify.randomise import fit_batch_norms, randomise, uninitialised
from fxprune.certify.zoo.coverage import OpUse, ops_met
from fxprune.certify.zoo.exactness import AFFORDABLE_MACS, check_shapes, exactness, exactness_built_smaller
from fxprune.certify.zoo.quiet import listening
from fxprune.certify.zoo.result import CERTIFIED, EXCLUDED, FAILED, SHAPES, Result, in_short
from fxprune.certify.zoo.uses import Uses, copied_in_turn, uses_of
from fxprune.compiler import prune_analyzed
from fxprune.graph.tensors import on_meta
from fxprune.result.measure import macs_of, outputs_of, parameters_of
from fxprune.result.pruned_module import noise_for, record_of
from fxprune.result.saved import model_specs
from fxprune.rules.axes import atoms_of

__all__ = ["built", "check"]

# Beyond this a model is pruned on the meta device, and only its shapes are checked.
NUMERIC_LIMIT = 310e6
# Beyond this nobody tries what people do with a result.
USED_LIMIT = 50e6
# Texts of reasons for dimensions that are no channels: a convolution's window, the input's colours.
NOT_CHANNELS = {"kernel", "input"}


def check(spec: str, ratio: float = 0.5, *, brief: bool = False, copied: bool = True) -> Result:
    """Prune the model that a spec names, in this process, and say what became of it.

    If `brief`, in two thirds of the time: of fewer images, without the MACs that are left, and of what people
    do with a result, its copies alone; in half of it where these are not asked for either.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # processes run side by side
    try:
        model = built(spec)
    except Exception as error:  # the library's own failure
        return Result(spec, EXCLUDED, note=_first_line("can't be built", error))
    try:
        return _checked(spec, model, ratio, brief, copied)
    except Exception as error:  # the row names whatever went wrong
        note = _first_line(type(error).__name__, error)
        return Result(spec, FAILED, params=parameters_of(model) / 1e6, note=note, ops=_ops_of_failed(model))


def _checked(spec: str, model: nn.Module, ratio: float, brief: bool, copied: bool) -> Result:
    tried = not brief and not on_meta(model) and parameters_of(model) <= USED_LIMIT
    with listening() as own_words:  # what the model's own code says, often only once
        if tried:
            outputs_of(model, example_of(model))
    start = time.process_time()
    with listening() as words:
        analysis = analyze(model)
        pruned = prune_analyzed(model, analysis, ratio)
    seconds = time.process_time() - start

    dense_macs = macs_of(model, noise_for(pruned, model, 1))
    macs = None if brief else macs_of(pruned, noise_for(pruned, model, 1))
    if on_meta(model):
        check_shapes(model, pruned)
        outcome, found = SHAPES, None
    else:
        found = exactness_built_smaller(spec, dense_macs, analysis.capture, ratio, brief)
        found = found or exactness(model, pruned, analysis, dense_macs, brief)
        if not found.certificate.exact and fit_batch_norms(model, noise_for(pruned, model, 4)):
            pruned = prune_analyzed(model, analysis, ratio)
            found = exactness(model, pruned, analysis, dense_macs, brief)
            found = found._replace(note=_joined(found.note, "batch norms fitted to noise"))
        if found.survivors:
            fooled = f"the certificate takes it for exact: {', '.join(found.survivors)}"
            found = found._replace(note=_joined(fooled, found.note))
        outcome = CERTIFIED if found.certificate.exact and not found.survivors else FAILED
    uses = Uses()
    if tried and dense_macs <= AFFORDABLE_MACS:
        whole = prune_analyzed(model, analysis, 0.0)
        uses = uses_of(model, whole, pruned, noise_for(pruned, model, 2))
    elif brief and copied and not on_meta(model):
        example = noise_for(pruned, model, 1 if record_of(pruned).dynamic else 2)
        uses = Uses(copies=copied_in_turn(pruned, example))
    said = [line for line in words.lines if line not in own_words.lines]
    return Result(
        spec,
        outcome,
        capture=analysis.capture,
        seconds=seconds,
        params=parameters_of(model) / 1e6,
        params_left=parameters_of(pruned) / parameters_of(model),
        macs_left=None if macs is None else macs / dense_macs,
        certificate=found.certificate if found else None,
        frozen=_frozen_share(analysis),
        reasons=_reasons(analysis),
        note=_joined(found.note if found else "", *_missing(analysis), *analysis.notes),
        **uses._asdict(),
        complaint=_joined(*uses.complaints, f"prints {said[0][:160]}" if said else ""),
        ops=ops_met(analysis),
    )


def built(spec: str) -> nn.Module:
    """Build a model with random weights; a giant on the meta device, where it needs no memory."""
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


def _frozen_share(analysis: Analysis) -> float:
    """Return the share of parameters in tensors of which no dimension can shrink."""
    sizes = {name: (p.numel(), analysis.weights.get(name)) for name, p in _parameters(analysis)}
    frozen = analysis.frozen
    stays = sum(
        n
        for n, axes in sizes.values()
        if axes is None or all(frozen(a) is not None for axis in axes for a in atoms_of(axis))
    )
    return stays / max(1, sum(n for n, _ in sizes.values()))


def _reasons(analysis: Analysis, most: int = 4) -> str:
    """List what freezes channels, each reason with the share of parameters that have such a dimension."""
    frozen = analysis.frozen
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
    ops = sorted(analysis.missing)
    return [f"no rule for {', '.join(ops)}"] if ops else []


def _parameters(analysis: Analysis) -> Iterator[tuple[str, Tensor]]:
    return analysis.module.named_parameters()


def _ops_of_failed(model: nn.Module) -> tuple[OpUse, ...]:
    """Return what it calls, if it can be captured at all: an op without a rule may be why it failed."""
    try:
        return ops_met(analyze(model))
    except Exception:  # the row already names what went wrong
        return ()


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _first_line(what: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{what}: {in_short(' '.join(lines), 300)}"
