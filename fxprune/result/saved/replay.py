"""From a record and an original to the pruned model again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata

import torch
from torch import Tensor, nn

from fxprune.analysis.analyze import analyze
from fxprune.compiler import apply
from fxprune.compiler.native.unused import idle_kept
from fxprune.errors import FileError, listed
from fxprune.graph.chunks import taken
from fxprune.graph.tensors import device_of, named_tensors
from fxprune.result.fingerprint import layout_digest
from fxprune.result.json_types import Made
from fxprune.result.origin import in_dtypes
from fxprune.result.plan import plan_from
from fxprune.result.pruned_module import PrunedModule
from fxprune.result.remade import remade_from, with_remade
from fxprune.result.saved.examples import example_from
from fxprune.result.saved.own_data import own_from, own_instance
from fxprune.rules.registry import RuleSet

__all__ = ["OTHER_FUNCTION", "OTHER_LAYOUT", "parent_of", "replayed", "root_of", "seen_as_saved", "versions"]

# Counted up with each change of how rewrites spell a graph: an older folder's may differ, and be right.
SPELLING = "9"
OTHER_LAYOUT = "makes weights of other names or shapes"
OTHER_FUNCTION = "computes something else with its weights"


def root_of(record: Made) -> Made:
    """Return the record of the first prune, of a model that was pruned again and again."""
    before = record.get("before")
    return root_of(before) if before else record


def seen_as_saved(model: nn.Module, record: Made) -> Iterator[nn.Module]:
    """Yield an original, and a copy that holds what the saved one's code had put on its modules."""
    yield model
    before = with_remade(model, remade_from(root_of(record).get("remade", {}), device_of(model)))
    if before is not None:
        yield before


def replayed(model: nn.Module, record: Made, rules: RuleSet) -> PrunedModule:
    """Return the plan applied to an original, in the precision that the original was pruned in.

    For the record of a model that was pruned again, `model` may be what that was pruned from, or the first
    original, to which every plan is applied in turn.
    """
    origin = record["origin"]
    model = parent_of(model, record, rules)
    if layout_digest(model.state_dict()) != origin["layout"]:
        raise FileError(f"it is not the architecture that was pruned, a {origin['class']}: it {OTHER_LAYOUT}")
    unknown = sorted(origin["dtypes"]["others"].keys() - model.state_dict().keys())
    if unknown:
        raise FileError(f"the record gives {listed(unknown)} a type, and the model has no such weights")
    model = in_dtypes(model, origin["dtypes"])
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    example = example_from(record["example"], str(device))
    plan = plan_from(record["plan"])
    pruned = apply(
        model,
        replace(plan, bases={}),  # what is saved is in these coordinates already
        example_inputs=example.args,
        example_kwargs=example.kwargs,
        rules=rules,
        **record["options"],
    )
    assert isinstance(pruned, PrunedModule)
    solved = replace(
        pruned.record.plan,
        refit=plan.refit,
        unfitted=plan.unfitted,
        bases=plan.bases,
        samples=plan.samples,
        divergence=plan.divergence,
    )
    pruned.record = replace(pruned.record, plan=solved)
    return pruned


def parent_of(model: nn.Module, record: Made, rules: RuleSet) -> nn.Module:
    """Return what the record's plan was applied to: the original, or the result of the plans before."""
    before = record.get("before")
    if before and layout_digest(model.state_dict()) != record["origin"]["layout"]:
        parent = parent_of(model, before, rules)
        pruned = replayed(parent, before, rules)
        own = own_from(before["own"]) if "own" in before else None
        if own is None or own.is_graph:
            return pruned
        return own_instance(parent, pruned, own, _idle(parent, before, rules))
    return model


def _idle(model: nn.Module, record: Made, rules: RuleSet) -> dict[str, Tensor]:
    """Slice the weights that no graph of a model uses as a record's plan does."""
    example = example_from(record["example"], str(device_of(model)))
    analysis = analyze(
        model,
        example_inputs=example.args,
        example_kwargs=example.kwargs,
        rules=rules,
        **record["options"],
    )
    kept = idle_kept(model, analysis, plan_from(record["plan"]))
    held = dict(named_tensors(model))
    return {name: taken(held[name].detach(), places) for name, places in kept.items()}


def versions(kind: str) -> dict[str, str]:
    """Return the versions of fxprune, of how it spells graphs, of torch and of the original's library."""
    names = dict.fromkeys(("fxprune", "torch", kind.partition(".")[0]))
    found = {"spelling": SPELLING}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # the user's own module; fxprune from a checkout
            continue
    return found
