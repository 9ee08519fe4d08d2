"""Messages about topics: events, subscriptions, pauses, repairs and heads, checked and handed to the hub's topics.

Not here: calls and registrations (router.py), and what a topic is (topics.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from broker.errors import FrameError, TopicError
from broker.hub.session import Session
from broker.protocol.codec import Message, encode
from broker.protocol.routing import MAX_PATIENCE, SubscribeOptions
from broker.protocol.sequence import MAX_SEQ, parse_since
from broker.protocol.wire import RESERVED_PREFIXES, CloseCode

if TYPE_CHECKING:
    from broker.hub.router import Router

__all__ = ["MAX_ABOUT", "TopicMessages"]

MAX_PATTERNS_A_MESSAGE = 10_000
MAX_NUMBERED = 1_000
"""Topics of one author for which the hub counts; who comes back to a forgotten one begins a new epoch."""
MAX_TAG = 64
"""Characters of what a subscriber calls its subscription."""
MAX_ABOUT = 255
"""A whole topic or pattern."""
POLICIES = ("block", "drop_oldest", "disconnect")


class TopicMessages:
    """The part of a router that is about topics. ``patience`` is what a subscriber gets that asks for none."""

    def __init__(self, router: Router, *, patience: float) -> None:
        self._router = router
        self.patience = min(patience, MAX_PATIENCE)
        self.controls: dict[str, Callable[[Session, Any], None]] = {
            "__subscribe": self.subscribe,
            "__unsubscribe": self.unsubscribe,
            "topic.pause": self.pause,
            "topic.resume": self.resume,
            "topic.repair": self.repair,
            "topic.head": self.head,
        }

    def event(self, session: Session, message: Message, frame: bytes) -> None:
        topic = message.type
        if topic.startswith(RESERVED_PREFIXES):
            code = "UNKNOWN_TYPE" if not topic.startswith("__") else "RESERVED_TOPIC"
            name = topic[:MAX_ABOUT]
            self._router.complain(session.peer, code, f"{name!r} is reserved and not a message of this version", name)
            return
        if not session.grant.everything and not session.grant.may("publish", topic):
            self._router.deny(session, "publish", topic)
            return
        if session.hub:
            self._router.links.event(session, message, frame)
            return
        session.events += 1
        try:
            meta = message.meta
            if meta is not None and meta.get("author") == session.node_id and _placed(meta):
                self._router.topics.publish(session.peer, topic, session.node_id, meta["epoch"], meta["seq"], frame)
            else:
                self._publish_stamped(session, message)
        except TopicError as error:
            self._router.complain(session.peer, error.code, str(error), topic)

    def _publish_stamped(self, session: Session, message: Message) -> None:
        """An author that sends no place in a sequence gets one in the order of arrival; a false author is
        overwritten."""
        topic = message.type
        known = session.epochs.pop(topic) if topic in session.epochs else None
        epoch, seq = known or (secrets.token_hex(8), 0)
        meta = {**(message.meta or {}), "author": session.node_id, "epoch": epoch, "seq": seq + 1}
        frame = encode(topic, message.detail, meta)
        if len(frame) > self._router.limits.max_frame_bytes:
            self._router.complain(
                session.peer,
                "LIMIT",
                f"an event of {len(frame)} bytes with its meta, the limit is {self._router.limits.max_frame_bytes}",
                topic,
                "publish",
            )
        else:
            self._router.topics.publish(session.peer, topic, session.node_id, epoch, seq + 1, frame)
            seq += 1
        if seq:
            if len(session.epochs) >= MAX_NUMBERED:
                del session.epochs[next(iter(session.epochs))]
            session.epochs[topic] = (epoch, seq)

    def subscribe(self, session: Session, detail: Any) -> None:
        patterns = _patterns(detail, "__subscribe")
        policy, patience, since = (
            detail.get("policy", "block"),
            detail.get("patience", self.patience),
            detail.get("since"),
        )
        if policy not in POLICIES or type(patience) not in (int, float) or not 0 <= patience <= MAX_PATIENCE:
            self._router.complain(
                session.peer,
                "BAD_PATTERN",
                f"policy is one of {', '.join(POLICIES)}; patience is 0 to {MAX_PATIENCE:g} s",
                patterns[0],
            )
            return
        since, tag = parse_since(since), detail.get("tag")
        if tag is not None and not (isinstance(tag, str) and len(tag) <= MAX_TAG):
            raise FrameError(
                f"__subscribe: tag is not a string of at most {MAX_TAG} characters", close_code=CloseCode.BAD_MESSAGE
            )
        options = SubscribeOptions(policy=policy, patience=float(patience))
        patterns = self._router.of_node.subscriptions(session, self.subscribable(session, patterns))
        for pattern, error in self._router.topics.subscribe(session.peer, patterns, options, since, tag):
            self._router.complain(session.peer, error.code, str(error), pattern)
        self._router.swarms.members.subscribed(session, patterns)
        self._router.topics.places.came_back(session.node_id)

    def subscribable(self, session: Session, patterns: list[str]) -> list[str]:
        """Those that it may subscribe to; it is told of the others."""
        if session.grant.everything:
            return patterns
        allowed = [pattern for pattern in patterns if session.grant.may("subscribe", pattern)]
        if len(allowed) < len(patterns):
            for pattern in set(patterns).difference(allowed):
                self._router.deny(session, "subscribe", pattern)
        return allowed

    def unsubscribe(self, session: Session, detail: Any) -> None:
        self._router.topics.unsubscribe(session.peer, _patterns(detail, "__unsubscribe"))
        self._router.swarms.members.unsubscribed(session.peer)

    def pause(self, session: Session, detail: Any) -> None:
        self._router.topics.pause(session.peer, _patterns(detail, "topic.pause"))

    def resume(self, session: Session, detail: Any) -> None:
        self._router.topics.resume(session.peer, _patterns(detail, "topic.resume"))

    def repair(self, session: Session, detail: Any) -> None:
        match detail:
            case {
                "topic": str(topic),
                "author": str(author),
                "epoch": str(epoch),
                "from": int(first),
                "to": int(last),
            } if 0 < first <= last:
                if not session.grant.may("subscribe", topic):
                    self._router.deny(session, "subscribe", topic)
                    return
                self._router.topics.readers.repair(session.peer, topic, author, epoch, first, last)
            case _:
                raise FrameError(
                    "topic.repair needs topic, author, epoch, from and to", close_code=CloseCode.BAD_MESSAGE
                )

    def head(self, session: Session, detail: Any) -> None:
        match detail:
            case {"topic": str(topic), "author": str(author), "epoch": str(epoch), "seq": int(seq)} if (
                author != session.node_id and 0 <= seq <= MAX_SEQ and _is_epoch(epoch)
            ):
                self._router.swarm_messages.reported(session, topic, author, epoch, int(seq))
            case {"topic": str(topic), "epoch": str(epoch), "seq": int(seq)} if 0 <= seq <= MAX_SEQ and _is_epoch(
                epoch
            ):
                acked = detail.get("acked")
                # What is passed on must be right: a subscriber ends a connection that tells it nonsense.
                acked = acked if type(acked) is int and 0 <= acked <= seq else seq
                if not session.grant.may("publish", topic):
                    self._router.deny(session, "publish", topic)
                    return
                try:
                    self._router.topics.announced(
                        session.peer,
                        topic,
                        session.node_id,
                        epoch,
                        int(seq),
                        acked,
                        _number(detail.get("first"), 1),
                        _number(detail.get("gossip"), 0),
                    )
                except TopicError as error:
                    self._router.complain(session.peer, error.code, str(error), topic)
            case _:
                raise FrameError("topic.head needs topic, epoch and seq", close_code=CloseCode.BAD_MESSAGE)


def _placed(meta: dict[str, Any]) -> bool:
    """Whether an event's meta has a place in its author's sequence. It runs once an event, so it calls nothing."""
    seq, epoch = meta.get("seq"), meta.get("epoch")
    if type(seq) is not int or not 0 < seq < 2**53:
        return False
    return type(epoch) is str and len(epoch) == 16 and epoch.isalnum() and epoch.isascii()


def _number(value: Any, least: int) -> int:
    """What an author may leave out."""
    return value if type(value) is int and least <= value <= MAX_SEQ else least


def _is_epoch(value: Any) -> bool:
    return type(value) is str and len(value) == 16 and value.isalnum() and value.isascii()


def _patterns(detail: Any, what: str) -> list[str]:
    topics = detail.get("topics") if isinstance(detail, dict) else None
    if not isinstance(topics, list) or not topics or not all(isinstance(topic, str) for topic in topics):
        raise FrameError(f"{what} needs topics, a list of strings", close_code=CloseCode.BAD_MESSAGE)
    if len(topics) > MAX_PATTERNS_A_MESSAGE:
        raise FrameError(
            f"{what}: more than {MAX_PATTERNS_A_MESSAGE} topics in one message", close_code=CloseCode.LIMIT
        )
    return topics
