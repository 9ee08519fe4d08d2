"""Scripts for the state machines of tests/protocol: each move reads its arguments and calls the machine's rule.

What must hold is the machine's own business: its assertions, its invariants, and its teardown, in which everything has
to come to an end. Not here: the other targets (targets.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

from broker.protocol.calls import HUB
from tests.fuzz.script import Drawn, Script, act
from tests.protocol.talk import ANN, BOB, CARL, NOW_MS
from tests.protocol.test_caller_through_a_hub import Streams
from tests.protocol.test_calls_model import VERBS, Everything
from tests.protocol.test_outcomes_model import Calling
from tests.protocol.test_ring_model import BLOCK, CUT, DROP
from tests.protocol.test_ring_model import Against as RingMachine
from tests.protocol.test_sequence_model import Against as SequenceMachine

__all__ = ["again", "calls", "ring", "sequence", "streams"]

Move = Callable[[Any, Script], None]

# The hub's call table.

PEERS: Final = (HUB, ANN, BOB, CARL)
OPERATIONS: Final = ("get", "put", "watch", "hub.ls")
MORE: Final[dict[str, tuple[Any, ...]]] = {
    "timeoutMs": (-1, 1, 500, 2_000, "x", 10**400, None, 0, 1.5),
    "deadline": (NOW_MS - 1, NOW_MS + 700, True, None, "x", 2**63),
    "all": (True, False),
    "stream": (True, False),
    "credit": (*range(-1, 10), 2**63, None, "x"),
}
CREDITS: Final = (1, 2, 50, 10**30, 0, -3, "x", True)


def _request(machine: Everything, script: Script) -> None:
    peer, id, operation = script.one(PEERS), script.one("12345"), script.one(OPERATIONS)
    more = {key: script.one(MORE[key]) for key in script.some(tuple(MORE))}
    parent = script.number(0, 30) if script.flag() else None
    machine.request(peer=peer, request_id=id, operation=operation, more=more, parent=parent)


def _answer(machine: Everything, script: Script) -> None:
    peer, which, verb = script.one(PEERS), script.number(0, 30), script.one(VERBS[1:5])
    machine.answer(peer=peer, which=which, verb=verb, output=script.byte())


CALLS: Final[tuple[Move, ...]] = (
    _request,
    _request,
    _answer,
    _answer,
    lambda m, s: m.register(peer=s.one(PEERS), ids=set(s.some(OPERATIONS))),
    lambda m, s: m.give_up(peer=s.one(PEERS), request_id=s.one("12345")),
    lambda m, s: m.credit(peer=s.one(PEERS), request_id=s.one("12345"), n=s.one(CREDITS)),
    lambda m, s: m.leave(peer=s.one(PEERS)),
    lambda m, s: m.wait(dt=s.one((0.0, 0.1, 0.5, 0.7, 1.0, 31.0))),
    lambda m, s: m.wait_for_the_next() if m.table.next_deadline() is not None else None,
    lambda m, s: m.undeliverable(which=s.number(0, 30), full=s.flag()),
)


def calls(data: bytes) -> None:
    """A call that was accepted ends exactly once, nothing outlives it, and every bound holds."""
    act(Everything(), CALLS, (Everything.agree, Everything.no_child_of_an_aborted_call_lives), Script(data))


# A spoke that asks, the hub between, and a spoke that answers.

STREAMS: Final[tuple[Move, ...]] = (
    lambda m, s: m.deliver(which=s.number(0, 9), times=s.number(1, 5)),
    lambda m, s: m.produce(which=s.number(0, 9), times=s.number(1, 20)),
    lambda m, s: m.consume(which=s.number(0, 9), n=s.number(1, 9)),
    lambda m, s: m.give_up(which=s.number(0, 3)),
)


def streams(data: bytes) -> None:
    """Every item once, in order, and never more than the window on its way."""
    script, machine = Script(data), Streams()
    windows = [script.number(1, 9) for _ in range(script.number(1, 3))]
    machine.open(windows=windows, length=script.number(0, 60))
    act(machine, STREAMS, (Streams.in_order_once_and_within_the_window,), script)


# What a spoke remembers of calls and streams that came over a connection that ends.


def _of_those(rule: Callable[..., None], those: Callable[[Calling], Collection[str]]) -> Move:
    """A rule that draws one of some calls."""

    def move(machine: Calling, script: Script) -> None:
        if some := sorted(those(machine)):
            rule(machine, data=Drawn(script.one(some)))

    return move


def _gives_credit(machine: Calling, script: Script) -> None:
    if not machine.over and (some := sorted(one for one, owed in machine.owed.items() if owed)):
        one = script.one(some)
        machine.give_credit(data=Drawn(one, script.number(1, machine.owed[one])))


def _makes(machine: Calling, script: Script) -> None:
    if some := sorted(machine.making()):
        machine.items(data=Drawn(script.one(some)), n=script.number(1, 4))


def _asks(machine: Calling, script: Script) -> None:
    if not machine.over and machine.may_ask():
        machine.ask(stream=script.flag())


AGAIN: Final[tuple[Move, ...]] = (
    _asks,
    lambda m, s: m.arrive() if not m.over and m.asked else None,
    _makes,
    _of_those(Calling.end, lambda m: m.running),
    lambda m, s: m.denied() if not m.over else None,
    lambda m, s: m.hear(n=s.number(1, 4)) if not m.over and m.answers else None,
    _gives_credit,
    lambda m, s: m.cut() if not m.over else None,
    _of_those(Calling.ask_again, lambda m: m.open - set(m.following) if m.over else ()),
    _of_those(Calling.follow, lambda m: m.following),
    lambda m, s: m.arrive_late() if m.over and m.asked else None,
)


def again(data: bytes) -> None:
    """A call runs once and a stream has every item once, in order, wherever its connection was cut."""
    machine = Calling()
    machine.begin()
    act(machine, AGAIN, (Calling.nothing_runs_twice_and_little_is_kept,), Script(data))


# A topic in the hub.

POLICIES: Final = (BLOCK, DROP, CUT)


def _seek(machine: RingMachine, script: Script) -> None:
    reader, options = script.number(1, 3), script.one(POLICIES)
    since: Any = "start"
    if form := script.number(0, 2):
        since = script.number(0, 12)
        if form == 2:
            since = {author: (script.one("1234"), script.number(0, 12)) for author in script.some("abc")}
    machine.seek(reader=reader, options=options, data=Drawn(since))


def _read(machine: RingMachine, script: Script) -> None:
    events, size, back = script.one((1, 2, 5)), script.one((1, 100, 10**6)), script.number(0, 2)
    if machine.readers:
        reader = script.one(sorted(machine.readers))
        machine.read(data=Drawn(reader, script.flag()), events=events, size=size, back=back)


def _pause(machine: RingMachine, script: Script) -> None:
    if machine.readers:
        machine.pause(data=Drawn(script.one(sorted(machine.readers))))


def _append(machine: RingMachine, script: Script) -> None:
    author, epoch, skip = script.one("ab"), script.one("123"), script.one((0, 0, 0, 0, 1, 2, -1, 30))
    machine.append(
        author=author, epoch=epoch, skip=skip, size=script.one((10, 10, 10, 50, 200)), count=script.number(1, 4)
    )


RING: Final[tuple[Move, ...]] = (
    _append,
    _append,
    lambda m, s: m.refuse(reader=s.number(1, 3), back=s.number(0, 6), options=s.one(POLICIES)),
    _seek,
    _read,
    _read,
    _pause,
    lambda m, s: m.tick(seconds=s.one((0.0, 0.3, 1.0, 5.0))),
    lambda m, s: m.acknowledge(),
    lambda m, s: m.repair(author=s.one("ab"), epoch=s.one("123"), a=s.number(1, 12), count=s.number(1, 8)),
)


def ring(data: bytes) -> None:
    """Whatever a reader is to get it gets once and in order, or it is named lost; the ring keeps to its size."""
    script, machine = Script(data), RingMachine()
    machine.begin(events=script.number(1, 8), size=script.one((60, 300, 10**6)))
    act(machine, RING, (RingMachine.bounded,), script)


# A subscriber's sequence.


def _drop(machine: SequenceMachine, script: Script) -> None:
    if known := sorted(set(machine.out) - machine.dropped):
        machine.drop(data=Drawn(script.one(known)))


SEQUENCE: Final[tuple[Move, ...]] = (
    lambda m, s: m.event(seq=s.number(1, 40)),
    lambda m, s: m.event(seq=s.number(1, 40)),
    lambda m, s: m.run(seq=s.number(1, 40), count=s.number(1, 10)),
    lambda m, s: m.left_out(seq=s.number(1, 45)),
    lambda m, s: m.head(seq=s.number(0, 50)),
    lambda m, s: m.lost(a=s.number(1, 45), count=s.number(1, 8)),
    _drop,
    lambda m, s: m.wait(seconds=s.one((0.05, 0.5, 1.0, 20.0))),
    lambda m, s: m.answered(),
)


def sequence(data: bytes) -> None:
    """In order, no doubles, and the verdict is ``complete`` only when nothing is missing and nothing was lost."""
    script, machine = Script(data), SequenceMachine()
    machine.begin(held=script.one((1, 3, 50)), ranges=script.one((1, 2, 50)), start=script.number(0, 3))
    act(machine, SEQUENCE, (SequenceMachine.holds,), script)
