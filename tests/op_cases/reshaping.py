"""Dimensions regrouped; and what passes through in five of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from op_cases.case import BOTH, Cases, unit

aten = torch.ops.aten


def reshaping_cases(case: Cases) -> None:
    """Dimensions regrouped, elements untouched."""
    for sizes in (
        (24, 5),
        (2, 2, 6, 5),
        (4, 30),
        (4, 3, 2, 5),
        (-1,),
        (4, -1, 1),
        (2, 12, 5),
        (3, 8, 5),
        (4, 3, 2, 5, 1),
    ):
        case("reshape", lambda a, sizes=sizes: a.reshape(sizes), (4, 6, 5))
    case("reshape", lambda a: a.reshape(5, 24), (4, 6, 5), frozen=True)
    case("reshape", lambda a: a.reshape(4, 2, 3, 2, 5), (4, 12, 5))
    case("reshape", lambda a: a.reshape(4, 3, -1), (4, 12), captures=BOTH)
    case("reshape", lambda a: a.reshape(a.shape[0], 3, a.shape[1] // 3), (4, 12))
    case("reshape", lambda a, b: torch.cat([a, b], 1).reshape(4, 24), (4, 2, 6), (4, 2, 6))
    case("view", lambda a: a.view(4, 3, 4), (4, 12), captures=BOTH)
    case("view", lambda a: a.view(torch.int64), (4, 6), frozen=True)
    case("_unsafe_view", lambda a: aten._unsafe_view.default(a, [4, 3, 4]), (4, 12))
    case("reshape_as", lambda a, b: a.reshape_as(b), (4, 12), (4, 3, 4))
    case("reshape_as", lambda a, b: a.reshape_as(b), (5, 24), (5, 4, 6))
    case("reshape_as", lambda a, b: a.reshape_as(b), (5, 7, 24), (5, 7, 4, 6))
    case("view_as", lambda a, b: a.view_as(b), (24,), (4, 6))
    case("flatten", lambda a: a.flatten(1), (4, 6, 5), captures=BOTH)
    case("flatten", lambda a: torch.flatten(a, start_dim=-3, end_dim=-2), (2, 4, 6, 5))
    case("flatten", lambda a: a.flatten(), (4, 6))
    case("ravel", torch.ravel, (4, 6))
    case("unflatten", lambda a: torch.unflatten(a, dim=1, sizes=(-1, 4)), (3, 8))
    case("unflatten", lambda a: a.unflatten(1, (3, 4)), (4, 12), captures=BOTH)
    case("unflatten", lambda a: a.unflatten(-1, (3, -1)), (4, 12))
    case("permute", lambda a: a.permute(2, 0, 1), (4, 6, 5), captures=BOTH)
    case("permute", lambda a: a.permute(3, 0, 2, 1), (2, 4, 6, 5))
    case("permute", lambda a: torch.permute(a, (0, -1, 1)), (4, 6, 5))
    case("transpose", lambda a: a.transpose(-2, -1), (4, 6, 5), captures=BOTH)
    case("transpose", lambda a: torch.transpose(a, dim0=0, dim1=2), (4, 6, 5))
    case("transpose", lambda a: a.transpose(1, 2), (2, 4, 6, 5))
    case("swapaxes", lambda a: a.swapaxes(0, 1), (4, 6))
    case("swapdims", lambda a: a.swapdims(0, 1), (4, 6))
    case("t", torch.t, (4, 6))
    case("t", torch.t, (6,))
    case("numpy_T", lambda a: aten.numpy_T.default(a), (4, 6))
    case("adjoint", torch.adjoint, (2, 4, 6))
    case("mT", lambda a: aten.mT.default(a), (2, 4, 6))
    case("mH", lambda a: aten.mH.default(a), (2, 4, 6))
    case("getattr", lambda a: a.T, (4, 6))
    case("getattr", lambda a: a.mT + a.data.mT, (2, 4, 6))
    case("movedim", lambda a: a.movedim(1, -1), (4, 6, 5, 3), captures=BOTH)
    case("movedim", lambda a: torch.movedim(a, (0, 1), (2, 0)), (4, 6, 5, 3))
    case("moveaxis", lambda a: a.moveaxis(-1, 0), (4, 6, 5))
    case("getattr", lambda a, b: torch.complex(a, b).imag, (4, 6), (4, 6))
    case("view_as_complex", torch.view_as_complex, (4, 6, 2))
    case("view_as_complex", torch.view_as_complex, (4, 5, 7, 6, 2))
    case("view_as_real", lambda a, b: torch.view_as_real(torch.complex(a, b)), (4, 6), (6,))
    case("view_as_real", lambda a, b: torch.view_as_real(torch.complex(a, b)), (4, 5, 7, 6), (7, 6))
    case("unsqueeze", lambda a: a.unsqueeze(1), (4, 6), captures=BOTH)
    case("unsqueeze", lambda a: a.unsqueeze(-1), (4, 6))
    case("squeeze", lambda a: a.squeeze(1), (4, 1, 6), captures=BOTH)
    case("squeeze", lambda a: a.squeeze(), (4, 1, 6, 1))
    case("squeeze", lambda a: a.squeeze((-1, 0)), (4, 6, 1))
    case("expand", lambda a: a.expand(3, -1, -1), (1, 4, 6), captures=BOTH)
    case("expand", lambda a: a.expand(3, 4, 6), (4, 6))
    case("expand", lambda a: a.expand((3, 4, 6)), (4, 1))
    case("broadcast_to", lambda a: torch.broadcast_to(a, (4, 6)), (6,))
    case("expand_as", lambda a, b: a.expand_as(b), (1, 6), (4, 6), captures=BOTH)
    case("expand_as", lambda a, b: a.expand_as(b), (5, 1, 6), (5, 4, 6))
    case("repeat", lambda a: a.repeat(2, 1, 3), (4, 6), captures=BOTH)
    case("repeat", lambda a: a.repeat(2, 1, 6), (4, 1), captures=BOTH)
    case("tile", lambda a: a.tile(6), (4, 1), captures=BOTH)
    case("tile", lambda a: a.tile((2, 3)), (4, 6))
    case("tile", lambda a: a.tile((3,)), (4, 6))
    case("repeat_interleave", lambda a: a.repeat_interleave(3, dim=1), (4, 6), captures=BOTH)
    case(
        "repeat_interleave",
        lambda a: a.repeat_interleave(3, dim=1, output_size=a.shape[1] * 3),
        (4, 6),
        captures=BOTH,
    )
    case("broadcast_tensors", lambda a, b: torch.broadcast_tensors(a, b), (1, 6), (4, 6), captures=BOTH)
    case("meshgrid", lambda a, b: torch.meshgrid(a, b, indexing="ij"), (4,), (6,), captures=BOTH)
    case("meshgrid", lambda a, b: torch.meshgrid([a, b], indexing="xy"), (4,), (6,))


def deep_cases(case: Cases) -> None:
    """Tensors of five dimensions: what passes through passes through in each of them."""
    deep = (2, 4, 5, 6, 8)
    for name in ["clone", "neg", "relu", "sigmoid", "logical_not"]:
        case(name, getattr(torch, name), deep)
    for name in ["gelu", "silu", "hardswish", "mish", "elu", "softplus", "leaky_relu", "tanh"]:
        case(name, getattr(F, name), deep)
    for name in ["sqrt", "rsqrt", "log", "logit"]:
        case(name, getattr(torch, name), unit(*deep))
    for name in ["sub", "mul", "div", "maximum", "pow"]:
        case(name, getattr(torch, name), unit(*deep), deep)
    case("clamp", lambda a: a.clamp(-1, 1), deep)
    case("clamp_min", lambda a: a.clamp_min(0.1), deep)
    case("dropout", lambda a: F.dropout(a, 0.5, False), deep)
    case("prelu", F.prelu, deep, (4,))
    for name in ["mean", "nanmean", "std", "var", "std_mean", "var_mean"]:
        run = getattr(torch, name)
        case(name, lambda a, run=run: run(a, -1, keepdim=True), deep, statistic=True)
    for name in ["sum", "logsumexp", "amax", "prod"]:
        run = getattr(torch, name)
        case(name, lambda a, run=run: run(a, -1, keepdim=True), deep)
    case("norm", lambda a: a.norm(dim=-1, keepdim=True), deep)
    case("linalg_vector_norm", lambda a: torch.linalg.vector_norm(a, dim=1, keepdim=True), deep)
    case("linalg_vector_norm", lambda a: torch.linalg.vector_norm(a, dim=-1, keepdim=True), deep)
    case("normalize", lambda a: F.normalize(a, dim=-1), deep)
    case("softmax", lambda a: a.softmax(-1), deep)
    case("layer_norm", lambda a: F.layer_norm(a, (8,)), deep, statistic=True)
    case("rms_norm", lambda a: F.rms_norm(a, (8,)), deep, statistic=True)
    case("group_norm", lambda a: F.group_norm(a, 2), deep, statistic=True)
    case("batch_norm", lambda a, m, v: F.batch_norm(a, m, v), deep, (4,), unit(4))
    case("instance_norm", lambda a: F.instance_norm(a), deep, statistic=True)
    case("cat", lambda a, b: torch.cat((a, b), 1), deep, deep)
    case("stack", lambda a, b: torch.stack((a, b), 2), deep, deep)
    case("split", lambda a: a.split(4, -1), deep)
    case("split_with_sizes", lambda a: torch.split_with_sizes(a, [2, 6], -1), deep)
    case("chunk", lambda a: a.chunk(2, -1), deep)
    case("unbind", lambda a: a.unbind(1), deep)
    case("select", lambda a: a.select(1, 2), deep)
    case("select_scatter", lambda a, b: torch.select_scatter(a, b, 1, 2), deep, (2, 5, 6, 8))
    case("slice", lambda a: aten.slice.Tensor(a, 1, 1, 3), deep)
    case("slice", lambda a: aten.slice.Tensor(a, 4, 1, 8, 2), deep)
    case("slice_scatter", lambda a, b: torch.slice_scatter(a, b, 4, 2, 6), deep, (2, 4, 5, 6, 4))
    case("narrow", lambda a: a.narrow(4, 2, 4), deep)
    case("tensor_split", lambda a: a.tensor_split((3,), dim=-1), deep)
    case("unflatten", lambda a: a.unflatten(-1, (2, 4)), (2, 4, 5, 8))
    case("unflatten", lambda a: a.unflatten(-1, (2, 4)), deep)
    case("getitem", lambda a: a[:, 1:3], deep)
    case("getitem", lambda a: a[:, 0::2, :, 1::2, None], deep)
    case("getattr", lambda a: a.mT, deep)
    case("mT", lambda a: aten.mT.default(a), deep)
    case("squeeze", lambda a: a.squeeze(1), (2, 1, 4, 5, 6))
    case("expand", lambda a: a.expand(-1, 3, -1, -1, -1), (2, 1, 4, 5, 6))
    case("expand_as", lambda a, b: a.expand_as(b), (2, 4, 1, 6, 8), deep)
    case("flatten", lambda a: a.flatten(3), deep)
    case("reshape", lambda a: a.reshape(2, 4, 5, 6, 2, 4), deep)
    case("view", lambda a: a.view(2, 4, 5, 6, 2, 4), deep)
    case("view", lambda a: a.view(5, 2, 3, 2, 4), (5, 6, 8))
    case("unsqueeze", lambda a: a.unsqueeze(2), deep)
    case("permute", lambda a: a.permute(0, 2, 1, 4, 3), deep)
    case("permute", lambda a: a.permute(0, 3, 5, 1, 4, 2), (2, 4, 3, 6, 2, 5))
    case("contiguous", lambda a: (a * 1).contiguous(), deep)
    case("detach", lambda a: a.detach(), deep)
    case("linear", F.linear, deep, (3, 8))
    case("max", lambda a: a.max(1), deep)
    case("tile", lambda a: a.tile(3), (2, 4, 6))
    case("transpose", lambda a: a.transpose(1, 2), deep)
    case("transpose", lambda a: a.transpose(2, 4), (2, 4, 3, 6, 2, 5))
    case("repeat_interleave", lambda a: a.repeat_interleave(2, dim=-1), deep)
