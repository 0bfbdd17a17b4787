"""Modules that stay whole in a captured graph: which op each one is, and where its arguments live.

`_native("Linear", "linear", "weight bias", ..)` reads: calling an `nn.Linear` is calling the op `linear`
with the input, then `self.weight`, `self.bias`.  `widths` says what else must be kept in step with them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

from torch import Tensor, nn

__all__ = ["NATIVE", "Native", "native", "native_base"]


@dataclass(frozen=True)
class Width:
    """What an attribute of a layer says of its weights: the size of a dimension, times another attribute.

    weights: names of tensors; the first that the layer has is asked.
    """

    weights: str
    dim: int = 0
    times: str = ""

    def read(self, module: nn.Module) -> int | None:
        """Return the width; None if the layer has none of the weights."""
        held = (getattr(module, name, None) for name in self.weights.split())
        weight = next((t for t in held if isinstance(t, Tensor)), None)
        if weight is None:
            return None
        return weight.shape[self.dim] * (int(getattr(module, self.times)) if self.times else 1)


@dataclass(frozen=True)
class Native:
    """A module class in terms of an op: its inputs, then some of its attributes.

    inputs: as many come before the attributes; one that is not given is None.
    runs: the methods that its `forward` runs, itself the first: `_conv_forward`; none that checks its input.
    """

    op: str
    arguments: tuple[str, ...] = ()
    widths: dict[str, Width] = field(default_factory=dict)
    inputs: int = 1
    runs: tuple[str, ...] = ("forward",)


NATIVE: dict[type[nn.Module], Native] = {}


def _native(classes: str, op: str, arguments: str = "", *, inputs: int = 1, **widths: Width) -> None:
    for name in classes.split():
        cls = getattr(nn, name)
        names = inspect.unwrap(cls.forward).__code__.co_names
        called = (n for n in names if callable(getattr(cls, n, None)) and not n.startswith("_check"))
        NATIVE[cls] = Native(op, tuple(arguments.split()), widths, inputs, ("forward", *called))


_CHANNELS = Width("weight running_mean")

_native(
    "Linear",
    "linear",
    "weight bias",
    in_features=Width("weight", 1),
    out_features=Width("weight"),
)
for _n in (1, 2, 3):
    _native(
        f"Conv{_n}d",
        f"conv{_n}d",
        "weight bias stride padding dilation groups",
        in_channels=Width("weight", 1, times="groups"),
        out_channels=Width("weight"),
    )
    _native(
        f"ConvTranspose{_n}d",
        f"conv_transpose{_n}d",
        "weight bias stride padding output_padding groups dilation",
        in_channels=Width("weight"),
        out_channels=Width("weight", 1, times="groups"),
    )
    _native(
        f"BatchNorm{_n}d",
        "batch_norm",
        "running_mean running_var weight bias training momentum eps",
        num_features=_CHANNELS,
    )
    _native(
        f"InstanceNorm{_n}d",
        "instance_norm",
        "running_mean running_var weight bias num_features",
        num_features=_CHANNELS,
    )
    _native(f"MaxPool{_n}d", f"max_pool{_n}d")
    _native(f"AvgPool{_n}d", f"avg_pool{_n}d")
    _native(f"AdaptiveAvgPool{_n}d", f"adaptive_avg_pool{_n}d")
    _native(f"AdaptiveMaxPool{_n}d", f"adaptive_max_pool{_n}d")
    _native(f"ConstantPad{_n}d ZeroPad{_n}d", "constant_pad_nd", "padding value")
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
    num_channels=Width("weight"),
)
_native(
    "Embedding",
    "embedding",
    "weight padding_idx max_norm",
    num_embeddings=Width("weight"),
    embedding_dim=Width("weight", 1),
)
_native(
    "Bilinear",
    "bilinear",
    "weight bias",
    inputs=2,
    in1_features=Width("weight", 1),
    in2_features=Width("weight", 2),
    out_features=Width("weight"),
)
for _cell, _op in {"GRUCell": "gru_cell", "LSTMCell": "lstm_cell", "RNNCell": "rnn_tanh_cell"}.items():
    _native(
        _cell,
        _op,
        "weight_ih weight_hh bias_ih bias_hh",
        inputs=2,
        input_size=Width("weight_ih", 1),
        hidden_size=Width("weight_hh", 1),
    )
for _layer, _op in {"GRU": "gru", "LSTM": "torch.nn.modules.rnn.LSTM", "RNN": "rnn_tanh"}.items():
    _native(
        _layer,
        _op,
        "_flat_weights bias num_layers dropout training bidirectional batch_first",
        inputs=2,
        input_size=Width("weight_ih_l0", 1),
    )
_native("CosineSimilarity", "cosine_similarity", "dim eps", inputs=2)
_native("PairwiseDistance", "pairwise_distance", "norm eps keepdim", inputs=2)
_native("LocalResponseNorm", "local_response_norm", "size alpha beta k")
_native("PReLU", "prelu", "weight", num_parameters=Width("weight"))
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


def native_base(cls: type) -> Native | None:
    """Return the entry of the nearest known class that a class derives from, whatever it changes."""
    return next((NATIVE[base] for base in cls.__mro__ if base in NATIVE), None)


def native(module: nn.Module) -> Native | None:
    """Return the entry for a module, if its class (or one that changes nothing in `forward`) is known."""
    for cls in type(module).__mro__:
        if cls in NATIVE:
            same = all(getattr(type(module), name) is getattr(cls, name) for name in NATIVE[cls].runs)
            return NATIVE[cls] if same else None
    return None
