"""Readers: subscribers that are behind, fed from a topic's ring as their queues drain.

Resume, repair, late joiners and slow consumers are all readers. One that has caught up joins its topic's group again.
Not here: what may be overwritten while they read (protocol/ring.py), and who subscribes to what (topics.py).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from broker import _gossip_ext as ext
from broker.hub.channel import Channel, Feed, head_of, lost_frame
from broker.hub.fan_out import FanOut
from broker.protocol.codec import encode
from broker.protocol.cursor import Batch
from broker.protocol.routing import Subscriptions

__all__ = ["Readers"]

FEED_EVENTS, FEED_BYTES = 512, 262_144
"""What a reader is fed at a time: a quarter of a connection's lane, so that the feeds of several topics fit in it."""

MAX_PACKED = 16
"""Feeds that are kept framed: 4 MiB, or as many frames if those are larger. They go when nobody is behind any more."""

MAX_REPAIRS_WAITING = 256
"""Repairs of one peer that wait for room in its queue."""

MAX_ANSWERS = 64
"""Answers to repairs that are kept, 16 MiB at the very worst."""
KEPT = 0.6
"""Seconds that they are kept: those who miss the same ask for it within the jitter of a spoke (GAP_PATIENCE of
spoke/swarms.py, 0.5 s at most). They go with the next batch after that."""

_Answer = tuple[list[bytes], list[tuple[int, int]], list[bytes]]


