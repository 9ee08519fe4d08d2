"""Topics in the hub: what is kept of each, who gets it, and how far its authors are acknowledged.

Each concrete topic has one channel: a ring of its newest events (protocol/ring.py) and a group in the extension of those
that keep up. A batch of events from the network is appended event by event and fanned out once a channel, so Python's work
does not depend on the number of subscribers. One whose queue is full becomes a reader of the ring: it is fed as its queue
drains, and joins the group when it has caught up. Resume, repair, late joiners and slow consumers are all readers.
Not here: decoding and access (router.py).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

from broker import _gossip_ext as ext
from broker.errors import TopicError
from broker.hub.metrics import HubMetrics, TopicCounters
from broker.protocol.codec import encode
from broker.protocol.ring import MAX_AUTHORS, Demoted, Disconnect, Outcome, Ring, RingSince
from broker.protocol.routing import SubscribeOptions, Subscriptions, check_topic, matches

__all__ = ["Channel", "Topics"]

log = logging.getLogger("broker.hub")

FEED_EVENTS, FEED_BYTES = 512, 262_144
"""What a reader is fed at a time: a quarter of a connection's lane, so that the feeds of several topics fit in it."""

FAN_OUT_EVENTS = 512
"""Events of one batch after which a topic is fanned out, at the latest: well before its ring could overwrite them."""

MAX_IDLE_LOOKED_AT = 64
"""Topics looked at for one that nobody wants, the quietest first, when there are too many."""

MAX_REPAIRS_WAITING = 256
"""Repairs of one peer that wait for room in its queue."""

ACK_EVENTS = 256
"""Unacknowledged events of one batch after which the acknowledgement goes out at once."""

ACK_DELAY = 0.003
"""Seconds an acknowledgement may wait for more events, so that a trickle does not cost a message each."""


MAX_PLACES = 1_000
"""Places kept for subscribers whose connection broke; beyond it the oldest is given up."""


class _Place(NamedTuple):
    """Where a subscriber stood when its connection broke. A paused reader of each ring, under an id of its own, so that
    publishers wait for its return as they would for a slow one: for its patience at most."""

    node_id: str
    """Empty for the places that a restarted hub keeps for everybody."""
    until: float
    topics: list[str]


class Channel:
    """One concrete topic."""

    __slots__ = ("accounted", "announced", "authors", "counters", "group", "leftover", "paused", "pending", "published", "ring", "topic", "unacked")

    def __init__(self, topic: str, ring: Ring, group: ext.Group, counters: TopicCounters) -> None:
        self.topic, self.ring, self.group, self.counters = topic, ring, group, counters
        self.accounted = 0
        """Bytes of the ring that the hub's total has."""
        self.published = 0
        self.unacked = 0
        """Events since the last acknowledgements."""
        self.pending: list[bytes] = []
        """Appended to the ring and not yet fanned out."""
        self.leftover: dict[int, list[bytes]] = {}
        """Readers, and what was read for each that its queue did not take: one feed at most."""
        self.paused: set[int] = set()
        self.authors: dict[tuple[str, str], int] = {}
        """(author, epoch) -> the peer that last published under it: where acknowledgements go."""
        self.announced: dict[tuple[str, str], tuple[int, int]] = {}
        """(author, epoch) -> (acked, newest) of authors that came back and have not sent it all again."""


