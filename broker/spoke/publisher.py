"""The author's side of topics: what was published and how far the hub has it.

``publish`` puts the event into its topic's publication (protocol/publication.py) and returns its place in the
sequence; one pass a loop turn sends what is new. What the hub has not acknowledged is kept, in bounds, and sent again
after a reconnect, starting from what the hub says it has. Not here: how frames get to the hub (link.py).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

from broker.errors import AccessDenied, CallTimeout, Closed, EventTooLarge
from broker.protocol.publication import Publication, PublicationLimits
from broker.protocol.routing import check_topic

__all__ = ["Published", "Publisher"]

SEND_BATCH = 256
"""Events a crossing of the border: enough that its cost does not count, few enough that a lane of 1 MiB takes them."""

MAX_TOPICS = 10_000
"""Topics one spoke publishes to; each keeps its newest events for a hub that lost its memory."""


class Published(NamedTuple):
    """The place of an event in its author's sequence on that topic."""

    epoch: str
    seq: int


class _Outbox:
    """A publication, what of it is still to be sent, and who waits for room or for the end."""

    __slots__ = ("live", "publication", "refused", "unsent", "waiters")

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        # Bounded by the publication: only unacknowledged or retained events are ever in here.
        self.unsent: deque[bytes] = deque()
        self.live = False
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.refused: str | None = None


class Publisher:
    """All publications of one spoke. ``send`` hands frames to the hub and says False when the path is full."""

    def __init__(
        self,
        *,
        send: Callable[[list[bytes]], bool],
        send_control: Callable[[str, Any], None],
        clock_ms: Callable[[], int],
        max_frame_bytes: int,
    ) -> None:
        self._send, self._send_control, self._clock_ms = send, send_control, clock_ms
        self._limits = PublicationLimits(max_event_bytes=max_frame_bytes)
        self._author = ""
        self._boxes: dict[str, _Outbox] = {}
        self._connected = False
        self._acknowledges = True
        self._pump_due = False
        self._sending: dict[str, _Outbox] = {}
        """Publications that have something to send."""
        self._flushes: dict[asyncio.Future[None], dict[_Outbox, int]] = {}
        """Who waits for acknowledgements, and up to which seq of each publication."""
        self._closed = False
        self.published = 0

    def identify(self, node_id: str) -> None:
        """The NodeId that signs what is published; known once the endpoint is bound."""
        self._author = node_id

    async def publish(self, topic: str, detail: Any, *, timeout: float | None) -> Published:
        """Waits while the topic's buffer is full (the hub is away, or holds publishers back)."""
        box = self._boxes.get(topic) or self._open(topic)
        if box.publication.full:
            await self._room(box, topic, timeout)
        if self._closed:
            raise Closed("the spoke was closed")
        if box.refused is not None:
            raise AccessDenied(f"{topic}: {box.refused}")
        publication = box.publication
        seq = publication.next_seq
        frame = publication.publish(detail, self._clock_ms())
        box.unsent.append(frame)
        self.published += 1
        self._schedule(box)
        return Published(publication.epoch, seq)

    async def flush(self, timeout: float | None) -> None:
        """Returns when the hub has acknowledged everything published so far."""
        self._raise_refused()
        wanted = {box: box.publication.next_seq - 1 for box in self._boxes.values() if box.publication.unacked}
        if not wanted:
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

    def _raise_refused(self) -> None:
        for topic, box in self._boxes.items():
            if box.refused is not None and box.publication.unacked:
                raise AccessDenied(f"{box.publication.unacked} events of {topic} were not taken: {box.refused}")

    @property
    def unacknowledged(self) -> int:
        return sum(box.publication.unacked for box in self._boxes.values())

    # What the link tells it.

    def connected(self, *, acknowledges: bool) -> None:
        """Tells the hub how far each publication is; its answer (topic.ack) says where to go on. A hub that does not
        acknowledge is sent everything once, from the first event not yet sent."""
        self._connected, self._acknowledges = True, acknowledges
        for box in self._boxes.values():
            box.live = not acknowledges
            box.refused = None  # the hub, or its mind, may be another
            if acknowledges:
                box.unsent.clear()
                publication = box.publication
                self._send_control("topic.head", {**publication.head(), "acked": publication.acked})
            else:
                self._schedule(box)

    def disconnected(self) -> None:
        self._connected = False
        self._sending.clear()
        for box in self._boxes.values():
            box.live = False

    def acknowledged(self, topic: str, epoch: str, seq: int) -> None:
        box = self._boxes.get(topic)
        if box is None or epoch != box.publication.epoch:
            return
        if not box.live:
            box.unsent = deque(box.publication.resume(seq).frames)
            box.live = True
            self._schedule(box)
        box.publication.ack(seq)
        self._room_made(box)

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
        """Whoever waits is told; nothing is sent any more."""
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

    def _open(self, topic: str) -> _Outbox:
        check_topic(topic)
        if len(self._boxes) >= MAX_TOPICS:
            raise EventTooLarge(
                f"this spoke publishes to {MAX_TOPICS} topics already; reuse topics, or publish from another spoke",
                size=len(self._boxes) + 1,
                limit=MAX_TOPICS,
            )
        box = _Outbox(Publication(topic, self._author, secrets.token_hex(8), self._limits))
        box.live = self._connected
        self._boxes[topic] = box
        return box

    async def _room(self, box: _Outbox, topic: str, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                while box.publication.full and box.refused is None and not self._closed:
                    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    box.waiters.append(waiter)
                    await waiter
        except TimeoutError:
            raise CallTimeout(
                f"no room for another event on {topic} within {timeout} s: {box.publication.unacked} wait for the "
                "hub's acknowledgement; it is away, or a slow subscriber holds publishers back"
            ) from None

    def _room_made(self, box: _Outbox) -> None:
        if box.waiters and not box.publication.full:
            self._wake(box.waiters)
        for done, wanted in self._flushes.items():
            if box in wanted and not done.done() and all(one.publication.acked >= seq for one, seq in wanted.items()):
                done.set_result(None)

    def _wake(self, waiters: deque[asyncio.Future[None]]) -> None:
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _schedule(self, box: _Outbox) -> None:
        """What a turn of the loop publishes is sent in one go."""
        if self._connected and box.live and box.unsent:
            self._sending[box.publication.topic] = box
            if not self._pump_due:
                self._pump_due = True
                asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        for topic, box in list(self._sending.items()):
            if not self._pump_one(box):
                return
            del self._sending[topic]

    def _pump_one(self, box: _Outbox) -> bool:
        """False when the path is full; ``drained`` comes when it has room."""
        unsent = box.unsent
        while unsent:
            batch = list(islice(unsent, SEND_BATCH))
            if not self._connected or not self._send(batch):
                return False
            for _ in batch:
                unsent.popleft()
            if not self._acknowledges:
                box.publication.ack(box.publication.next_seq - 1 - len(unsent))
                self._room_made(box)
        return True
