"""One connection with another spoke, over which each side asks what a grant lets it ask.

The same messages as with a hub: ``hub.register`` first, from both sides, then calls. Whoever is asked here does what
the hub does elsewhere: it looks whether the caller may, and stamps the identity, from the NodeId of the connection and
the grant. What it answered it remembers (protocol/outcomes.py), and a call goes on when the connection is gone: its
caller may ask for it again by way of the hub.

Not here: how the connection came about and ends, and that memory as seen from the hub's side (directs.py).
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from broker.errors import EventTooLarge, FrameError
from broker.protocol.answering import error_detail
from broker.protocol.codec import decode, encode, request_id_of
from broker.protocol.grants import BadGrant, Claims
from broker.protocol.outcomes import Life
from broker.protocol.registration import Kind, Operation, Registration, parse, to_detail
from broker.protocol.wire import DIRECT, DIRECT_STREAMS, PROTOCOL_VERSION, CloseCode
from broker.spoke.answers import Answers
from broker.spoke.operations import DirectCall

if TYPE_CHECKING:
    from broker.spoke.directs import Directs

__all__ = ["DirectLink"]

log = logging.getLogger("broker.spoke")

BACKLOG_BYTES: Final = 8 * 1024 * 1024
"""Control messages that wait for room. A spoke that lets so many wait is not reading."""
MAX_WORD: Final = 64
ANSWERS: Final = ("call.responded", "call.completed", "call.error")


class DirectLink:
    """A connection and what both sides may do on it. It is the `Way` of the calls that are asked here."""

    def __init__(self, home: Directs, conn: int, node_id: str, *, dialled: bool, since: float) -> None:
        self._home, self._outcomes = home, home.resuming.outcomes
        self.conn, self.node_id, self.dialled, self.since = conn, node_id, dialled, since
        self.registered = self.ended = False
        # Asking.
        self.asked: dict[str, tuple[dict[str, Any], float]] = {}
        self.accepted = False
        """The other side has taken our grant."""
        self.operations: dict[str, Kind] = {}
        """What it lets us ask."""
        self.streams_again = False
        self.name: str | None = None
        self.largest = 0
        self._word = secrets.token_hex(8)
        self._heard = 0
        # Answering.
        self.theirs: Claims | None = None
        self.life: Life | None = None
        self.answers = Answers(home.offers, self._answer, self._last, call=DirectCall)
        self.answers.on_ended = lambda operation, code, seconds: home.on_ended(operation, code, seconds)
        self._told: tuple[Operation, ...] | None = None
        # Sending.
        self._most = home.max_frame_bytes
        self._backlog: deque[tuple[bytes, str | None]] = deque()
        self._backlog_bytes = 0
        self._receivers: dict[str, Callable[[Any], None]] = {
            "hub.register": self._on_register,
            "hub.error": self._on_complaint,
            "call.requested": self._on_requested,
            "call.aborted": self._on_aborted,
            "call.credit": self._on_credit,
            **{type: self._hears(type) for type in ANSWERS},
        }

    # What is asked here (broker.spoke.calls.Way).

    def ask(self, detail: dict[str, Any]) -> bool:
        return not self.ended and self._send(self._sized("call.requested", detail))

    def control(self, type: str, detail: Any) -> None:
        self._queue(encode(type, detail))

    @property
    def again(self) -> dict[str, Any]:
        """How the calls that are asked here are named when they are asked once more."""
        return {"id": self.node_id, "connection": self._word, "heard": self._heard}

    def _hears(self, type: str) -> Callable[[Any], None]:
        def hears(detail: Any) -> None:
            self._heard += 1
            self._home.calls.receive_from(self, type, detail)

        return hears

    # What is asked of us.

    def granted(self) -> tuple[Operation, ...]:
        """What the other side may ask: what is offered here, as far as its grant goes."""
        if self.theirs is None or self._home.draining:
            return ()
        names = self.theirs.operations
        return tuple(offer.operation for id, offer in self._home.offers.items() if id in names)

    def _on_requested(self, detail: Any) -> None:
        request_id = request_id_of(detail, "call.requested")
        claims, life, operation = self.theirs, self.life, detail.get("operationId")
        if claims is None or not isinstance(operation, str) or operation not in claims.operations:
            self._home.counts["denied"] += 1
            message = f"no grant of {self.node_id[:10]}'s that counts now covers {str(operation)[:80]!r}"
            self._queue(encode("call.error", error_detail(request_id, "ACCESS_DENIED", message)), request_id)
            return
        offer = self._home.offers.get(operation)
        stream = offer is not None and offer.streams
        if life is None or not self._outcomes.began(life, request_id, operation, stream=stream):
            return  # it is known already
        detail["identity"] = {"id": self.node_id, "scopes": list(claims.scopes), "resources": {}}
        detail.pop("again", None)
        self._home.counts["answered"] += 1
        self.answers.requested(detail)

    def _on_aborted(self, detail: Any) -> None:
        request_id = request_id_of(detail, "call.aborted")
        if self.life is not None:
            self._outcomes.drop(self.life, request_id)
        self.answers.receive("call.aborted", detail)

    def _on_credit(self, detail: Any) -> None:
        request_id = request_id_of(detail, "call.credit")
        if self.life is not None:
            self._outcomes.credited(self.life, request_id, detail.get("n"))
        self.answers.receive("call.credit", detail)

    def _answer(self, type: str, detail: Any) -> bool:
        """A call's answer, or an item of a stream."""
        request_id = detail["requestId"]
        frame = self._sized(type, detail)
        asked = None if self.life is None else self.life.calls.get(request_id)
        if asked is None or not asked.stream:
            self._remember(request_id, frame)
            if self.ended:
                return True
            if not self._send(frame):
                return False
            self._sent(request_id)
            return True
        if not self.ended and not self._send(frame):
            return False
        self._outcomes.item(asked, frame)
        self._home.resuming.came(asked)
        return True

    def _last(self, type: str, detail: Any) -> None:
        """A call's error, or the end of a stream."""
        request_id = detail["requestId"]
        frame = encode(type, detail)
        self._remember(request_id, frame)
        if not self.ended:
            self._queue(frame, request_id)

    def _remember(self, request_id: str, frame: bytes) -> None:
        asked = None if self.life is None else self.life.calls.get(request_id)
        if asked is not None and self._outcomes.ended(asked.life, request_id, frame):
            self._home.resuming.came(asked)

    def _sent(self, request_id: str) -> None:
        if self.life is not None:
            self._outcomes.sent(self.life, request_id)

    # Who is there, and what is granted.

    def tell(self) -> None:
        """``hub.register``: who this is, our own grant, and what the other side's lets it ask."""
        self._told = self.granted()
        registration = Registration(
            operations=self._told,
            name=self._home.name(),
            protocol=PROTOCOL_VERSION,
            capabilities=("call.credit", DIRECT, DIRECT_STREAMS),
            max_frame_bytes=self._home.max_frame_bytes,
        )
        grant = self._home.grant_for(self.node_id)
        shown = {} if grant is None else {"grant": grant}
        detail = {**to_detail(registration), "connection": self._word, "granted": self.theirs is not None}
        self._queue(encode("hub.register", {**detail, **shown}))

    def tell_changes(self) -> None:
        """The same, if what may be asked is something else than was told."""
        if self.granted() != self._told:
            self.tell()

    def _on_register(self, detail: Any) -> None:
        registration = parse(detail)
        word = detail.get("connection")
        if not isinstance(word, str) or not 0 < len(word) <= MAX_WORD:
            raise FrameError("hub.register: connection is not a word", close_code=CloseCode.BAD_REGISTRATION)
        if self.life is None:
            self.life = self._home.resuming.opened(self, word)
            if self.life is None:
                self.close(CloseCode.LIMIT, "this spoke remembers as many direct connections as it may")
                return
        self._most = min(self._home.max_frame_bytes, registration.max_frame_bytes or self._most)
        if not self.registered:
            self.answers.connected(credited=True, max_frame_bytes=self._most)
        self.registered, self.name = True, registration.name
        self.accepted, self.streams_again = detail.get("granted") is True, DIRECT_STREAMS in registration.capabilities
        self.operations = {one.id: one.kind for one in registration.operations} if self.accepted else {}
        if (grant := detail.get("grant")) is not None:
            self._on_grant(grant)
        self._home.changed(self.node_id)

    def _on_grant(self, grant: Any) -> None:
        try:
            claims = self._home.peers.read(grant, caller=self.node_id)
        except BadGrant as error:
            self._home.counts[f"refused_{error.reason}"] += 1
            log.warning("%s shows a grant that does not count: %s", self.node_id[:10], error)
            if self._home.grant_for(self.node_id) is None:
                self.close(CloseCode.NOT_ADMITTED, f"not admitted: {error}")
            else:
                self.control("hub.error", {"code": "ACCESS_DENIED", "message": str(error), "about": None})
            return
        new, self.theirs = self.theirs is None, claims
        if new or self.granted() != self._told:
            self.tell()

    def _on_complaint(self, detail: Any) -> None:
        message = str(detail.get("message"))[:300] if isinstance(detail, dict) else ""
        log.warning("%s says: %s", self.node_id[:10], message)
        self._home.failed(self.node_id, message)

    # The connection.

    def frames(self, frames: list[bytes]) -> None:
        try:
            for frame in frames:
                if self.ended:
                    return
                self.largest = max(self.largest, len(frame))
                type, detail, _ = decode(frame)
                if not self.registered and type != "hub.register":
                    raise FrameError(f"{type[:80]} before hub.register", close_code=CloseCode.BAD_MESSAGE)
                if (receiver := self._receivers.get(type)) is not None:
                    receiver(detail)
        except FrameError as error:
            self.close(error.close_code, str(error))

    def drained(self) -> None:
        while self._backlog and self._home.connections.send(self.conn, [self._backlog[0][0]]):
            frame, request_id = self._backlog.popleft()
            self._backlog_bytes -= len(frame)
            if request_id is not None:
                self._sent(request_id)
        self.answers.drained()

    def close(self, code: int, reason: str) -> None:
        """Ends it from this side. Nothing that comes from now on is read."""
        self._home.connections.close(self.conn, code, reason)
        self._home.link_ended(self, code, reason)

    def end(self) -> None:
        """It has ended. What runs here goes on: it may be asked for again."""
        self.ended = True
        self._backlog.clear()
        self.answers.hold()

    def _sized(self, type: str, detail: Any) -> bytes:
        frame = encode(type, detail)
        if len(frame) > self._most:
            message = f"{type}: a message of {len(frame)} bytes, the limit is {self._most}"
            raise EventTooLarge(message, size=len(frame), limit=self._most)
        return frame

    def _send(self, frame: bytes) -> bool:
        return not self._backlog and self._home.connections.send(self.conn, [frame])

    def _queue(self, frame: bytes, request_id: str | None = None) -> None:
        """One that waits for room, in order. ``requestId``: it is an answer."""
        if self.ended:
            return
        if self._send(frame):
            if request_id is not None:
                self._sent(request_id)
            return
        self._backlog.append((frame, request_id))
        self._backlog_bytes += len(frame)
        if self._backlog_bytes > BACKLOG_BYTES:
            self.close(CloseCode.SLOW_CONSUMER, "this spoke does not read what it is answered")
