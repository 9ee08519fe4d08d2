"""Fan-out: a batch's events go to those who keep up, once a topic, and their authors are acknowledged.

The work in Python does not depend on the number of subscribers: the extension queues one shared buffer on each member
of a topic's group. Members whose queue is full come back from that call and are handed to ``fell_behind``. Not here:
those who lag (readers.py), and who belongs to a group (topics.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from broker.hub.channel import Channel
from broker.protocol.ring import Demoted, Disconnect

__all__ = ["ACK_DELAY", "FanOut"]

log = logging.getLogger("broker.hub")

ACK_EVENTS = 256
"""Unacknowledged events of one batch after which the acknowledgement goes out at once."""

ACK_DELAY = 0.003
"""Seconds an acknowledgement may wait for more events, so that a trickle does not cost a message each."""


class FanOut:
    """The channels of a hub, in the order of their last event, and what of them is still to be sent."""

    def __init__(
        self,
        *,
        send: Callable[[int, str, Any], None],
        disconnect: Callable[[int, str], None],
        limited: Callable[[str], None],
        most_bytes: int,
    ) -> None:
        self._send, self._disconnect = send, disconnect
        self._most_bytes = most_bytes
        self.limited = limited
        """Told the name of a bound that was met."""
        self.channels: dict[str, Channel] = {}
        self.dirty: list[Channel] = []
        self.ack_due: dict[str, Channel] = {}
        self.on_refused: Callable[[Channel, Sequence[int], int], None] = lambda _channel, _peers, _index: None
        """Told of members whose queue was full, and of the ring's entry from which on they got nothing."""
        self.bytes = 0
        """Of all rings."""

    @property
    def over(self) -> bool:
        """The rings hold more than the hub may."""
        return self.bytes > self._most_bytes

    def account(self, channel: Channel) -> None:
        self.bytes += channel.ring.bytes - channel.accounted
        channel.accounted = channel.ring.bytes

    def shed(self) -> None:
        """Over the hub's own bound: the topics that have been quiet for longest give their oldest events. Who was to
        read them is told."""
        self.limited("log_bytes")
        for channel in list(self.channels.values()):
            while self.over and len(channel.ring):
                channel.ring.shed(len(channel.ring) // 4 + 1)
                self.account(channel)
            self.mind(channel)

    def flush(self, channel: Channel) -> None:
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
            self.on_refused(channel, refused, ring.next_index - len(pending))

    def acknowledge(self, channel: Channel) -> None:
        if channel.unacked >= ACK_EVENTS:
            self.send_acks(channel)
        elif channel.unacked:
            self.ack_due[channel.topic] = channel

    def send_acks(self, channel: Channel) -> None:
        self.ack_due.pop(channel.topic, None)
        if channel.ring.held or channel.withheld:
            return  # withheld: this is what slows publishers down
        if channel.swarm is not None:
            channel.swarm.pacing.acknowledged(channel.unacked, time.monotonic())
        channel.unacked = 0
        for head in channel.ring.newly_ackable():
            self.ack(channel, *head)

    def ack(self, channel: Channel, author: str, epoch: str, seq: int) -> None:
        peer = channel.authors.get((author, epoch))
        if peer is None:
            return
        detail = {"topic": channel.topic, "epoch": epoch, "seq": seq}
        if channel.swarm is not None:
            detail["window"] = channel.swarm.pacing.window((author, epoch), seq, time.monotonic())
        self._send(peer, "topic.ack", detail)

    def mind(self, channel: Channel) -> None:
        """What the ring has to say about its readers after it changed."""
        for effect in channel.ring.tick(time.monotonic()):
            match effect:
                case Demoted(reader):
                    log.info("a slow subscriber of %s has used up its patience (peer %d)", channel.topic, reader)
                case Disconnect(reader, pending):
                    self._disconnect(reader, f"{pending} events behind on {channel.topic}")
        self.account(channel)

    def released(self, channel: Channel) -> None:
        """A reader moved or left: what it held up may go on."""
        if channel.unacked:
            self.mind(channel)
            self.send_acks(channel)
