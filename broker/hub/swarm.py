"""One topic that travels by gossip, at the hub: its members, its swarm, and the order of what comes on either way.

Everything for such a topic, by gossip or by stream, passes one `Sequences`: it orders what gossip reorders, drops what
came twice and sees what is missing; then it is an event like any other (topics.py). What came by stream and was never
heard by gossip goes into the swarm on its author's behalf. Decisions about members are protocol/overlay.py. Not here:
timers, messages and which topics have a swarm (swarms.py).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from broker import _gossip_ext as ext
from broker.errors import FrameError, TopicError
from broker.hub.channel import Channel
from broker.hub.forwards import Forwards, Heads
from broker.hub.holes import Holes, Key
from broker.protocol import overlay
from broker.protocol.beats import Beats
from broker.protocol.carrier import Carrier
from broker.protocol.codec import check_batch
from broker.protocol.named import Frame, Named, runs
from broker.protocol.overlay import Overlay
from broker.protocol.pacing import Pacing
from broker.protocol.place import check_seq
from broker.protocol.ring import MAX_AUTHORS
from broker.protocol.sequence import Sequences

if TYPE_CHECKING:
    from broker.hub.swarms import Swarms

__all__ = ["TopicSwarm"]

REORDERED: Final = 0.25
"""Seconds a hole may close by itself before anybody is asked: gossip has more than one path (spoke/swarms.py)."""
HOLD: Final = 0.1
"""Seconds after new lists of authors in which members get them: what a new author sends before would be refused."""
LINGER: Final = 2.0
"""Seconds after the swarm is left in which what comes by stream is still put in order with what came by gossip."""

EPOCH: Final = re.compile("[0-9a-f]{16}")
"""What a signed batch can carry."""

log = logging.getLogger("broker.hub")

Item = tuple[Key, int, bytes]


class TopicSwarm:
    """See the module."""

    def __init__(
        self, swarms: Swarms, channel: Channel, carrier: Carrier, authors: dict[str, None] | None = None
    ) -> None:
        self._swarms, self.channel, self.carrier = swarms, channel, carrier
        self.topic = channel.topic
        self.overlay = self._new_overlay()
        self.handles: dict[int, ext.Swarm] = {}
        """By generation, the present one last."""
        self.sequences: Sequences[Item] = Sequences(since="start", patience={self.topic: REORDERED})
        self.named = Named(ext.event_hash)
        self.pacing = Pacing()
        self.authors = authors
        """Who may publish; None: every member."""
        self._heard: dict[Key, int] = {}
        """The newest number of each sequence that was heard by gossip."""
        self._forwards, self._heads = Forwards(), Heads()
        self.holes = Holes(self.topic, swarms.ask)
        self._beats = Beats()
        self._hold_until = 0.0
        """Nothing is put into the swarm before its members have the new lists."""
        self._over_at: float | None = None
        for author, epoch, seq in channel.ring.heads():
            self.sequences.begin(self.topic, author, epoch, seq + 1, time.monotonic())

    # -- life

    def _new_overlay(self) -> Overlay:
        swarms = self._swarms
        generation = swarms.realm.generation(self.topic)
        return Overlay(swarms.node_id, generation, swarms.choose, unsure=swarms.realm.is_old(generation))

    def begin(self, now: float) -> None:
        """Enters the swarm, and invites whom the topic concerns."""
        if self.overlay.ending:
            self.overlay = self._new_overlay()
        self._over_at = None
        self.perform(self.overlay.begin())
        self._swarms.members.invite(self, now)

    def end(self, now: float) -> None:
        """The topic goes back to streams."""
        self.step(overlay.Ended(), now)

    @property
    def over(self) -> bool:
        """Nothing is left of it."""
        now = time.monotonic()
        return self._over_at is not None and now >= self._over_at and self.sequences.next_due() is None

    def close(self) -> None:
        """Leaves at once, whoever is in it: the topic is closed, or the hub stops."""
        for generation in list(self.handles):
            self._leave(generation)
        for peer in self.overlay.members():
            self._swarms.members.dismiss(self, peer)
        self.channel.swarm = None
        self.channel.by_gossip.clear()
        self._release(True)
        self._swarms.closed(self)

    def step(self, event: overlay.Event, now: float) -> None:
        self.perform(self.overlay.handle(event, now))

    def perform(self, effects: Sequence[overlay.Effect]) -> None:
        swarms, channel = self._swarms, self.channel
        for effect in effects:
            match effect:
                case overlay.Tell(peer, bootstrap):
                    swarms.members.tell(self, peer, bootstrap)
                    if self.overlay.settles(now := time.monotonic()):
                        self._beats.told(now, len(self.overlay))
                case overlay.Dismiss(peer):
                    if peer not in self.overlay:
                        channel.by_gossip.discard(peer)
                    swarms.members.dismiss(self, peer)
                    self.carrier.unpin(peer)
                case overlay.TakeOut(peer):
                    swarms.topics.take_out(channel, peer)
                    swarms.totals.joins["member"] += 1
                case overlay.PutBack(peer):
                    self.pacing.gone(peer)
                    swarms.topics.put_back(channel, peer)
                case overlay.Enter(generation):
                    self.handles[generation] = swarms.join(self, generation)
                case overlay.Leave(generation):
                    self._leave(generation)
                case overlay.Finished():
                    self._over_at = time.monotonic() + LINGER

    def _leave(self, generation: int) -> None:
        handle = self.handles.pop(generation)
        self._swarms.left(handle)
        handle.leave()

    def gone(self, peer: int, now: float) -> None:
        """A connection ended."""
        self.channel.by_gossip.discard(peer)
        self.carrier.unpin(peer)
        self.holes.gone(peer)
        self.pacing.gone(peer)
        self.step(overlay.Gone(peer), now)

    def authors_changed(self, now: float) -> None:
        """What NodeIds may do is another thing now."""
        before = self.authors
        self.authors = self._swarms.members.authors_of(self.channel)
        if self.authors is not None and before is not None:
            self.authors |= {one: None for one in before if self._swarms.members.may_publish(one, self.topic)}
        if self.authors != before:
            self.lists_changed(now)

    def lists_changed(self, now: float) -> None:
        """Tells everybody who may publish."""
        for handle in self.handles.values():
            handle.allow(hubs=self._swarms.realm.hubs, authors=None if self.authors is None else list(self.authors))
        self._hold_until = now + HOLD
        self.step(overlay.Changed(), now)
        self._swarms.touched(self)

    @property
    def shared(self) -> bool:
        """Whether the realm has other hubs."""
        return self._swarms.realm.shared

    @property
    def left_out(self) -> int:
        """Events that found no room in gossip."""
        return self._forwards.left_out

    @property
    def handle(self) -> ext.Swarm | None:
        """The present generation's."""
        return self.handles.get(self.overlay.generation)

    # -- what comes in

    def from_stream(self, peer: int, author: str, epoch: str, seq: int, frame: bytes) -> None:
        """An event that came over its author's connection."""
        now, key = time.monotonic(), (author, epoch)
        check_seq(seq, 1)
        if self.channel.authors.get(key) != peer:
            if not EPOCH.fullmatch(epoch):
                raise TopicError(
                    f"epoch {epoch!r}: this topic travels by gossip, and needs hex", code="VALIDATION_ERROR"
                )
            self.channel.remember_author(key, peer)
            self._swarms.members.publishes(self, peer, author, now)
        newest = self.channel.ring.newest(author, epoch)
        if seq <= newest:
            self._swarms.topics.accept(self.channel, author, epoch, seq, [frame])  # again: counted, and acked again
            return
        if seq > newest + 1 and key not in self._heard and not self._swarms.members.gossips(peer):
            self._take(key, self.sequences.lost(self.topic, author, epoch, newest + 1, seq - 1, now), now)
        if not self._is_named((self.topic, author, epoch, seq), frame):
            why = f"event {seq} is not the one that its author's batch names by its hash"
            raise TopicError(why, code="VALIDATION_ERROR")
        item = (key, seq, frame)
        items = self.sequences.event(self.topic, author, epoch, seq, item, now)
        if not items and self._given_up(key):
            items = [item]  # all up to the newest known was given up, but nothing after it is out
        self._take(key, items, now)
        self._swarms.touched(self)

    def from_gossip(self, author: str, epoch: str, first: int, frames: list[Frame], *, asked: bool = False) -> int:
        """A batch of consecutive events, signed by or for their author. Returns how many events it had; 0: one is no
        JSON, or not the one that was named."""
        now, key = time.monotonic(), (author, epoch)
        last = first + len(frames) - 1
        check_seq(last, 1)
        found = list(runs(first, frames))
        if not all(self._is_right(author, epoch, seq, run) for seq, run in found):
            return 0
        self.named.batch(self.topic, author, epoch, first, frames)
        out: list[Item] = []
        for begin, run in found:
            if run:
                items = [(key, seq, frame) for seq, frame in enumerate(run, begin)]
                out += self.sequences.run(self.topic, author, epoch, begin, items, now)
                continue
            # That whoever was asked has not got it either is no reason to ask on.
            (self.sequences.head if asked else self.sequences.left_out)(self.topic, author, epoch, begin, now)
        self._hear(key, last)
        self._take(key, out, now)
        self._swarms.touched(self)
        return len(frames)

    def _is_right(self, author: str, epoch: str, first: int, run: list[bytes]) -> bool:
        """Whether events that the extension says are these may be taken."""
        try:
            check_batch(run)
        except FrameError:
            return False
        places = ((self.topic, author, epoch, seq) for seq in range(first, first + len(run)))
        return not self.named.known or all(map(self._is_named, places, run))

    def _is_named(self, place: tuple[str, str, str, int], frame: bytes) -> bool:
        """Whether it is the event that a batch has named, if one has."""
        if self.named.holds(place, frame):
            return True
        self._swarms.totals.mismatched += 1
        log.warning("%s: event %d of %s is not the one that was named; it is not taken", place[0], place[3], place[1])
        return False

    def head(self, author: str, epoch: str, seq: int) -> None:
        """The swarm says how far a sequence is, signed."""
        now = time.monotonic()
        check_seq(seq, 0)
        if seq:
            self._hear((author, epoch), seq)
            self.sequences.head(self.topic, author, epoch, seq, now)
            self._swarms.touched(self)

    def announced(self, peer: int, author: str, epoch: str, first: int, gossiped: int) -> None:
        """An author that (re)connects holds its events from ``first`` on, and has given gossip those up to
        ``gossiped``."""
        now, key = time.monotonic(), (author, epoch)
        if gossiped:
            self._hear(key, gossiped)
        self.sequences.begin(self.topic, author, epoch, first, now)
        self._swarms.members.publishes(self, peer, author, now)
        if first > self.top(key):
            self.excuse(key, peer)

    def lost(self, key: Key, first: int, last: int) -> None:
        """Nobody has these any more."""
        now = time.monotonic()
        self._take(key, self.sequences.lost(self.topic, *key, first, last, now), now)
        self._show_given_up(key)
        self._swarms.touched(self)

    def _given_up(self, key: Key) -> bool:
        """Whether the newest numbers known are lost: nobody waits for them any more."""
        verdict = self.sequences.verdict(self.topic, *key)
        return verdict is not None and not verdict.missing and verdict.known > self.channel.ring.newest(*key)

    def excuse(self, key: Key, peer: int) -> None:
        """Its author, ``peer``, does not have the newest numbers any more: it is not to wait for an acknowledgement."""
        if self._given_up(key):
            self._swarms.router.send(peer, "topic.ack", {"topic": self.topic, "epoch": key[1], "seq": self.top(key)})

    def batch(self, author: str, epoch: str, first: int, frames: list[Frame]) -> int:
        """A signed batch that a member gave when it was asked."""
        if not self.shared and (author, epoch) in self.holes.refilling():
            # Nothing of it is known: what is older, the member does not have any more, and no other hub may.
            self.sequences.begin(self.topic, author, epoch, first, time.monotonic())
        return self.from_gossip(author, epoch, first, frames, asked=True)

    def top(self, key: Key) -> int:
        """The newest number of a sequence that the hub knows to exist."""
        verdict = self.sequences.verdict(self.topic, *key)
        return 0 if verdict is None else verdict.known

    def _hear(self, key: Key, seq: int) -> None:
        known = self._heard.get(key)
        if known is None and len(self._heard) >= MAX_AUTHORS:
            del self._heard[next(iter(self._heard))]
        if known is None or seq > known:
            self._heard[key] = seq

    def _take(self, key: Key, items: list[Item], now: float) -> None:
        """These are in order."""
        if not items:
            return
        author, epoch = key
        self._show_lost_beginning(key, items[0][1])
        accept, channel, heard = self._swarms.topics.accept, self.channel, self._heard.get(key, 0)
        if key not in channel.authors and (peer := self._swarms.members.connection(author)) is not None:
            channel.remember_author(key, peer)
        listens = bool(self.handles) and (self.shared or self.overlay.listens)
        forward = self._forwards.add if listens and EPOCH.fullmatch(epoch) else None
        for first, frames in _runs(items):
            accept(channel, author, epoch, first, frames)
        if forward is not None:
            for _, seq, frame in items if items[-1][1] > heard else ():
                if seq > heard:
                    forward(key, seq, frame)
        newest = items[-1][1]
        if author != self._swarms.node_id:
            self._heads.moved(key, newest, now, gossips=newest <= heard)

    def _show_given_up(self, key: Key) -> None:
        """Of what was given up at the end of a sequence, subscribers that are fed by stream have heard nothing."""
        if self._given_up(key):
            self._show_lost_beginning(key, self.top(key) + 1)
            self._swarms.topics.goes_to(self.channel, *key, self.top(key))
            self.tell_hubs(key, self.top(key))

    def tell_hubs(self, key: Key, seq: int) -> None:
        """How far a sequence is, where the swarm may not have told them."""
        self._swarms.router.links.head(self.topic, *key, seq)

    def hub_came(self, now: float) -> None:
        """Another hub can be asked for what is missing."""
        self.sequences.resumed(now)
        self._swarms.touched(self)

    def _show_lost_beginning(self, key: Key, first: int) -> None:
        """Subscribers that are fed by stream take the first event that they get of a sequence for its beginning. They
        see no hole before it unless they are told where it began."""
        if self.channel.ring.newest(*key):
            return
        verdict = self.sequences.verdict(self.topic, *key)
        if verdict is not None and verdict.start < first:
            self._swarms.topics.begins(self.channel, *key, verdict.start)

    # -- what goes out

    def flush(self) -> None:
        """Puts what the batch brought for the swarm into it."""
        handle = self.handle
        if handle is None or not self._forwards:
            self._release(True)
            return
        if time.monotonic() < self._hold_until:
            return
        others = [other for other in self.handles.values() if other is not handle]
        self._release(self._forwards.flush(handle, others))

    def _release(self, free: bool) -> None:
        channel = self.channel
        if free and channel.withheld:
            channel.withheld = False
            self._swarms.topics.released(channel)
        channel.withheld = not free

    def served(self) -> None:
        """Somebody has asked for a repair."""
        self._swarms.totals.repairs_served += 1

    def merged(self) -> None:
        """The answer was there, since somebody had asked for the same."""
        self._swarms.totals.repairs_merged += 1

    # -- time

    def tick(self, now: float) -> None:
        self.step(overlay.Tick(), now)
        self._mind_holes(now)
        for key in self.pacing.look(now):
            self._swarms.topics.pace(self.channel, *key)
        handle = self.handle
        if handle is None:
            return
        for (author, epoch), seq in self._heads.due(now):
            handle.head(epoch, seq, author=author)
            self.tell_hubs((author, epoch), seq)
        if self._beats.tick(now, len(self.overlay), settling=self.overlay.settles(now)):
            for one in self.handles.values():
                one.head(self._swarms.epoch, 0)
            if (joined := self.overlay.joined()) and not handle.neighbours():
                by_way_of = self._swarms.members.node_ids(joined)
                handle.join_peers(self._swarms.choose(by_way_of, overlay.BOOTSTRAP))

    def _mind_holes(self, now: float) -> None:
        sequences = self.sequences
        if (due := sequences.next_due()) is not None and due <= now:
            for repair in sequences.wanted(now):
                key = repair.author, repair.epoch
                self.holes.ask(key, repair.a, repair.b, *self._swarms.members.who_has(self, key))
            for item in sequences.expire(now):
                self._take(item[0], [item], now)
            for key in [(one.author, one.epoch) for one in sequences.changed()]:
                self._show_given_up(key)
        self._refill(now)

    def _refill(self, now: float) -> None:
        """What members reported is asked of them when the author is not there to send it: it has more of it."""
        members, holes = self._swarms.members, self.holes
        for key in holes.refilling():
            if members.connection(key[0]) is not None:
                holes.forget(key)
            elif members.has_left(key[0], now):
                holes.refill(key, self.top(key), now)
            else:
                holes.wait(key, now)

    def next_due(self) -> float | None:
        """When :meth:`tick` has something to do."""
        holes = self.sequences.next_due()
        dues = [self.overlay.next_due(), self.holes.next_due(), self.pacing.next_due(), holes]
        dues.append(self._over_at if holes is None else None)
        if self.handles:
            dues += [self._beats.due, self._heads.next_due()]
        if self._forwards and not self.channel.withheld:
            dues.append(self._hold_until)
        return min((due for due in dues if due is not None), default=None)


def _runs(items: list[Item]) -> Iterator[tuple[int, list[bytes]]]:
    """Items in order as runs of consecutive numbers, with the first of each."""
    begin = 0
    for end in range(1, len(items) + 1):
        if end == len(items) or items[end][1] != items[end - 1][1] + 1:
            yield items[begin][1], [frame for _, _, frame in items[begin:end]]
            begin = end
