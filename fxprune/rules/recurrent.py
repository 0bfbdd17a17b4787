"""Recurrent cells and layers: each gate has one row for every hidden channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fxprune.rules.axes import Axis, Product, frozen
from fxprune.rules.registry import Flow, NotCovered, Typed, results_of, rule


def _cell(
    gates: int,
    input: Typed,
    hidden: Sequence[Typed],
    weights: Sequence[Typed],
    biases: Sequence[Typed | None],
) -> Flow:
    w_ih, w_hh = weights
    i, h = w_ih.axes[1], w_hh.axes[1]
    rows = Product.of((frozen(gates, "gates"), h))
    same = [(input.axes[-1], i), (w_ih.axes[0], rows), (w_hh.axes[0], rows)]
    same += [(t.axes[-1], h) for t in hidden] + [(b.axes[0], rows) for b in biases if b is not None]
    same += [pair for t in hidden for pair in zip(t.axes[:-1], input.axes[:-1], strict=True)]
    out = (*input.axes[:-1], h)
    return Flow(out, same, reduced=[i, h], macs=[(*input.axes, rows), (*out, rows)])


@rule("gru_cell")
def gru_cell_axes(
    input: Typed,
    hx: Typed | None,
    w_ih: Typed,
    w_hh: Typed,
    b_ih: Typed | None = None,
    b_hh: Typed | None = None,
) -> Flow:
    """b i, b h, (3 h) i, (3 h) h, (3 h), (3 h) -> b h"""
    return _cell(3, input, [] if hx is None else [hx], (w_ih, w_hh), (b_ih, b_hh))


@rule("rnn_tanh_cell", "rnn_relu_cell")
def rnn_cell_axes(
    input: Typed,
    hx: Typed | None,
    w_ih: Typed,
    w_hh: Typed,
    b_ih: Typed | None = None,
    b_hh: Typed | None = None,
) -> Flow:
    """b i, b h, h i, h h, h, h -> b h"""
    return _cell(1, input, [] if hx is None else [hx], (w_ih, w_hh), (b_ih, b_hh))


@rule("lstm_cell")
def lstm_cell_axes(
    input: Typed,
    hx: Sequence[Typed] | None,
    w_ih: Typed,
    w_hh: Typed,
    b_ih: Typed | None = None,
    b_hh: Typed | None = None,
) -> Flow:
    """b i, (b h, b h), (4 h) i, (4 h) h, (4 h), (4 h) -> b h, b h"""
    flow = _cell(4, input, [] if hx is None else list(hx), (w_ih, w_hh), (b_ih, b_hh))
    return replace(flow, out=[flow.out, flow.out])


_HIDDEN = "the hidden state of a recurrent layer"


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def layer_axes(
    input: Typed,
    hx: Typed | Sequence[Typed] | None,
    params: Sequence[Typed],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    *,
    result: Sequence[Typed],
) -> Flow:
    """n b i, .., (g h) i, .. -> n b h, l b h: what is read shrinks, what is remembered is frozen"""
    if not isinstance(params, (list, tuple)):
        raise NotCovered("a packed sequence is not understood")
    each = len(params) // (num_layers * (2 if bidirectional else 1))
    reads = {0, each} if bidirectional else {0}  # the first layer's weights, in each direction
    i, batch = input.axes[-1], input.axes[0 if batch_first else 1]
    reasons: list[tuple[Axis, str]] = [(w.axes[0], _HIDDEN) for w in params]
    reasons += [(w.axes[1], _HIDDEN) for k, w in enumerate(params) if w.ndim == 2 and k not in reads]
    states = [hx] if isinstance(hx, Typed) else hx or []
    reasons.append((input.axes[1 if batch_first else 0], "its order matters"))
    reasons += [(axis, _HIDDEN) for t in states for axis in (t.axes[0], t.axes[2])]
    same = [(i, params[k].axes[1]) for k in sorted(reads)] + [(batch, t.axes[1]) for t in states]
    outer, *last = result
    shapes = [(*input.axes[:-1], outer.axes[-1]), *((t.axes[0], batch, t.axes[2]) for t in last)]
    macs = [(*input.axes[:-1], *w.axes) for w in params if w.ndim == 2]
    return Flow(shapes, same, reasons, reduced=[i], macs=macs)


@rule("torch.nn.modules.rnn.LSTM")
def lstm_layer_axes(
    input: Typed,
    hx: Sequence[Typed] | None,
    params: Sequence[Typed],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    *,
    result: tuple[Typed, Sequence[Typed]],
) -> Flow:
    """Bind the arguments of a layer, whose two states are one pair."""
    options = has_biases, num_layers, dropout, train, bidirectional, batch_first
    flow = layer_axes(input, hx, params, *options, result=[result[0], *result[1]])
    outer, *states = results_of(flow.out)
    return replace(flow, out=[outer, states])
