"""The author's side of topics: what was published and how far the hub has it.

``publish`` puts the event into its topic's publication (protocol/publication.py) and returns its place in the
sequence; one pass a loop turn sends what is new. What the hub has not acknowledged is kept, in bounds, and sent again
after a reconnect, starting from what the hub says it has.

A topic that this spoke hears a swarm of goes there and not to the hub, which hears it too. Between the two ways nothing
overtakes: to the swarm only when the hub has acknowledged what went to it, and back by sending it again all that it has
not acknowledged. While the hub is away the swarm goes on alone. Not here: how frames get to the hub (link.py) and into
a swarm (swarms.py).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from broker.errors import AccessDenied, CallTimeout, Closed, EventTooLarge
from broker.protocol.publication import Publication, PublicationLimits
from broker.protocol.routing import check_topic
from broker.spoke.outbox import Outbox
from broker.spoke.ways import NoWays, Ways

__all__ = ["Published", "Publisher"]

log = logging.getLogger("broker.spoke")

SEND_BATCH = 256
"""Events a crossing of the border: enough that its cost does not count, few enough that a lane of 1 MiB takes them."""

MAX_TOPICS = 10_000
"""Topics one spoke publishes to; each keeps its newest events for a hub that lost its memory."""


UNHEARD = 4.0
"""Seconds without an acknowledgement of what went into a swarm; a hub holds them back for a slow subscriber's 2 s."""
BARRED = 30.0
"""Seconds for which the events then go to the hub alone: the swarm's members may have a reason not to take them."""


class Published(NamedTuple):
    """The place of an event in its author's sequence on that topic."""

    epoch: str
    seq: int


