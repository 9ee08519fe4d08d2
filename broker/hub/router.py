"""What the hub does with each message: calls to the call table, events to topics, registrations to both.

The router is the endpoint's handler (border.py). It decodes, checks what a peer may do, stamps identity and author,
and carries out the effects of the pure machines. Replies gather per connection and cross the border once a batch. Not
here: the hub's life (hub.py), its own operations (operations.py), what a call or a topic is (protocol/).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from broker import _gossip_ext as ext
from broker.config import HubConfig
from broker.errors import FrameError
from broker.hub.admission import Admission
from broker.hub.datagrams import Datagrams
from broker.hub.guests import Guests
from broker.hub.introductions import Introductions
from broker.hub.limits import LOOK_INTERVAL, Limits
from broker.hub.metrics import HubMetrics
from broker.hub.realm import Realm
from broker.hub.realm_links import RealmLinks
from broker.hub.registrations import Registrations
from broker.hub.session import Session
from broker.hub.swarm_messages import SwarmMessages
from broker.hub.swarms import Swarms
from broker.hub.topic_messages import MAX_ABOUT, TopicMessages
from broker.hub.topics import Topics
from broker.protocol import calls
from broker.protocol.access import Action
from broker.protocol.answering import Refused
from broker.protocol.calls import HUB, CallLimits, CallTable
from broker.protocol.codec import decode, encode
from broker.protocol.registration import Registration
from broker.protocol.wire import CloseCode

__all__ = ["Router"]

log = logging.getLogger("broker.hub")

MAX_SHOWN = 300
"""Characters of a complaint: it quotes what may be as long as a frame."""
FLUSH_BYTES = 262_144
"""Replies to one peer that are sent before the batch is over, so that what a batch can ask for is not held at once."""
MAX_HELD = 2 * 1024 * 1024
"""Bytes that wait for a peer whose CALLS lane is full; beyond it, it is disconnected."""
BROKEN = (None, CloseCode.INTERNAL)
"""Ends of a connection that nobody wanted: its spoke will be back."""


class Router:
    """All sessions of a hub and the messages between them."""

    def __init__(
        self,
        endpoint: ext.Endpoint,
        config: HubConfig,
        metrics: HubMetrics,
        admission: Admission,
        realm: Realm | None = None,
    ) -> None:
        self.endpoint, self.metrics, self.admission = endpoint, metrics, admission
        self.guests = Guests(endpoint, admission, metrics)
        admission.on_change = self._access_changed
        self.sessions: dict[int, Session] = {}
        limits = self.limits = config.limits
        self.of_node = Limits(self)
        self.calls = CallTable(
            CallLimits(
                in_flight_per_peer=limits.calls_in_flight_per_peer,
                in_flight=limits.calls_in_flight,
                default_timeout=config.calls.default_timeout,
                max_timeout=config.calls.max_timeout,
            ),
            leg_prefix=secrets.token_hex(4),
        )
        self.topics = Topics(
            endpoint,
            metrics,
            send=self.of_node.send,
            disconnect=lambda peer, why: self.close(peer, CloseCode.SLOW_CONSUMER, f"slow consumer: {why}"),
            dropped=self._count_dropped,
            slow=self._count_slow,
            queue=self.queue,
            ring_events=config.topics.ring_events,
            ring_bytes=config.topics.ring_bytes,
            most_topics=config.topics.most_topics,
            most_bytes=config.topics.log_bytes_total,
        )
        self.swarms = Swarms(self, config, realm or Realm.of(None, endpoint.node_id), queue=self.queue)
        self.links = RealmLinks(self)
        self.swarm_messages = SwarmMessages(self)
        self.registrations = Registrations(self)
        self.introductions = Introductions(self)
        self.datagrams = Datagrams(self)
        self._topic_messages = TopicMessages(self, patience=config.topics.patience)
        self.on_local_call: Callable[[str, dict[str, Any]], None] = lambda _type, _detail: None
        """Messages of the call table for the hub's own operations."""
        self.on_dialled: Callable[[int, str | None, int | None], None] = lambda _token, _failure, _conn: None
        """A dial of ours came to something (None, and the connection) or failed (why)."""
        self.secret_of_dial: Callable[[int], str | None] = lambda _token: None
        self._dials: dict[int, int] = {}
        self.by_node: dict[str, dict[int, Session]] = {}
        """Connections by NodeId."""
        self._out: dict[int, list[bytes]] = {}
        """What the batch has brought for each peer's CALLS lane."""
        self._out_bytes: dict[int, int] = {}
        self._held: dict[int, list[bytes]] = {}
        """What a lane did not take, after the streams that filled it were ended."""
        self._timer_at = 0.0
        self._timer: Any = None
        self._loop: Any = None
        self._controls: dict[str, Callable[[Session, Any], None]] = {
            "hub.register": self.registrations.receive,
            "call.requested": self._on_requested,
            "call.responded": self._to_table("responded"),
            "call.completed": self._to_table("completed"),
            "call.aborted": self._to_table("aborted"),
            "call.error": self._to_table("error"),
            "call.credit": self._to_table("credit"),
            **self._topic_messages.controls,
            **self.swarm_messages.controls,
            **self.links.controls,
            **self.introductions.controls,
            "hub.error": self._on_complaint,
        }

    # What the border tells (broker.border.Handler).

    def opened(self, conn: int, node_id: str, incoming: bool, token: int) -> None:
        # The extension has asked the same sets, but they may have changed since. Whom we dial somebody here has chosen.
        if node_id in self.admission.policy.deny:
            self.endpoint.close_connection(conn, CloseCode.BANNED, "banned: this NodeId is on this hub's deny list")
        elif not incoming or self.admission.policy.admitted(node_id):
            self._admit(conn, node_id, incoming, token)
        else:
            self.guests.opened(conn, node_id)

    def _admit(self, conn: int, node_id: str, incoming: bool, token: int) -> None:
        if incoming and (full := self.of_node.connection(node_id)):
            self.metrics.refused("limit")
            self.endpoint.close_connection(conn, CloseCode.LIMIT, full)
            return
        session = Session(conn, node_id, incoming, self.admission.grant(node_id))
        session.stamp()
        self.by_node.setdefault(node_id, {})[conn] = session
        self.sessions[conn] = session
        self.calls.register(conn, node_id, None, Registration())
        self.metrics.connected()
        if not incoming:
            self._dials[conn] = token
            self.registrations.hello(session, self.secret_of_dial(token))

    def frames(self, conn: int, frames: list[bytes]) -> None:
        session = self.sessions.get(conn)
        if session is None and conn in self.guests and (node_id := self.guests.admitted(conn, frames[0])) is not None:
            self._admit(conn, node_id, True, 0)
            session = self.sessions.get(conn)
        if session is None or session.closing:
            return
        controls = self._controls
        try:
            for frame in frames:
                message = decode(frame)
                control = controls.get(message.type)
                if control is not None:
                    control(session, message.detail)
                else:
                    self._topic_messages.event(session, message, frame)
                if session.closing:
                    return
            if session.events:
                count, session.events = session.events, 0
                self.of_node.published(session, count)
        except FrameError as error:
            self.close(conn, error.close_code, str(error))

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        session = self.sessions.pop(conn, None)
        if session is None:
            self.guests.closed(conn)
            return
        log.info("%s (%s) is gone: %s", session.name, session.node_id[:10], reason)
        self.metrics.disconnected(_reason(code))
        for waiting in (self._out, self._out_bytes, self._held):
            waiting.pop(conn, None)
        of_node = self.by_node[session.node_id]
        del of_node[conn]
        if not of_node:
            del self.by_node[session.node_id]
        self.topics.gone(conn, session.node_id, expected=code in BROKEN)
        self.datagrams.forget()
        self.swarms.members.gone(session, code)
        self.introductions.gone(session)
        self.perform(self.calls.gone(conn, time.monotonic()))
        if (token := self._dials.pop(conn, None)) is not None:
            self.on_dialled(token, reason, None)

    def drained(self, conn: int) -> None:
        if (held := self._held.pop(conn, None)) is not None and not self.endpoint.send(conn, held, ext.CALLS):
            self._held[conn] = held
        self.topics.readers.drained(conn)

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        self.on_dialled(token, f"{kind}: {message}", None)

    def datagram(self, conn: int, payload: bytes) -> None:
        self.datagrams.received(self.sessions.get(conn), payload)

    def batch_done(self, size: int) -> None:
        self.metrics.batch(size)
        self.settle()

    # What the rest of the hub uses.

    def settle(self) -> None:
        """Fans out, sends the gathered replies, and sets the one timer."""
        self.swarms.settle()
        self.topics.flush()
        while self._out:
            self._flush(next(iter(self._out)))
        self._arm()

    def send(self, peer: int, type: str, detail: Any) -> None:
        """One control message, with the batch's others."""
        self.queue(peer, encode(type, detail))

    def queue(self, peer: int, frame: bytes) -> None:
        """One encoded message, with the batch's others. One that no frame takes goes alone: the peer is told."""
        if (frames := self._out.get(peer)) is None:
            if peer not in self.sessions:
                return
            frames = self._out[peer] = []
            self._out_bytes[peer] = 0
        if len(frame) > self.limits.max_frame_bytes:
            frame = self.of_node.too_large(self.sessions[peer], frame)
        frames.append(frame)
        self._out_bytes[peer] += len(frame)
        if self._out_bytes[peer] > FLUSH_BYTES:
            self._flush(peer)

    def close(self, peer: int, code: int, reason: str) -> None:
        """Ends one connection. Its ``closed`` follows."""
        session = self.sessions.get(peer)
        if session is not None:
            if session.closing:
                return
            session.closing = True
        if code >= CloseCode.EMPTY_FRAME and code != CloseCode.KICKED:
            log.warning("closing %s: %s (code %d)", session.name if session else peer, reason, code)
            self.metrics.protocol_error(_reason(code))
        self.endpoint.close_connection(peer, code, reason)

    def complain(self, peer: int, code: str, message: str, about: str | None, action: Action | None = None) -> None:
        """A hub.error: something is wrong, and the connection goes on. ``action``: what the peer wanted to do with what
        it is about, which may be the name of a topic and of an operation."""
        self.metrics.protocol_error(code.lower())
        about = None if about is None else about[:MAX_ABOUT]
        detail = {"code": code, "message": message[:MAX_SHOWN], "about": about}
        self.send(peer, "hub.error", detail if action is None else {**detail, "action": action})

    def perform(self, effects: list[calls.Effect]) -> None:
        """Carries out what the call table decided."""
        failed: tuple[int, str] | None = None
        for effect in effects:
            if type(effect) is calls.Send:
                if effect.peer == HUB:
                    self.on_local_call(effect.type, effect.detail)
                elif effect.type != "call.completed" or failed != (effect.peer, effect.detail["requestId"]):
                    sent = self._send_call(effect) or "from" in effect.detail
                    failed = None if sent else (effect.peer, effect.detail["requestId"])
            elif type(effect) is calls.Ended:
                self.metrics.call_ended(effect.operation, effect.code, effect.seconds, effect.request_id)
            elif type(effect) is calls.Complain:
                self.complain(effect.peer, effect.code, effect.message, effect.about)

    # Messages.

    def registered(self, session: Session) -> None:
        """It has said ``hub.register``: if we dialled it, that has come to something."""
        if (token := self._dials.get(session.peer)) is not None:
            self.on_dialled(token, None, session.peer)

    def deny(self, session: Session, action: Action, name: str) -> None:
        self.complain(session.peer, "ACCESS_DENIED", session.grant.denial(action, name), name, action)

    def _on_requested(self, session: Session, detail: Any) -> None:
        now_ms = time.time_ns() / 1e6
        operation = detail.get("operationId") if type(detail) is dict else None
        refused = self.of_node.call(session)
        if type(operation) is str and not session.grant.may("call", operation):
            refused = Refused("ACCESS_DENIED", session.grant.denial("call", operation))
        self.perform(self.calls.requested(session.peer, session.identity, detail, time.monotonic(), now_ms, refused))

    def _to_table(self, what: str) -> Callable[[Session, Any], None]:
        return lambda session, detail: self.perform(getattr(self.calls, what)(session.peer, detail, time.monotonic()))

    def _on_complaint(self, session: Session, detail: Any) -> None:
        log.warning("%s says: %s", session.name, str(detail)[:300])

    # Inside.

    def _flush(self, peer: int) -> None:
        frames = self._out.pop(peer)
        del self._out_bytes[peer]
        session = self.sessions.get(peer)
        if session is None or session.closing:
            return
        if (held := self._held.get(peer)) is not None:
            held += frames
            if sum(map(len, held)) > MAX_HELD:
                self._overflowed(peer)
        elif not self.endpoint.send(peer, frames, ext.CALLS) and self.endpoint.stats(peer) is not None:
            self._held[peer] = self._without_streams(peer, frames)

    def _without_streams(self, peer: int, frames: list[bytes]) -> list[bytes]:
        """A caller does not read what it asked for, or not as fast as it comes: those of its streams that have
        something in ``frames`` are ended, with an error. What else there is waits for room."""
        kept: list[bytes] = []
        ended: set[str] = set()
        for frame in frames:
            type, detail, _ = decode(frame)
            if type == "call.responded" and "from" not in detail:
                request_id = detail["requestId"]
                if request_id not in ended and self.calls.asks(peer, request_id):
                    ended.add(request_id)
                    why = "the caller does not read this stream as fast as it comes, and gives no credit"
                    self.perform(self.calls.undeliverable(calls.Send(peer, type, detail), why, time.monotonic()))
                if request_id in ended:
                    continue
            kept.append(frame)
        return kept

    def _send_call(self, effect: calls.Send) -> bool:
        """Like ``send``, for what a peer's JSON is part of: with what the hub adds it may be too large for a frame.
        False: it was not sent, and what follows from that has been done."""
        frame = encode(effect.type, effect.detail)
        if len(frame) > self.limits.max_frame_bytes:
            why = f"{effect.type} has {len(frame)} bytes, and a frame at most {self.limits.max_frame_bytes}"
            if effect.type not in ("call.error", "call.completed"):
                self.perform(self.calls.undeliverable(effect, why, time.monotonic(), retryable=False))
                return False
            code = effect.detail.get("code", "EXECUTION_ERROR")
            error = {"requestId": effect.detail["requestId"], "code": code, "message": why}
            frame = encode("call.error", error)
        elif effect.type == "call.requested" and self._crowded(effect.peer, len(frame)):
            why = "the spoke that was to answer has a full queue"
            self.perform(self.calls.undeliverable(effect, why, time.monotonic()))
            return False
        self.queue(effect.peer, frame)
        return True

    def _crowded(self, peer: int, more: int) -> bool:
        """Who answers many is not to be disconnected for what others ask of it at once."""
        held = self._held.get(peer)
        return held is not None and sum(map(len, held)) + more > MAX_HELD // 2

    def _overflowed(self, peer: int) -> None:
        """Calls are never dropped: a peer that does not read 8 MiB of them is disconnected, and its calls end with an
        error at their callers."""
        self.close(peer, CloseCode.SLOW_CONSUMER, "slow consumer: the queue of calls and control messages is full")

    def _count_slow(self, peer: int) -> None:
        if (session := self.sessions.get(peer)) is not None:
            session.slow += 1

    def _count_dropped(self, peer: int, count: int) -> None:
        if (session := self.sessions.get(peer)) is not None:
            session.dropped += count

    def bind_loop(self, loop: Any) -> None:
        self._loop = loop
        self.of_node.start()
        self.swarms.start(loop)

    def _arm(self) -> None:
        """One timer for whatever is due first. A later one that is set already will do: it looks again."""
        now = time.monotonic()
        call, due = self.calls.next_deadline(), self.topics.next_deadline(now)
        if due is None or (call is not None and call < due):
            due = call
        if due is None:
            return
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_later(max(due - now, 0.0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        try:
            self.perform(self.calls.tick(now))
            self.topics.tick(now)
            self.settle()
        except BaseException:  # a bug of ours: the deadlines of all others go on
            self._timer_at = now + LOOK_INTERVAL
            self._timer = self._loop.call_later(LOOK_INTERVAL, self._tick)
            raise

    def kick(self, node_id: str, reason: str) -> int:
        """Ends the connections of a NodeId; returns how many."""
        sessions = list(self.by_node.get(node_id, {}).values())
        for session in sessions:
            self.close(session.peer, CloseCode.KICKED, reason)
        self.introductions.cut(node_id, reason)
        return len(sessions)

    def _access_changed(self, ended: list[int]) -> None:
        """The lists are others now. What has come from the connections that they ended is not read any more; the others
        have their scopes from here on, for what they do and for what they had begun."""
        for conn in ended:
            if (gone := self.sessions.get(conn)) is not None:
                gone.closing = True
        for session in self.sessions.values():
            before, session.grant = session.grant, self.admission.grant(session.node_id)
            if session.grant.scopes != before.scopes:
                session.stamp()
                self.registrations.offer(session)
                held = self.topics.subscriptions.patterns(session.peer)
                if lost := set(held).difference(self._topic_messages.subscribable(session, held)):
                    self.topics.unsubscribe(session.peer, list(lost))
        self.swarms.members.access_changed()
        self.introductions.access_changed()

    def stop(self) -> None:
        for part in (self.guests, self.of_node, self.swarms):
            part.stop()
        self.datagrams.forget()
        if self._timer is not None:
            self._timer.cancel()


def _reason(code: int | None) -> str:
    """A label for metrics: a close code of the table by its name."""
    if code is None:
        return "path_lost"
    try:
        return CloseCode(code).name.lower()
    except ValueError:
        return "other"
