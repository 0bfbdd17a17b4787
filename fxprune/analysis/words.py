"""Axes in einops-like words: `b n embed`, `b heads n head_dim`, `(3 heads head_dim) embed`.

| word | what it stands for |
|---|---|
| `b` | the batch |
| `h`, `w` | rows and columns of pixels or patches |
| `n` | a composite of frozen axes: tokens, windows, positions |
| `embed`, `heads`, `head_dim`, `hidden` | the role of a group that may shrink |
| `out` | a dimension that reaches the output |
| a number | any other frozen axis, by its size |
| `(a b)`, `[a | b]` | a product, outermost first; a concatenation |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from fxprune.analysis.analysis import Analysis
from fxprune.analysis.groups import Group
from fxprune.rules.axes import Atom, Axis, Product, atoms_of

__all__ = ["Word", "Words"]


@dataclass(frozen=True)
class Word:
    """A piece of a label, and what it stands for: a group, a frozen axis, or neither (a bracket)."""

    text: str
    group: Group | None = None
    axis: Axis | None = None


class Words:
    """Names the axes of one model.

    Example:
        >>> words = Words(fxprune.analyze(model))
        >>> words.tensor(analysis.weights["blocks.0.attn.qkv.weight"])
        '(3 heads head_dim) embed'
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis

    def tensor(self, axes: Sequence[Axis]) -> str:
        """Return a tensor's axes as one string, a blank between dimensions."""
        return "".join(word.text for word in self.pieces(axes))

    def axis(self, axis: Axis) -> str:
        """Return one axis as a string."""
        return self.tensor([axis])

    def value(self, node: fx.Node) -> list[Word]:
        """Label all that a node returns: equal tensors are counted, others follow one another."""
        tensors = self.analysis.axes.get(node, ())
        if not tensors:
            return []
        if len(set(tensors)) == 1:
            count = [Word(f"{len(tensors)} x ")] if len(tensors) > 1 else []
            return [*count, *self.pieces(tensors[0])]
        out = self.pieces(tensors[0])
        for axes in tensors[1:3]:
            out += [Word(", "), *self.pieces(axes)]
        return [*out, Word(", ...")] if len(tensors) > 3 else out

    def pieces(self, axes: Sequence[Axis]) -> list[Word]:
        """Return a tensor's label, cut where it changes from one group to another."""
        label = _Label(self, axes)
        out: list[Word] = []
        for i, axis in enumerate(axes):
            out += [Word(" ")] * (i > 0) + label.of(axis)
        return out

    def group(self, atom: Atom) -> Group | None:
        """Return the group of an atom, if it may shrink or reaches the output."""
        group = self.analysis.by_atom.get(atom)
        return group if group and (group.frozen is None or group.role == "output") else None

    def is_pixels(self, axis: Axis) -> bool:
        """Does it count rows or columns of an image, whole or cut into windows?"""
        reasons = [self.analysis.frozen(a) for a in atoms_of(axis)]
        return bool(reasons) and all(r is not None and r.kind == "pixels" for r in reasons)

    def is_batch(self, axis: Axis) -> bool:
        return isinstance(axis, Atom) and axis.is_batch


class _Label:
    """One tensor's label in the making: two groups of one role are told apart by a number."""

    def __init__(self, words: Words, axes: Sequence[Axis]) -> None:
        self.words = words
        self.names: dict[Group, str] = {}
        plane = list(filter(words.is_pixels, axes))
        self.plane = dict(zip(plane, "hw", strict=True)) if len(plane) == len({*plane}) == 2 else {}

    def of(self, axis: Axis) -> list[Word]:
        if self.words.is_batch(axis):
            return [Word("b", axis=axis)]
        known = [a for a in atoms_of(axis) if self.words.group(a) or self.words.is_batch(a)]
        if not known:
            return [self._frozen(axis)]
        if isinstance(axis, Atom):
            group = self.words.group(axis)
            assert group is not None
            return [Word(self._name(group), group, axis)]
        product = isinstance(axis, Product)
        out = [Word("(" if product else "[")]
        for i, part in enumerate(_merged(axis.parts, self.words) if product else axis.parts):
            between = [Word(" " if product else " | ")] if i else []
            out += between + self.of(part)
        return [*out, Word(")" if product else "]")]

    def _frozen(self, axis: Axis) -> Word:
        composite = not isinstance(axis, Atom) and axis.size > 1
        return Word(self.plane.get(axis) or ("n" if composite else str(axis.size)), axis=axis)

    def _name(self, group: Group) -> str:
        if group not in self.names:
            word = "out" if group.role == "output" else group.role
            same = sum(other.role == group.role for other in self.names)
            self.names[group] = f"{word}{same + 1}" if same else word
        return self.names[group]


def _merged(parts: Sequence[Axis], words: Words) -> list[Axis]:
    """Return the parts of a product, frozen neighbours taken together."""
    out: list[Axis] = []
    run: list[Axis] = []
    for part in parts:
        if any(words.group(a) or words.is_batch(a) for a in atoms_of(part)):
            out += [*([Product.of(run)] if run else []), part]
            run = []
        else:
            run.append(part)
    return [*out, *([Product.of(run)] if run else [])]
