"""Standard layers as data and back: a head that took the place of the plan's.

A file may only name a class of CLASSES, with plain numbers for its constructor: nothing else is run for it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping

import torch
from torch import nn

from fxprune.errors import FileError
from fxprune.graph.nests import PLAIN
from fxprune.result.fingerprint import settings_digest
from fxprune.result.json_types import json_object
from fxprune.result.layers import called_layers, replaced_layers
from fxprune.result.pruned_module import PrunedModule

__all__ = ["install", "layer_data", "layer_from", "replaced_data"]

CLASSES = (
    *("Identity", "Linear", "Embedding", "Flatten", "Unflatten", "PixelShuffle", "Upsample"),
    *("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    *("LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LocalResponseNorm"),
    *("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "SyncBatchNorm"),
    *("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout"),
    *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "GLU"),
    *("Hardswish", "Hardsigmoid", "Hardtanh", "Sigmoid", "LogSigmoid", "Tanh", "Softplus", "Softsign"),
    *("Softmax", "LogSoftmax", "Softmin", "Threshold"),
    *("AvgPool1d", "AvgPool2d", "MaxPool1d", "MaxPool2d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d"),
    *("AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "ZeroPad2d"),
)


def replaced_data(pruned: PrunedModule) -> dict[str, object]:
    """Return the layers that are no longer the plan's, by path.

    Raises:
        FileError: one is no standard layer, or a tensor was added, resized or taken away.
    """
    called = called_layers(pruned)
    found: dict[str, object] = {}
    for path, words in replaced_layers(pruned).items():
        layer = called.get(path)
        if layer is None:
            raise FileError(
                f"{path} is not what the plan made: there is {words} now; a folder holds the layers that the "
                f"graph calls: use torch.save(pruned, file) for this model"
            )
        found[path] = layer_data(layer, path)
    return found


def layer_data(layer: nn.Module, path: str) -> dict[str, object]:
    """Return a layer's class and constructor arguments; of a Sequential, its layers by name."""
    kind = type(layer).__name__
    if type(layer) is nn.Sequential:
        inner: dict[str, object] = {}
        first: dict[int, str] = {}
        for name, child in layer._modules.items():
            assert child is not None
            same = first.setdefault(id(child), name)
            inner[name] = layer_data(child, f"{path}.{name}") if same == name else {"same": same}
        return {"class": kind, "layers": inner}
    if kind in CLASSES and type(layer) is getattr(nn, kind):
        data: dict[str, object] = {"class": kind, "options": _options(layer)}
        if settings_digest(layer_from(data)) == settings_digest(layer):
            return data
    raise FileError(
        f"{path} was replaced by {type(layer).__module__}.{type(layer).__qualname__}, which a folder can't "
        f"hold: make it of standard layers of torch.nn (and nn.Sequential), or use torch.save(pruned, file)"
    )


def _options(layer: nn.Module) -> dict[str, object]:
    options = {}
    for name in inspect.signature(type(layer)).parameters:
        value = getattr(layer, name, None)
        if name in ("bias", "elementwise_affine") and not isinstance(value, bool):
            value = value is not None
        value = list(value) if isinstance(value, (tuple, list)) else value
        if name not in ("device", "dtype") and hasattr(layer, name) and _is_plain(value):
            options[name] = value
    return options


def layer_from(data: object) -> nn.Module:
    """Return the layer that `layer_data` wrote down, without values.  Raises FileError for anything else."""
    try:
        record = json_object(data)
        kind = record["class"]
        if kind == "Sequential":
            sequence = nn.Sequential()
            for name, inner in json_object(record["layers"]).items():
                same = json_object(inner).get("same")
                sequence.add_module(name, layer_from(inner) if same is None else sequence._modules[str(same)])
            return sequence
        options = record["options"]
        if (
            kind not in CLASSES
            or not isinstance(options, Mapping)
            or not all(map(_is_plain, options.values()))
        ):
            raise FileError(f"a replaced layer is described as {kind!r}, which is no standard layer")
        given = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer: nn.Module = getattr(nn, str(kind))(**given)
        return layer
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FileError(f"a replaced layer can't be made of {data}: {error}") from error


def install(pruned: PrunedModule, replaced: Mapping[str, object]) -> None:
    """Put the layers of a record where the plan's were.  Raises FileError for a path without one."""
    called = called_layers(pruned)
    for path, data in replaced.items():
        if called.get(path) is None:
            raise FileError(f"the record replaces {path}, which is no layer of the model")
        place, _, leaf = path.rpartition(".")
        setattr(pruned.get_submodule(place), leaf, layer_from(data))


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)
