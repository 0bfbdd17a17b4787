"""Classes of one's own: a new last layer in place of the one that a model has."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.analyze import analyze
from fxprune.capture.example_of import example_of
from fxprune.errors import OptionError, TrainingError
from fxprune.graph.example import Example
from fxprune.graph.modes import in_eval_mode
from fxprune.show.reports.accuracy import class_scores

__all__ = ["with_classes"]

CANT = "the classifier can't be replaced"


def with_classes(model: nn.Module, classes: int, *, example_inputs: Any = None, **options: Any) -> nn.Module:
    """Return a copy of a classifier, pruned or not, with a new, untrained last layer for so many classes.

    Which layers those are is what the analysis says: the linear layers and convolutions that carry the
    dimension of the class scores, all of them (a distilled model has two).

    Args:
        model: its output is [batch, classes], or has `.logits` that are; it is left as it is.
        classes: how many the copy tells apart.
        example_inputs: as of `prune`, with `options`.

    Raises:
        OptionError: `classes` is less than two.
        TrainingError: something else than such layers knows the number of classes.

    Example:
        >>> own = with_classes(timm.create_model("vit_tiny_patch16_224", pretrained=True), 5)
    """
    if classes < 2:
        raise OptionError(f"classes={classes}: at least 2")
    example = example_of(model, example_inputs, options.get("example_kwargs"))
    analysis = analyze(model, example_inputs=example_inputs, **options)
    made = copy.deepcopy(model)
    with in_eval_mode(made), torch.no_grad():
        before = _classes(made, example)
        for path in _layers(made, analysis, before):
            made.set_submodule(path, _fresh(made.get_submodule(path), classes))
        try:
            after = _classes(made, example)
        except (RuntimeError, ValueError) as error:
            raise TrainingError(f"{CANT}: the model can't run with {classes} classes: {error}") from error
    if after != classes:
        raise TrainingError(f"{CANT}: the model has {after} classes yet")
    return made


def _classes(model: nn.Module, example: Example) -> int:
    return class_scores(model(*example.args, **example.kwargs), example.batch or 0).shape[1]


def _layers(model: nn.Module, analysis: Analysis, classes: int) -> list[str]:
    """Return the paths of the layers whose outputs are class scores."""
    frozen = [g for g in analysis.groups if g.frozen is not None and g.frozen.kind == "output"]
    sites = [site for group in frozen if group.size == classes for site in group.sites]
    paths = dict.fromkeys(site.name.rpartition(".")[0] for site in sites)
    for site in sites:
        path = site.name.rpartition(".")[0]
        if site.dim or not isinstance(model.get_submodule(path), (nn.Linear, nn.Conv2d)):
            raise TrainingError(f"{CANT}: {site.name} knows the number of classes, and is no layer's output")
    if not paths:
        raise TrainingError(f"{CANT}: no linear layer or convolution returns its {classes} scores")
    return list(paths)


def _fresh(layer: nn.Module, classes: int) -> nn.Module:
    """Return an untrained layer like this one with so many outputs."""
    weight = next(layer.parameters())
    about: dict[str, Any] = {"bias": layer.bias is not None, "device": weight.device, "dtype": weight.dtype}
    made: nn.Module
    if isinstance(layer, nn.Linear):
        made = nn.Linear(layer.in_features, classes, **about)
    else:
        assert isinstance(layer, nn.Conv2d)
        if classes % layer.groups:
            raise TrainingError(f"{CANT}: {layer.groups} groups of channels can't tell {classes} classes")
        about |= {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        about |= {"groups": layer.groups, "padding_mode": layer.padding_mode}
        made = nn.Conv2d(layer.in_channels, classes, layer.kernel_size, **about)  # type: ignore[arg-type]
    return made.train(layer.training)
