"""What is remembered of the original when a model is pruned, so that a file can say how to build it again.

Plain data, read from what the libraries themselves record on their models.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.graph.nests import PLAIN
from fxprune.result.fingerprint import layout_digest
from fxprune.result.json_types import Dtypes, Origin, dtype_named

__all__ = ["in_dtypes", "leads_elsewhere", "origin_of", "scrubbed", "scrubbed_options"]


def origin_of(model: nn.Module, captured: fx.GraphModule) -> Origin:
    """Record a model's class, layout and precision, and its library's own name or configuration for it.

    classes: the last dimension of what it returns: the number of classes, where it is a classifier.
    attributes: names that the instance holds and its class has not, public ones.
    """
    state = model.state_dict()
    return {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "layout": layout_digest(state),
        "dtypes": _dtypes(state),
        "classes": _last_dimension(captured),
        "architecture": _architecture(model),
        "config": _config(model),
        "attributes": sorted(
            name for name in _held(model) if name[0] != "_" and not hasattr(type(model), name)
        ),
    }


def _held(model: nn.Module) -> set[str]:
    return {*vars(model), *model._modules, *model._parameters, *model._buffers} - {*vars(nn.Module()), ""}


def _dtypes(state: Mapping[str, Tensor]) -> Dtypes:
    """Return the usual floating-point type, and the weights that have another."""
    floats = {name: t for name, t in state.items() if isinstance(t, Tensor) and t.is_floating_point()}
    found = {name: str(t.dtype).removeprefix("torch.") for name, t in floats.items()}
    usual = Counter(found.values()).most_common(1)[0][0] if found else "float32"
    return {"usual": usual, "others": {name: dtype for name, dtype in found.items() if dtype != usual}}


def in_dtypes(model: nn.Module, dtypes: Dtypes) -> nn.Module:
    """Return the model itself, or a copy in the precision recorded, since a graph may name its dtypes."""
    if _dtypes(model.state_dict()) == dtypes:
        return model
    model = copy.deepcopy(model).to(dtype_named(dtypes["usual"]))
    state = model.state_dict(keep_vars=True)
    for name, dtype in dtypes["others"].items():
        state[name].data = state[name].data.to(dtype_named(dtype))
    return model


def _last_dimension(captured: fx.GraphModule) -> int | None:
    nodes = [n for n in pytree.tree_leaves(captured.graph.output_node().args) if isinstance(n, fx.Node)]
    values = [t for n in nodes for t in pytree.tree_leaves(n.meta.get("val")) if isinstance(t, Tensor)]
    return int(values[0].shape[-1]) if values and values[0].ndim else None


def _architecture(model: nn.Module) -> str | None:
    """Return timm's name of the model, with the tag of its configuration."""
    for name in ("pretrained_cfg", "default_cfg"):
        record = getattr(model, name, None)
        read = record.get if isinstance(record, Mapping) else lambda key, r=record: getattr(r, key, None)
        architecture, tag = read("architecture"), read("tag")
        if architecture:
            return f"{architecture}.{tag}" if tag else str(architecture)
    return None


def _config(model: nn.Module) -> dict[str, object] | None:
    """Return a Hugging Face configuration as JSON data, less what could name code or files elsewhere."""
    config = getattr(model, "config", None)
    to_dict = getattr(config, "to_dict", None)
    if to_dict is None or not getattr(config, "model_type", None):
        return None
    record = scrubbed_options(to_dict())
    labels = record.get("id2label")
    if isinstance(labels, dict) and labels and all(str(label) == f"LABEL_{i}" for i, label in labels.items()):
        del record["id2label"]  # its length says it all
        record.pop("label2id", None)
        record["num_labels"] = len(labels)
    attention = getattr(config, "_attn_implementation", None)
    return {**record, "attention": attention if attention in ATTENTIONS else None}


ATTENTIONS = ("eager", "sdpa")

# What in a configuration would fetch code or weights: remote classes, kernels, other checkpoints.
_ELSEWHERE = {
    "auto_map",
    "_name_or_path",
    "quantization_config",
    "use_pretrained_backbone",
    "custom_pipelines",
}


def scrubbed_options(options: Mapping[str, object]) -> dict[str, object]:
    """Return a configuration without what leads elsewhere, at any depth; JSON data only."""
    return {str(k): scrubbed(v) for k, v in options.items() if not leads_elsewhere(str(k))}


def scrubbed(value: object) -> object:
    """Return a value of a configuration, as of `scrubbed_options`."""
    if isinstance(value, Mapping):
        return scrubbed_options(value)
    if isinstance(value, (list, tuple)):
        return [scrubbed(v) for v in value]
    return value if isinstance(value, PLAIN) else str(value)


def leads_elsewhere(key: str) -> bool:
    return key in _ELSEWHERE or key.endswith("_implementation")
