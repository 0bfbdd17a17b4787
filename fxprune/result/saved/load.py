"""`fxprune.load`: a folder to a pruned model, without running anything that the folder names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from fxprune.errors import FileError, FxpruneError
from fxprune.graph.copies import structural_copy
from fxprune.graph.source_files import users_level
from fxprune.graph.tensors import on_meta
from fxprune.passes.shrinking.steps.pin_sizes import constant_sizes_as_numbers
from fxprune.result.fingerprint import FORMAT_1, graph_digest, unguarded_digest
from fxprune.result.forms import PrunedModel
from fxprune.result.json_types import FolderRecord, Modes, Origin
from fxprune.result.pruned_module import PrunedModule
from fxprune.result.remade import with_values
from fxprune.result.saved import model_specs
from fxprune.result.saved import recipe as recipes
from fxprune.result.saved.checked_record import check_record
from fxprune.result.saved.folder import OLD_FORMATS, read_record, read_tensors
from fxprune.result.saved.hub import local_folder
from fxprune.result.saved.layer_data import install
from fxprune.result.saved.own_data import OWN, own_from, own_instance
from fxprune.result.saved.replay import parent_of, replayed, root_of, seen_as_saved, versions
from fxprune.result.saved.tensors import CONSTANT, assign, fit
from fxprune.rules.registry import DEFAULT_RULES, RuleSet

__all__ = ["load", "original_from", "original_of"]


def load(
    folder: str | os.PathLike[str],
    model: nn.Module | str | None = None,
    *,
    device: str | torch.device = "cpu",
    rules: RuleSet = DEFAULT_RULES,
) -> PrunedModel:
    """Read a pruned model that `save` wrote.  No code of the folder is run or imported.

    Args:
        folder: the folder, or `hf-hub:owner/name[@revision]`.
        model: the original's architecture, with any weights, for one that the folder can't say how to
            build; or a spec such as `package.module:factory`, which *is* imported, since you name it.
        device: where the weights go.
        rules: those that it was pruned with.

    Returns:
        The pruned model in the form, with the weights, constants, modes and plan that it was saved with.

    Raises:
        FileError: the folder is missing, truncated, edited, or of another model; or `model` is needed.

    Example:
        >>> pruned = fxprune.load("deit-half")
        >>> fxprune.verify(timm.create_model("deit_small_patch16_224", pretrained=True), pruned)
    """
    path = local_folder(folder)
    record = read_record(path)
    original = original_of(record, model, without_values=True)
    tensors, frozen = read_tensors(path, record, device), set(record["frozen"])
    shared = {name: t for name, t in tensors.items() if not name.startswith(OWN)}
    try:
        original, pruned = _as_seen(original, record, rules, shared)
    except FxpruneError as error:
        raise FileError(f"{path}: the plan does not fit {_whence(record, model)}: {error}") from error
    if record["graph"] not in _digests(pruned, record):
        with constant_sizes_as_numbers():
            spelled_before = _as_saved(original, record, rules)
        if record["graph"] not in _digests(spelled_before, record):
            _refuse_or_warn(record, _whence(record, model))
    assign(pruned, shared, frozen)
    origin: Origin = {"config": None, **record["origin"], "build": record["build"]}
    remade = with_values(record.get("remade", {}), {_plain(name): t for name, t in shared.items()})
    pruned.record = replace(pruned.record, origin=origin, remade=remade)
    made: nn.Module = pruned
    own = own_from(record["own"]) if "own" in record else None
    if own is not None and own.is_graph:
        pruned.record = replace(pruned.record, own=own)
    elif own is not None:
        more = {_plain(n): t for n, t in tensors.items() if n.startswith(OWN)}
        parent = parent_of(original, record, rules)
        made = own_instance(parent, pruned, own, more)
        for layer in record.get("replaced", {}):
            made.set_submodule(layer, pruned.get_submodule(layer))
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(name not in frozen)
    _set_modes(made, record["modes"])
    return made


def _plain(name: str) -> str:
    return name.removeprefix(OWN).removeprefix(CONSTANT)


def original_from(
    folder: str | os.PathLike[str], model: nn.Module | str | None = None, *, rules: RuleSet = DEFAULT_RULES
) -> nn.Module:
    """Return what a saved model was pruned from, with any weights; errors are those of `original_of`."""
    record = read_record(local_folder(folder))
    return parent_of(original_of(record, model), record, rules)


def original_of(
    record: FolderRecord, model: nn.Module | str | None = None, *, without_values: bool = False
) -> nn.Module:
    """Build the original of a record, or take the model given; with any weights, or none where none will do.

    Raises:
        FileError: the record is of another form, does not say how to build it, or names code.
    """
    check_record(record)
    recipe = record["build"]
    kind = root_of(record)["origin"]["class"]
    if isinstance(model, str):
        return model_specs.build(model)
    if model is not None:
        # An outline may hold values yet: a buffer that the constructor filled, which the folder has as well.
        return structural_copy(model, _without_value) if on_meta(model) else model
    if recipe is None:
        raise FileError(
            f"the folder does not say how to build its {kind}: pass model=, the "
            f"original's architecture with any weights"
        )
    if not recipes.is_safe(recipe):
        raise FileError(
            f"the original is built by {recipe['from']} with {recipe['options']}, which is code and is not "
            f"run because a file says so: pass model={recipe['from']!r}, or the model itself"
        )
    return recipes.rebuild(recipe, recipe["on"] if without_values else "cpu")


def _without_value(tensor: Tensor) -> Tensor:
    return tensor if tensor.device.type == "meta" else tensor.to("meta")


def _whence(record: FolderRecord, model: nn.Module | str | None) -> str:
    if model is not None:
        return f"the model given ({model if isinstance(model, str) else type(model).__name__})"
    assert record["build"] is not None
    return record["build"]["from"]


def _as_seen(
    original: nn.Module, record: FolderRecord, rules: RuleSet, tensors: Mapping[str, Tensor]
) -> tuple[nn.Module, PrunedModule]:
    """Return the original as the saved one was seen, or as it is, and the plan applied to it."""
    unlike: tuple[nn.Module, PrunedModule] | None = None
    misfit = FxpruneError()
    for seen in seen_as_saved(original, record):
        try:
            pruned = _as_saved(seen, record, rules)
        except FxpruneError as error:
            misfit = error
            continue
        if record["graph"] in _digests(pruned, record) and fit(pruned, tensors):
            return seen, pruned
        unlike = unlike or (seen, pruned)
    if unlike is None:
        raise misfit
    return unlike


def _as_saved(original: nn.Module, record: FolderRecord, rules: RuleSet) -> PrunedModule:
    """Return the plan applied to the original, with the layers that took the place of the plan's."""
    pruned = replayed(original, record, rules)
    install(pruned, record.get("replaced", {}))
    return pruned


