"""A hub's machine for the swarm of one topic: who belongs to it, who hears it, and so whom the stream leaves out.

Rules:
1. A spoke is told of the swarm (`Tell`) when it is admitted, when the generation rises, when the lists change, and when
   it wants fresh bootstrap. It is told of the hub first, then of `BOOTSTRAP` that are joined, of the freshest by lot.
2. A spoke that says it hears the present generation goes on by stream for `OVERLAP` and is then taken out (`TakeOut`):
   what is under way on one of the two is on the other too. It is put back the moment it says that it does not hear it.
3. A ban raises the generation. Those taken out stay so while they move, for `MOVE` at most; who has not said by then
   that it hears the new one is put back. The hub is in both generations meanwhile.
4. When the topic goes back to streams (`Ended`) everybody is told to leave, and put back when it has, or after `MOVE`.

So a spoke that is taken out hears this generation, or heard the one before a moment ago; every other is fed by stream.
Peers are connections; a NodeId may have several. Not here: ids and secrets, sending, and what is published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = [
    "Admit",
    "Banned",
    "Changed",
    "Dismiss",
    "Effect",
    "Ended",
    "Enter",
    "Event",
    "Finished",
    "Gone",
    "Joined",
    "Leave",
    "NotJoined",
    "Overlay",
    "PutBack",
    "Revoke",
    "TakeOut",
    "Tell",
    "Tick",
    "Wanted",
]

BOOTSTRAP: Final = 2
"""Members a spoke is told of besides the hub, and a hub comes in by. Each is asked to let it in, and has others let it
in, who all let one go for it: with more, those who come together lose their neighbours faster than they find some
(docs/decisions/0006)."""
FRESH: Final = 64
"""The bootstrap is drawn from so many that said last that they hear the swarm."""
OVERLAP: Final = 0.5
"""Seconds by both ways. A joiner's neighbours have it in their trees after some round trips."""
MOVE: Final = 10.0
"""Seconds for a move to another generation or back to the stream; a spoke dials its new neighbours within 5."""
SETTLES: Final = 10.0
"""Seconds in which a spoke that was told of the swarm comes to hear it, if it can."""
WANT_INTERVAL: Final = 1.0
"""Seconds between answers to one spoke that wants bootstrap: it asks every two, and may not make the hub a mill."""
KNEW: Final = 20_000
"""NodeIds remembered as knowing this generation's id. Beyond it everybody counts as knowing it."""


@dataclass(frozen=True, slots=True)
class Admit:
    """This connection may hear the topic, and can gossip. ``reads``: it subscribes; else it only publishes."""

    peer: int
    node_id: str
    reads: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """It says that it hears the swarm of this generation."""

    peer: int
    generation: int


@dataclass(frozen=True, slots=True)
class NotJoined:
    """It says that it does not hear the swarm."""

    peer: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """It wants fresh bootstrap."""

    peer: int


@dataclass(frozen=True, slots=True)
class Revoke:
    """It has no more to do with the topic of its own will: it unsubscribed."""

    peer: int


@dataclass(frozen=True, slots=True)
class Gone:
    """Its connection ended. It may still be in the swarm."""

    peer: int


@dataclass(frozen=True, slots=True)
class Banned:
    """These NodeIds must not hear the topic any more."""

    node_ids: frozenset[str]
    generation: int
    """The next one, used if one of them knew the present one."""
    settled: bool = False
    """The realm is at that generation already: it is used whoever knew what."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Who may publish, or sign for others, is another list now."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The topic goes back to streams."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Admit | Joined | NotJoined | Wanted | Revoke | Gone | Banned | Changed | Ended | Tick


@dataclass(frozen=True, slots=True)
class Tell:
    """``topic.swarm`` with the present id, to be joined by way of ``bootstrap`` (NodeIds)."""

    peer: int
    bootstrap: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dismiss:
    """``topic.swarm`` without an id: leave."""

    peer: int


@dataclass(frozen=True, slots=True)
class TakeOut:
    """The stream leaves it out from now on."""

    peer: int


@dataclass(frozen=True, slots=True)
class PutBack:
    """The stream feeds it again."""

    peer: int


@dataclass(frozen=True, slots=True)
class Enter:
    """The hub joins the swarm of this generation."""

    generation: int


@dataclass(frozen=True, slots=True)
class Leave:
    """The hub leaves it."""

    generation: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Nobody is in it any more: the machine can be thrown away."""


Effect = Tell | Dismiss | TakeOut | PutBack | Enter | Leave | Finished


