"""Topic names, subscription patterns, and who gets which topic. Not here: what is sent, when, or in which order.

Rules:
1. A topic is 1 to 16 tokens of ``[A-Za-z0-9_-]`` joined by dots, at most 255 bytes.
2. A pattern is a topic in which ``*`` stands for exactly one token and a last ``>`` for one or more (NATS's rules).
3. ``call.``, ``hub.``, ``topic.`` and anything that starts with ``__`` belong to the protocol: no topic, no pattern.
4. One peer gets one copy of an event, however many of its patterns match; the strictest of their options holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from broker.errors import TopicError
from broker.protocol.wire import RESERVED_PREFIXES

__all__ = [
    "MAX_PATIENCE",
    "MAX_PATTERNS_PER_PEER",
    "MAX_TOKENS",
    "MAX_TOPIC_BYTES",
    "Peer",
    "Policy",
    "References",
    "SubscribeOptions",
    "Subscriptions",
    "check_pattern",
    "check_topic",
    "is_reserved",
    "matches",
]

Peer = int
Policy = Literal["block", "drop_oldest", "disconnect"]

MAX_TOPIC_BYTES: Final = 255
"""NATS's own advice for subjects; a name also becomes a metric label and a table row."""
MAX_TOKENS: Final = 16
"""The depth of the trie, so the cost of one match: with ``*`` at every level a match visits at most 2**16 nodes, and
only where a subscriber has built them."""
MAX_PATTERNS_PER_PEER: Final = 10_000
"""About 2 MB of trie a peer at the usual length of a name."""
MAX_REFERENCES: Final = 100_000
"""Patterns that one spoke counts references for: ten hubs' worth of patterns."""
MAX_PATIENCE: Final = 60.0
"""Seconds. What one subscriber may ask for is time taken from every publisher of the topic."""
MATCH_CACHE: Final = 4_096
"""Topics whose subscribers are remembered between events; dropped at every change of a subscription."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+")
_TOPIC: Final = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_STRICTNESS: Final[dict[str, int]] = {"disconnect": 0, "drop_oldest": 1, "block": 2}


def is_reserved(name: str) -> bool:
    """Whether a message type belongs to the protocol and so can never be a topic."""
    return name.startswith(RESERVED_PREFIXES)


def check_topic(name: object) -> None:
    """Raise :class:`TopicError` unless events may be published under ``name``."""
    name = _sized(name, "topic", "BAD_TOPIC")
    if _TOPIC.fullmatch(name):
        if is_reserved(name):
            raise TopicError(_reserved(name), code="RESERVED_TOPIC")
        return
    for token in name.split("."):
        if token in ("*", ">"):
            raise TopicError(f"{token!r} in topic {name!r}: wildcards are for subscriptions only", code="BAD_TOPIC")
        _check_token(token, name, "topic", "BAD_TOPIC")
    raise TopicError(f"topic {name!r} is not tokens joined by dots", code="BAD_TOPIC")


def check_pattern(pattern: object) -> None:
    """Raise :class:`TopicError` unless ``pattern`` may be subscribed to."""
    pattern = _sized(pattern, "pattern", "BAD_PATTERN")
    tokens = pattern.split(".")
    for token in tokens[:-1]:
        if token == ">":
            raise TopicError(f"'>' in pattern {pattern!r} must be the last token", code="BAD_PATTERN")
    for token in tokens:
        if token not in ("*", ">"):
            _check_token(token, pattern, "pattern", "BAD_PATTERN")
    if is_reserved(pattern):
        raise TopicError(_reserved(pattern), code="RESERVED_TOPIC")


def _reserved(name: str) -> str:
    return f"{name!r} is reserved: names that start with call. hub. topic. or __ belong to the protocol"


def _sized(name: object, what: str, code: str) -> str:
    if not isinstance(name, str) or not name:
        raise TopicError(f"a {what} is a string that is not empty", code=code)
    if len(name) > MAX_TOPIC_BYTES:
        raise TopicError(f"{what} {name[:40]!r}... has {len(name)} characters, at most {MAX_TOPIC_BYTES} go", code=code)
    if name.count(".") >= MAX_TOKENS:
        raise TopicError(f"{what} {name[:40]!r}... has more than {MAX_TOKENS} tokens", code=code)
    return name


def _check_token(token: str, name: str, what: str, code: str) -> None:
    if not token:
        raise TopicError(f"{what} {name!r} has an empty token (a dot at an end, or two together)", code=code)
    if not _TOKEN.fullmatch(token):
        raise TopicError(f"{token!r} in {what} {name!r}: tokens are letters, digits, '_' and '-'", code=code)


def matches(pattern: str, topic: str) -> bool:
    """Whether a valid ``pattern`` covers a valid ``topic``."""
    wanted, tokens = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(wanted) == len(tokens) and all(w in ("*", t) for w, t in zip(wanted, tokens, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscribeOptions:
    """What is done for a subscriber that cannot keep up. ``patience`` (seconds) counts for ``block`` alone."""

    policy: Policy = "block"
    patience: float = 2.0

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise ValueError(f"policy {self.policy!r}: one of {', '.join(get_args(Policy))}")
        if not 0 <= self.patience <= MAX_PATIENCE:
            raise ValueError(f"patience {self.patience!r}: seconds from 0 to {MAX_PATIENCE:g}")

    def merged(self, other: SubscribeOptions) -> SubscribeOptions:
        """The stricter of two: ``block`` over ``drop_oldest`` over ``disconnect``, then the longer patience."""
        mine, theirs = (_STRICTNESS[self.policy], self.patience), (_STRICTNESS[other.policy], other.patience)
        return self if mine >= theirs else other


@dataclass(slots=True)
class _Node:
    """One token of the trie. ``here``: patterns that end at it; ``rest``: patterns that go on with ``>``."""

    below: dict[str, _Node] = field(default_factory=dict)
    here: dict[Peer, SubscribeOptions] = field(default_factory=dict)
    rest: dict[Peer, SubscribeOptions] = field(default_factory=dict)

    def empty(self) -> bool:
        return not (self.below or self.here or self.rest)


class Subscriptions:
    """The hub's table of who subscribed to what: a trie by tokens."""

    def __init__(self) -> None:
        self._root = _Node()
        self._patterns: dict[Peer, dict[str, SubscribeOptions]] = {}
        self._counts: dict[str, int] = {}
        self._cache: dict[str, Mapping[Peer, SubscribeOptions]] = {}

    def __len__(self) -> int:
        """Subscriptions: pairs of peer and pattern."""
        return sum(map(len, self._patterns.values()))

    def add(self, peer: Peer, pattern: str, options: SubscribeOptions) -> bool:
        """Subscribe, or replace the options of a subscription. True when it is new; TopicError when it may not be."""
        check_pattern(pattern)
        mine = self._patterns.setdefault(peer, {})
        new = pattern not in mine
        if new and len(mine) >= MAX_PATTERNS_PER_PEER:
            raise TopicError(f"no more than {MAX_PATTERNS_PER_PEER} patterns a connection: {pattern!r}", code="LIMIT")
        mine[pattern] = options
        self._counts[pattern] = self._counts.get(pattern, 0) + new
        tokens = pattern.split(".")
        rest = tokens[-1] == ">"
        node = self._root
        for token in tokens[:-1] if rest else tokens:
            node = node.below.setdefault(token, _Node())
        (node.rest if rest else node.here)[peer] = options
        self._cache.clear()
        return new

    def remove(self, peer: Peer, pattern: str) -> bool:
        """Unsubscribe. False when there was no such subscription."""
        mine = self._patterns.get(peer)
        if mine is None or mine.pop(pattern, None) is None:
            return False
        if not mine:
            del self._patterns[peer]
        self._counts[pattern] -= 1
        if not self._counts[pattern]:
            del self._counts[pattern]
        self._prune(peer, pattern)
        self._cache.clear()
        return True

    def _prune(self, peer: Peer, pattern: str) -> None:
        tokens = pattern.split(".")
        rest = tokens[-1] == ">"
        path = [self._root]
        steps = tokens[:-1] if rest else tokens
        for token in steps:
            path.append(path[-1].below[token])
        del (path[-1].rest if rest else path[-1].here)[peer]
        for parent, token, child in zip(path[-2::-1], reversed(steps), path[:0:-1], strict=True):
            if not child.empty():
                break
            del parent.below[token]

    def drop(self, peer: Peer) -> list[str]:
        """Forget a peer; returns the patterns it had."""
        patterns = self.patterns(peer)
        for pattern in patterns:
            self.remove(peer, pattern)
        return patterns

    def patterns(self, peer: Peer) -> list[str]:
        return list(self._patterns.get(peer, ()))

    def count(self, peer: Peer) -> int:
        """How many patterns a peer has."""
        return len(self._patterns.get(peer, ()))

    def rows(self) -> list[tuple[str, int]]:
        """(pattern, number of subscribers), sorted by pattern."""
        return sorted(self._counts.items())

    def match(self, topic: str) -> Mapping[Peer, SubscribeOptions]:
        """Who gets an event of ``topic``. The mapping is shared between calls: read it, do not change it."""
        found = self._cache.get(topic)
        if found is None:
            found = self._collect(topic)
            if len(self._cache) >= MATCH_CACHE:
                self._cache.clear()
            self._cache[topic] = found
        return found

    def covering(self, peer: Peer, topic: str) -> int:
        """How many of a peer's patterns match ``topic``."""
        return sum(peer in holders for holders in _walk(self._root, topic.split(".")))

    def _collect(self, topic: str) -> dict[Peer, SubscribeOptions]:
        found: dict[Peer, SubscribeOptions] = {}
        for holders in _walk(self._root, topic.split(".")):
            for peer, options in holders.items():
                known = found.get(peer)
                found[peer] = options if known is None else known.merged(options)
        return found


