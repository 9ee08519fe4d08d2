"""Sequences whose events come by more than one path: the order is not kept on the way, and the first event seen may not
be the first one sent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.sequence import Repair, Sequences, Verdict

T, A, E = "t", "a" * 64, "0" * 16
PATIENCE = 0.2


def one(*, patience: dict[str, float] | None = None) -> Sequences[int]:
    return Sequences(patience={T: PATIENCE} if patience is None else patience)


def verdict(seqs: Sequences[int]) -> Verdict:
    found = seqs.verdict(T, A, E)
    assert found is not None
    return found


def feed(seqs: Sequences[int], *numbers: int, now: float = 0.0, new: bool = True) -> list[int]:
    return [out for seq in numbers for out in seqs.event(T, A, E, seq, seq, now, new=new)]


def test_a_gap_is_asked_for_when_the_patience_is_over_and_in_a_stream_at_once() -> None:
    for patience, due in (({T: PATIENCE}, PATIENCE), ({"another": PATIENCE}, 0.0)):
        seqs = one(patience=patience)
        feed(seqs, 1, 4)
        assert verdict(seqs).word == "pending"
        assert seqs.next_due() == due
        assert seqs.wanted(due - 0.001) == []
        assert seqs.wanted(due) == [Repair(T, A, E, 2, 3)]


def test_the_table_of_patience_may_change_under_way() -> None:
    table: dict[str, float] = {}
    seqs = one(patience=table)
    feed(seqs, 1, 3)
    assert seqs.wanted(0.0) == [Repair(T, A, E, 2, 2)]
    table[T] = PATIENCE
    feed(seqs, 5)
    assert seqs.wanted(0.0) == []
    assert seqs.wanted(PATIENCE) == [Repair(T, A, E, 4, 4)]
    del table[T]
    feed(seqs, 7)
    assert seqs.wanted(PATIENCE) == [Repair(T, A, E, 6, 6)]


def test_what_comes_out_of_order_in_time_is_not_repaired_and_what_was_asked_for_is() -> None:
    seqs = one()
    assert feed(seqs, 2, 3, 1, now=0.0) == [1, 2, 3]
    assert verdict(seqs).word == "complete"
    feed(seqs, 6, now=1.0)
    assert seqs.wanted(2.0) == [Repair(T, A, E, 4, 5)]
    assert feed(seqs, 5, 4, now=2.1) == [4, 5, 6]
    assert verdict(seqs).word == "repaired(2)"


def test_a_hole_that_is_filled_in_part_waits_for_its_rest_no_longer_than_the_patience() -> None:
    seqs = one()
    feed(seqs, 5, now=0.0)
    feed(seqs, 3, now=0.1)
    assert seqs.next_due() == 0.1 + PATIENCE


def test_what_was_missed_while_away_is_repaired_even_if_nobody_asked() -> None:
    seqs = one()
    feed(seqs, 1, 3)
    seqs.resumed(0.1)
    feed(seqs, 2, now=0.15)
    assert verdict(seqs).word == "repaired(1)"


def test_the_first_of_a_new_author_seen_is_not_the_first_that_it_sent() -> None:
    """Its first batch was lost on the way: to begin where it is first heard would say complete of what is missing."""
    seqs = one()
    assert seqs.run(T, A, E, 5, [5, 6], 0.0, new=True) == []
    assert verdict(seqs).word == "pending"
    assert verdict(seqs).missing == ((1, 4),)
    known = one()
    assert known.run(T, A, E, 5, [5, 6], 0.0, new=False) == [5, 6]
    assert verdict(known).start == 5


def test_a_head_of_the_swarm_shows_what_is_missing_at_the_end() -> None:
    seqs = one()
    feed(seqs, 1, 2)
    seqs.announced(T, A, E, 4, 1.0, new=False)
    assert verdict(seqs).missing == ((3, 4),)
    assert seqs.next_due() == 1.0 + PATIENCE
    assert seqs.wanted(1.0 + PATIENCE) == [Repair(T, A, E, 3, 4)]


def test_a_head_of_an_unknown_author_is_a_hole_if_it_is_new_and_else_the_hubs_to_say() -> None:
    seqs = one()
    seqs.announced(T, A, E, 3, 0.0, new=True)
    assert verdict(seqs).missing == ((1, 3),)
    other = one()
    other.announced(T, A, E, 3, 0.0, new=False)
    assert other.verdicts() == []
    other.head(T, A, E, 3, 0.0, baseline=True)
    assert verdict(other).word == "complete"
    away = one()
    away.resumed(0.0)
    away.announced(T, A, E, 3, 0.0, new=False)
    assert verdict(away).missing == ((1, 3),), "after a reconnect all of it is ours"


@given(st.permutations(range(1, 13)), st.lists(st.integers(1, 12), max_size=8), st.integers(1, 4))
def test_all_arrive_in_order_whatever_the_order_on_the_way(order: list[int], again: list[int], size: int) -> None:
    """Batches of up to ``size``, in any order, some twice: everything once, in order, and complete in the end."""
    seqs, out = one(), list[int]()
    batches = [list(range(seq, min(seq + size, 13))) for seq in (*order, *again)]
    for batch in batches:
        out += seqs.run(T, A, E, batch[0], batch, 0.0, new=True)
        found = verdict(seqs)
        assert (found.word == "complete") == (not found.missing)
        assert out == list(range(1, len(out) + 1))
    assert out == list(range(1, 13))
    assert verdict(seqs).word == "complete"
    assert seqs.next_due() is None


@given(st.data())
def test_every_number_that_is_heard_of_is_out_or_missing(data: st.DataObject) -> None:
    seqs, out, known, now = one(), set[int](), 0, 0.0
    for _ in range(data.draw(st.integers(1, 25))):
        now += data.draw(st.sampled_from([0.0, 0.1, 0.3, 2.0]))
        first = data.draw(st.integers(1, 30))
        match data.draw(st.sampled_from(["run", "head", "lost", "ask"])):
            case "run":
                count = data.draw(st.integers(1, 4))
                numbers = list(range(first, first + count))
                out.update(seqs.run(T, A, E, first, numbers, now, new=True))
                known = max(known, numbers[-1])
            case "head":
                seqs.announced(T, A, E, first, now, new=True)
                known = max(known, first)
            case "lost":
                out.update(seqs.lost(T, A, E, first, first, now))
                known = max(known, first)
            case "ask":
                asked = {seq for hole in seqs.wanted(now) for seq in range(hole.a, hole.b + 1)}
                assert not asked & out
        if (found := seqs.verdict(T, A, E)) is None:
            continue
        held = set(seqs._trackers[T, A, E].held)
        missing, lost = ({seq for a, b in ranges for seq in range(a, b + 1)} for ranges in (found.missing, found.lost))
        assert out | held | missing | lost >= set(range(found.start, known + 1))
        assert found.word != "complete" or not (missing | lost | held)
