"""List what the numbers in a model's state may have become, the likeliest first."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from fxprune.compiler.native.beside_paths import numbers_beside_paths
from fxprune.compiler.native.code_layers import counts_groups, widths_built_of
from fxprune.compiler.native.code_widths import is_only_a_size, is_width_in_code, kind_in_code
from fxprune.compiler.native.counted import numbers_that_count
from fxprune.compiler.native.reads import Reads
from fxprune.compiler.native.scopes import Scope
from fxprune.compiler.native.sizes import Sizes
from fxprune.compiler.native.slots import own_slots_of
from fxprune.compiler.native.tables import holders_of_tables
from fxprune.graph.tensors import is_inside
from fxprune.result.own_code import Keys, Slot

__all__ = ["Options", "Proposals"]

WIDTH = 16  # smaller numbers are no widths at first sight
STRIDE = 64  # up to here, numbers that no code has read may be strides

Options = list[tuple[Slot, list[int]]]  # a number, and all that it may be


class Proposals:
    """For each module, the numbers in its state and what each may have become, the likeliest first."""

    def __init__(self, model: nn.Module, root: nn.Module, sizes: Mapping[str, Sizes]) -> None:
        self.sizes = sizes
        self.slots = own_slots_of(model, root)
        self.classes = {path: type(module) for path, module in model.named_modules()}
        self.tables = {*holders_of_tables(model, root)}
        self.named = dict(numbers_beside_paths(model, self.slots.values()))
        self._in_code: dict[tuple[type[nn.Module], Keys], bool | None] = {}
        self._kinds_in_code: dict[tuple[type[nn.Module], Keys], str] = {}
        self._said: dict[Slot, int] = {}
        self.kinds: dict[tuple[object, ...], list[tuple[Slot, int]]] = defaultdict(list)
        for slots in self.slots.values():
            for slot, n in slots:
                self.kinds[self._kind(slot)].append((slot, n))
        self._said |= self._beside_paths()
        made_of = dict(self._made_of(model, root))
        self.made = {slot: min(news) for slot, news in made_of.items() if len(news) == 1}
        sizes_of = {s: news for s, news in made_of.items() if self.in_code(s) is not False}  # no bounds
        self._said |= {s: new for s, news in sizes_of.items() for new in news if news == {new: True}}
        self._said |= dict(self._groups_without_layers(sizes_of))
        self.counted = dict(numbers_that_count(model, sizes))
        self.several = [slot for slot, news in sizes_of.items() if len(news) > 1]

    def _made_of(self, model: nn.Module, root: nn.Module) -> Iterator[tuple[Slot, dict[int, bool]]]:
        """List the numbers that source makes weights of, just so large, each with how large those are now."""
        for path, slots in self.slots.items():
            here = model.get_submodule(path), root.get_submodule(path)
            for slot, old in slots:
                if slot.held < 2 and len(slot.keys) == 1:
                    yield slot, widths_built_of(*here, str(slot.keys[0]), old)

    def _groups_without_layers(self, made_of: Mapping[Slot, object]) -> Iterator[tuple[Slot, int]]:
        """List the numbers of groups in modules whose own layers have none: as many as there are channels."""
        for slot, old in itertools.chain.from_iterable(self.slots.values()):
            if made_of.get(slot) == {} and counts_groups(self.classes[slot.path], str(slot.keys[0])):
                new = self._width(slot, old) if self._has_names(slot, old) else None
                if new is not None:
                    yield slot, new

    def first(self) -> Iterator[tuple[Slot, Any]]:
        """Propose what one would take without a look at the code: a width that all such axes agree on.

        Small numbers count layers, strides and heads as often as channels: source has to say of those that
        layers are as wide, or the code has to ask for them.
        """
        yield from self.counted.items()
        for slots in self.slots.values():
            for slot, old in slots:
                new = self._said.get(slot) or self.made.get(slot) or self._width(slot, old)
                if new == old or slot in self.several:
                    continue
                if new is not None and (slot in self._said or old >= WIDTH or self._is_alone(slot, old)):
                    yield slot, new

    def second(self) -> Iterator[tuple[Slot, int]]:
        """Propose, beside `first`, what the axes right there say of any number: heads, groups, products."""
        sure = {slot for slot, _ in self.first()} | {*self._said, *self.several}
        for slots in self.slots.values():
            for slot, old in slots:
                is_item = isinstance(slot.keys[-1], int)  # of pairs: sides of windows, strides
                new = self.made.get(slot) or self.sizes[slot.path].nearby(old)
                if new not in (None, old) and slot not in sure and not is_item:
                    yield slot, new

    def _beside_paths(self) -> dict[Slot, int]:
        """Find the numbers that say how wide is what the module gives whose path stands beside them.

        All under that key do, and none of another key that does is as large there (a stride).
        """
        news: dict[tuple[object, ...], dict[Slot, int]] = defaultdict(dict)
        for kind, alike in self.kinds.items():
            told = [(s, n, self.sizes[self.named[s]].gives) for s, n in alike if s in self.named]
            if told and all(n in gives for _, n, gives in told if gives):
                changed = [(s, gives.get(n, {n}) - {n}) for s, n, gives in told]
                news[kind] = {s: min(new) for s, new in changed if len(new) == 1}
        places = Counter((s.path, s.keys[:-1], n) for kind in news for s, n in self.kinds[kind])
        return {
            slot: new
            for kind, found in news.items()
            for slot, n in self.kinds[kind]
            if (new := found.get(slot)) is not None and places[slot.path, slot.keys[:-1], n] == 1
        }

    def is_made(self, slot: Slot, old: int, now: int) -> bool:
        """Is a number what source makes weights of, which are so large?  One that stayed may be anything."""
        return self.made.get(slot) == now and (now == old or bool(self.in_code(slot)))

    def is_evident(self, slot: Slot, old: int) -> bool:
        """Is a number a width, though no code that ran shows it?

        It is one in code, or code only hands it back, or makes things so large.
        """
        if self.is_told(slot, old):
            return True
        untold = self._looks_untold(slot, old) and self.in_code(slot) is None
        return untold and is_only_a_size(slot, self.classes[slot.path], {*self.classes.values()})

    def is_told(self, slot: Slot, old: int) -> bool:
        """Is a number a width by its size, and since its module's class builds layers, or may, of it?

        Or since it is one of many that are widths, or stands beside the path of what is as wide.
        """
        if slot in self.counted or slot in self._said:
            return True
        if self._looks_evident(slot, old) and (self._is_one_of_many(slot) or self.in_code(slot)):
            return True
        return self._is_alone(slot, old)

    def is_doubtful(self, slot: Slot, old: int) -> bool:
        """Is a number as large as a width, while its class's source does not say whether it is one?

        Or which, where a small one is the size of layers that became several: the hidden and the output's.
        """
        if slot in self.counted:
            return False
        if old > STRIDE or self.kind(slot) == "":
            return self._looks_untold(slot, old) and self.in_code(slot) is None
        return self._is_built_of(slot, old) and not self.is_told(slot, old)

    def _looks_untold(self, slot: Slot, old: int) -> bool:
        return self._looks_evident(slot, old) and not self._is_one_of_many(slot)

    def _is_alone(self, slot: Slot, old: int) -> bool:
        """Are layers, by source, as wide as a number says, or a multiple, and for a small one of one size?"""
        return self._is_built_of(slot, old) and (old > STRIDE or self._sizes(slot).agree(old))

    def _is_built_of(self, slot: Slot, old: int) -> bool:
        """Does source build layers of just a number, or a multiple, that may be a width by its size?"""
        is_width = self.kind(slot) == "alone" and bool(self.in_code(slot))  # not a bound, as large
        return is_width and self._may_be_evident(slot, old)

    def kind(self, slot: Slot) -> str:
        """Tell what source has a number for: a width ("alone"), something else ("others"), or neither."""
        key = self.classes[slot.path], slot.keys
        if key not in self._kinds_in_code:
            self._kinds_in_code[key] = kind_in_code(slot, key[0], {*self.classes.values()})
        return self._kinds_in_code[key]

    def in_code(self, slot: Slot) -> bool | None:
        """Tell whether source has a number for a width; None: it does not tell."""
        key = self.classes[slot.path], slot.keys
        if key not in self._in_code:
            self._in_code[key] = is_width_in_code(slot, key[0], {*self.classes.values()})
        return self._in_code[key]

    def _looks_evident(self, slot: Slot, old: int) -> bool:
        """Is a number a width by its size?

        It counts no cells of a grid, is no side of a square, and does not say how a table is computed.  It is
        larger than strides are; or its module has it under several names; or it is one of many of its kind,
        in modules of the same class under the same keys, that all are widths, some of them large, and no
        strides (16, 32, 64: unless those stand beside it).
        """
        if slot.path in self.tables or self._is_square(slot):
            return False
        kind = self._kind(slot)
        alike = [n for _, n in self.kinds[kind]]
        are_widths = self._are_widths(kind)
        if self._is_one_of_many(slot):
            return True
        if self._is_product(slot, old):
            return False
        if old > STRIDE or self._has_names(slot, old):
            return True
        if not are_widths or max(alike) <= (STRIDE if len(alike) < 2 else STRIDE // 2):
            return False
        if max(alike) > STRIDE or not _may_be_strides(alike):
            return True
        beside = [other for other in self.kinds if other[:-1] == kind[:-1] and other != kind]
        return any(_may_be_strides([n for _, n in self.kinds[o]]) and not self._are_widths(o) for o in beside)

    def _may_be_evident(self, slot: Slot, old: int) -> bool:
        return not (slot.path in self.tables or self._is_square(slot) or self._is_product(slot, old))

    def _is_one_of_many(self, slot: Slot) -> bool:
        kind = self._kind(slot)
        alike = [n for _, n in self.kinds[kind]]
        return len({*alike}) > 2 and max(alike) > STRIDE and self._are_widths(kind)

    def _are_widths(self, kind: tuple[object, ...]) -> bool:
        return all(self._width(other, n) is not None for other, n in self.kinds[kind])

    def _width(self, slot: Slot, old: int) -> int | None:
        """Return what a width became; one as large as an image or a number of tokens, if it is told apart."""
        sizes = self._sizes(slot)
        found = sizes.surely(old)
        if found is None and self._is_width(slot, old):
            found = sizes.surely(old, is_width=True)
        return found

    def _sizes(self, slot: Slot) -> Sizes:
        return self.sizes[self.named.get(slot, slot.path)]

    def _is_width(self, slot: Slot, old: int) -> bool:
        """Is a number, which sizes of other things have as well, the size of weights?

        By its names; by others of its kind, that are; or since its module has no grid of as many cells.
        """
        if self._has_names(slot, old):
            return True
        alike = [(self._sizes(s), n) for s, n in self.kinds[self._kind(slot)] if s != slot]
        given = self.sizes[slot.path].given
        if any(sizes.surely(n) is not None for sizes, n in alike) or len({n for _, n in alike} - given) > 1:
            return all(sizes.surely(n, is_width=True) is not None for sizes, n in alike)
        return old not in given and not self._is_product(slot, old)

    def _is_square(self, slot: Slot) -> bool:
        """Is it one of two equal numbers: sides of a patch, or of an image, whose channels stand before?"""
        listed = [n for s, n in self.slots[slot.path] if s.keys[:-1] == slot.keys[:-1]]
        if not isinstance(slot.keys[-1], int) or len(listed) not in (2, 3):
            return False
        return listed[-2] == listed[-1] and all(n < WIDTH for n in listed[:-2])

    def _is_product(self, slot: Slot, old: int) -> bool:
        """Is it what a pair of numbers in its module multiply to, or one more (a class token)?"""
        listed: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for other, n in self.slots[slot.path]:
            if isinstance(other.keys[-1], int):
                listed[other.keys[:-1]].append(n)
        return any(math.prod(sides) in (old, old - 1) for sides in listed.values() if len(sides) == 2)

    def _has_names(self, slot: Slot, old: int) -> bool:
        """Does its module hold a number under several names?"""
        same = [other for other, n in self.slots[slot.path] if n == old and len(other.keys) == 1]
        return len(slot.keys) == 1 and len(same) >= 2

    def _kind(self, slot: Slot) -> tuple[object, ...]:
        return self.classes[slot.path], *("*" if isinstance(key, int) else key for key in slot.keys)

    def options(self, scope: Scope, reads: Reads) -> Options:
        """List every number that code has read and that may have become another one.

        In the state of the scope's module and of those inside it, and in objects that any module holds (a
        configuration).
        """
        return [
            (slot, [*(n for n in news if n != old), old])
            for there, slots in self.slots.items()
            for slot, old in slots
            if (slot.held > 1 or is_inside(there, [scope.path])) and reads.has(slot)
            if scope.less is None or not is_inside(there, [scope.less])
            if (news := self._may_be(there, old, scope.wide))
        ]

    def _may_be(self, path: str, old: int, wide: bool) -> list[int]:
        """List what a number of a module may have become; if `wide`, by the nearest around it that knows."""
        found = self.sizes[path].may_be(old)
        while wide and path and not found:
            path = path.rpartition(".")[0]
            found = self.sizes[path].may_be(old)
        return found


def _may_be_strides(numbers: list[int]) -> bool:
    """Does each double the one before?"""
    known = sorted({*numbers})
    return len(known) > 1 and all(2 * a == b for a, b in itertools.pairwise(known))
