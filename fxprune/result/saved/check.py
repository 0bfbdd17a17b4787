"""Certificates of saved folders: of the rewrite on random weights, or of the saved weights."""

from __future__ import annotations

import copy
import os
from dataclasses import replace

import torch
from torch import nn

from fxprune.certify.certificate import Certificate
from fxprune.certify.randomise import randomise
from fxprune.compiler import verify
from fxprune.graph.tensors import device_of
from fxprune.result.json_types import Made
from fxprune.result.saved.folder import read_record
from fxprune.result.saved.hub import local_folder
from fxprune.result.saved.load import load, original_of
from fxprune.result.saved.replay import parent_of, replayed
from fxprune.rules.registry import DEFAULT_RULES, RuleSet

__all__ = ["check_rewrite", "check_weights"]


def check_rewrite(
    folder: str | os.PathLike[str],
    model: nn.Module | str | None = None,
    *,
    device: str | torch.device = "cpu",
    rules: RuleSet = DEFAULT_RULES,
) -> Certificate:
    """Read a folder as `load` does, and certify its plan on an original with random weights.

    Says nothing about the saved weights but that they are those that were saved: they may have been
    trained since.  Arguments and errors are those of `load`.

    Example:
        >>> assert check_rewrite("deit-half").exact
    """
    load(folder, model, device=device, rules=rules)
    saved = read_record(local_folder(folder))
    original = original_of(saved, model)
    dense = randomise(copy.deepcopy(original) if original is model else original).to(device)
    record: Made | None = saved
    found = []
    while record:  # of a model that was pruned again, every plan
        parent = parent_of(dense, record, rules)
        pruned = replayed(parent, record, rules)
        # Random weights are in the coordinates that they have, and were not solved again.
        plan = replace(pruned.record.plan, bases={}, refit={}, unfitted={})
        pruned.record = replace(pruned.record, plan=plan)
        found.append(verify(parent, pruned, rules=rules))
        record = record.get("before")
    return max(found, key=lambda certificate: (not certificate.exact, certificate))


def check_weights(
    folder: str | os.PathLike[str],
    dense: nn.Module,
    model: nn.Module | str | None = None,
    *,
    rules: RuleSet = DEFAULT_RULES,
) -> Certificate:
    """Certify the saved weights against the original that they were taken from.

    Args:
        dense: the original with the weights that it was pruned with; the folder is loaded to its device.
        model, rules: as of `load`.

    Example:
        >>> dense = timm.create_model("deit_small_patch16_224", pretrained=True)
        >>> assert check_weights("deit-half", dense) < 1e-8
    """
    pruned = load(folder, model, device=device_of(dense), rules=rules)
    parent = parent_of(dense, read_record(local_folder(folder)), rules)
    return verify(parent, pruned, rules=rules)
