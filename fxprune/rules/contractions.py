"""Ops that sum over a shared axis: what is contracted is one axis, the rest passes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fxprune.graph.nests import leaves
from fxprune.rules.axes import ONE, PIXELS, Axis, Product, Reason, atom, frozen
from fxprune.rules.elementwise import broadcast
from fxprune.rules.laws import LAYOUT, dims_named
from fxprune.rules.registry import Flow, NotCovered, PerDim, Typed, dims_of, rule


@rule("linear")
def linear_axes(input: Typed, weight: Typed, bias: Typed | None = None) -> Flow:
    """... i, o i, o -> ... o"""
    o, i = weight.axes
    same = [(input.axes[-1], i)]
    if bias is not None:
        same.append((o, bias.axes[0]))
    law = "... i, o i" + ("; o" if bias is not None else "") + " -> ... o"
    macs = [(*input.axes, o)]
    return Flow((*input.axes[:-1], o), same, reduced=[i], macs=macs, linear=law, grows=1)


@rule("matmul", "bmm", "mm", "mv", "dot")
def matmul_axes(input: Typed, other: Typed) -> Flow:
    """... n i, ... i m -> ... n m (a vector stands for its one dimension)"""
    left, right = input.axes, other.axes
    inner = right[0] if len(right) == 1 else right[-2]
    batch, same = broadcast([left[:-2], right[:-2]])
    rows = left[-2:-1] if len(left) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    out = (*batch, *rows, *columns)
    ndim = len(batch)
    first = [*dims_named(left[:-2], ndim).split(), *(["n"] if rows else []), "i"]
    second = [*dims_named(right[:-2], ndim).split(), "i", *(["m"] if columns else [])]
    result = [*dims_named(batch).split(), *(["n"] if rows else []), *(["m"] if columns else [])]
    law = f"{_words(first)}, {_words(second)} -> {_words(result)}"
    same.append((left[-1], inner))
    return Flow(out, same, reduced=[inner], macs=[(*out, inner)], linear=law, grows=1)


def _words(names: Sequence[str]) -> str:
    return " ".join(name for name in names if name != "[]") or "[]"


@rule("addmm", "baddbmm")
def addmm_axes(input: Typed, mat1: Typed, mat2: Typed, **scalars: object) -> Flow:
    """n m, n i, i m -> n m"""
    product = matmul_axes(mat1, mat2)
    out, same = broadcast([product.axes, input.axes])
    factors, _, made = product.linear.partition(" -> ")
    made_names = [name for name in made.split() if name != "[]"]
    last = zip(input.axes[::-1], made_names[::-1], strict=False)
    added = ["1" if axis == ONE else name for axis, name in last][::-1]
    law = f"{_words(added)}; {factors} -> {made}" if len(added) == input.ndim else ""
    return Flow(out, [*product.same, *same], reduced=product.reduced, macs=product.macs, linear=law)


@rule("tensordot")
def tensordot_axes(a: Typed, b: Typed, dims: int | Sequence[Sequence[int]] = 2) -> Flow:
    """a i j, i j m -> a m (`dims`: how many, or which of each)"""
    if isinstance(dims, int):
        dims = (range(a.ndim - dims, a.ndim), range(dims))
    left, right = dims_of(list(dims[0]), a.ndim), dims_of(list(dims[1]), b.ndim)
    same = [(a.axes[i], b.axes[j]) for i, j in zip(left, right, strict=True)]
    out = [axis for i, axis in enumerate(a.axes) if i not in left]
    out += [axis for j, axis in enumerate(b.axes) if j not in right]
    sums = [axis for axis, _ in same]
    names = [f"a{i}" for i in range(a.ndim)], [f"b{j}" for j in range(b.ndim)]
    for i, j in zip(left, right, strict=True):
        names[1][j] = names[0][i]
    made = [n for i, n in enumerate(names[0]) if i not in left] + [
        n for j, n in enumerate(names[1]) if j not in right
    ]
    law = f"{_words(names[0])}, {_words(names[1])} -> {_words(made)}"
    return Flow(tuple(out), same, reduced=sums, macs=[(*out, *sums)], linear=law)


@rule("aten.tensordot")
def aten_tensordot_axes(a: Typed, b: Typed, dims_self: Sequence[int], dims_other: Sequence[int]) -> Flow:
    """Bind ATen's two lists."""
    return tensordot_axes(a, b, (dims_self, dims_other))


