"""Topics in the hub: what is kept of each and who gets it.

Each concrete topic has one channel: a ring of its newest events (protocol/ring.py) and a group in the extension of
those that keep up. Fan-out is fan_out.py, those who lag are readers.py, those who are expected back places.py. Here
events come in, topics begin and end, and subscriptions are made, paused and ended. Not here: decoding and access
(router.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from broker import _gossip_ext as ext
from broker.errors import TopicError
from broker.hub.channel import Channel, head_of
from broker.hub.fan_out import ACK_DELAY, FanOut
from broker.hub.metrics import HubMetrics
from broker.hub.places import Places
from broker.hub.readers import Readers
from broker.protocol.codec import encode
from broker.protocol.ring import MAX_AUTHORS, Outcome, Ring, RingSince
from broker.protocol.routing import SubscribeOptions, Subscriptions, check_topic, matches

__all__ = ["Topics"]

FAN_OUT_EVENTS = 512
"""Events of one batch after which a topic is fanned out, at the latest: well before its ring could overwrite them."""

MAX_IDLE_LOOKED_AT = 64
"""Topics looked at for one that nobody wants, the quietest first, when there are too many."""

ANY = SubscribeOptions()
"""For tables of patterns alone."""


class Topics:
    """All topics of a hub."""

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
        self._endpoint, self._metrics, self._send = endpoint, metrics, send
        self._fan_out_events = min(FAN_OUT_EVENTS, max(1, ring_events // 2))
        self._ring_events, self._ring_bytes, self._most_topics = ring_events, ring_bytes, most_topics
        self.subscriptions = Subscriptions()
        self._pauses = Subscriptions()
        """Patterns that peers have paused, of those that they subscribe to."""
        self._fan_out = FanOut(send=send, disconnect=disconnect, limited=metrics.limited, most_bytes=most_bytes)
        self.channels = self._fan_out.channels
        self.readers = Readers(endpoint, self._fan_out, self.subscriptions, dropped=dropped, slow=slow, queue=queue)
        self.places = Places(self._fan_out, self.readers, self.subscriptions)
        self.on_open: Callable[[Channel], None] = lambda _channel: None
        self.in_a_realm: Callable[[], bool] = lambda: False
        """Whether there are other hubs, or have been."""
        """Told of each topic that has begun."""

    @property
    def ring_bytes(self) -> int:
        """Of all rings."""
        return self._fan_out.bytes

    def publish(self, peer: int, topic: str, author: str, epoch: str, seq: int, frame: bytes) -> None:
        """One event whose meta is checked. ``flush`` follows the batch."""
        channel = self.channels.get(topic) or self.open(topic)
        if channel.swarm is not None:
            channel.swarm.from_stream(peer, author, epoch, seq, frame)
            return
        outcome = channel.ring.append(author, epoch, seq, frame)
        key = (author, epoch)
        if channel.authors.get(key) != peer:
            channel.remember_author(key, peer)
        if outcome is Outcome.ACCEPTED:
            if not channel.pending:
                self._fan_out.dirty.append(channel)
            channel.pending.append(frame)
            channel.unacked += 1
            if len(channel.pending) >= self._fan_out_events:
                self._fan_out.flush(channel)
        else:
            channel.counters.duplicates += 1

    def accept(self, channel: Channel, author: str, epoch: str, first_seq: int, frames: list[bytes]) -> None:
        """Consecutive events that have passed their topic's swarm."""
        at = 0
        while some := frames[at : at + self._fan_out_events - len(channel.pending)]:
            new = channel.ring.extend(author, epoch, first_seq + at, some)
            at += len(some)
            channel.counters.duplicates += len(some) - new
            if not new:
                continue
            if not channel.pending:
                self._fan_out.dirty.append(channel)
            channel.pending += some[-new:]
            channel.unacked += new
            if len(channel.pending) >= self._fan_out_events:
                self._fan_out.flush(channel)

    def announced(
        self, peer: int, topic: str, author: str, epoch: str, seq: int, acked: int, first: int = 1, gossiped: int = 0
    ) -> None:
        """An author that (re)connects says how far it is: the hub answers with what it has, subscribers learn of what
        is to come. ``acked`` is what some hub has had: where a subscriber that knows nothing of the author begins.
        It holds what comes from ``first`` on, and its swarm has had what comes up to ``gossiped``."""
        channel, key = self.channel(topic), (author, epoch)
        if channel.swarm is not None:
            channel.swarm.announced(peer, author, epoch, first, gossiped)
        channel.remember_author(key, peer)
        self._send(peer, "topic.ack", {"topic": topic, "epoch": epoch, "seq": channel.ring.ackable(author, epoch)})
        channel.announced.pop(key, None)
        if seq <= channel.ring.newest(author, epoch):
            return
        self._announce(channel, key, acked, seq)
        if channel.swarm is not None:
            channel.swarm.tell_hubs(key, seq)
        frames = channel.announcement(key)
        self._tell_group(channel, frames)  # who is behind is told when it has caught up
        for peer in channel.by_gossip.difference(channel.leftover):
            self.readers.tell_ahead(peer, frames)  # if all of it is acknowledged, the author tells the swarm nothing

    def _announce(self, channel: Channel, key: tuple[str, str], acked: int, seq: int) -> None:
        channel.announced.pop(key, None)
        if len(channel.announced) >= MAX_AUTHORS:
            channel.announced.pop(next(iter(channel.announced)))
        # What another hub of the realm has acknowledged, subscribers of this one need not have had.
        channel.announced[key] = (0 if self.in_a_realm() else acked, acked, seq)

    def _tell_group(self, channel: Channel, frames: list[bytes]) -> None:
        self._fan_out.flush(channel)
        if refused := channel.group.send(frames):
            self.readers.fell_behind(channel, refused, channel.ring.next_index)

    def begins(self, channel: Channel, author: str, epoch: str, start: int) -> None:
        """A sequence of which nothing is in the ring yet begins at ``start``, and its first event comes later."""
        self._tell_all(channel, head_of(channel.topic, author, epoch, start - 1, baseline=True))

    def goes_to(self, channel: Channel, author: str, epoch: str, seq: int) -> None:
        """How far a sequence is of which the ring has less: what is missing from it is given up."""
        self._announce(channel, (author, epoch), seq, seq)
        self._tell_all(channel, head_of(channel.topic, author, epoch, seq))

    def _tell_all(self, channel: Channel, head: dict[str, Any]) -> None:
        """Also those who are behind, ahead of what they will read, and those who hear the swarm."""
        frames = [encode("topic.head", head)]
        self._tell_group(channel, frames)
        for peer in dict.fromkeys((*channel.leftover, *channel.by_gossip)):
            self.readers.tell_ahead(peer, frames)

    def open(self, topic: str) -> Channel:
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
                self.readers.pause(channel, peer)
            else:
                channel.group.add(peer)
        self.places.opened(channel, now)
        self.on_open(channel)
        return channel

    def _close_idlest(self) -> None:
        """Makes room: a topic that nobody wants goes first, else the one quiet for longest. Its readers are told how
        far it had come, so that what they did not get is a hole to them and not the end."""
        self._metrics.limited("topics")
        quietest = islice(self.channels.values(), MAX_IDLE_LOOKED_AT)
        victim = next((c for c in quietest if not len(c.group) and not c.leftover and c.swarm is None), None)
        victim = victim or next(iter(self.channels.values()))
        if victim.swarm is not None:
            victim.swarm.close()
        self._fan_out.flush(victim)
        self._fan_out.ack_due.pop(victim.topic, None)
        for head in victim.ring.heads():
            self._fan_out.ack(victim, *head)  # also what was withheld: nobody will release it
        for peer in victim.leftover:
            for author, epoch, seq in victim.ring.heads():
                self._send(peer, "topic.head", head_of(victim.topic, author, epoch, seq))
        self._fan_out.bytes -= victim.accounted
        del self.channels[victim.topic]
        self.readers.channels.pop(victim, None)
        self.readers.moved.pop(victim, None)

    def flush(self) -> None:
        """Fans out what the batch brought, acknowledges it, and feeds readers of the topics that moved."""
        self.readers.settle()
        if self._fan_out.dirty:
            dirty, self._fan_out.dirty = self._fan_out.dirty, []
            for channel in dirty:
                if self.channels.get(channel.topic) is not channel:
                    continue  # ended since, by topics that came later in the batch; what it had has been sent
                self._fan_out.flush(channel)
                self.channels[channel.topic] = self.channels.pop(channel.topic)  # in the order of the last event
                if channel in self.readers.channels:
                    self._fan_out.mind(channel)
                    self.readers.feed_all(channel)
                self._fan_out.acknowledge(channel)
                self._fan_out.account(channel)
            if self._fan_out.over:
                self._fan_out.shed()
        if self.readers.moved:
            self.readers.release()

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
        """Where a subscriber begins on one topic. It is told the newest seq of each author: its baseline, or its
        hole."""
        self._fan_out.flush(channel)
        baseline = since is None
        behind = peer in channel.leftover
        heads = channel.heads(baseline=baseline)
        frames = [encode("topic.head", head_of(channel.topic, *head, baseline=baseline, tag=tag)) for head in heads]
        if behind and not baseline and tag is not None:
            # Its place changes for what else it subscribed to the topic with, too: that must know what it has not got.
            frames += [encode("topic.head", head_of(channel.topic, *head)) for head in heads]
        self.readers.tell_ahead(peer, frames)
        if baseline:
            if behind:
                self._look_again(channel, peer)
            elif peer not in channel.by_gossip:
                channel.group.add(peer)
            return
        channel.group.remove(peer)
        channel.leftover.pop(peer, None)
        channel.paused.discard(peer)
        of_topic: RingSince = since.get(channel.topic, {}) if isinstance(since, Mapping) else since
        options = self.subscriptions.match(channel.topic)[peer]
        channel.ring.seek(peer, of_topic, options, time.monotonic())
        if channel.ring.lagging(peer):
            self.readers.add(channel, peer)
            self.readers.feed(channel, peer)
        else:
            self.readers.rejoin(channel, peer)
            self._fan_out.released(channel)

    # What a topic's swarm says about its subscribers (swarm.py).

    def take_out(self, channel: Channel, peer: int) -> None:
        """It hears the swarm: the fan-out leaves it out, now or when it has read what it is behind by."""
        self._fan_out.flush(channel)
        channel.by_gossip.add(peer)
        if peer not in channel.leftover and channel.group.remove(peer):
            self.readers.join(channel, peer)

    def put_back(self, channel: Channel, peer: int) -> None:
        """It does not hear the swarm any more."""
        channel.by_gossip.discard(peer)
        if peer in channel.leftover or peer not in self.subscriptions.match(channel.topic):
            return
        self._fan_out.flush(channel)
        channel.group.add(peer)
        self.readers.tell_heads(channel, peer)

    def channel(self, topic: str) -> Channel:
        """A topic's, which begins now if there is none. TopicError when it cannot be one."""
        return self.channels.get(topic) or self.open(topic)

    def settle(self, channel: Channel) -> None:
        """What has come of it so far is fanned out, and counted, before it changes its carrier."""
        self._fan_out.flush(channel)

    def pace(self, channel: Channel, author: str, epoch: str) -> None:
        """How far this author may go is another number now, whatever the hub has of it."""
        if not channel.withheld:
            self._fan_out.ack(channel, author, epoch, channel.ring.ackable(author, epoch))

    def released(self, channel: Channel) -> None:
        """Its acknowledgements are withheld no longer."""
        self._fan_out.released(channel)

    def unsubscribe(self, peer: int, patterns: Sequence[str]) -> None:
        gone = [pattern for pattern in patterns if self.subscriptions.remove(peer, pattern)]
        for pattern in gone:
            self._pauses.remove(peer, pattern)
        for channel in self._covered(gone):
            self._fan_out.flush(channel)
            if peer not in self.subscriptions.match(channel.topic):
                self.readers.leave(channel, peer)
                self._fan_out.released(channel)
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
            self._fan_out.flush(channel)
            if peer not in channel.leftover:
                channel.ring.lag(peer, channel.ring.next_index, options, time.monotonic())
            self.readers.pause(channel, peer)
        elif not paused and peer in channel.paused:
            channel.paused.discard(peer)
            # An index that is not behind its own moves nothing.
            channel.ring.lag(peer, channel.ring.next_index, options, time.monotonic())
            self.readers.feed(channel, peer)

    def _is_paused(self, peer: int, topic: str) -> bool:
        """Whether every pattern of a peer that matches is paused: one subscription of a program does not hold up
        another."""
        paused = self._pauses.covering(peer, topic)
        return paused > 0 and paused == self.subscriptions.covering(peer, topic)

    def gone(self, peer: int, node_id: str, *, expected: bool) -> None:
        """A connection ended; the extension has taken it out of its groups already. ``expected``: it broke, and will
        probably be back."""
        if expected:
            self.places.keep(peer, node_id)
        self.subscriptions.drop(peer)
        self._pauses.drop(peer)
        self.readers.gone(peer)

    def tick(self, now: float) -> None:
        """Patience that has run out, and acknowledgements that have waited."""
        self.places.tick(now)
        for channel in list(self.readers.channels):
            self._fan_out.mind(channel)
            self._fan_out.released(channel)
        for channel in list(self._fan_out.ack_due.values()):
            self._fan_out.send_acks(channel)

    def next_deadline(self, now: float) -> float | None:
        """When :meth:`tick` is due."""
        first = now + ACK_DELAY if self._fan_out.ack_due else None
        if (place := self.places.next_due()) is not None:
            first = place if first is None else min(first, place)
        for channel in self.readers.channels:
            if (due := channel.ring.next_deadline()) is not None:
                first = due if first is None else min(first, due)
        return first
