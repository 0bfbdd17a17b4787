"""Build an original again, from a file that nobody need trust.

A recipe names a model in the registry of timm, torchvision or transformers, with plain options.  Those
libraries build it without weights; nothing is imported by a name that stands in the file, and nothing is
fetched.  A recipe `package.module:factory` is for people to read: its caller passes the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from fxprune.errors import FileError, FxpruneError
from fxprune.result.json_types import Origin, Recipe
from fxprune.result.origin import scrubbed, scrubbed_options
from fxprune.result.saved import model_specs

__all__ = ["candidates", "is_safe", "rebuild", "recipe_of"]

LIBRARIES = ("timm", "torchvision", "hf")
# Options that would make a library read weights, or fetch what they name; words that name files and hubs.
_FORBIDDEN = re.compile(r"(pretrained|weights|checkpoint|cache|trust_|hub).*")
_ADDRESS = re.compile(r".*(/|\\|://).*|(hf-hub|local-dir|https?|file):.*", re.DOTALL)


def recipe_of(spec: str, options: Mapping[str, object] | None) -> Recipe:
    """Return a recipe as the user spells it: `timm:NAME` with options for its factory."""
    recipe: Recipe = {"from": spec, "options": scrubbed_options(options or {})}
    library, colon, name = spec.partition(":")
    if not (library and colon and name):
        raise FileError(f"build={spec!r}: write timm:NAME, torchvision:NAME or package.module:factory")
    if is_safe(recipe):
        _refuse_options(recipe["options"])
    return recipe


def is_safe(recipe: Recipe) -> bool:
    """Is it looked up in a library's own registry (and not imported, or fetched from a hub)?"""
    library, _, name = str(recipe["from"]).partition(":")
    return library in LIBRARIES and "/" not in name and ":" not in name


def candidates(origin: Origin, example: list[int] | None) -> Iterator[Recipe]:
    """Yield recipes that may build the original, the likeliest first; to be tried by their layout.

    example: the shape of the first input [batch, channels, height, width], if it is an image.
    """
    classes = origin.get("classes")
    if config := origin.get("config"):
        name = f"hf:{origin['class'].rpartition('.')[2]}"
        yield {"from": name, "options": {}, "config": config}
        if classes is not None:  # its head was replaced, and its configuration is of the old one
            body = {k: v for k, v in config.items() if k not in ("id2label", "label2id")}
            yield {"from": name, "options": {}, "config": {**body, "num_labels": classes}}
    for options in _options(classes, example):
        if origin.get("architecture"):
            yield {"from": f"timm:{origin['architecture']}", "options": options}
        elif origin["class"].startswith("torchvision."):
            channels_or_size = {"in_chans", "img_size"} & set(options)
            for name in [] if channels_or_size else _torchvision_names(origin["class"]):
                yield {"from": f"torchvision:{name}", "options": options}


def _options(classes: int | None, example: list[int] | None) -> Iterator[dict[str, object]]:
    """Yield the options given most often: nothing, the number of classes, none of them, other images."""
    heads: list[dict[str, object]] = [{}, {"num_classes": 0}, {"num_classes": 0, "global_pool": ""}]
    if classes is not None:
        heads.insert(1, {"num_classes": classes})
    yield from heads
    if example is not None and len(example) == 4:
        channels: dict[str, object] = {"in_chans": example[1]}
        size: dict[str, object] = {"img_size": example[2:]}
        for images in (channels, size, channels | size):
            for head in heads:
                yield head | images


def _torchvision_names(kind: str) -> list[str]:
    """Return the builders that say that they return this class."""
    models = model_specs._library("torchvision.models")
    names = []
    for name in models.list_models():
        returned = models.get_model_builder(name).__annotations__.get("return")
        returned = getattr(returned, "__qualname__", str(returned))
        if returned.rpartition(".")[2] == kind.rpartition(".")[2]:
            names.append(name)
    return names


def rebuild(recipe: Recipe, device: str) -> nn.Module:
    """Return the original's architecture, in eval mode, without its weights.

    device: "meta", or "cpu" for a constructor that computes with values.

    Raises:
        FileError: the recipe is none that is safe to follow, or its library can't follow it.
    """
    if not is_safe(recipe):
        raise FileError(f"{recipe['from']} is code, which is not run because a file says so")
    options = recipe.get("options", {})
    _refuse_options(options)
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            if recipe.get("config"):
                return _from_config(recipe).eval()
            return model_specs.made(_registered(recipe["from"]), options)
    except FxpruneError:
        raise
    except Exception as error:  # the library's own failure, whatever it is
        raise FileError(f"{recipe['from']} can't be built: {type(error).__name__}: {error}") from error


def _registered(spec: str) -> str:
    """Return a name that the library itself knows, and not one of a hub or a folder."""
    library, _, name = spec.partition(":")
    if library == "timm":
        known = model_specs._library("timm").is_model(name.partition(".")[0])
    elif library == "torchvision":
        known = name in model_specs._library("torchvision.models").list_models()
    else:
        known = name in model_specs._library("transformers").CONFIG_MAPPING
    if not known:
        version = model_specs._library("transformers" if library == "hf" else library).__version__
        raise FileError(f"{spec}: {library} {version} has no model of that name")
    return spec


def _from_config(recipe: Recipe) -> nn.Module:
    """Return a transformers model by its class, of a configuration by its model type."""
    transformers = model_specs._library("transformers")
    record = scrubbed_options(recipe["config"])
    attention = record.pop("attention", None)
    if attention == "eager":  # the other is the default; asked for, it is asked of every part, too
        record["attn_implementation"] = attention
    kind = record.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise FileError(f"transformers {transformers.__version__} knows no model type {kind!r}")
    name = str(recipe["from"]).partition(":")[2]
    model_class = getattr(transformers, name, None)
    if not isinstance(model_class, type) or not issubclass(model_class, transformers.PreTrainedModel):
        raise FileError(f"transformers {transformers.__version__} has no model class {name!r}")
    _refuse_addresses(record)
    config = transformers.CONFIG_MAPPING[kind].from_dict(record)
    if hasattr(config, "use_pretrained_backbone"):
        config.use_pretrained_backbone = False
    model: nn.Module = model_class(config)
    return model


def _refuse_options(options: object) -> None:
    if not isinstance(options, Mapping) or scrubbed(options) != options:
        raise FileError("the options of a recipe are plain numbers, words and lists of them")
    for name in options:
        if _FORBIDDEN.fullmatch(name):
            raise FileError(f"the option {name!r} would read or fetch files: it can't stand in a recipe")
    _refuse_addresses(options)


def _refuse_addresses(value: object) -> None:
    """Refuse a path or an address among options: models are made by name, and it would be read or fetched."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _refuse_addresses(item)
    elif isinstance(value, str) and _ADDRESS.fullmatch(value):
        raise FileError(f"{value!r} is an address: it can't stand in a recipe")
