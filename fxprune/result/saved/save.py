"""`fxprune.save`: a pruned model to a folder, with a tried way to build its original."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from torch import nn

from fxprune.errors import FileError
from fxprune.graph.source_files import users_level
from fxprune.graph.tensors import named_tensors as all_tensors
from fxprune.result.fingerprint import graph_digest, layout_digest
from fxprune.result.forms import graph_form
from fxprune.result.json_types import FolderRecord, Made, Modes, Recipe
from fxprune.result.layers import replaced_layers
from fxprune.result.plan import plan_data
from fxprune.result.pruned_module import record_of
from fxprune.result.record import Record
from fxprune.result.remade import remade_data
from fxprune.result.saved import recipe as recipes
from fxprune.result.saved.examples import example_record
from fxprune.result.saved.folder import Images, write_folder
from fxprune.result.saved.layer_data import install, replaced_data
from fxprune.result.saved.own_data import OWN, held_tensors, own_data
from fxprune.result.saved.replay import (
    OTHER_FUNCTION,
    OTHER_LAYOUT,
    replayed,
    root_of,
    seen_as_saved,
    versions,
)
from fxprune.result.saved.tensors import CONSTANT, named_tensors
from fxprune.rules.registry import DEFAULT_RULES, RuleSet

__all__ = ["save", "save_with_images"]


def save(
    pruned: nn.Module,
    folder: str | os.PathLike[str],
    *,
    build: str | None = None,
    build_options: Mapping[str, object] | None = None,
    rules: RuleSet = DEFAULT_RULES,
) -> None:
    """Write a pruned model to a folder: `model.safetensors` and `fxprune.json`.

    A kill at any moment leaves the folder as it was or as it will be.  The folder may be uploaded as it
    is (`huggingface_hub.upload_folder`).

    Args:
        pruned: what `prune`, `apply` or `load` returned, in either form, trained since or not, on any device.
        folder: made where there is none; a model saved there before is replaced.
        build: how the original is built: `timm:NAME`, `torchvision:NAME`, `hf:MODEL_TYPE`, or
            `package.module:factory`, which `load` only shows and never runs.  By default it is found
            out for models of timm, torchvision and transformers, and tried before it is written.
        build_options: plain keyword arguments of that factory.
        rules: those that it was pruned with.

    Raises:
        FileError: the folder can't be written, `build` makes another model, or there are no values.
        FileError: a layer was replaced by one that is none of torch.nn's, or there are other new tensors.
        PlanError: `pruned` was not made by fxprune.

    Example:
        >>> fxprune.save(fxprune.prune(model, 0.5), "deit-half")
        >>> pruned = fxprune.load("deit-half")
    """
    _save(pruned, folder, build, build_options, rules, None)


def save_with_images(
    pruned: nn.Module, folder: str | os.PathLike[str], build: str | None, images: str | None
) -> None:
    """Write a pruned model as `save` does, and with it what is done to images before it sees them.

    images: what `preprocessor_config.json` is to say, or None for no such file.

    Raises:
        FileError, PlanError: as `save`.
    """
    _save(pruned, folder, build, None, DEFAULT_RULES, Images(images))


def _save(
    pruned: nn.Module,
    folder: str | os.PathLike[str],
    build: str | None,
    build_options: Mapping[str, object] | None,
    rules: RuleSet,
    images: Images | None,
) -> None:
    facts = record_of(pruned)
    graph = graph_form(pruned)
    tensors = named_tensors(graph)
    if graph is not pruned:
        used = {id(t) for _, t in all_tensors(graph)}
        own = {name for name, t in all_tensors(pruned) if id(t) not in used}
        more = {name: t for name, t in named_tensors(pruned).items() if name.removeprefix(CONSTANT) in own}
        tensors |= {OWN + name: t for name, t in more.items()}
        tensors |= {OWN + name: t for name, t in held_tensors(pruned, graph).items()}
    record = cast(
        FolderRecord,
        {
            **_how_made(facts),
            "made_by": {},
            "build": None,
            "graph": graph_digest(graph),
            "modes": _modes(pruned),
            "frozen": [name for name, p in pruned.named_parameters() if not p.requires_grad],
        },
    )
    record["made_by"] = versions(root_of(record)["origin"]["class"])
    if replaced_layers(graph):
        record["replaced"] = replaced_data(graph)
    if build is not None:
        record["build"] = _recipe_given(recipes.recipe_of(build, build_options), record, rules)
    elif build_options is not None:
        raise FileError("build_options are those of build=, which is missing")
    else:
        record["build"] = _recipe_inferred(record, rules)
    _drop_configs(record)
    write_folder(Path(folder), record, tensors, images)


def _how_made(facts: Record) -> Made:
    """Return what the plan is applied to again; of a model that was pruned again, the first plan as well."""
    made: Made = {
        "origin": facts.origin,
        "options": facts.options,
        "example": example_record(facts.example),
        "plan": plan_data(facts.plan, weights=False),
    }
    if facts.remade:
        made["remade"] = remade_data(facts.remade)
    if facts.own:
        made["own"] = own_data(facts.own)
    if facts.before:
        made["before"] = _how_made(facts.before)
    return made


def _drop_configs(record: Made) -> None:
    """Drop the configurations from a record: the recipe has the one that counts."""
    record["origin"] = record["origin"].copy()
    record["origin"].pop("config", None)
    if "before" in record:
        _drop_configs(record["before"])


def _recipe_given(recipe: Recipe, record: FolderRecord, rules: RuleSet) -> Recipe:
    """Return the user's recipe, tried if it is one that `load` follows."""
    if not recipes.is_safe(recipe):
        return recipe
    problem = ""
    for device in ("meta", "cpu"):
        recipe = {**recipe, "on": device}
        problem = _why_not(recipe, record, rules)
        if not problem:
            return recipe
    raise FileError(f"build={recipe['from']!r} with {recipe['options']} {problem}")


