"""HBitmap against a list of booleans."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.bitmaps.hbitmap import PAGE_BITS, HBitmap

GRANULARITY = 512
BITS = PAGE_BITS * 2 + 77
LENGTH = GRANULARITY * BITS - 100

spots = st.one_of(
    st.integers(0, LENGTH - 1),
    st.sampled_from([0, PAGE_BITS * GRANULARITY - 1, PAGE_BITS * GRANULARITY, LENGTH - 1]),
)
spans = st.one_of(st.integers(1, 5000), st.sampled_from([GRANULARITY * 8, GRANULARITY * PAGE_BITS, LENGTH]))
steps = st.lists(st.tuples(st.booleans(), spots, spans), max_size=12)


def build(changes: list[tuple[bool, int, int]], length: int = LENGTH) -> tuple[HBitmap, bytearray]:
    """The bitmap and one byte a bit, after the same changes."""
    bitmap = HBitmap(length, GRANULARITY)
    model = bytearray(-(-length // GRANULARITY))
    for value, offset, size in changes:
        (bitmap.set if value else bitmap.reset)(offset, size)
        first, last = offset // GRANULARITY, min(-(-(offset + size) // GRANULARITY), len(model))
        if first < last:
            model[first:last] = bytes([value]) * (last - first)
    return bitmap, model


def runs(model: bytearray, length: int) -> list[tuple[int, int]]:
    out = []
    at = 0
    while (start := model.find(1, at)) != -1:
        at = model.find(0, start)
        at = len(model) if at == -1 else at
        out.append((start * GRANULARITY, min(at * GRANULARITY, length) - start * GRANULARITY))
    return out


@settings(max_examples=150, deadline=None)
@given(steps, spots)
def test_model(changes: list[tuple[bool, int, int]], spot: int) -> None:
    bitmap, model = build(changes)
    assert bitmap.count == sum(model) * GRANULARITY
    assert list(bitmap.areas()) == runs(model, LENGTH)
    bit = spot // GRANULARITY
    assert bitmap.get(spot) == bool(model[bit])
    for find, value in ((bitmap.next_dirty, 1), (bitmap.next_zero, 0)):
        found = model.find(value, bit)
        expected = None if found == -1 else max(found * GRANULARITY, spot)
        assert find(spot) == expected
        assert find(spot, spot + 1) == (spot if expected == spot else None)


@settings(max_examples=60, deadline=None)
@given(steps, steps, st.integers(0, LENGTH * 2))
def test_merge_truncate_serialise(one: list[tuple[bool, int, int]], two: list[tuple[bool, int, int]], new: int) -> None:
    a, a_model = build(one)
    b, b_model = build(two)
    a.merge(b)
    union = bytearray(x | y for x, y in zip(a_model, b_model, strict=True))
    assert list(a.areas()) == runs(union, LENGTH)
    copy = HBitmap(LENGTH, GRANULARITY)
    copy.deserialise(0, LENGTH, a.serialise(0, LENGTH))
    assert list(copy.areas()) == list(a.areas())
    assert copy.count == a.count
    a.truncate(new)
    kept = union[: -(-new // GRANULARITY)]
    kept += bytes(-(-new // GRANULARITY) - len(kept))
    assert list(a.areas()) == runs(kept, new)
    assert a.count == sum(kept) * GRANULARITY


def test_merge_of_another_granularity() -> None:
    coarse = HBitmap(1 << 20, 65536)
    coarse.set(70000, 1)
    fine = HBitmap(1 << 20, 4096)
    fine.merge(coarse)
    assert list(fine.areas()) == [(65536, 65536)]
    other = HBitmap(1 << 20, 65536)
    other.merge(fine)
    assert list(other.areas()) == [(65536, 65536)]


def test_a_large_image_costs_little() -> None:
    """64 TiB at 64 KiB: whole pages are shared, so setting all of it is quick and small."""
    bitmap = HBitmap(64 << 40, 65536)
    bitmap.set(0, 64 << 40)
    assert bitmap.count == 64 << 40
    bitmap.reset(1 << 40, 65536)
    assert bitmap.next_zero(0) == 1 << 40
    bitmap.reset(0, 64 << 40)
    assert bitmap.next_dirty(0) is None
    assert sum(isinstance(page, bytearray) for page in bitmap._pages) == 0


def test_longest_area() -> None:
    bitmap = HBitmap(1 << 20, 4096)
    bitmap.set(0, 1 << 20)
    assert bitmap.next_dirty_area(4096, longest=65536) == (4096, 65536)
    assert bitmap.next_dirty_area(0, end=8192) == (0, 8192)


@settings(max_examples=40, deadline=None)
@given(steps, steps)
def test_a_copy_is_independent(one: list[tuple[bool, int, int]], two: list[tuple[bool, int, int]]) -> None:
    bitmap, model = build(one)
    copy = bitmap.copy()
    for value, offset, size in two:
        (bitmap.set if value else bitmap.reset)(offset, size)
    assert (copy.count, list(copy.areas())) == (sum(model) * GRANULARITY, runs(model, LENGTH))
    # Merging puts no page of one into the other.
    empty = HBitmap(LENGTH, GRANULARITY)
    empty.merge(copy)
    empty.set(0, LENGTH)
    empty.reset(0, LENGTH)
    assert list(copy.areas()) == runs(model, LENGTH)


@settings(max_examples=40, deadline=None)
@given(steps, steps, st.sampled_from([512, 1024, 65536, 1 << 20, 1 << 22, 1 << 24]), st.booleans())
@example([], [(True, LENGTH - 1, 1)], 65536, False)
@example([], [(True, 0, LENGTH)], 1 << 24, False)
@example([(True, LENGTH - 1, 1)], [], 1 << 22, True)
def test_merge_across_granularities(
    one: list[tuple[bool, int, int]], two: list[tuple[bool, int, int]], granularity: int, swap: bool
) -> None:
    fine, _ = build(one)
    coarse = HBitmap(LENGTH, granularity)
    for value, offset, size in two:
        (coarse.set if value else coarse.reset)(offset, size)
    target, source = (coarse, fine) if swap else (fine, coarse)
    expected = target.copy()
    for area in source.areas():
        expected.set(*area)
    target.merge(source)
    assert (target.count, list(target.areas())) == (expected.count, list(expected.areas()))
    whole = 8 * target.granularity
    assert target.serialise(0, -(-LENGTH // whole) * whole) == expected.serialise(0, -(-LENGTH // whole) * whole)