class Publisher:
    """All publications of one spoke. ``send`` hands frames to the hub and says False when the path is full."""

    def __init__(
        self,
        *,
        send: Callable[[list[bytes]], bool],
        send_control: Callable[[str, Any], None],
        clock_ms: Callable[[], int],
        max_frame_bytes: int,
        ways: Ways | None = None,
    ) -> None:
        self._ways = ways or NoWays()
        self._send, self._send_control, self._clock_ms = send, send_control, clock_ms
        self._limits = PublicationLimits(max_event_bytes=max_frame_bytes)
        self._author = ""
        self._boxes: dict[str, Outbox] = {}
        self._connected = False
        self._acknowledges = True
        self._pump_due = False
        self._sending: dict[str, Outbox] = {}
        """Publications that have something to send."""
        self._flushes: dict[asyncio.Future[None], dict[Outbox, int]] = {}
        """Who waits for acknowledgements, and up to which seq of each publication."""
        self._too_large: EventTooLarge | None = None
        """For the next flush: events were given up."""
        self._closed = False
        self.published = self.given_up = self.gone = 0

    def identify(self, node_id: str) -> None:
        """The NodeId that signs what is published; known once the endpoint is bound."""
        self._author = node_id

    async def publish(self, topic: str, detail: Any, *, timeout: float | None, stream_only: bool = False) -> Published:
        """Waits while the topic's buffer is full (the hub is away, or holds publishers back)."""
        box = self._boxes.get(topic) or self._open(topic)
        if box.stream_only is not stream_only:
            box.stream_only = stream_only
            self.look(topic)
        if box.full:
            await self._room(box, topic, timeout)
        if self._closed:
            raise Closed("the spoke was closed")
        if box.refused is not None:
            raise AccessDenied(f"{topic}: {box.refused}")
        publication = box.publication
        seq = publication.next_seq
        frame = publication.publish(detail, self._clock_ms())
        if not box.by_swarm:
            box.unsent.append(frame)
        self.published += 1
        self._schedule(box)
        return Published(publication.epoch, seq)

    async def flush(self, timeout: float | None) -> None:
        """Returns when the hub has acknowledged everything published so far. EventTooLarge when some of it was larger
        than a hub takes that this spoke came to later; all the rest is acknowledged then."""
        self._raise_refused()
        wanted = {box: box.publication.next_seq - 1 for box in self._boxes.values() if box.publication.unacked}
        if not wanted:
            self._raise_too_large()
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes[done] = wanted
        try:
            async with asyncio.timeout(timeout):
                await done
            self._raise_refused()
        except TimeoutError:
            raise CallTimeout(
                f"the hub has not acknowledged {self.unacknowledged} events within {timeout} s; "
                "they are kept and go on being sent while this spoke runs"
            ) from None
        finally:
            del self._flushes[done]
        if self._closed and any(box.publication.acked < seq for box, seq in wanted.items()):
            raise Closed(f"the spoke was closed before the hub had acknowledged {self.unacknowledged} events")
        self._raise_too_large()

    def _raise_too_large(self) -> None:
        if self._too_large is not None:
            error, self._too_large = self._too_large, None
            raise error

    def _raise_refused(self) -> None:
        for topic, box in self._boxes.items():
            if box.refused is not None and box.publication.unacked:
                raise AccessDenied(f"{box.publication.unacked} events of {topic} were not taken: {box.refused}")

    @property
    def unacknowledged(self) -> int:
        return sum(box.publication.unacked for box in self._boxes.values())

    # What the link tells it.

    def connected(self, *, acknowledges: bool, max_frame_bytes: int) -> None:
        """Tells the hub how far each publication is; its answer (topic.ack) says where to go on. A hub that does not
        acknowledge is sent everything once, from the first event not yet sent."""
        self._connected, self._acknowledges = True, acknowledges
        self._limits = replace(self._limits, max_event_bytes=max_frame_bytes)
        for box in self._boxes.values():
            self._limit(box, max_frame_bytes)
            box.live = not acknowledges
            box.refused = None  # the hub, or its mind, may be another
            box.by_swarm, box.held_from, box.publication.yields = False, None, False
            if acknowledges:
                box.unsent.clear()
                publication = box.publication
                head = {**publication.head(), "acked": publication.acked}
                self._send_control("topic.head", head | ({"gossip": box.gossiped} if box.gossiped else {}))
            else:
                self._schedule(box)

    def disconnected(self) -> None:
        self._connected = False
        self._sending.clear()
        for topic, box in self._boxes.items():
            box.live, box.window = False, None
            self.look(topic)

    def acknowledged(self, topic: str, epoch: str, seq: int, window: int | None = None) -> None:
        box = self._boxes.get(topic)
        if box is None or epoch != box.publication.epoch:
            return
        if not box.live:
            self._resume(box, seq)
        box.window = window
        box.holding.acknowledged(seq, time.monotonic())
        if box.publication.ack(seq) or window == 0:  # 0: it has heard all that it let go, and others have not
            box.acked_at = time.monotonic()
        self._room_made(box)
        if box.by_swarm or box.held_from is not None:
            self._schedule(box)

    def _resume(self, box: Outbox, seq: int) -> None:
        resume = box.publication.resume(seq)
        box.unsent, box.live = deque(resume.frames), True
        if resume.gone is not None and resume.gone[1] > box.publication.acked:
            self._lose(box, max(resume.gone[0], box.publication.acked + 1), resume.gone[1])
        self.look(box.publication.topic)
        self._schedule(box)

    def _lose(self, box: Outbox, a: int, b: int) -> None:
        """The swarm had them while the hub was away, and this spoke has them no more."""
        self.gone += b - a + 1
        log.warning(
            "%s: events %d to %d were published while the hub was away, and are no longer here to be sent to it; "
            "what no other spoke has of them is lost to late subscribers",
            *(box.publication.topic, a, b),
        )

    def look(self, topic: str) -> None:
        """The swarm of a topic is heard, is heard no more, or has room again."""
        if (box := self._boxes.get(topic)) is None:
            return
        swarm = self._ways.open(topic) and not box.stream_only and self._acknowledges
        swarm = swarm and (time.monotonic() >= box.barred_until or not self._connected)
        if not swarm and box.by_swarm:
            self._to_stream(box)
        elif swarm and not self._connected and not box.by_swarm:
            self._to_swarm(box, max(box.publication.acked, box.gossiped) + 1)
        elif swarm and box.live and not box.by_swarm:
            if box.held_from is None:
                box.held_from = box.publication.next_seq
        elif not swarm:
            box.held_from = None
        box.publication.yields = box.by_swarm and not self._connected
        self._room_made(box)
        self._schedule(box)

    def _to_swarm(self, box: Outbox, first: int) -> None:
        box.by_swarm, box.held_from, box.next = True, None, first
        box.acked_at = time.monotonic()
        box.unsent.clear()
        box.holding.forget()

    def _to_stream(self, box: Outbox) -> None:
        """What the hub did not hear by the swarm comes again, in order."""
        box.by_swarm = False
        publication = box.publication
        runs = publication.runs(publication.acked + 1, publication.next_seq - 1) if box.live else []
        box.unsent = deque(frame for _, frames in runs for frame in frames)

    def check(self, topic: str) -> None:
        """Comes after a rest. A hub that does not acknowledge what the swarm has may not take it from there: batches of
        an author that comes back with its clock set back, say, are old news to whoever knew it before."""
        if (box := self._boxes.get(topic)) is None:
            return
        now = time.monotonic()
        if self._connected and box.by_swarm and box.publication.unacked and now - box.acked_at >= UNHEARD:
            log.warning("%s: the hub does not acknowledge what goes into the swarm; it goes by stream now", topic)
            box.barred_until = now + BARRED
        self.look(topic)

    def newest(self, topic: str) -> tuple[str, int] | None:
        """Epoch and number of the newest event that the topic's swarm was given; None if it was given none."""
        box = self._boxes.get(topic)
        return (box.publication.epoch, box.gossiped) if box is not None and box.gossiped else None

    def held(self, topic: str, epoch: str) -> Publication | None:
        """What was published on a topic in this epoch."""
        box = self._boxes.get(topic)
        return box.publication if box is not None and box.publication.epoch == epoch else None

    def refused(self, topic: str, message: str) -> None:
        """The hub takes no events on this topic. They are not kept: that would fill the buffer and wait for ever."""
        if (box := self._boxes.get(topic)) is not None:
            box.refused = message
            box.unsent.clear()
            self._sending.pop(topic, None)
            self._wake(box.waiters)
            for done, wanted in self._flushes.items():
                if box in wanted and not done.done():
                    done.set_result(None)

    def close(self) -> None:
        """What waits for more to go with it goes; whoever waits is told; nothing is sent any more."""
        for topic, box in self._boxes.items():
            box.holding.forget()
            if box.by_swarm:
                self._sending[topic] = box
        self._pump()
        self._closed = True
        for box in self._boxes.values():
            self._wake(box.waiters)
        for done in self._flushes:
            if not done.done():
                done.set_result(None)

    def drained(self) -> None:
        """The path has room again."""
        self._pump()

    # Inside.

    def _open(self, topic: str) -> Outbox:
        check_topic(topic)
        if len(self._boxes) >= MAX_TOPICS:
            raise EventTooLarge(
                f"this spoke publishes to {MAX_TOPICS} topics already; reuse topics, or publish from another spoke",
                size=len(self._boxes) + 1,
                limit=MAX_TOPICS,
            )
        box = Outbox(Publication(topic, self._author, secrets.token_hex(8), self._limits))
        box.live = self._connected
        self._boxes[topic] = box
        self.look(topic)
        return box

    def _limit(self, box: Outbox, most: int) -> None:
        """What is numbered already and too large for this hub can go nowhere: its author is told, and its subscribers
        by the hole in the sequence."""
        gone = box.publication.limit(most)
        if not gone:
            return
        box.unsent = deque(frame for frame in box.unsent if len(frame) <= most)
        self.given_up += len(gone)
        (seq, size), others = gone[0], len(gone) - 1
        also = f" (and {others} more)" if others else ""
        self._too_large = EventTooLarge(
            f"{box.publication.topic}: event {seq}{also} of {size} bytes was published before this hub was there, "
            f"which takes {most}; it is given up and subscribers see it lost. "
            "Raise limits.max_frame_bytes there, or send a reference to the data.",
            size=size,
            limit=most,
        )
        log.warning("%s", self._too_large)
        self._room_made(box)

    async def _room(self, box: Outbox, topic: str, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                while box.full and box.refused is None and not self._closed:
                    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    box.waiters.append(waiter)
                    await waiter
        except TimeoutError:
            raise CallTimeout(
                f"no room for another event on {topic} within {timeout} s: {box.publication.unacked} wait for the "
                "hub's acknowledgement; it is away, or a slow subscriber holds publishers back"
            ) from None

    def _room_made(self, box: Outbox) -> None:
        if box.waiters and not box.full:
            self._wake(box.waiters)
        for done, wanted in self._flushes.items():
            if box in wanted and not done.done() and all(one.publication.acked >= seq for one, seq in wanted.items()):
                done.set_result(None)

    def _wake(self, waiters: deque[asyncio.Future[None]]) -> None:
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _schedule(self, box: Outbox) -> None:
        """What a turn of the loop publishes is sent in one go."""
        if box.by_swarm or box.held_from is not None or (self._connected and box.live and box.unsent):
            self._sending[box.publication.topic] = box
            if not self._pump_due:
                self._pump_due = True
                asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        if self._closed:
            return
        for topic, box in list(self._sending.items()):
            if not self._pump_one(box):
                return
            del self._sending[topic]

    def _pump_one(self, box: Outbox) -> bool:
        """False when the path is full; ``drained`` comes when it has room."""
        if box.held_from is not None:
            if box.publication.acked + 1 >= box.held_from:
                self._to_swarm(box, box.publication.acked + 1)
            elif not self._pump_stream(box, len(box.unsent) - (box.publication.next_seq - box.held_from)):
                return False
        if box.by_swarm:
            self._pump_swarm(box)
            return True
        return box.held_from is not None or self._pump_stream(box, len(box.unsent))

    def _pump_swarm(self, box: Outbox) -> None:
        """What has no room waits for `look`, what is beyond the window for an acknowledgement, and while those are late
        (protocol/holding.py) what fills no message for that or for a moment."""
        publication, topic, before = box.publication, box.publication.topic, box.next
        newest, now = publication.next_seq - 1, time.monotonic()
        if self._connected and box.window is not None:
            newest = min(newest, publication.acked + box.window)
            if box.next <= newest and (wait := box.wait(newest, self._ways.message_bytes(topic), now)):
                if box.timer is None:
                    box.timer = asyncio.get_running_loop().call_later(wait, self._waited, box)
                return
        while box.next <= newest:
            last = min(newest, box.next + SEND_BATCH - 1)
            for first, frames in publication.runs(box.next, last):
                if not self._ways.publish(topic, publication.epoch, first, frames):
                    box.next = first
                    return
                box.gossiped = first + len(frames) - 1
                self._send_large(frames, self._ways.message_bytes(topic))
            box.next = last + 1
        if box.next != before:
            box.holding.gave(box.next - 1, now)
            self._room_made(box)

    def _waited(self, box: Outbox) -> None:
        box.timer = None
        self._schedule(box)

    def _send_large(self, frames: list[bytes], most: int) -> None:
        """The swarm only names these. The hub asks for what finds no room here."""
        for frame in frames:
            if len(frame) > most and self._connected:
                self._send([frame])

    def _pump_stream(self, box: Outbox, most: int) -> bool:
        unsent = box.unsent
        while most > 0:
            batch = list(islice(unsent, min(SEND_BATCH, most)))
            most -= len(batch)
            if not self._connected or not self._send(batch):
                return False
            for _ in batch:
                unsent.popleft()
            if not self._acknowledges:
                box.publication.ack(box.publication.next_seq - 1 - len(unsent))
                self._room_made(box)
        return True