@rule("einsum")
def einsum_axes(
    equation: str | Typed, *operands: Typed | Sequence[Typed] | Sequence[int], path: object = None
) -> Flow:
    """..., ... -> ..., as the equation says: one letter, one axis"""
    if isinstance(equation, Typed):
        return _einsum(*_equation_of_sublists([equation, *operands]))
    return _einsum(equation, list(leaves(operands, Typed)))


def _einsum(equation: str, operands: Sequence[Typed]) -> Flow:
    inputs, _, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if "..." in equation:
        output = output if "->" in equation else "..."  # what is left open comes first
        terms, output = _spell_ellipsis(terms, output, [t.ndim for t in operands])
    if "->" not in equation:
        letters = "".join(terms)
        rest = (c for c in set(letters) - {*output} if letters.count(c) == 1)
        output += "".join(sorted(rest))
    named: dict[str, Axis] = {}
    same: list[tuple[Axis, Axis]] = []
    for term, tensor in zip(terms, operands, strict=True):
        for letter, axis in zip(term, tensor.axes, strict=True):
            known = named.setdefault(letter, axis)
            if known == ONE:
                named[letter] = axis
            elif axis != ONE:
                same.append((known, axis))
    sums = [axis for letter, axis in named.items() if letter not in output]
    macs = [tuple(named.values())] if len(operands) > 1 else []
    factors = ", ".join(
        _words(_present(term, t.axes, named)) for term, t in zip(terms, operands, strict=True)
    )
    law = f"{factors} -> {_words(list(output))}"
    out = tuple(named[letter] for letter in output)
    return Flow(out, same, reduced=sums, macs=macs, linear=law, grows=1)


def _present(term: str, axes: Sequence[Axis], named: Mapping[str, Axis]) -> list[str]:
    """Return the letters of a term, those left out along which it stretches."""
    return ["1" if axis == ONE != named[letter] else letter for letter, axis in zip(term, axes, strict=True)]


def _equation_of_sublists(given: Sequence[object]) -> tuple[str, list[Typed]]:
    """Write einsum(x, [0, 1], y, [1, 2], [0, 2]) as einsum("ab,bc->ac", x, y)."""

    def word(numbers: Iterable[object]) -> str:
        return "".join(chr(ord("a") + n) if isinstance(n, int) else "..." for n in numbers)

    tensors = [g for g in given if isinstance(g, Typed)]
    lists = [word(g) for g in given if isinstance(g, (list, tuple))]
    inputs, output = lists[: len(tensors)], lists[len(tensors) :]
    return "->".join([",".join(inputs), *output]), tensors


def _spell_ellipsis(terms: Sequence[str], output: str, ndims: Sequence[int]) -> tuple[list[str], str]:
    """Replace "..." by upper-case Greek letters, aligned to the right."""
    spare = "ΑΒΓΔΕΖΗΘ"  # no equation spells these
    widths = [n - len(t.replace("...", "")) for t, n in zip(terms, ndims, strict=True) if "..." in t]
    spell = spare[: max(widths)]
    spelled = []
    for term, n in zip(terms, ndims, strict=True):
        width = n - len(term.replace("...", ""))
        spelled.append(term.replace("...", spell[len(spell) - width :]))
    return spelled, output.replace("...", spell)


