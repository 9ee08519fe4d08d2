"""How much an author may have under way in a swarm, by what the hub has and by what its members have heard."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.pacing import (
    CALM,
    FEW,
    FIRST,
    LEAST,
    LEAST_AHEAD,
    LOOK,
    MARKS,
    MOST,
    QUANTUM,
    QUEUE,
    REPORT,
    SEQUENCES,
    Key,
    Pacing,
)

KEY: Key = ("author", "epoch")
PATIENCE = 2.0
ROOM = LEAST_AHEAD
"""How far an author may be ahead of its slowest member at first."""


def paced(**heard: int) -> Pacing:
    """Members by their first letter, and how far each has heard it."""
    one = Pacing()
    for name, seq in heard.items():
        one.heard(KEY, ord(name), seq, PATIENCE, 0.0)
    return one


def held_for(one: Pacing, acked: int, *, until: float = 60.0) -> float:
    """Seconds in which an author that sends what it may gets nothing more to send, when nobody says a word."""
    now = 0.0
    while one.window(KEY, acked, now) == 0 and now < until:
        now += LOOK
        assert one.next_due() is not None, "who waits is looked after"
        one.look(now)
    return now


def test_the_window_halves_once_a_wave_and_grows_in_quiet() -> None:
    one = Pacing()
    one.acknowledged(FIRST - 1, 0.0)
    assert one.size == FIRST
    one.acknowledged(1, 0.0)
    assert one.size == int(FIRST * 1.12)
    before = one.size
    for moment in (1.0, 1.05, 1.1):
        one.overrun(moment)
    assert one.size == before // 2, "one wave counts as one"
    one.acknowledged(MOST, 1.2)
    assert one.size == before // 2, "no growth so soon after"
    one.overrun(1.01 + CALM)
    assert one.size == before // 4


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 10_000), st.floats(0, 2)), max_size=300))
def test_a_window_has_bounds(steps: list[tuple[bool, int, float]]) -> None:
    one, now = Pacing(), 0.0
    for overrun, events, seconds in steps:
        now += seconds
        if overrun:
            one.overrun(now)
        else:
            one.acknowledged(events, now)
        assert LEAST <= one.size <= MOST


def test_nobody_is_waited_for_who_has_said_nothing() -> None:
    one = Pacing()
    assert one.window(KEY, 1_000_000, 0.0) == FIRST
    assert one.next_due() is None


def test_an_author_is_ahead_of_the_slowest_member_by_no_more_than_it_may() -> None:
    one = paced(a=2_000, b=1_000)
    assert one.window(KEY, 1_000, 0.0) == FIRST
    assert one.window(KEY, 1_000 + ROOM - 10, 0.0) == 10
    assert one.window(KEY, 1_000 + ROOM, 0.0) == 0
    assert one.window(KEY, 5_000, 0.0) == 0


def test_the_slowest_lets_its_author_go_on_and_others_do_not() -> None:
    one = paced(a=1_000, b=1_000)
    assert one.window(KEY, 1_000 + ROOM, 0.0) == 0
    assert not one.heard(KEY, ord("a"), 1_512, PATIENCE, 0.1), "the other is there still"
    assert one.heard(KEY, ord("b"), 1_512, PATIENCE, 0.2)
    assert one.window(KEY, 1_000 + ROOM, 0.2) == FIRST
    assert not one.heard(KEY, ord("b"), 2_024, PATIENCE, 0.3), "nobody waits"


def test_a_member_that_reports_is_heard_before_its_author_has_to_stop() -> None:
    """Whatever the window: the author may always send so much that the next report is due."""
    one = paced(a=1_000)
    for moment in range(1, 40):
        one.overrun(float(moment))
    assert one.size == LEAST
    assert one.window(KEY, 1_000 + REPORT, 40.0) > 0


def test_a_silent_member_is_waited_for_as_long_as_its_patience_and_not_again() -> None:
    one = paced(a=0, b=4_000)
    assert PATIENCE <= held_for(one, ROOM) <= PATIENCE + LOOK
    assert one.left_behind == 1
    one.heard(KEY, ord("a"), 512, PATIENCE, 10.0)
    assert one.window(KEY, ROOM + 512, 10.0) == FIRST, "it is not in sight of the newest yet"


def test_who_was_left_behind_is_waited_for_again_when_it_is_in_sight_of_the_newest() -> None:
    one = paced(a=0, b=4_000)
    held_for(one, ROOM)
    one.heard(KEY, ord("a"), 4_000 - REPORT, PATIENCE, 10.0)
    one.heard(KEY, ord("b"), 9_000, PATIENCE, 10.0)
    assert one.window(KEY, 9_000, 10.0) == 0


def test_a_slow_member_that_goes_on_holds_its_author_up_no_longer_than_by_its_rate() -> None:
    """With fewer than QUANTUM events in its patience it is left behind, with more it sets the pace."""
    for rate, stays in ((QUANTUM / PATIENCE * 0.8, False), (QUANTUM / PATIENCE * 1.5, True)):
        one, now, seq = paced(a=0, b=1 << 30), 0.0, 0
        while now < 30.0:
            one.window(KEY, seq + one.ahead(KEY), now)
            now += REPORT / rate
            one.look(now)
            seq += REPORT
            one.heard(KEY, ord("a"), seq, PATIENCE, now)
        assert (one.left_behind == 0) is stays


def test_whom_a_member_held_up_goes_on_when_it_is_gone() -> None:
    one = paced(a=0, b=4_000)
    assert one.window(KEY, ROOM, 0.0) == 0
    one.gone(ord("a"))
    assert one.look(LOOK) == [KEY]
    assert one.window(KEY, ROOM, LOOK) == FIRST
    assert one.next_due() is None


def test_who_overruns_its_members_is_less_ahead_of_them() -> None:
    one = paced(a=0)
    assert one.window(KEY, ROOM - 1, 0.0) == 1
    for moment in (1.0, 2.0, 3.0):
        one.overrun(moment)
    assert one.window(KEY, ROOM - 1, 3.0) == 0
    assert one.window(KEY, REPORT + 3 * one.size - 1, 3.0) == 1
    one.acknowledged(50 * FIRST, 4.0)
    assert one.window(KEY, ROOM - 1, 4.0) == 1, "as far as before when it has been quiet"


class Flood:
    """An author that sends all that it may, to one member, which hears ``rate`` events a second, ``way`` seconds after
    the hub at the least."""

    def __init__(self, rate: float, way: float) -> None:
        self.pacing, self.rate, self.way, self.now = paced(a=0), rate, way, 0.0
        self.heard = self.acked = 0
        self.sent_at = [(0, 0.0)]

    def report(self) -> float:
        """One more. Returns for how long the newest event that was heard had been with the hub."""
        self.acked = self.heard + self.pacing.ahead(KEY)
        self.sent_at.append((self.acked, self.now))
        self.pacing.acknowledged(REPORT, self.now)
        self.pacing.window(KEY, self.acked, self.now)
        self.heard += REPORT
        sent = next(at for seq, at in self.sent_at if seq >= self.heard)
        self.now = max(self.now + REPORT / self.rate, sent + self.way)
        self.pacing.heard(KEY, ord("a"), self.heard, PATIENCE, self.now)
        return self.now - sent


def test_an_author_is_as_far_ahead_as_its_members_hear_in_a_tenth_of_a_second() -> None:
    """However far away they are; and it is no more ahead of slow ones than lets them speak in time."""
    quick, far, slow = Flood(20_000.0, 0.01), Flood(20_000.0, 0.5), Flood(1_000.0, 0.01)
    quick_waits, far_waits, _ = ([flood.report() for _ in range(200)][-50:] for flood in (quick, far, slow))
    assert QUEUE / 2 < sum(quick_waits) / len(quick_waits) - quick.way < 1.5 * QUEUE
    assert max(quick_waits) - quick.way < 2 * QUEUE
    assert far.pacing.ahead(KEY) > 3 * LEAST_AHEAD, "the way is no queue"
    assert max(far_waits) - far.way < 2 * QUEUE
    assert slow.pacing.ahead(KEY) == LEAST_AHEAD


def flood_among(members: int, stalled: int) -> Pacing:
    """All hear at once what its author may send, but for some, each time others, which do so two `QUEUE` later."""
    one, acked, now = Pacing(), 0, 0.0
    for peer in range(members):
        one.heard(KEY, peer, 0, PATIENCE, now)
    for turn in range(100):
        one.acknowledged(REPORT, now)
        acked += one.ahead(KEY)
        assert one.window(KEY, acked, now) == 0, "it waits for them"
        late = {(turn * stalled + number) % members for number in range(stalled)}
        for peers, seconds in ((set(range(members)) - late, 0.01), (late, 2 * QUEUE)):
            now += seconds if peers else 0.0
            for peer in sorted(peers):
                one.heard(KEY, peer, acked, PATIENCE, now)
    return one


def test_a_few_members_that_are_late_do_not_make_all_others_wait() -> None:
    """Each has to ask for what its tree did not bring now and then; queues are what many are late for."""
    assert flood_among(20, 0).ahead(KEY) > 2 * LEAST_AHEAD
    assert flood_among(20, 20 // FEW - 2).ahead(KEY) > 2 * LEAST_AHEAD
    assert flood_among(20, 20 // FEW + 1).ahead(KEY) == LEAST_AHEAD


def test_who_does_not_wait_for_its_members_may_not_be_further_ahead_of_them_for_it() -> None:
    """Else whoever has been quiet begins its flood with all of it in queues."""
    one, now = paced(a=0), 0.0
    for seq in range(REPORT, 100 * REPORT, REPORT):
        now += 5.0
        one.window(KEY, seq, now)
        one.heard(KEY, ord("a"), seq, PATIENCE, now + 0.01)
    assert one.ahead(KEY) == LEAST_AHEAD


def test_the_times_that_are_remembered_have_a_bound() -> None:
    """A member that is further behind is measured by the oldest of them, which is less than it is late."""
    one = paced(a=0)
    for seq in range(1, 10 * MARKS):
        one.window(KEY, seq, float(seq))
    sequence = one._sequences[KEY]
    assert len(sequence.marks) == MARKS
    one.heard(KEY, ord("a"), 5, PATIENCE, 1_000.0)
    assert sequence.marks[0] == (9 * MARKS, 9.0 * MARKS)


def test_the_sequences_that_are_followed_have_a_bound() -> None:
    one = Pacing()
    for number in range(SEQUENCES + 1):
        one.heard((f"author {number}", "e"), 1, 0, PATIENCE, 0.0)
    assert one.window(("author 0", "e"), 10_000, 0.0) == FIRST, "the oldest is not followed any more"
    assert one.window((f"author {SEQUENCES}", "e"), 10_000, 0.0) == 0
    held = [f"author {number}" for number in range(1, SEQUENCES)]
    for author in held:
        one.window((author, "e"), 10_000, 0.0)
    one.heard(("another", "e"), 1, 0, PATIENCE, 0.0)
    assert ("author 1", "e") in one.look(LOOK), "who waits and is forgotten is told, too"
    assert one.window(("author 1", "e"), 10_000, LOOK) == FIRST


Steps = st.lists(
    st.one_of(
        st.tuples(st.just("heard"), st.integers(0, 4), st.integers(0, 6_000)),
        st.tuples(st.just("acked"), st.just(0), st.integers(0, 6_000)),
        st.tuples(st.just("gone"), st.integers(0, 4), st.just(0)),
        st.tuples(st.just("time"), st.just(0), st.integers(1, 8)),
    ),
    max_size=120,
)


@given(Steps)
def test_the_slowest_is_known_and_nobody_waits_unseen(steps: list[tuple[str, int, int]]) -> None:
    """Against a count of all members at each step; and an author that is held up is always looked after."""
    one, now, acked = Pacing(), 0.0, 0
    said: dict[int, int] = {}
    for what, member, number in steps:
        match what:
            case "heard":
                one.heard(KEY, member, said.get(member, 0) + number, PATIENCE, now)
                said[member] = said.get(member, 0) + number
            case "acked":
                acked += number
            case "gone":
                one.gone(member)
                said.pop(member, None)
            case _:
                for _ in range(number):
                    now += LOOK
                    one.look(now)
        room, followed = one.window(KEY, acked, now), one.followed(KEY)
        assert set(followed.items()) <= set(said.items())
        expected = min(followed.values(), default=acked) + one.ahead(KEY) - acked
        assert room == max(0, min(one.size, expected))
        assert (room < one.size) == (one.next_due() is not None)
    for _ in range(int(PATIENCE / LOOK) * 6):
        now += LOOK
        one.look(now)
        one.window(KEY, acked, now)
    assert one.window(KEY, acked, now) == one.size, "five members, each with its patience, one after the other at worst"