class Topics:
    """All channels of a hub."""

    def __init__(
        self,
        endpoint: ext.Endpoint,
        metrics: HubMetrics,
        *,
        send: Callable[[int, str, Any], None],
        disconnect: Callable[[int, str], None],
        dropped: Callable[[int, int], None],
        slow: Callable[[int], None],
        queue: Callable[[int, bytes], None],
        ring_events: int,
        ring_bytes: int,
        most_topics: int,
        most_bytes: int,
    ) -> None:
        self._endpoint, self._metrics = endpoint, metrics
        self._send, self._disconnect, self._dropped = send, disconnect, dropped
        self._slow, self._queue = slow, queue
        self._fan_out_events = min(FAN_OUT_EVENTS, max(1, ring_events // 2))
        self._ring_events, self._ring_bytes = ring_events, ring_bytes
        self._most_topics, self._most_bytes = most_topics, most_bytes
        self.channels: dict[str, Channel] = {}
        self.subscriptions = Subscriptions()
        self._dirty: list[Channel] = []
        self._ack_due: dict[str, Channel] = {}
        self._ack_at: float | None = None
        self._hungry: dict[int, set[str]] = {}
        """Readers by peer: topics that have something for it."""
        self._pauses = Subscriptions()
        """Patterns that peers have paused, of those that they subscribe to."""
        self._repairs: dict[int, deque[tuple[str, str, str, int, int]]] = {}
        """Repairs that a peer asked for and whose answer its queue did not take yet."""
        self._places: dict[int, _Place] = {}
        self._place_ids = count(-1, -1)
        """Below every peer's id."""
        self._expected_until = 0.0
        self._read: set[Channel] = set()
        """Channels that have readers: the ones to look after as time passes."""
        self.fell_behind = 0
        """Times a subscriber's queue was found full. Only grows."""
        self.bytes = 0

    # Publishing.

    def publish(self, peer: int, topic: str, author: str, epoch: str, seq: int, frame: bytes) -> None:
        """One event whose meta is checked. ``flush`` follows the batch."""
        channel = self.channels.get(topic) or self._open(topic)
        outcome = channel.ring.append(author, epoch, seq, frame)
        key = (author, epoch)
        if channel.authors.get(key) != peer:
            self._remember_author(channel, key, peer)
        if outcome is Outcome.ACCEPTED:
            if not channel.pending:
                self._dirty.append(channel)
            channel.pending.append(frame)
            channel.unacked += 1
            if len(channel.pending) >= self._fan_out_events:
                self._flush_channel(channel)
        else:
            channel.counters.duplicates += 1

    def announced(self, peer: int, topic: str, author: str, epoch: str, seq: int, acked: int) -> None:
        """An author that (re)connects says how far it is: the hub answers with what it has, subscribers learn of what is
        to come. ``acked`` is what some hub has had: where a subscriber that knows nothing of the author begins."""
        channel, key = self.channels.get(topic) or self._open(topic), (author, epoch)
        self._remember_author(channel, key, peer)
        self._send(peer, "topic.ack", {"topic": topic, "epoch": epoch, "seq": channel.ring.ackable(author, epoch)})
        channel.announced.pop(key, None)
        if seq <= channel.ring.newest(author, epoch):
            return
        if len(channel.announced) >= MAX_AUTHORS:
            channel.announced.pop(next(iter(channel.announced)))
        channel.announced[key] = (acked, seq)
        self._flush_channel(channel)
        if refused := channel.group.send(self._announcement(channel, key)):
            self._fell_behind(channel, refused, channel.ring.next_index)  # they are told when they have caught up

    def _announcement(self, channel: Channel, key: tuple[str, str]) -> list[bytes]:
        """What is to come of an author. Of one that the hub knows nothing of, subscribers that do not know it either begin
        after what was acknowledged to it; of any other they have a baseline."""
        acked, seq = channel.announced[key]
        heads = [_head(channel.topic, *key, seq)]
        if not channel.ring.newest(*key):
            heads.insert(0, _head(channel.topic, *key, acked, baseline=True))
        return [encode("topic.head", head) for head in heads]

    def _announcements(self, channel: Channel) -> list[bytes]:
        """All that is still to come."""
        ring = channel.ring
        for key in [key for key, (_, seq) in channel.announced.items() if ring.newest(*key) >= seq]:
            del channel.announced[key]
        return [frame for key in channel.announced for frame in self._announcement(channel, key)]

    def _remember_author(self, channel: Channel, key: tuple[str, str], peer: int) -> None:
        if len(channel.authors) >= MAX_AUTHORS and key not in channel.authors:
            channel.authors.pop(next(iter(channel.authors)))
        channel.authors[key] = peer

    def _open(self, topic: str) -> Channel:
        """A topic's first event: its subscribers so far become its group."""
        check_topic(topic)
        if len(self.channels) >= self._most_topics:
            self._close_idlest()
        ring = Ring(capacity_events=self._ring_events, capacity_bytes=self._ring_bytes)
        channel = Channel(topic, ring, self._endpoint.group(), self._metrics.topic(topic))
        self.channels[topic] = channel
        now = time.monotonic()
        paused = self._pauses.match(topic)
        for peer, options in self.subscriptions.match(topic).items():
            if peer in paused and self._is_paused(peer, topic):
                ring.lag(peer, ring.next_index, options, now)
                self._pause_reader(channel, peer)
            else:
                channel.group.add(peer)
        if now < self._expected_until:
            self._hold_place(_Place("", self._expected_until, [topic]), now)
        return channel

    def _close_idlest(self) -> None:
        """Makes room: a topic that nobody wants goes first, else the one quiet for longest. Its readers are told how far it
        had come, so that what they did not get is a hole to them and not the end."""
        quietest = islice(self.channels.values(), MAX_IDLE_LOOKED_AT)
        victim = next((c for c in quietest if not len(c.group) and not c.leftover), None)
        victim = victim or next(iter(self.channels.values()))
        self._flush_channel(victim)
        self._ack_due.pop(victim.topic, None)
        for head in victim.ring.heads():
            self._ack(victim, *head)  # also what was withheld: nobody will release it
        for peer in victim.leftover:
            for author, epoch, seq in victim.ring.heads():
                self._send(peer, "topic.head", _head(victim.topic, author, epoch, seq))
        self.bytes -= victim.accounted
        del self.channels[victim.topic]
        self._read.discard(victim)

    # Fan-out.

    def flush(self) -> None:
        """Fans out what the batch brought, acknowledges it, and feeds readers of the topics that moved."""
        if self._dirty:
            dirty, self._dirty = self._dirty, []
            for channel in dirty:
                self._flush_channel(channel)
                if channel.topic in self.channels:
                    self.channels[channel.topic] = self.channels.pop(channel.topic)  # in the order of the last event
                if channel in self._read:
                    self._mind(channel)
                    self._feed_all(channel)
                self._acknowledge(channel)
                self._account(channel)
            if self.bytes > self._most_bytes:
                self._shed()

    def _account(self, channel: Channel) -> None:
        self.bytes += channel.ring.bytes - channel.accounted
        channel.accounted = channel.ring.bytes

    def _shed(self) -> None:
        """Over the hub's own bound: the topics that have been quiet for longest give their oldest events. Who was to
        read them is told."""
        for channel in list(self.channels.values()):
            while self.bytes > self._most_bytes and len(channel.ring):
                channel.ring.shed(len(channel.ring) // 4 + 1)
                self._account(channel)
            self._mind(channel)

    def _flush_channel(self, channel: Channel) -> None:
        pending, ring, counters = channel.pending, channel.ring, channel.counters
        if not pending:
            return
        channel.pending = []
        members = len(channel.group)
        refused = channel.group.send(pending) if members else []
        channel.published += len(pending)
        counters.published += len(pending)
        counters.delivered += len(pending) * (members - len(refused))
        if refused:
            self._fell_behind(channel, refused, ring.next_index - len(pending))

    def _fell_behind(self, channel: Channel, peers: Sequence[int], index: int) -> None:
        """Members whose queue was full become readers, from the first event that they did not get."""
        now = time.monotonic()
        options = self.subscriptions.match(channel.topic)
        for peer in peers:
            if peer in options:
                self.fell_behind += 1
                self._slow(peer)
                channel.ring.lag(peer, index, options[peer], now)
                self._add_reader(channel, peer)
                self._hungry.setdefault(peer, set()).add(channel.topic)

    def _acknowledge(self, channel: Channel) -> None:
        if channel.unacked >= ACK_EVENTS:
            self._send_acks(channel)
        elif channel.unacked:
            self._ack_due[channel.topic] = channel

    def _send_acks(self, channel: Channel) -> None:
        self._ack_due.pop(channel.topic, None)
        if channel.ring.held:
            return  # withheld: this is what slows publishers down
        channel.unacked = 0
        for head in channel.ring.newly_ackable():
            self._ack(channel, *head)

    def _ack(self, channel: Channel, author: str, epoch: str, seq: int) -> None:
        peer = channel.authors.get((author, epoch))
        if peer is not None:
            self._send(peer, "topic.ack", {"topic": channel.topic, "epoch": epoch, "seq": seq})

    # Readers.

    def drained(self, peer: int) -> None:
        """A connection has room again: its repairs are answered and its readers fed."""
        for repair in self._repairs.pop(peer, ()):
            self.repair(peer, *repair)
        for topic in list(self._hungry.get(peer, ())):
            channel = self.channels.get(topic)
            if channel is None or not self._feed(channel, peer):
                self._hungry[peer].discard(topic)
            elif channel.leftover.get(peer):
                return  # its queue is full again

    def _feed_all(self, channel: Channel) -> None:
        for peer in list(channel.leftover):
            if not channel.leftover.get(peer) and peer not in channel.paused:
                self._feed(channel, peer)

    def _feed(self, channel: Channel, peer: int) -> bool:
        """Hands a reader what it has not read, until its queue is full or it has caught up. False: no reader any more."""
        if peer in channel.paused or peer not in channel.leftover:
            return peer in channel.leftover
        self._flush_channel(channel)
        ring, now = channel.ring, time.monotonic()
        while peer in channel.leftover:
            frames = channel.leftover[peer]
            if frames:
                channel.leftover[peer] = []
                caught_up = False
            else:
                batch = ring.read(peer, FEED_EVENTS, FEED_BYTES, now)
                frames, caught_up = self._lost_frames(channel, peer, batch.lost) + batch.frames, batch.caught_up
            if frames and not self._endpoint.send(peer, frames, ext.TOPICS):
                channel.leftover[peer] = frames
                self._hungry.setdefault(peer, set()).add(channel.topic)
                break
            self._count_read(channel, frames)
            if caught_up:
                self._rejoin(channel, peer)
            elif not frames:
                break  # the ring has nothing for it now
        self._released(channel)
        return peer in channel.leftover

    def _count_read(self, channel: Channel, frames: list[bytes]) -> None:
        events = sum(not frame.startswith(LOST_FRAME) for frame in frames)
        channel.counters.delivered += events
        channel.counters.repaired += events

    def _add_reader(self, channel: Channel, peer: int) -> None:
        channel.leftover.setdefault(peer, [])
        self._read.add(channel)

    def _end_reader(self, channel: Channel, peer: int) -> None:
        channel.ring.forget(peer)
        channel.paused.discard(peer)
        channel.leftover.pop(peer, None)
        if not channel.ring.readers:
            self._read.discard(channel)

    def _rejoin(self, channel: Channel, peer: int) -> None:
        self._end_reader(channel, peer)
        channel.group.add(peer)
        if channel.announced and (frames := self._announcements(channel)):
            self._tell_ahead(peer, frames)
        if (topics := self._hungry.get(peer)) is not None:
            topics.discard(channel.topic)

    def _released(self, channel: Channel) -> None:
        """A reader moved or left: what it held up may go on."""
        if channel.unacked:
            self._mind(channel)
            self._send_acks(channel)

    def _mind(self, channel: Channel) -> None:
        """What the ring has to say about its readers after it changed."""
        for effect in channel.ring.tick(time.monotonic()):
            match effect:
                case Demoted(reader):
                    log.info("a slow subscriber of %s has used up its patience (peer %d)", channel.topic, reader)
                case Disconnect(reader, pending):
                    self._disconnect(reader, f"{pending} events behind on {channel.topic}")
        self._account(channel)

    def _lost_frames(self, channel: Channel, peer: int, ranges: Sequence[tuple[str, str, int, int]]) -> list[bytes]:
        """What names to a reader the ranges that it will not get. They travel in order with the events."""
        frames = []
        for author, epoch, first, last in ranges:
            count = last - first + 1
            channel.counters.lost += count
            self._dropped(peer, count)
            frames.append(_lost(channel.topic, author, epoch, first, last))
        return frames

    def _tell(self, peer: int, frames: list[bytes]) -> bool:
        """Sends in order with the events."""
        return not frames or self._endpoint.send(peer, frames, ext.TOPICS)

    def _tell_ahead(self, peer: int, frames: list[bytes]) -> None:
        """Sends heads: in order with the events, or when its queue of events is full, ahead of them."""
        if not self._tell(peer, frames):
            for frame in frames:
                self._queue(peer, frame)

    # Subscribing.

    def subscribe(
        self, peer: int, patterns: Sequence[str], options: SubscribeOptions, since: Any, tag: str | None = None
    ) -> list[tuple[str, TopicError]]:
        """Returns the patterns that were refused; the others count. ``tag`` comes back in the heads that answer."""
        taken: list[str] = []
        refused: list[tuple[str, TopicError]] = []
        for pattern in patterns:
            try:
                self.subscriptions.add(peer, pattern, options)
            except TopicError as error:
                refused.append((pattern, error))
            else:
                self._pauses.remove(peer, pattern)
                taken.append(pattern)
        for channel in self._covered(taken):
            self._place(channel, peer, since, tag)
        return refused

    def _covered(self, patterns: Sequence[str]) -> list[Channel]:
        """The channels that valid patterns match. One pass over the topics, however many patterns there are."""
        found = [channel for pattern in patterns if (channel := self.channels.get(pattern)) is not None]
        wild = [pattern for pattern in patterns if "*" in pattern or ">" in pattern]
        if len(wild) == 1:
            found += [channel for channel in self.channels.values() if matches(wild[0], channel.topic)]
        elif wild:
            wanted = Subscriptions()
            for pattern in wild:
                wanted.add(0, pattern, ANY)
            found += [channel for channel in self.channels.values() if wanted.covering(0, channel.topic)]
        return list(dict.fromkeys(found))

    def _place(self, channel: Channel, peer: int, since: Any, tag: str | None) -> None:
        """Where a subscriber begins on one topic. It is told the newest seq of each author: its baseline, or its hole."""
        self._flush_channel(channel)
        baseline = since is None
        behind = peer in channel.leftover
        heads = self._heads(channel, baseline=baseline)
        frames = [encode("topic.head", _head(channel.topic, *head, baseline=baseline, tag=tag)) for head in heads]
        if behind and not baseline and tag is not None:
            # Its place changes for what else it subscribed to the topic with, too: that must know what it has not got.
            frames += [encode("topic.head", _head(channel.topic, *head)) for head in heads]
        self._tell_ahead(peer, frames)
        if baseline:
            if behind:
                self._look_again(channel, peer)
            else:
                channel.group.add(peer)
            return
        channel.group.remove(peer)
        channel.leftover.pop(peer, None)
        channel.paused.discard(peer)
        of_topic: RingSince = since.get(channel.topic, {}) if isinstance(since, Mapping) else since
        options = self.subscriptions.match(channel.topic)[peer]
        channel.ring.seek(peer, of_topic, options, time.monotonic())
        if channel.ring.lagging(peer):
            self._add_reader(channel, peer)
            self._feed(channel, peer)
        else:
            self._rejoin(channel, peer)
            self._released(channel)

    def _heads(self, channel: Channel, *, baseline: bool) -> list[tuple[str, str, int]]:
        """How far each author is, as far as the hub knows or has been told. A baseline leaves out what is still to come."""
        heads = {(author, epoch): seq for author, epoch, seq in channel.ring.heads()}
        for key, (acked, seq) in channel.announced.items():
            heads[key] = max(heads.get(key, 0), acked if baseline else seq)
        return [(*key, seq) for key, seq in heads.items()]

    def unsubscribe(self, peer: int, patterns: Sequence[str]) -> None:
        gone = [pattern for pattern in patterns if self.subscriptions.remove(peer, pattern)]
        for pattern in gone:
            self._pauses.remove(peer, pattern)
        for channel in self._covered(gone):
            self._flush_channel(channel)
            if peer not in self.subscriptions.match(channel.topic):
                self._leave(channel, peer)
                self._released(channel)
            else:
                self._look_again(channel, peer)

    def pause(self, peer: int, patterns: Sequence[str]) -> None:
        """The subscriber's own queue is full. A topic of which all its patterns are paused is read by it no more."""
        known = set(patterns).intersection(self.subscriptions.patterns(peer))
        for pattern in known:
            self._pauses.add(peer, pattern, ANY)
        for channel in self._covered(list(known)):
            self._look_again(channel, peer)

    def resume(self, peer: int, patterns: Sequence[str]) -> None:
        """It goes on from where it was."""
        gone = [pattern for pattern in patterns if self._pauses.remove(peer, pattern)]
        for channel in self._covered(gone):
            self._look_again(channel, peer)

    def _look_again(self, channel: Channel, peer: int) -> None:
        """Its patterns or its pauses have changed."""
        options = self.subscriptions.match(channel.topic).get(peer)
        if options is None:
            return
        paused = self._is_paused(peer, channel.topic)
        if paused and peer not in channel.paused:
            self._flush_channel(channel)
            if peer not in channel.leftover:
                channel.ring.lag(peer, channel.ring.next_index, options, time.monotonic())
            self._pause_reader(channel, peer)
        elif not paused and peer in channel.paused:
            channel.paused.discard(peer)
            # An index that is not behind its own moves nothing.
            channel.ring.lag(peer, channel.ring.next_index, options, time.monotonic())
            self._feed(channel, peer)

    def _pause_reader(self, channel: Channel, peer: int) -> None:
        channel.group.remove(peer)
        channel.ring.pause(peer)
        channel.paused.add(peer)
        self._add_reader(channel, peer)

    def _is_paused(self, peer: int, topic: str) -> bool:
        """Whether every pattern of a peer that matches is paused: one subscription of a program does not hold up another."""
        paused = self._pauses.covering(peer, topic)
        return paused > 0 and paused == self.subscriptions.covering(peer, topic)

    def repair(self, peer: int, topic: str, author: str, epoch: str, first: int, last: int) -> None:
        """A hole that a subscriber saw: what is in the ring is sent, the rest is named lost."""
        channel = self.channels.get(topic)
        if channel is None:
            return  # its author may yet come back and refill; the subscriber asks again, and gives up in the end
        self._flush_channel(channel)
        while first <= last:
            frames, missing = self._span(channel, author, epoch, first, last)
            if not frames and not missing:
                return
            gone = [_lost(topic, author, epoch, a, b) for a, b in missing]
            if not self._tell(peer, [*frames, *gone]):
                # Its queue is full: answered when it has room. What overflows here is asked for again.
                waiting = self._repairs.setdefault(peer, deque(maxlen=MAX_REPAIRS_WAITING))
                waiting.append((topic, author, epoch, first, last))
                return
            self._count_read(channel, frames)
            lost = sum(b - a + 1 for a, b in missing)
            channel.counters.lost += lost
            self._dropped(peer, lost)
            first += len(frames) + lost

    def _span(
        self, channel: Channel, author: str, epoch: str, first: int, last: int
    ) -> tuple[list[bytes], list[tuple[int, int]]]:
        """What can be answered at a time."""
        frames, missing = channel.ring.range(author, epoch, first, last, FEED_EVENTS)
        size = 0
        for fit, frame in enumerate(frames):
            size += len(frame)
            if size > FEED_BYTES and fit:
                frames, missing = channel.ring.range(author, epoch, first, last, fit)
                break
        return frames, missing

    @property
    def lagging(self) -> int:
        """Subscribers that are read from a ring now, counted once a topic."""
        return sum(len(channel.leftover) for channel in self._read)

    def lag_of(self, peer: int) -> int:
        """Topics of which this peer is read from the ring now."""
        return sum(peer in channel.leftover for channel in self._read)

    # Places of those who are expected back.

    def expect(self, seconds: float) -> None:
        """The hub was restarted: its subscribers come back within moments, and its memory is empty. Until then the rings
        do not overwrite what authors refill."""
        self._expected_until = time.monotonic() + seconds

    def _keep_places(self, peer: int, node_id: str) -> None:
        topics, patience = [], 0.0
        for channel in self.channels.values() if self.subscriptions.patterns(peer) else ():
            options = self.subscriptions.match(channel.topic).get(peer)
            if options is not None and options.policy == "block" and options.patience:
                topics.append(channel.topic)
                patience = max(patience, options.patience)
        if topics:
            now = time.monotonic()
            self._hold_place(_Place(node_id, now + patience, topics), now)

    def _hold_place(self, place: _Place, now: float) -> None:
        if len(self._places) >= MAX_PLACES:
            self._give_up_place(next(iter(self._places)))
        id = next(self._place_ids)
        self._places[id] = place
        options = SubscribeOptions(patience=place.until - now)
        for topic in place.topics:
            ring = self.channels[topic].ring
            # What was on its way to it is lost with the connection: half a ring of it is kept too.
            ring.lag(id, max(ring.first_index, ring.next_index - self._ring_events // 2), options, now)
            ring.pause(id)
            self._read.add(self.channels[topic])

    def _give_up_place(self, id: int) -> None:
        for topic in self._places.pop(id).topics:
            if (channel := self.channels.get(topic)) is not None:
                self._end_reader(channel, id)
                self._released(channel)

    def came_back(self, node_id: str) -> None:
        """It has subscribed again; its connection is its place now."""
        for id in [id for id, place in self._places.items() if place.node_id == node_id]:
            self._give_up_place(id)

    # Ends and time.

    def gone(self, peer: int, node_id: str, *, expected: bool) -> None:
        """A connection ended; the extension has taken it out of its groups already. ``expected``: it broke, and will
        probably be back."""
        if expected:
            self._keep_places(peer, node_id)
        self.subscriptions.drop(peer)
        self._hungry.pop(peer, None)
        self._pauses.drop(peer)
        self._repairs.pop(peer, None)
        for channel in list(self._read):
            if peer in channel.leftover:
                self._leave(channel, peer)
                self._released(channel)

    def _leave(self, channel: Channel, peer: int) -> None:
        channel.group.remove(peer)
        self._end_reader(channel, peer)

    def tick(self, now: float) -> None:
        """Patience that has run out, and acknowledgements that have waited."""
        for id in [id for id, place in self._places.items() if place.until <= now]:
            self._give_up_place(id)
        for channel in list(self._read):
            self._mind(channel)
            self._released(channel)
        for channel in list(self._ack_due.values()):
            self._send_acks(channel)

    def next_deadline(self, now: float) -> float | None:
        """When :meth:`tick` is due."""
        dues = [due for channel in self._read if (due := channel.ring.next_deadline()) is not None]
        dues += [place.until for place in self._places.values()]
        if self._ack_due:
            dues.append(now + ACK_DELAY)
        return min(dues, default=None)


ANY = SubscribeOptions()
"""For tables of patterns alone."""
LOST_FRAME = b'{"type":"topic.lost"'


def _head(
    topic: str, author: str, epoch: str, seq: int, *, baseline: bool = False, tag: str | None = None
) -> dict[str, Any]:
    head = {"topic": topic, "author": author, "epoch": epoch, "seq": seq, "baseline": baseline}
    return head if tag is None else {**head, "tag": tag}


def _lost(topic: str, author: str, epoch: str, first: int, last: int) -> bytes:
    return encode("topic.lost", {"topic": topic, "author": author, "epoch": epoch, "from": first, "to": last})