class Readers:
    """All readers of a hub."""

    def __init__(
        self,
        endpoint: ext.Endpoint,
        fan_out: FanOut,
        subscriptions: Subscriptions,
        *,
        dropped: Callable[[int, int], None],
        slow: Callable[[int], None],
        queue: Callable[[int, bytes], None],
    ) -> None:
        self._endpoint, self._fan_out, self._subscriptions = endpoint, fan_out, subscriptions
        self._dropped, self._slow, self._queue = dropped, slow, queue
        fan_out.on_refused = self.fell_behind
        self._hungry: dict[int, set[str]] = {}
        """Topics that have something for a peer."""
        self._repairs: dict[int, deque[tuple[str, str, str, int, int]]] = {}
        """Repairs that a peer asked for and whose answer its queue did not take yet."""
        self._answers: dict[tuple[Channel, str, str, int, int], tuple[float, _Answer]] = {}
        """What was asked for of late, and until when it is kept."""
        self._packed: dict[tuple[Channel, int, int], ext.Frames] = {}
        """By the place of the first and their number."""
        self.channels: dict[Channel, None] = {}
        """Those that have readers: the ones to look after as time passes."""
        self.moved: dict[Channel, None] = {}
        """Those whose readers have read, or have gone, in this batch: what they held up is looked at once after it."""

    def fell_behind(self, channel: Channel, peers: Sequence[int], index: int) -> None:
        """Members whose queue was full become readers, from the first event that they did not get."""
        now = time.monotonic()
        options = self._subscriptions.match(channel.topic)
        for peer in peers:
            if peer in options:
                self._slow(peer)
                channel.ring.lag(peer, index, options[peer], now)
                self.add(channel, peer)
                self._hungry.setdefault(peer, set()).add(channel.topic)

    def drained(self, peer: int) -> None:
        """A connection has room again: its repairs are answered and its readers fed."""
        for repair in self._repairs.pop(peer, ()):
            self._repair(peer, *repair)
        for topic in list(self._hungry.get(peer, ())):
            channel = self._fan_out.channels.get(topic)
            if channel is None or not self.feed(channel, peer):
                self._hungry[peer].discard(topic)
            elif peer in channel.paused:
                self._hungry[peer].discard(topic)  # fed when it goes on; the other topics are not to wait for that
            elif channel.leftover.get(peer):
                return  # its queue is full again

    def feed_all(self, channel: Channel) -> None:
        for peer in list(channel.leftover):
            if not channel.leftover.get(peer) and peer not in channel.paused:
                self.feed(channel, peer)

    def feed(self, channel: Channel, peer: int) -> bool:
        """Hands a reader what it has not read, until its queue is full or it has caught up. False: no reader any
        more."""
        if peer in channel.paused or peer not in channel.leftover:
            return peer in channel.leftover
        self._fan_out.flush(channel)
        ring, now = channel.ring, time.monotonic()
        while peer in channel.leftover:
            caught_up = False
            if (feed := channel.leftover[peer]) is None:
                batch = ring.read(peer, FEED_EVENTS, FEED_BYTES, now)
                feed, caught_up = self._feed_of(channel, peer, batch), batch.caught_up
            if feed.frames and not self._endpoint.send(peer, feed.frames, ext.TOPICS):
                channel.leftover[peer] = feed
                self._hungry.setdefault(peer, set()).add(channel.topic)
                break
            channel.leftover[peer] = None
            self._count_read(channel, feed.events)
            if caught_up:
                self.rejoin(channel, peer)
            elif not feed.frames:
                break  # the ring has nothing for it now
        self.moved[channel] = None
        return peer in channel.leftover

    def _feed_of(self, channel: Channel, peer: int, batch: Batch) -> Feed:
        """Many read the same when the publishers are faster than the connections: it is framed once for all of them,
        and they share the buffer."""
        frames, events = batch.frames, len(batch.frames)
        if batch.lost:
            return Feed([*self._lost_frames(channel, peer, batch.lost), *frames], events)
        if not events or batch.indexes[-1] - batch.indexes[0] >= events:
            return Feed(frames, events)  # it has some of it already: nobody else's feed
        key = (channel, batch.indexes[0], events)
        if (packed := self._packed.get(key)) is None:
            while len(self._packed) >= MAX_PACKED:
                del self._packed[next(iter(self._packed))]
            packed = self._packed[key] = self._endpoint.pack(frames)
        return Feed(packed, events)

    def _count_read(self, channel: Channel, events: int) -> None:
        channel.counters.delivered += events
        channel.counters.repaired += events

    def add(self, channel: Channel, peer: int) -> None:
        channel.leftover.setdefault(peer, None)
        self.channels[channel] = None

    def end(self, channel: Channel, peer: int) -> None:
        channel.ring.forget(peer)
        channel.paused.discard(peer)
        channel.leftover.pop(peer, None)
        if not channel.ring.readers:
            self.channels.pop(channel, None)

    def rejoin(self, channel: Channel, peer: int) -> None:
        self.end(channel, peer)
        self.join(channel, peer)
        if channel.announced and (frames := channel.announcements()):
            self.tell_ahead(peer, frames)
        if (topics := self._hungry.get(peer)) is not None:
            topics.discard(channel.topic)

    def join(self, channel: Channel, peer: int) -> None:
        """From here on the fan-out feeds it; or the swarm, if it hears that: then it is told how far all are, so that
        it misses nothing between the two."""
        if peer not in channel.by_gossip:
            channel.group.add(peer)
            return
        self.tell_heads(channel, peer)

    def tell_heads(self, channel: Channel, peer: int) -> None:
        """How far every author is: what of it the peer does not have is a hole to it."""
        heads = [encode("topic.head", head_of(channel.topic, *head)) for head in channel.heads(baseline=False)]
        if heads:
            self.tell_ahead(peer, heads)

    def _lost_frames(self, channel: Channel, peer: int, ranges: Sequence[tuple[str, str, int, int]]) -> list[bytes]:
        """What names to a reader the ranges that it will not get. They travel in order with the events."""
        frames = []
        for author, epoch, first, last in ranges:
            count = last - first + 1
            channel.counters.lost += count
            self._dropped(peer, count)
            frames.append(lost_frame(channel.topic, author, epoch, first, last))
        return frames

    def _tell(self, peer: int, frames: list[bytes]) -> bool:
        """Sends in order with the events."""
        return not frames or self._endpoint.send(peer, frames, ext.TOPICS)

    def tell_ahead(self, peer: int, frames: list[bytes]) -> None:
        """Sends heads: in order with the events, or when its queue of events is full, ahead of them."""
        if not self._tell(peer, frames):
            for frame in frames:
                self._queue(peer, frame)

    def pause(self, channel: Channel, peer: int) -> None:
        channel.group.remove(peer)
        channel.ring.pause(peer)
        channel.paused.add(peer)
        self.add(channel, peer)

    def leave(self, channel: Channel, peer: int) -> None:
        channel.group.remove(peer)
        self.end(channel, peer)

    def repair(self, peer: int, topic: str, author: str, epoch: str, first: int, last: int) -> None:
        """A hole that a subscriber saw: what is in the ring is sent, the rest is named lost."""
        channel = self._fan_out.channels.get(topic)
        if channel is not None and channel.swarm is not None:
            channel.swarm.served()
        self._repair(peer, topic, author, epoch, first, last)

    def _repair(self, peer: int, topic: str, author: str, epoch: str, first: int, last: int) -> None:
        channel = self._fan_out.channels.get(topic)
        if channel is None:
            return  # its author may yet come back and refill; the subscriber asks again, and gives up in the end
        self._fan_out.flush(channel)
        while first <= last:
            frames, missing, told = self._answer(channel, author, epoch, first, last)
            if not told:
                return
            if not self._tell(peer, told):
                # Its queue is full: answered when it has room. What overflows here is asked for again.
                waiting = self._repairs.setdefault(peer, deque(maxlen=MAX_REPAIRS_WAITING))
                if len(waiting) == MAX_REPAIRS_WAITING:
                    self._fan_out.limited("repairs")
                waiting.append((topic, author, epoch, first, last))
                return
            self._count_read(channel, len(frames))
            lost = sum(b - a + 1 for a, b in missing)
            channel.counters.lost += lost
            self._dropped(peer, lost)
            first += len(frames) + lost

    def _answer(self, channel: Channel, author: str, epoch: str, first: int, last: int) -> _Answer:
        """Events, what of the range is gone, and both as frames. Many ask for the same when gossip lost something: it
        is looked up once."""
        key = (channel, author, epoch, first, last)
        if (known := self._answers.get(key)) is not None:
            if channel.swarm is not None:
                channel.swarm.merged()
            return known[1]
        frames, missing = self._span(channel, author, epoch, first, last)
        gone = [lost_frame(channel.topic, author, epoch, a, b) for a, b in missing]
        answer = (frames, missing, [*frames, *gone])
        if frames or missing:  # what is not there yet may be there in a moment
            while len(self._answers) >= MAX_ANSWERS:
                del self._answers[next(iter(self._answers))]
            self._answers[key] = time.monotonic() + KEPT, answer
        return answer

    def settle(self) -> None:
        """The batch is over: answers that were kept long enough go, the oldest first, and feeds that nobody needs."""
        if not self.channels:
            self._packed.clear()
        now = time.monotonic() if self._answers else 0.0
        while self._answers and self._answers[oldest := next(iter(self._answers))][0] <= now:
            del self._answers[oldest]

    def release(self) -> None:
        """After the batch: what its readers held up goes on. To find that out takes a step for each reader of a topic,
        so it must not be asked after each that reads."""
        moved, self.moved = self.moved, {}
        for channel in moved:
            self._fan_out.released(channel)

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

    def gone(self, peer: int) -> None:
        """A connection ended; the extension has taken it out of its groups already."""
        self._hungry.pop(peer, None)
        self._repairs.pop(peer, None)
        for channel in list(self.channels):
            if peer in channel.leftover:
                self.leave(channel, peer)
                self.moved[channel] = None

    @property
    def lagging(self) -> int:
        """Subscribers that are read from a ring now, counted once a topic."""
        return sum(len(channel.leftover) for channel in self.channels)

    def lag_of(self, peer: int) -> int:
        """Topics of which this peer is read from the ring now."""
        return sum(peer in channel.leftover for channel in self.channels)
