"""Axes and their unification: the algebra alone, without a model."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fxprune.analysis.solver import AxisError, Reason, Solver
from fxprune.rules.axes import (
    ONE,
    Atom,
    Axis,
    Product,
    Sum,
    atom,
    atoms_of,
    batch,
    coordinates,
    frozen,
    refine,
    with_batch,
)

WHY = Reason("a test asked", "node", "model.py:1")


def times(*parts: Axis) -> Axis:
    return Product.of(parts)


def plus(*parts: Axis) -> Axis:
    return Sum.of(parts)


def unified(a: Axis, b: Axis) -> Solver:
    solver = Solver()
    solver.unify(a, b, WHY)
    return solver


def sizes(axis: Axis) -> list[int]:
    return [axis.size] if isinstance(axis, Atom) else [part.size for part in axis.parts]


# ---------------------------------------------------------------- terms


def test_products_flatten_drop_units_and_unwrap() -> None:
    a, b, c = Atom(2), Atom(3), Atom(4)
    assert times(a, times(b, c)) == times(times(a, b), c) == Product((a, b, c))
    assert times(a, ONE, Atom(1), b) == Product((a, b))
    assert times(a) is a
    assert times(ONE, times(a)) is a
    assert times() == times(ONE, ONE) == ONE
    assert ONE.size == 1
    assert times(a, b, c).size == 24
    assert times(a, b) != times(b, a)
    assert times(a, plus(b, c)) == Product((a, Sum((b, c))))


def test_sums_flatten_drop_empty_parts_and_unwrap() -> None:
    a, b, c = Atom(2), Atom(3), Atom(4)
    assert plus(a, plus(b, c)) == plus(plus(a, b), c) == Sum((a, b, c))
    assert plus(a, Atom(0), b) == Sum((a, b))
    assert plus(a) is a
    assert plus(a, b, c).size == 9
    assert plus(a, b) != plus(b, a)
    assert plus(a, ONE).size == 3, "a class token counts, though it has no atom"
    assert plus(a, times(b, c)) == Sum((a, Product((b, c))))


def test_fresh_axes() -> None:
    assert atom(1) == frozen(1, "one") == ONE
    assert atom(5) != atom(5)
    whole = frozen(5, "the input's")
    assert isinstance(whole, Atom)
    assert Solver().frozen(whole) == Reason("the input's")


def test_atoms_are_listed_outermost_first_and_as_often_as_they_occur() -> None:
    a, b, c = Atom(2), Atom(3), Atom(4)
    assert list(atoms_of(plus(times(a, b), c, a))) == [a, b, c, a]
    assert list(atoms_of(ONE)) == []


def test_only_what_follows_the_batch_changes_its_size() -> None:
    b, embed, whole, windows = batch(10007), Atom(10007), frozen(10007, "words"), batch(40028, 4)
    sizes = [(times(b, Atom(5)), 15), (plus(b, Atom(5)), 8), (embed, 10007), (whole, 10007), (windows, 12)]
    for axis, size in sizes:
        assert with_batch(axis, 3).size == size


def test_the_batch_is_known_through_products() -> None:
    windows, samples, per_image = batch(40028, 4), Atom(10007), Atom(4)
    solver = unified(windows, times(samples, per_image))
    first, second = atoms_of(solver.resolve(windows))
    assert first.is_batch and second.per_sample == 0
    assert solver.frozen(first).kind == "batch" and solver.frozen(second).kind == "input"


@pytest.mark.parametrize("swap", [False, True])
def test_what_equals_the_batch_follows_it(swap: bool) -> None:
    for other in (Atom(10007), frozen(10007, "it numbers positions")):
        b = batch(10007)
        solver = unified(b, other) if swap else unified(other, b)
        assert solver.resolve(other).is_batch and solver.resolve(b).is_batch


def test_reasons_say_what_where() -> None:
    assert str(Reason("softmax over it")) == "softmax over it"
    assert str(Reason("softmax over it", "softmax_1")) == "softmax over it at softmax_1"
    assert str(WHY) == "a test asked at node (model.py:1)"


# ---------------------------------------------------------------- refine

REFINEMENTS = [
    # equal factors stay as they are, each in its own segment
    ([3, 4, 5], [3, 4, 5], [([[3]], [[3]]), ([[4]], [[4]]), ([[5]], [[5]])]),
    # a factor splits
    ([12], [3, 4], [([[3, 4]], [[3], [4]])]),
    ([2304], [3, 12, 64], [([[3, 12, 64]], [[3], [12], [64]])]),
    # both sides split: running products 6, 24 and 3, 24
    ([6, 4], [3, 8], [([[3, 2], [4]], [[3], [2, 4]])]),
    # cut where the running products agree, whatever lies on either side
    ([5, 6, 4], [5, 3, 8], [([[5]], [[5]]), ([[3, 2], [4]], [[3], [2, 4]])]),
    # 6 and 8 do not divide one another
    ([6, 4], [8, 3], [(None, None)]),
    ([5, 6, 4, 7], [5, 8, 3, 7], [([[5]], [[5]]), (None, None), ([[7]], [[7]])]),
    ([], [], []),
]


@pytest.mark.parametrize(("left", "right", "expected"), REFINEMENTS)
def test_refine(left: list[int], right: list[int], expected: list) -> None:
    assert [(s.left_pieces, s.right_pieces) for s in refine(left, right)] == expected
    assert [(s.right_pieces, s.left_pieces) for s in refine(right, left)] == expected


factors = st.lists(st.integers(2, 6), min_size=1, max_size=5)


@given(factors, st.data())
def test_refine_covers_both_sides(left: list[int], data: st.DataObject) -> None:
    """Segments tile both sides; pieces multiply to their factors and are the same on either side."""
    right = data.draw(st.permutations(left))
    segments = refine(left, right)
    assert [i for s in segments for i in s.left] == list(range(len(left)))
    assert [j for s in segments for j in s.right] == list(range(len(right)))
    for s in segments:
        assert math.prod(left[i] for i in s.left) == math.prod(right[j] for j in s.right)
        assert (s.left_pieces is None) == (s.right_pieces is None)
        if s.left_pieces is not None and s.right_pieces is not None:
            assert [math.prod(p) for p in s.left_pieces] == [left[i] for i in s.left]
            assert [math.prod(p) for p in s.right_pieces] == [right[j] for j in s.right]
            assert [*itertools.chain(*s.left_pieces)] == [*itertools.chain(*s.right_pieces)]


# ---------------------------------------------------------------- unify, for every pair of kinds


def test_atom_with_atom() -> None:
    """The older one stands for both, whichever way round."""
    for swap in (False, True):
        old, new = Atom(6), Atom(6)
        solver = unified(new, old) if swap else unified(old, new)
        assert solver.resolve(old) is solver.resolve(new) is old


def test_atom_with_product() -> None:
    for swap in (False, True):
        a, product = Atom(6), times(Atom(2), Atom(3))
        solver = unified(product, a) if swap else unified(a, product)
        assert solver.resolve(a) == solver.resolve(product) == product


def test_atom_with_sum() -> None:
    for swap in (False, True):
        a, both = Atom(6), plus(Atom(4), Atom(2))
        solver = unified(both, a) if swap else unified(a, both)
        assert solver.resolve(a) == solver.resolve(both) == both


def test_product_with_equal_product() -> None:
    a, b, c, d = Atom(2), Atom(3), Atom(2), Atom(3)
    solver = unified(times(a, b), times(c, d))
    assert solver.resolve(times(c, d)) == times(a, b)


def test_product_with_coarser_product() -> None:
    """(3 heads head_dim) from (3 embed): embed turns out to be heads x head_dim."""
    three, heads, dim, embed = frozen(3, "unbound"), Atom(4), Atom(5), Atom(20)
    solver = unified(times(frozen(3, "unbound"), heads, dim), times(three, embed))
    assert solver.resolve(embed) == times(heads, dim)
    assert all(solver.frozen(a) is None for a in (heads, dim))


def test_product_with_interleaved_product() -> None:
    a, b, c, d = Atom(6), Atom(4), Atom(3), Atom(8)
    solver = unified(times(a, b), times(c, d))
    assert solver.resolve(times(a, b)) == solver.resolve(times(c, d))
    assert sizes(solver.resolve(times(a, b))) == [3, 2, 4]
    assert sizes(solver.resolve(a)) == [3, 2]
    assert sizes(solver.resolve(d)) == [2, 4]


def test_sum_with_equal_sum() -> None:
    a, b, c, d = Atom(2), Atom(3), Atom(2), Atom(3)
    solver = unified(plus(a, b), plus(c, d))
    assert solver.resolve(plus(c, d)) == plus(a, b)


def test_sum_with_sum_cut_elsewhere() -> None:
    a, b, c, d = Atom(2), Atom(6), Atom(5), Atom(3)
    solver = unified(plus(a, b), plus(c, d))
    assert solver.resolve(plus(a, b)) == solver.resolve(plus(c, d))
    assert sizes(solver.resolve(plus(a, b))) == [2, 3, 3]
    assert sizes(solver.resolve(c)) == [2, 3]
    assert solver.resolve(b).parts[1] is d


def test_sum_cut_inside_a_product() -> None:
    """[(2 r) | s] = [r1 | r2 | s]: the product is counted by the cut, its rows are shared."""
    two, row, tail = Atom(2), Atom(4), Atom(3)
    parts = [Atom(4), Atom(4), Atom(3)]
    solver = unified(plus(times(two, row), tail), plus(*parts))
    assert solver.resolve(parts[0]) == solver.resolve(parts[1]) == solver.resolve(row)
    assert solver.frozen(solver.resolve(two)) is not None
    assert solver.frozen(solver.resolve(row)) is None
    assert solver.resolve(parts[2]) is solver.resolve(tail)


@pytest.mark.parametrize("swap", [False, True])
def test_product_with_sum(swap: bool) -> None:
    """(3 heads head_dim) meets [q_bias | k_bias | v_bias]: every bias is (heads head_dim)."""
    three, heads, dim = Atom(3), Atom(4), Atom(5)
    biases = [Atom(20), Atom(20), Atom(20)]
    product, concatenated = times(three, heads, dim), plus(*biases)
    solver = unified(concatenated, product) if swap else unified(product, concatenated)
    for bias in biases:
        assert solver.resolve(bias) == solver.resolve(times(heads, dim))
    assert sizes(solver.resolve(biases[0])) == [4, 5]
    assert "counts the parts" in str(solver.frozen(solver.resolve(three)))
    for a in atoms_of(solver.resolve(biases[0])):
        assert solver.frozen(a) is None


def test_product_with_sum_of_unequal_parts() -> None:
    """(3 r) = [(2 r) | r]: keys and values in one, queries in the other."""
    three, row, kv, q = Atom(3), Atom(7), Atom(14), Atom(7)
    solver = unified(times(three, row), plus(kv, q))
    assert solver.resolve(q) == solver.resolve(row)
    assert sizes(solver.resolve(kv)) == [2, 7]
    assert solver.resolve(kv).parts[1] == solver.resolve(row)
    assert solver.frozen(solver.resolve(row)) is None


@pytest.mark.parametrize(
    ("factors", "parts", "row"),
    [([8, 6], [32, 16], 2), ([4, 6], [4, 20], 2), ([8, 12], [64, 32], 4), ([2, 3, 4], [20, 4], 4)],
)
def test_borders_that_cut_through_groups(factors: list[int], parts: list[int], row: int) -> None:
    """(8 6) = [32 | 16] as (8 3 2) = [16 2 | 8 2]: blocks of the common divisor line up."""
    product, pieces = times(*map(Atom, factors)), [*map(Atom, parts)]
    solver = unified(product, plus(*pieces))
    live = {a for a in atoms_of(solver.resolve(product)) if solver.frozen(a) is None}
    assert [a.size for a in live] == [row]
    for piece in pieces:
        assert {a for a in atoms_of(solver.resolve(piece)) if solver.frozen(a) is None} == live


@pytest.mark.parametrize(
    ("factors", "parts"),
    [
        ([2, 5], [3, 7]),  # no common row
        ([4, 9], [16, 20]),  # rows of 4 and groups of 9 have no common divisor
    ],
)
def test_product_with_sum_without_whole_rows_freezes_both(factors: list[int], parts: list[int]) -> None:
    product, total = times(*map(Atom, factors)), plus(*map(Atom, parts))
    solver = unified(product, total)
    for axis in (product, total):
        assert all("do not line up" in str(solver.frozen(a)) for a in atoms_of(solver.resolve(axis)))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Atom(5), Atom(6)),
        (Atom(5), times(Atom(2), Atom(3))),
        (Atom(5), plus(Atom(2), Atom(4))),
        (times(Atom(2), Atom(3)), times(Atom(2), Atom(4))),
        (plus(Atom(2), Atom(3)), plus(Atom(2), Atom(4))),
        (times(Atom(2), Atom(3)), plus(Atom(2), Atom(5))),
        (ONE, Atom(2)),
    ],
)
def test_unequal_sizes_are_refused(a: Axis, b: Axis) -> None:
    for first, second in ((a, b), (b, a)):
        with pytest.raises(AxisError, match="elements"):
            unified(first, second)


def test_an_axis_equals_itself() -> None:
    a, b = Atom(4), Atom(6)
    for axis in (a, times(a, b), plus(a, b), ONE):
        solver = unified(axis, axis)
        assert solver.resolve(axis) == axis
        assert all(solver.frozen(x) is None for x in (a, b))


def test_what_is_known_is_transitive() -> None:
    """a = b, b = (h d), (h d) = (g e): a is all of them."""
    a, b, heads, dim, g, e = Atom(12), Atom(12), Atom(3), Atom(4), Atom(3), Atom(4)
    solver = unified(a, b)
    solver.unify(times(g, e), times(heads, dim), WHY)
    solver.unify(b, times(heads, dim), WHY)
    assert solver.resolve(a) == solver.resolve(times(g, e)) == solver.resolve(times(heads, dim))


def test_split() -> None:
    solver, qkv = Solver(), Atom(60)
    assert solver.split(qkv, [60], WHY) == [qkv]
    three, heads, dim = solver.split(qkv, [3, 4, 5], WHY)
    assert solver.resolve(qkv) == times(three, heads, dim)
    again = solver.split(qkv, [3, 20], WHY)
    assert [solver.resolve(piece) for piece in again] == [three, times(heads, dim)]


# ---------------------------------------------------------------- what is frozen


def test_the_first_reason_is_remembered() -> None:
    solver, a = Solver(), Atom(4)
    assert solver.frozen(a) is None
    solver.freeze(a, Reason("first"))
    solver.freeze(a, Reason("second"))
    assert solver.frozen(a) == Reason("first")
    born = frozen(4, "the input's")
    solver.freeze(born, Reason("later"))
    assert solver.frozen(born) == Reason("the input's")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("swap", [False, True])
def test_frozen_passes_through_every_kind_of_equality(when: str, swap: bool) -> None:
    others = [Atom(12), times(Atom(3), Atom(4)), plus(Atom(5), Atom(7))]
    for other in others:
        solver, a = Solver(), Atom(12)
        if when == "before":
            solver.freeze(a, WHY)
        solver.unify(*((other, a) if swap else (a, other)), WHY)
        if when == "after":
            solver.freeze(a, WHY)
        for x in atoms_of(solver.resolve(other)):
            assert solver.frozen(x) == WHY


def test_frozen_factor_leaves_the_others_free() -> None:
    solver, embed, heads, dim = Solver(), Atom(12), Atom(3), Atom(4)
    solver.freeze(heads, WHY)
    solver.unify(embed, times(heads, dim), WHY)
    assert solver.frozen(heads) == WHY
    assert solver.frozen(dim) is None


def test_a_frozen_atom_stays_whole_behind_an_older_one() -> None:
    old, born = Atom(4), frozen(4, "the input's")
    for a, b in ((old, born), (born, old)):
        solver = unified(a, b)
        assert str(solver.frozen(solver.resolve(old))) == "the input's"


def test_factors_that_do_not_line_up_freeze() -> None:
    a, b, c, d, outside = Atom(6), Atom(4), Atom(8), Atom(3), Atom(5)
    solver = unified(times(outside, a, b), times(outside, c, d))
    for x in (a, b, c, d):
        why = solver.frozen(x)
        assert why is not None
        assert (why.text, why.node, why.where) == ("its factors do not line up", WHY.node, WHY.where)
    assert solver.frozen(outside) is None


def test_an_axis_that_would_contain_itself_freezes() -> None:
    """Sizes forbid it, but for empty axes."""
    a, b = Atom(0), Atom(5)
    solver = unified(a, times(a, b))
    assert solver.resolve(a) is a
    for x in (a, b):
        assert "contain itself" in str(solver.frozen(x))


def test_a_transposed_product_becomes_a_power() -> None:
    """(h d) = (d h) with d = 4, h = 2: then d is (h h), and resolving it ends."""
    h, d = Atom(2), Atom(4)
    solver = unified(times(h, d), times(d, h))
    assert solver.resolve(times(h, d)) == solver.resolve(times(d, h))
    assert sizes(solver.resolve(d)) == [2, 2]
    assert len(set(atoms_of(solver.resolve(times(h, d))))) == 1


# ---------------------------------------------------------------- against brute force


@st.composite
def axes(draw: st.DrawFn, pool: list[Atom], size: int | None = None) -> Axis:
    """A random axis of a size; atoms come from `pool` where they fit, and return to it."""
    size = draw(st.integers(2, 24)) if size is None else size
    divisors = [n for n in range(2, size) if size % n == 0]
    kinds = ["atom", *(["product"] if divisors else []), *(["sum"] if size > 1 else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "product":
        n = draw(st.sampled_from(divisors))
        return times(draw(axes(pool, n)), draw(axes(pool, size // n)))
    if kind == "sum":
        n = draw(st.integers(1, size - 1))
        return plus(draw(axes(pool, n)), draw(axes(pool, size - n)))
    known = [a for a in pool if a.size == size]
    if known and draw(st.booleans()):
        return draw(st.sampled_from(known))
    new = atom(size)
    pool.extend([new] if isinstance(new, Atom) else [])
    return new


def elements(axis: Axis) -> list[dict[Atom, int]]:
    """What each position of an axis is made of, in words of the definition."""
    if isinstance(axis, Atom):
        return [{axis: i} for i in range(axis.size)]
    parts = [elements(part) for part in axis.parts]
    if isinstance(axis, Sum):
        return [*itertools.chain(*parts)]
    return [{a: i for used in row for a, i in used.items()} for row in itertools.product(*parts)]


def has_power(axis: Axis) -> bool:
    """Does a product use an atom twice?  Then "the" element of it that a position uses is not defined."""
    if isinstance(axis, Atom):
        return False
    if any(map(has_power, axis.parts)):
        return True
    used = [a for part in axis.parts for a in {*atoms_of(part)}]
    return isinstance(axis, Product) and len(used) > len(set(used))


def mask(axis: Axis, kept: dict[Atom, np.ndarray]) -> np.ndarray:
    """Which positions stay when these elements of the atoms do: all that a position is made of."""
    if isinstance(axis, Atom):
        return kept[axis]
    parts = [mask(part, kept) for part in axis.parts]
    if isinstance(axis, Sum):
        return np.concatenate(parts)
    out = np.ones(1, bool)
    for part in parts:
        out = np.outer(out, part).ravel()
    return out


@given(st.data())
def test_coordinates(data: st.DataObject) -> None:
    axis = data.draw(axes([]))
    assume(not has_power(axis))
    expected = elements(axis)
    found = coordinates(axis)
    assert set(found) == set(atoms_of(axis))
    for a, index in found.items():
        assert index.shape == (axis.size,)
        assert index.dtype == np.int64
        assert index.tolist() == [used.get(a, -1) for used in expected]


@given(st.data())
@settings(deadline=None)
def test_unification_is_sound(data: st.DataObject) -> None:
    """Whatever is cut of the atoms that may shrink, the same positions go on both sides.

    Of every equality so far, whatever came after it; frozen atoms stay so, and sizes never change.
    """
    pool: list[Atom] = []
    solver, equal = Solver(), []
    for _ in range(data.draw(st.integers(1, 5))):
        size = data.draw(st.sampled_from([2, 4, 6, 8, 12, 18, 24]))
        a, b = data.draw(axes(pool, size)), data.draw(axes(pool, size))
        if data.draw(st.integers(0, 5)) == 0:
            solver.freeze(a, WHY)
            frozen = {*atoms_of(solver.resolve(a))}
            assert all(solver.frozen(x) for x in frozen)
        solver.unify(a, b, WHY)
        equal.append((a, b))

    seed = data.draw(st.integers(0, 2**16))
    random = np.random.default_rng(seed)
    kept: dict[Atom, np.ndarray] = {}
    for a, b in equal:
        left, right = solver.resolve(a), solver.resolve(b)
        assert left.size == right.size == a.size
        for x in (*atoms_of(left), *atoms_of(right)):
            whole = np.ones(x.size, bool)
            kept.setdefault(x, whole if solver.frozen(x) else random.random(x.size) < 0.6)
        assert (mask(left, kept) == mask(right, kept)).all(), (left, right)