def _walk(root: _Node, tokens: list[str]) -> Iterator[dict[Peer, SubscribeOptions]]:
    level = [root]
    for token in tokens:
        below: list[_Node] = []
        for node in level:
            if node.rest:
                yield node.rest
            if (exact := node.below.get(token)) is not None:
                below.append(exact)
            if (star := node.below.get("*")) is not None:
                below.append(star)
        level = below
    for node in level:
        yield node.here


class References:
    """A spoke's count of local listeners by pattern: the first subscribes at the hub, the last one unsubscribes."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, pattern: str) -> bool:
        """One listener more. True for the first: subscribe now."""
        check_pattern(pattern)
        count = self._counts.get(pattern, 0)
        if not count and len(self._counts) >= MAX_REFERENCES:
            raise TopicError(f"no more than {MAX_REFERENCES} patterns at a time: {pattern!r}", code="LIMIT")
        self._counts[pattern] = count + 1
        return not count

    def remove(self, pattern: str) -> bool:
        """One listener less. True for the last: unsubscribe now. False, too, when nobody listened."""
        count = self._counts.get(pattern, 0)
        if count > 1:
            self._counts[pattern] = count - 1
        elif count:
            del self._counts[pattern]
        return count == 1

    def patterns(self) -> list[str]:
        """What to subscribe to again after a reconnect."""
        return list(self._counts)
