"""The events of a ring by their place, beside a plain list of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.cursor import Source
from broker.protocol.entries import SLACK, Entries

SOURCE = Source("a", "e", 1)

Sizes = list[int]


def filled(sizes: Sizes, at_once: int = 0) -> tuple[Entries, list[bytes]]:
    """The last ones ``at_once``."""
    entries, frames = Entries(), [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    single = max(0, len(frames) - at_once)
    for seq, frame in enumerate(frames[:single], 1):
        entries.append(SOURCE, seq, frame)
    assert entries.extend(SOURCE, single + 1, frames[single:]) == sum(sizes[single:])
    return entries, frames


def walked(sizes: Sizes, begin: int, max_events: int, max_bytes: int) -> int:
    """Where a batch ends, one entry after the other."""
    end = begin
    while end < len(sizes):
        max_bytes -= sizes[end]
        if end - begin >= max_events or (end > begin and max_bytes < 0):
            break
        end += 1
    return end


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 20), st.integers(0, 200), st.data())
def test_a_batch_is_what_a_walk_would_find(sizes: Sizes, max_events: int, max_bytes: int, data: st.DataObject) -> None:
    entries, frames = filled(sizes, data.draw(st.integers(0, len(sizes))))
    gone = data.draw(st.integers(0, len(sizes)))
    for index in range(gone):
        assert entries.give_up(index) == (SOURCE, sizes[index])
    begin = data.draw(st.integers(gone, len(sizes)))
    end = entries.end_of(begin, max_events, max_bytes)
    assert end == walked(sizes, begin, max_events, max_bytes)
    assert entries.frames(begin, end) == frames[begin:end]
    assert entries.bytes(begin, end) == sum(sizes[begin:end])
    for index in range(begin, len(sizes)):
        assert (entries.of(index), entries.frame(index)) == ((SOURCE, index + 1), frames[index])


@given(st.integers(1, 50))
def test_places_are_the_same_after_what_was_given_up_is_cut_off(kept: int) -> None:
    count = 2 * SLACK + kept
    entries, frames = filled([3] * count)
    for index in range(count - kept):
        entries.give_up(index)
    assert len(entries) < SLACK + kept
    entries.append(SOURCE, count + 1, b"new")
    assert entries.frames(count - kept, count + 1) == [*frames[-kept:], b"new"]
    assert entries.bytes(count - kept, count + 1) == 3 * (kept + 1)
    assert entries.end_of(count - kept, count, 3 * kept) == count
    assert entries.of(count) == (SOURCE, count + 1)