@rule("conv1d", "conv2d", "conv3d")
def conv_axes(
    input: Typed,
    weight: Typed,
    bias: Typed | None = None,
    stride: PerDim = 1,
    padding: PerDim = 0,
    dilation: PerDim = 1,
    groups: int = 1,
    *,
    result: Typed,
) -> Flow:
    """b (g i) h w, (g o) i kh kw, (g o) -> b (g o) h' w'"""
    out, i, *kernel = weight.axes
    *batch, channels = input.axes[: -len(kernel)]
    g = atom(groups)
    same = [(channels, Product.of((g, i))), (out, Product.of((g, atom(out.size // groups))))]
    if bias is not None:
        same.append((out, bias.axes[0]))
    pixels, reasons = _pixels(input, kernel, stride, padding, result)
    macs = [(*batch, out, *pixels, i, *kernel)]
    law = _conv_law(len(batch), len(kernel), "o i", bias, moved=bool(reasons)) if groups == 1 else ""
    return Flow(
        (*batch, out, *pixels), same, reasons, sizes={"groups": g}, reduced=[i], macs=macs, linear=law
    )


def _conv_law(batch: int, n: int, weight: str, bias: Typed | None, *, moved: bool) -> str:
    """Write the law of a convolution without groups; positions that a kernel moves over get other names."""
    before = " ".join(f"b{k}" for k in range(batch))
    pixels, kernel = (" ".join(f"{name}{k}" for k in range(n)) for name in "pk")
    after = pixels.replace("p", "q") if moved else pixels
    added = "; o" if bias is not None else ""
    return f"{before} i {pixels}, {weight} {kernel}{added} -> {before} o {after}"


@rule("torchvision.deform_conv2d")
def deform_conv_axes(
    input: Typed,
    weight: Typed,
    offset: Typed,
    mask: Typed,
    bias: Typed,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,
    *,
    result: Typed,
) -> Flow:
    """b (g i) h w, (g o) i kh kw, b (n 2 kh kw) h' w', b .., (g o) -> b (g o) h' w', (g i) = (n c)"""
    b, channels, h, w = input.axes
    out, i, *kernel = weight.axes
    g, n = atom(groups), atom(offset_groups)
    o, c = atom(out.size // groups), atom(channels.size // offset_groups)
    same = [(channels, Product.of((g, i))), (out, Product.of((g, o))), (out, bias.axes[0])]
    same += [(channels, Product.of((n, c))), (b, offset.axes[0]), (b, mask.axes[0])]
    reasons = [(k, "kernel") for k in kernel] + [(axis, PIXELS) for axis in (h, w)]
    reasons += [(axis, "places to look at") for axis in (*offset.axes[1:], *mask.axes[1:], n)]
    pixels = [frozen(size, PIXELS) for size in result.shape[-2:]]
    macs = [(b, out, *pixels, i, *kernel)]
    return Flow((b, out, *pixels), same, reasons, sizes={"groups": g}, reduced=[i], macs=macs)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose_axes(
    input: Typed,
    weight: Typed,
    bias: Typed | None = None,
    stride: PerDim = 1,
    padding: PerDim = 0,
    output_padding: PerDim = 0,
    groups: int = 1,
    dilation: PerDim = 1,
    *,
    result: Typed,
) -> Flow:
    """b (g i) h w, (g i) o kh kw, (g o) -> b (g o) h' w'"""
    rows, o, *kernel = weight.axes
    *batch, channels = input.axes[: -len(kernel)]
    g, i = atom(groups), atom(rows.size // groups)
    out = Product.of((g, o))
    same = [(channels, rows), (rows, Product.of((g, i)))]
    if bias is not None:
        same.append((out, bias.axes[0]))
    pixels, reasons = _pixels(input, kernel, stride, padding, result)
    macs = [(*input.axes, o, *kernel)]
    law = _conv_law(len(batch), len(kernel), "i o", bias, moved=bool(reasons)) if groups == 1 else ""
    return Flow(
        (*batch, out, *pixels), same, reasons, sizes={"groups": g}, reduced=[i], macs=macs, linear=law
    )


def _pixels(
    input: Typed, kernel: list[Axis], stride: PerDim, padding: PerDim, result: Typed
) -> tuple[Sequence[Axis], list[tuple[Axis, str | Reason]]]:
    """Return the dimensions that a kernel moves over: frozen, unless it looks at one element at a time."""
    n = len(kernel)
    pointwise = all(k == ONE for k in kernel) and _all(stride, 1) and _all(padding, 0)
    if pointwise:
        return input.axes[-n:], []
    reasons: list[tuple[Axis, str | Reason]] = [(k, "kernel") for k in kernel]
    reasons += [(axis, PIXELS) for axis in input.axes[-n:]]
    return [frozen(size, PIXELS) for size in result.shape[-n:]], reasons


def _all(option: object, value: int) -> bool:
    """Is an option, given once or per dimension (or not at all), this value everywhere?"""
    return option in (None, value, []) or (
        isinstance(option, (list, tuple)) and all(o == value for o in option)
    )


@rule("embedding")
def embedding_axes(
    input: Typed,
    weight: Typed,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *options: object,
    **more: object,
) -> Flow:
    """..., v c -> ... c"""
    vocabulary, c = weight.axes
    if max_norm is not None:
        raise NotCovered("it writes rows of a norm of all channels into its weight")
    return Flow((*input.axes, c), frozen=[(vocabulary, "looked up by index")], linear=LAYOUT)


@rule("aten.embedding")
def aten_embedding_axes(weight: Typed, input: Typed, *options: object, **more: object) -> Flow:
    """Bind ATen's order of arguments."""
    return embedding_axes(input, weight)


@rule("outer", "ger")
def outer_axes(input: Typed, vec2: Typed) -> Flow:
    """n, m -> n m"""
    return Flow((*input.axes, *vec2.axes), linear="n, m -> n m")
