"""A subscription: patterns, a bounded queue, and the truth about what is missing from it.

Arriving events pass the sequence tracker (protocol/sequence.py), which drops duplicates and knows holes, and wait in
the queue until the program reads them. A program that does not keep up meets the policy it chose:

* ``block``: the hub is asked to pause; it holds publishers back for as long as ``patience`` allows. What is still
under way is
  taken up to a hard bound; beyond it events are left out, which the tracker sees as a hole and asks for again.
* ``drop_oldest``: the oldest unread event makes room and is named lost.
* ``disconnect``: the subscription ends with SlowConsumer once what it holds has been read.

Datagrams have no sequence and wait in a queue of their own, which is read when the other one is empty: they hold up
nothing. The oldest of too many goes, counted.

Not here: the wire (link.py) and other subscriptions.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from broker.errors import BrokerError, SlowConsumer
from broker.events import Event
from broker.protocol.sequence import Repair, Sequences, Verdict
from broker.spoke.unread import Unread

__all__ = ["Policy", "Since", "Subscription"]

Policy = Literal["block", "drop_oldest", "disconnect"]
Since = Literal["start"] | int | None

UNDER_WAY = 65_536
"""Events that a full queue still takes after the hub was asked to pause: more small ones than the hub's lane, QUIC's
windows and the inbox hold, so that only a hub that does not know the request ever sends so many."""

DATAGRAMS = 1_024
"""Unread datagrams of one subscription: a second's worth at a rate at which nobody minds one more or less."""

UNPLACED_TOPICS = 16_384
"""Topics without places that one subscription counts on; beyond it it counts anew, in a new epoch."""


class Owner(Protocol):
    """What a subscription asks of the spoke that it belongs to."""

    swarm: Callable[[str], Awaitable[None]]
    """Returns when the swarm of a topic is heard."""

    @property
    def connected(self) -> bool: ...
    def begin(self, subscription: Subscription) -> None:
        """From now on it is told what arrives; the hub hears of its patterns."""

    def end(self, subscription: Subscription) -> None: ...
    def pause(self, subscription: Subscription) -> None: ...
    def resume(self, subscription: Subscription, *, again: bool) -> None:
        """``again``: events were left out, so the hub is to start from the subscription's positions."""