def _digests(pruned: fx.GraphModule, record: FolderRecord) -> set[str]:
    """Digest a graph in every spelling that a folder of this format may hold.

    Of format 1 the digest is taken as it was then: with the names of files, and without the guards of what
    a model asserts.
    """
    if record["format"] in OLD_FORMATS:
        return {graph_digest(pruned, FORMAT_1), unguarded_digest(pruned)}
    return {graph_digest(pruned)}


def _refuse_or_warn(record: FolderRecord, whence: str) -> None:
    """Refuse a graph that is not the saved one; only warn where other versions may spell it otherwise."""
    old = record["format"] in OLD_FORMATS
    then, now = record["made_by"], versions(root_of(record)["origin"]["class"])
    changed = [
        f"{name} {then.get(name)} -> {version}" for name, version in now.items() if then.get(name) != version
    ]
    if not changed and not old:
        raise FileError(
            f"{whence} has the right weights, but computes something else with them than the model that "
            f"was saved (another option of its constructor?)"
        )
    said = ", ".join([*([f"format {record['format']}"] if old else []), *changed])
    warnings.warn(
        f"the graph differs from the saved one, and so do versions ({said}): compare the loaded model with "
        f"the original by fxprune.verify",
        stacklevel=users_level(),
    )


def _set_modes(pruned: nn.Module, modes: Modes) -> None:
    others = set(modes["others"])
    for path, module in pruned.named_modules():
        module.training = modes["training"] != (path in others)
