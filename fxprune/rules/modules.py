"""Modules that stay whole in a captured graph: which op each one is, and where its arguments live.

`Native("linear", "weight bias", ...)` reads: calling the module is calling the op `linear` with the
input, then `self.weight`, `self.bias`.  `widths` says what else must be kept in step with the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["NATIVE", "Native", "native"]


@dataclass(frozen=True)
class Native:
    """A module class in terms of an op: its inputs, then some of its attributes.

    inputs: as many come before the attributes; one that is not given is None.
    """

    op: str
    arguments: tuple[str, ...] = ()
    widths: dict[str, Callable[[Any], int]] = field(default_factory=dict)
    inputs: int = 1


NATIVE: dict[type[nn.Module], Native] = {}


def _native(
    classes: str, op: str, arguments: str = "", *, inputs: int = 1, **widths: Callable[[Any], int]
) -> None:
    for name in classes.split():
        NATIVE[getattr(nn, name)] = Native(op, tuple(arguments.split()), widths, inputs)


def _channels(m: Any) -> int:
    known = m.weight if m.weight is not None else m.running_mean
    return int(m.num_features if known is None else known.shape[0])


_native(
    "Linear",
    "linear",
    "weight bias",
    in_features=lambda m: m.weight.shape[1],
    out_features=lambda m: m.weight.shape[0],
)
for _n in (1, 2, 3):
    _native(
        f"Conv{_n}d",
        f"conv{_n}d",
        "weight bias stride padding dilation groups",
        in_channels=lambda m: m.weight.shape[1] * m.groups,
        out_channels=lambda m: m.weight.shape[0],
    )
    _native(
        f"ConvTranspose{_n}d",
        f"conv_transpose{_n}d",
        "weight bias stride padding output_padding groups dilation",
        in_channels=lambda m: m.weight.shape[0],
        out_channels=lambda m: m.weight.shape[1] * m.groups,
    )
    _native(
        f"BatchNorm{_n}d",
        "batch_norm",
        "running_mean running_var weight bias training momentum eps",
        num_features=_channels,
    )
    _native(
        f"InstanceNorm{_n}d",
        "instance_norm",
        "running_mean running_var weight bias",
        num_features=_channels,
    )
    _native(f"MaxPool{_n}d", f"max_pool{_n}d")
    _native(f"AvgPool{_n}d", f"avg_pool{_n}d")
    _native(f"AdaptiveAvgPool{_n}d", f"adaptive_avg_pool{_n}d")
    _native(f"AdaptiveMaxPool{_n}d", f"adaptive_max_pool{_n}d")
    _native(f"ConstantPad{_n}d ZeroPad{_n}d", "pad", "padding")
    _native(f"ReflectionPad{_n}d ReplicationPad{_n}d CircularPad{_n}d", "reflection_pad", "padding")
    _native(f"Dropout{_n}d", f"dropout{_n}d")
NATIVE[nn.SyncBatchNorm] = NATIVE[nn.BatchNorm2d]
NATIVE[nn.modules.linear.NonDynamicallyQuantizableLinear] = NATIVE[nn.Linear]

_native("LayerNorm", "layer_norm", "normalized_shape weight bias eps")
_native("RMSNorm", "rms_norm", "normalized_shape weight eps")
_native(
    "GroupNorm",
    "group_norm",
    "num_groups weight bias eps",
    num_channels=lambda m: m.num_channels if m.weight is None else m.weight.shape[0],
)
_native(
    "Embedding",
    "embedding",
    "weight",
    num_embeddings=lambda m: m.weight.shape[0],
    embedding_dim=lambda m: m.weight.shape[1],
)
_native(
    "Bilinear",
    "bilinear",
    "weight bias",
    inputs=2,
    in1_features=lambda m: m.weight.shape[1],
    in2_features=lambda m: m.weight.shape[2],
    out_features=lambda m: m.weight.shape[0],
)
for _cell, _op in {"GRUCell": "gru_cell", "LSTMCell": "lstm_cell", "RNNCell": "rnn_tanh_cell"}.items():
    _native(
        _cell,
        _op,
        "weight_ih weight_hh bias_ih bias_hh",
        inputs=2,
        input_size=lambda m: m.weight_ih.shape[1],
        hidden_size=lambda m: m.weight_hh.shape[1],
    )
for _layer, _op in {"GRU": "gru", "LSTM": "torch.nn.modules.rnn.LSTM", "RNN": "rnn_tanh"}.items():
    _native(
        _layer,
        _op,
        "_flat_weights bias num_layers dropout training bidirectional batch_first",
        inputs=2,
        input_size=lambda m: m.weight_ih_l0.shape[1],
    )
_native("CosineSimilarity", "cosine_similarity", "dim eps", inputs=2)
_native("PairwiseDistance", "pairwise_distance", "norm eps keepdim", inputs=2)
_native("LocalResponseNorm", "local_response_norm", "size alpha beta k")
_native("PReLU", "prelu", "weight", num_parameters=lambda m: m.weight.shape[0])
_native("Softmax LogSoftmax", "softmax", "dim")
_native("GLU", "glu", "dim")
_native("Flatten", "flatten", "start_dim end_dim")
_native("Unflatten", "unflatten", "dim unflattened_size")
_native("PixelShuffle", "pixel_shuffle", "upscale_factor")
_native("PixelUnshuffle", "pixel_unshuffle", "downscale_factor")
_native("ChannelShuffle", "channel_shuffle", "groups")
_native("Upsample UpsamplingNearest2d UpsamplingBilinear2d", "interpolate")
_native("Unfold", "unfold")
_native("Fold", "fold")
_native("Identity", "identity")
_native("Dropout", "dropout")
_native("AlphaDropout", "alpha_dropout")
_native("ReLU", "relu")
_native("ReLU6", "relu6")
_native("GELU", "gelu")
_native("SiLU", "silu")
_native("Mish", "mish")
_native("ELU", "elu")
_native("CELU", "celu")
_native("SELU", "selu")
_native("LeakyReLU", "leaky_relu")
_native("RReLU", "rrelu")
_native("Sigmoid", "sigmoid")
_native("LogSigmoid", "logsigmoid")
_native("Tanh", "tanh")
_native("Hardtanh", "hardtanh")
_native("Hardswish", "hardswish")
_native("Hardsigmoid", "hardsigmoid")
_native("Softplus", "softplus")
_native("Softsign", "softsign")


def native(module: nn.Module) -> Native | None:
    """Return the entry for a module, if its class (or one that changes nothing in `forward`) is known."""
    for cls in type(module).__mro__:
        if cls in NATIVE:
            return NATIVE[cls] if type(module).forward is cls.forward else None
    return None
