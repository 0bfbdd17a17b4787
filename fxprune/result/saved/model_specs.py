"""Models by name: `timm:resnet18`, `torchvision:vit_b_16`, `hf:vit`, `package.module:factory`."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType

from torch import nn

from fxprune.errors import ModelSpecError

__all__ = ["build", "expand"]


def build(spec: str, *, pretrained: bool = False, **options: object) -> nn.Module:
    """Make the model that a spec names, in eval mode; `options` go to its factory.

    Args:
        spec: `timm:NAME`, `torchvision:NAME`, `hf:MODEL_TYPE` (the library's default configuration) or
            `hf:owner/name` (a checkpoint's), or `package.module:factory`, any importable callable.
        pretrained: load the library's published weights, else initialise at random.

    Raises:
        ModelSpecError: there is no such library, model or factory.

    Example:
        >>> model = build("timm:deit_tiny_patch16_224")
    """
    return made(spec, options, pretrained)


def made(spec: str, options: Mapping[str, object], pretrained: bool = False) -> nn.Module:
    """Make a model as `build` does, by options of any names."""
    library, name = _split(spec)
    make = BUILDERS.get(library)
    if make is not None:
        return make(name, pretrained, options).eval()
    if pretrained:
        raise ModelSpecError(f"{spec}: a factory of your own has no pretrained weights; load them yourself")
    return _factory(library, name)(**options).eval()


def expand(pattern: str) -> list[str]:
    """Return the specs that match a pattern: `timm:*deit*` -> every DeiT of timm; a plain spec is itself."""
    library, name = _split(pattern)
    if not set(name) & set("*?["):
        return [pattern]
    names = LISTS.get(library, lambda: _factories(library))()
    found = [f"{library}:{n}" for n in names if fnmatch.fnmatchcase(n, name)]
    if not found:
        raise ModelSpecError(f"{pattern}: none of {len(names)} models of {library} matches")
    return found


def _split(spec: str) -> tuple[str, str]:
    library, colon, name = spec.partition(":")
    if not (library and colon and name):
        raise ModelSpecError(
            f"{spec!r} names no model: write timm:NAME, torchvision:NAME, hf:NAME or package.module:factory"
        )
    return library, name


def _timm(name: str, pretrained: bool, options: Mapping[str, object]) -> nn.Module:
    model: nn.Module = _library("timm").create_model(name, pretrained=pretrained, **options)
    return model


def _torchvision(name: str, pretrained: bool, options: Mapping[str, object]) -> nn.Module:
    # The backbone's weights would be downloaded, even where the model's own are not asked for.
    weights: dict[str, str | None] = {"weights": "DEFAULT"} if pretrained else {"weights": None}
    if "weights_backbone" in _library("torchvision.models").get_model_builder(name).__annotations__:
        weights["weights_backbone"] = None
    model: nn.Module = _library("torchvision.models").get_model(name, **weights, **options)
    return model


def _hugging_face(name: str, pretrained: bool, options: Mapping[str, object]) -> nn.Module:
    transformers = _library("transformers")
    model: nn.Module
    if pretrained:
        model = transformers.AutoModelForImageClassification.from_pretrained(name, **options)
        return model
    if "/" in name:
        config = transformers.AutoConfig.from_pretrained(name, **options)
    else:
        config = transformers.AutoConfig.for_model(name, **options)
    for kind in ("AutoModelForImageClassification", "AutoModel"):
        try:
            model = getattr(transformers, kind).from_config(config)
            return model
        except ValueError:  # this configuration has no model of that kind
            continue
    raise ModelSpecError(f"hf:{name}: transformers makes no image model of {type(config).__name__}")


def _factory(module: str, name: str) -> Callable[..., nn.Module]:
    found: Callable[..., nn.Module] | None = getattr(_library(module), name, None)
    if found is None or not callable(found):
        raise ModelSpecError(f"{module}:{name}: {module} has no callable {name!r}")
    return found


def _factories(module: str) -> list[str]:
    return list(getattr(_library(module), "__all__", ()))


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelSpecError(f"{name} can't be imported ({error}); is it installed?") from error


BUILDERS: dict[str, Callable[[str, bool, Mapping[str, object]], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _hugging_face,
}
LISTS: dict[str, Callable[[], list[str]]] = {
    "timm": lambda: _library("timm").list_models(),
    "torchvision": lambda: _library("torchvision.models").list_models(module=_library("torchvision.models")),
}