class Subscription:
    """``async with spoke.subscribe(...) as events: async for event in events: ...``"""

    def __init__(
        self,
        patterns: tuple[str, ...],
        *,
        since: Since,
        policy: Policy,
        patience: float,
        bound: int,
        owner: Owner,
        gap_patience: Mapping[str, float],
        gossip: bool = False,
        only_datagrams: bool = False,
    ) -> None:
        """``gap_patience``: seconds, by topic, before a gap there is asked for. ``gossip``: it begins when the swarms
        of its topics are heard. ``only_datagrams``: events of sequences are nothing to it."""
        self.patterns = tuple(dict.fromkeys(patterns))
        self.since, self.policy, self.patience = since, policy, patience
        self._owner = owner
        self._bound = bound
        self._unread = Unread()
        self._datagrams: deque[Event] = deque()
        self.only_datagrams = only_datagrams
        self.datagrams = self.datagrams_dropped = 0
        """Datagrams that came, and those of them that this reader was too slow for."""
        self._sequences: Sequences[Event] = Sequences(since, patience=gap_patience)
        self._gossip = gossip
        self._waiter: asyncio.Future[None] | None = None
        self._paused = False
        self._gaps = False
        self._error: BrokerError | None = None
        self._ended = False
        self._last_verdict = "complete"
        self.tag = ""
        """What the hub is told to call it; set by the owner."""
        self._unplaced: dict[str, int] = {}
        self._unplaced_epoch = 0
        self.began = False
        """The hub has heard of it on some connection; set by the owner."""
        self.began_at = 0.0
        """What is first heard after this is new to it; set by the owner."""
        self.dropped = 0

    # What the program uses.

    @property
    def verdicts(self) -> list[Verdict]:
        """One per topic, author and epoch heard so far. What a hub without sequences sent is ``unknown``: it cannot be
        told what is missing from it."""
        return [verdict if verdict.author else replace(verdict, unsure=True) for verdict in self._sequences.verdicts()]

    @property
    def verdict(self) -> str:
        """One word for all of it: the worst of the authors' verdicts, or ``pending`` while the hub is away or holds
        back what the program has no room for. After the end, the last one. Of datagrams it says nothing; ``unknown``
        where it has nothing else to speak of."""
        if self.only_datagrams:
            return "unknown"
        if self._ended:
            return self._last_verdict
        word = worst(self.verdicts)
        open = not self._owner.connected or self._paused
        return "pending" if open and not word.startswith("lost") else word

    @property
    def queued(self) -> int:
        return len(self._unread) + len(self._datagrams)

    async def __aenter__(self) -> Self:
        self._owner.begin(self)
        if self._gossip:
            try:
                for topic in self.patterns:
                    await self._owner.swarm(topic)
            except BaseException:
                self._owner.end(self)
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner.end(self)
        self.finish(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        unread = self._unread
        while not unread.next and not unread.refill():
            if self._datagrams:
                return self._datagrams.popleft()
            await self._arrival()
        event = unread.next.popleft()
        if self._paused:
            self._resume()
        return event

    async def batches(self) -> AsyncIterator[list[Event]]:
        """All that is there, each time something is: for programs that write in bulk."""
        while await self._something():
            batch = [*self._unread.events(), *self._datagrams]
            self._datagrams.clear()
            if self._paused:
                self._resume()
            yield batch

    async def runs(self) -> AsyncIterator[Sequence[Event]]:
        """The same in the runs in which it came: events of one author that follow each other on one topic, each a
        sequence that is not to be changed; a datagram is one by itself. For programs that write in bulk by author, and
        for those that count (``SpokeOptions.counts_gossip``): there an event is only made when it is looked at."""
        while await self._something():
            run = self._unread.run() if len(self._unread) else [self._datagrams.popleft()]
            if self._paused:
                self._resume()
            yield run

    async def _something(self) -> bool:
        """Waits for something to read. False at the end."""
        while not len(self._unread) and not self._datagrams:
            try:
                await self._arrival()
            except StopAsyncIteration:
                return False
        return True

    async def _arrival(self) -> None:
        if self._ended:
            if self._error is not None:
                raise self._error
            raise StopAsyncIteration
        if self._waiter is not None:
            raise RuntimeError("one subscription has one reader; subscribe twice for two")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # What the link tells it.

    def receive(
        self,
        topic: str,
        author: str,
        epoch: str,
        first: int,
        events: Sequence[Event],
        now: float,
        *,
        new: bool = False,
    ) -> None:
        """Events that match and follow each other in a sequence. Follow a batch of these by :meth:`wake`. ``new``:
        nobody here had heard of this sequence when the subscription began."""
        if self._ended:
            return
        room = self._bound + UNDER_WAY if self.policy == "block" else self._bound
        if len(self._unread) + len(events) < room:
            if ready := self._sequences.run(topic, author, epoch, first, events, now, new=new):
                self._admit(ready)
            return
        for seq, event in enumerate(events, first):
            self._receive_one(topic, author, epoch, seq, event, now, new)

    def _receive_one(self, topic: str, author: str, epoch: str, seq: int, event: Event, now: float, new: bool) -> None:
        """One for which there may be no room."""
        if self._ended:
            return
        if self._paused and self._full():
            # It is known to exist from here on, so it cannot be forgotten: a hole until the hub sends it again.
            self._sequences.left_out(topic, author, epoch, seq, now, new=new)
            return
        ready = self._sequences.event(topic, author, epoch, seq, event, now, new=new)
        if ready:
            self._admit(ready)

    def receive_unplaced(self, topic: str, detail: Any, now: float) -> None:
        """One event of a hub that gives events no place (upstream's): its place is its turn of arrival, counted here
        from where this subscription begins, so that what such a hub never sent is no hole."""
        if self._ended:
            return
        if len(self._unplaced) >= UNPLACED_TOPICS and topic not in self._unplaced:
            self._unplaced.clear()
            self._unplaced_epoch += 1
        begins = max(self.since, 1) if isinstance(self.since, int) else 1
        seq = self._unplaced[topic] = self._unplaced.get(topic, begins - 1) + 1
        epoch = f"{self._unplaced_epoch:016x}"
        if self._paused and self._full():
            self._release(self._sequences.lost(topic, "", epoch, seq, seq, now))  # nobody can be asked for it
            return
        event = Event(topic, detail, {"author": "", "epoch": epoch, "seq": seq})
        if ready := self._sequences.event(topic, "", epoch, seq, event, now):
            self._admit(ready)

    def receive_datagram(self, event: Event) -> None:
        """One event without a number."""
        if self._ended:
            return
        self.datagrams += 1
        if len(self._datagrams) >= DATAGRAMS:
            self._datagrams.popleft()
            self.datagrams_dropped += 1
        self._datagrams.append(event)

    def _full(self) -> bool:
        """Whether a paused queue has no room left."""
        if len(self._unread) < self._bound + UNDER_WAY:
            return False
        self.dropped += 1
        self._gaps = True
        return True

    def _admit(self, events: Sequence[Event]) -> None:
        unread = self._unread
        unread.add(events)
        if len(unread) < self._bound or self._paused:
            return
        match self.policy:
            case "block":
                self._paused = True
                self._owner.pause(self)
            case "drop_oldest":
                while len(unread) > self._bound and unread.refill():
                    self._drop(unread.next.popleft())
            case "disconnect":
                pending = len(unread)
                self._owner.end(self)
                self.finish(
                    SlowConsumer(
                        f"the program fell {pending} events behind on {', '.join(self.patterns)} and its "
                        "policy is to end then; read faster, or subscribe with policy 'block' or 'drop_oldest'",
                        pending=pending,
                    )
                )

    def _drop(self, event: Event) -> None:
        self.dropped += 1
        meta = event.meta
        self._sequences.dropped(event.type, meta["author"], meta["epoch"], meta["seq"])

    def _resume(self) -> None:
        """Half empty again: the hub goes on where it paused, or, after events were left out, from what is known
        here."""
        if len(self._unread) > self._bound // 2:
            return
        self._paused = False
        again, self._gaps = self._gaps, False
        self._owner.resume(self, again=again)

    def head(self, topic: str, author: str, epoch: str, seq: int, *, baseline: bool, now: float) -> None:
        """The newest seq that the hub knows; what of it is not here is a hole from now on."""
        self._sequences.head(topic, author, epoch, seq, now, baseline=baseline)

    def announced(self, topic: str, author: str, epoch: str, seq: int, *, new: bool, now: float) -> None:
        """The newest seq that the swarm knows."""
        self._sequences.announced(topic, author, epoch, seq, now, new=new)

    def lost(self, topic: str, author: str, epoch: str, first: int, last: int, now: float) -> None:
        """Nobody has this range any more."""
        self._release(self._sequences.lost(topic, author, epoch, first, last, now))

    def resumed(self, now: float, *, anew: bool) -> None:
        """The hub is back, or (not ``anew``) is asked once more to go on from here; what it says next is about what was
        missed."""
        self._gaps = False
        self._sequences.resumed(now, anew=anew)

    def wanted(self, now: float) -> list[Repair]:
        """Holes to ask for. Those that a hub was asked for in vain are lost now; while there is none, nothing is."""
        if self._paused or self._ended:
            return []
        if not self._owner.connected:
            return self._sequences.wanted(now, on=True)
        self._release(self._sequences.expire(now))
        return self._sequences.wanted(now)

    def next_due(self) -> float | None:
        """When :meth:`wanted` has something to say."""
        return None if self._paused or self._ended else self._sequences.next_due()

    def positions(self) -> dict[str, dict[str, tuple[str, int]]]:
        """How far it is, per topic and author: what the hub goes on from."""
        return self._sequences.positions()

    def _release(self, events: list[Event]) -> None:
        if events:
            self._admit(events)
            self.wake()

    @property
    def paused(self) -> bool:
        return self._paused

    def wake(self) -> None:
        """Wakes the reader if there is something to read."""
        waiter = self._waiter
        if waiter is not None and (len(self._unread) or self._datagrams or self._ended) and not waiter.done():
            waiter.set_result(None)

    def finish(self, error: BrokerError | None) -> None:
        """No more events; what is queued can still be read."""
        if not self._ended:
            self._last_verdict = self.verdict
            self._ended, self._error = True, error
            self.wake()


def worst(verdicts: list[Verdict]) -> str:
    """One word for several verdicts: lost beats pending beats unknown beats repaired beats complete."""
    lost = [str([a, b]) for verdict in verdicts for a, b in verdict.lost]
    if lost:
        return f"lost({', '.join(lost)})"
    if any(verdict.missing for verdict in verdicts):
        return "pending"
    if any(verdict.unsure for verdict in verdicts):
        return "unknown"
    repaired = sum(verdict.repaired for verdict in verdicts)
    return f"repaired({repaired})" if repaired else "complete"