class _Member:
    __slots__ = ("answer_at", "answered", "heard", "joined", "node_id", "out", "out_at", "reads", "settles_until")

    def __init__(self, node_id: str, reads: bool) -> None:
        self.node_id, self.reads = node_id, reads
        self.joined = 0
        """The generation that it says it hears; 0: none."""
        self.heard = 0.0
        """When it last said so."""
        self.answered = float("-inf")
        self.answer_at: float | None = None
        """It has been told a moment ago and wants more: then it is told again."""
        self.settles_until: float | None = None
        """Set when it is first told of a swarm that it does not hear. One that never comes to hear it is told again and
        again, and may not keep the hub beating fast."""
        self.out = False
        self.out_at: float | None = None


class Overlay:
    """See the module. ``choose(among, most)`` draws without repeating; generations begin at 1. ``unsure``: the first
    generation is from before this machine, and who knew it is not known."""

    def __init__(
        self, hub: str, generation: int, choose: Callable[[Sequence[str], int], list[str]], *, unsure: bool = False
    ) -> None:
        self._hub, self._choose = hub, choose
        self.generation = generation
        self.entered: list[int] = []
        """Generations whose swarm the hub is in, the present one last."""
        self.ending = False
        self._members: dict[int, _Member] = {}
        self._knew: set[str] = set()
        self._all_knew = unsure
        self._moved_at: float | None = None
        """When the last move has to be over."""

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, peer: object) -> bool:
        return peer in self._members

    # -- what is known

    def knew(self, node_id: str) -> bool:
        """Whether it may know the present id."""
        return self._all_knew or node_id in self._knew

    def is_out(self, peer: int) -> bool:
        """Whether the stream leaves it out."""
        return (member := self._members.get(peer)) is not None and member.out

    def members(self) -> list[int]:
        return list(self._members)

    def joined(self) -> list[int]:
        """Those that hear the present generation."""
        return [peer for peer, one in self._members.items() if one.joined == self.generation]

    @property
    def listens(self) -> bool:
        """Whether anybody hears a swarm of this topic: else what is put into it is in the way of heartbeats."""
        return any(one.joined or one.out for one in self._members.values())

    def settles(self, now: float) -> bool:
        """Whether somebody who was told a moment ago waits for heartbeats."""
        waiting = (one.settles_until for one in self._members.values() if one.joined != self.generation)
        return any(until is not None and now < until for until in waiting)

    @property
    def readers(self) -> int:
        """Members that subscribe: what the hub would have to send to by stream."""
        return sum(one.reads for one in self._members.values())

    def next_due(self) -> float | None:
        """When a `Tick` has something to do."""
        dues = [at for one in self._members.values() for at in (one.out_at, one.answer_at) if at is not None]
        if self._moved_at is not None:
            dues.append(self._moved_at)
        return min(dues, default=None)

    # -- what happens

    def begin(self) -> list[Effect]:
        """The hub enters the swarm."""
        self.entered.append(self.generation)
        return [Enter(self.generation)]

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Admit(peer, node_id, reads):
                return self._admit(peer, node_id, reads, now)
            case Joined(peer, generation):
                return self._joined(peer, generation, now)
            case NotJoined(peer):
                return self._not_joined(peer)
            case Wanted(peer):
                return self._wanted(peer, now)
            case Revoke(peer):
                return self._revoke(peer)
            case Gone(peer):
                return self._gone(peer)
            case Banned(node_ids, generation, settled):
                return self._banned(node_ids, generation, now, settled=settled)
            case Changed():
                return [] if self.ending else [self._tell(peer, now) for peer in self._members]
            case Ended():
                return self._end(now)
            case Tick():
                return self._tick(now)

    def _admit(self, peer: int, node_id: str, reads: bool, now: float) -> list[Effect]:
        if self.ending:
            return []
        if (member := self._members.get(peer)) is not None:
            if reads and not member.reads:
                member.reads = True
                if member.joined == self.generation:
                    member.out_at = now + OVERLAP
            return []
        self._members[peer] = _Member(node_id, reads)
        return [self._tell(peer, now)]

    def _joined(self, peer: int, generation: int, now: float) -> list[Effect]:
        member = self._members.get(peer)
        if member is None:
            return []
        if generation != self.generation or self.ending:
            return [Dismiss(peer)] if self.ending else [self._tell(peer, now)]
        if not self.knew(member.node_id):
            return [self._tell(peer, now)]  # it cannot have learnt of it from us
        fresh = member.joined != generation
        member.joined, member.heard = generation, now
        if member.reads and not member.out and member.out_at is None:
            member.out_at = now + OVERLAP
        return self._moved() if fresh else []

    def _not_joined(self, peer: int) -> list[Effect]:
        member = self._members.get(peer)
        if member is None:
            return []
        if member.joined:
            member.settles_until = None
        member.joined, member.out_at = 0, None
        found = self._back(peer, member)
        if self.ending:
            del self._members[peer]
            found += self._finished()
        return found

    def _wanted(self, peer: int, now: float) -> list[Effect]:
        member = self._members.get(peer)
        if member is None or self.ending:
            return []
        if now < member.answered + WANT_INTERVAL:
            member.answer_at = member.answered + WANT_INTERVAL
            return []
        return [self._tell(peer, now)]

    def _revoke(self, peer: int) -> list[Effect]:
        member = self._members.pop(peer, None)
        if member is None:
            return []
        return [Dismiss(peer), *self._moved()]

    def _gone(self, peer: int) -> list[Effect]:
        if self._members.pop(peer, None) is None:
            return []
        return self._moved()

    def _banned(self, node_ids: frozenset[str], generation: int, now: float, *, settled: bool) -> list[Effect]:
        found: list[Effect] = []
        for peer in [peer for peer, one in self._members.items() if one.node_id in node_ids]:
            member = self._members.pop(peer)
            found += [*self._back(peer, member), Dismiss(peer)]
        if self.ending or not (settled or any(map(self.knew, node_ids))):
            return [*found, *self._moved()]
        self.generation = generation
        self._knew, self._all_knew = set(), False
        self._moved_at = now + MOVE
        self.entered.append(generation)
        found.append(Enter(generation))
        for peer, member in self._members.items():
            member.out_at = member.settles_until = None
            found.append(self._tell(peer, now))
        while len(self.entered) > 2:
            found.append(Leave(self.entered.pop(0)))
        return [*found, *self._moved()]

    def _end(self, now: float) -> list[Effect]:
        if self.ending:
            return []
        self.ending, self._moved_at = True, now + MOVE
        for member in self._members.values():
            member.out_at = member.answer_at = None
        return [*(Dismiss(peer) for peer in self._members), *self._finished()]

    def _tick(self, now: float) -> list[Effect]:
        found: list[Effect] = []
        for peer, member in self._members.items():
            if member.out_at is not None and member.out_at <= now:
                member.out_at, member.out = None, True
                found.append(TakeOut(peer))
            if member.answer_at is not None and member.answer_at <= now:
                found.append(self._tell(peer, now))
        if self._moved_at is not None and self._moved_at <= now:
            found += self._move_over()
        return found

    # -- inside

    def _tell(self, peer: int, now: float) -> Tell:
        member = self._members[peer]
        member.answered, member.answer_at = now, None
        if member.settles_until is None:
            member.settles_until = now + SETTLES
        if len(self._knew) >= KNEW:
            self._all_knew = True
        else:
            self._knew.add(member.node_id)
        joined = {one.node_id: one.heard for one in self._members.values() if one.joined == self.generation}
        joined.pop(member.node_id, None)
        freshest = sorted(joined, key=lambda node_id: (-joined[node_id], node_id))[:FRESH]
        return Tell(peer, (self._hub, *self._choose(freshest, BOOTSTRAP)))

    def _back(self, peer: int, member: _Member) -> list[Effect]:
        if not member.out:
            return []
        member.out = False
        return [PutBack(peer)]

    def _moved(self) -> list[Effect]:
        """Whether the move to the present generation, or the end, is over before its time."""
        if self.ending:
            return self._finished()
        if self._moved_at is None or any(one.joined != self.generation for one in self._members.values()):
            return []
        return self._move_over()

    def _move_over(self) -> list[Effect]:
        self._moved_at = None
        found: list[Effect] = []
        for peer, member in self._members.items():
            if member.joined != self.generation or self.ending:
                member.joined = 0
                found += self._back(peer, member)
        if self.ending:
            self._members.clear()
            return [*found, *self._finished()]
        found += [Leave(generation) for generation in self.entered[:-1]]
        del self.entered[:-1]
        return found

    def _finished(self) -> list[Effect]:
        if self._members or not self.entered:
            return []
        self._moved_at = None
        left: list[Effect] = [Leave(generation) for generation in self.entered]
        self.entered.clear()
        return [*left, Finished()]