def _recipe_inferred(record: FolderRecord, rules: RuleSet) -> Recipe | None:
    """Return a recipe that does build the original, or None with a warning."""
    root = root_of(record)
    origin = root["origin"]
    known = record["origin"].get("build") or origin.get("build")
    if known:
        return known  # it was loaded by this recipe
    first = root["example"]["args"][:1]
    shape = first[0].get("shape") if first and isinstance(first[0], dict) else None
    problems: dict[str, str] = {}
    for recipe in recipes.candidates(origin, shape):
        for device in ("meta", "cpu"):
            why = _why_not({**recipe, "on": device}, record, rules)
            if not why:
                return {**recipe, "on": device}
            problems.setdefault(why, f"is not what {recipe['from']} makes: it {why}")
            if why == OTHER_LAYOUT:
                break
    nearest = problems.get(OTHER_FUNCTION) or next(iter(problems.values()), "is of no library known here")
    warnings.warn(
        f"{origin['class']} {nearest}; load() will need model=, or save with build= to say how it is built",
        stacklevel=users_level(),
    )
    return None


def _why_not(recipe: Recipe, record: FolderRecord, rules: RuleSet) -> str:
    """Return why a recipe does not lead back to the graph that is saved; an empty text if it does."""
    try:
        model = recipes.rebuild(recipe, recipe["on"])
        if layout_digest(model.state_dict()) != root_of(record)["origin"]["layout"]:
            return OTHER_LAYOUT
    except Exception as error:  # whatever a library's constructor raises
        return f"fails: {type(error).__name__}: {error}"
    first = ""
    for seen in seen_as_saved(model, record):
        problem = _why_not_seen(seen, record, rules)
        if not problem:
            return ""
        first = first or problem
    return first


def _why_not_seen(model: nn.Module, record: FolderRecord, rules: RuleSet) -> str:
    try:
        pruned = replayed(model, record, rules)
        install(pruned, record.get("replaced", {}))
    except Exception as error:  # whatever the capture of a library's model raises
        return f"fails: {type(error).__name__}: {error}"
    return "" if graph_digest(pruned) == record["graph"] else OTHER_FUNCTION


def _modes(pruned: nn.Module) -> Modes:
    """Record train or eval, and the modules that are in the other mode."""
    modes = {path: m.training for path, m in pruned.named_modules()}
    return {"training": modes[""], "others": [path for path, mode in modes.items() if mode != modes[""]]}
