"""Who may do what at a hub. A policy is a value; every question has a yes/no answer.

Rules:
1. Identity is the NodeId that the transport proved; nothing a peer writes about itself counts.
2. Who may connect: ``deny`` wins over everything, then ``admins``, then ``allow``, then ``open``.
3. What the connected may do: what the scopes of the NodeId allow, by pattern. Those that have none of their own have
   the default ones. Admins may everything, and so may all where no scope is defined at all.
4. A subscription is allowed when each topic that it can ever match is.
5. A reason is for the log and for the refused peer: it never says who else is allowed.

Not here: limits (hub/limits.py), how the lists change while a hub runs (hub/admission.py), where they are read from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from broker.errors import ConfigError
from broker.protocol.routing import MAX_TOKENS, MAX_TOPIC_BYTES, matches

__all__ = [
    "ADMIN",
    "MAX_ENTRIES",
    "Action",
    "Decision",
    "Grant",
    "Policy",
    "Scope",
    "check_operation_pattern",
    "contains",
]

MAX_ENTRIES: Final = 20_000
"""NodeIds in one list. Each change hands the lists to the extension: 6 us an entry, measured. So a ban takes a quarter
of a second at worst. More belongs into a directory service."""
MAX_REMEMBERED: Final = 4_096
"""Decisions of one kind that a grant remembers; beyond it the memory starts anew."""
MAX_SHOWN: Final = 80
"""Characters of a peer's own text in a reason."""
ADMIN: Final = "admin"
"""The scope that admins are stamped with, and that no config may define."""

Action = Literal["call", "offer", "publish", "subscribe"]

_NODE_ID: Final = re.compile(r"[0-9a-f]{64}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+|\*")


def contains(allowed: Iterable[str], pattern: str, depth: int = MAX_TOKENS) -> bool:
    """Whether each topic of at most ``depth`` tokens that ``pattern`` matches is matched by one of ``allowed``.

    There are more tokens than anybody can list, so a wildcard is covered by wildcards only: a pattern without ``>`` is
    covered when it is matched itself, ``*`` read as one more token. A last ``>`` stands for a pattern of each length.
    What is too deep to match any topic is covered by nothing: it is nobody's to use.
    """
    known = tuple(allowed)
    stem, _, last = pattern.rpartition(".")
    if last != ">":
        return any(matches(one, pattern) for one in known)
    tokens = stem.split(".") if stem else []
    lengths = range(1, depth - len(tokens) + 1)
    return bool(lengths) and all(
        any(matches(one, ".".join([*tokens, *["*"] * more])) for one in known) for more in lengths
    )


def check_operation_pattern(pattern: str) -> None:
    """ValueError unless it is tokens as in a topic's pattern. Operations have no reserved names."""
    *first, last = pattern.split(".")
    right = all(map(_TOKEN.fullmatch, first)) and (last == ">" or _TOKEN.fullmatch(last))
    if not right or len(pattern) > MAX_TOPIC_BYTES:
        rule = "tokens joined by dots, '*' for one, a last '>' for the rest"
        raise ValueError(f"{pattern[:MAX_SHOWN]!r} is not a pattern: {rule}")


class Decision(NamedTuple):
    """An answer that is true or false in an ``if``, and says why."""

    allowed: bool
    reason: str

    def __bool__(self) -> bool:
        return self.allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Patterns of what those who have it may do."""

    call: tuple[str, ...] = ()
    offer: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()


class Grant:
    """What one set of scopes allows. Decisions are remembered, within a bound: on the hot path they are a look-up."""

    __slots__ = ("_known", "_patterns", "everything", "scopes")

    def __init__(self, scopes: tuple[str, ...], allowed: Iterable[Scope], *, everything: bool = False) -> None:
        self.scopes, self.everything = scopes, everything
        every = tuple(allowed)
        actions: tuple[Action, ...] = ("call", "offer", "publish", "subscribe")
        self._patterns: dict[Action, tuple[str, ...]] = {
            action: tuple(dict.fromkeys(pattern for scope in every for pattern in getattr(scope, action)))
            for action in actions
        }
        self._known: dict[Action, dict[str, bool]] = {action: {} for action in actions}

    def may(self, action: Action, name: str) -> bool:
        """``name`` is an operation or topic; for ``subscribe`` it may be a pattern."""
        if self.everything:
            return True
        known = self._known[action]
        found = known.get(name)
        if found is None:
            if len(name) > MAX_TOPIC_BYTES:
                return False  # no operation and no topic, and nothing to remember
            if len(known) >= MAX_REMEMBERED:
                known.clear()
            found = known[name] = contains(self._patterns[action], name)
        return found

    def denial(self, action: Action, name: str) -> str:
        """What the peer is told."""
        if not self.scopes:
            return f"this NodeId has no scope, and needs one to {action} {name[:MAX_SHOWN]!r}"
        return f"this NodeId's scopes ({', '.join(self.scopes)}) do not let it {action} {name[:MAX_SHOWN]!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """``open``: whoever is on no list may connect. The default lets in nobody but those listed."""

    open: bool = False
    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    admins: frozenset[str] = frozenset()
    scopes: Mapping[str, Scope] = field(default_factory=dict)
    nodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Scopes by NodeId. To have scopes is not to be admitted."""
    default: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("allow", "deny", "admins"):
            object.__setattr__(self, key, _node_ids(key, getattr(self, key)))

    def admitted(self, node_id: str) -> Decision:
        """Whether this NodeId may hold a connection."""
        if node_id in self.deny:
            return Decision(False, "this NodeId is denied here")
        if node_id in self.admins:
            return Decision(True, "admin")
        if node_id in self.allow:
            return Decision(True, "allowed by name")
        if self.open:
            return Decision(True, "open to everyone")
        return Decision(False, "this NodeId is not on the hub's allow list")

    def administers(self, node_id: str) -> bool:
        """Whether it may change admission."""
        return node_id in self.admins and node_id not in self.deny

    def scopes_of(self, node_id: str) -> tuple[str, ...]:
        """What the hub stamps as ``identity.scopes``."""
        mine = tuple(self.nodes.get(node_id, ())) or self.default
        return (ADMIN, *mine) if self.administers(node_id) else mine

    def grant(self, scopes: tuple[str, ...]) -> Grant:
        """What these scopes, together, allow. A name that no scope has allows nothing."""
        everything = not self.scopes or ADMIN in scopes
        return Grant(scopes, [self.scopes[name] for name in scopes if name in self.scopes], everything=everything)


def _node_ids(key: str, value: Iterable[Any]) -> frozenset[str]:
    if isinstance(value, str):
        raise ConfigError("a list of NodeIds, not one string", key=key)
    ids = frozenset(value)
    if len(ids) > MAX_ENTRIES:
        raise ConfigError(f"{len(ids)} NodeIds, at most {MAX_ENTRIES} go", key=key)
    for node_id in ids:
        if not isinstance(node_id, str) or not _NODE_ID.fullmatch(node_id):
            raise ConfigError(f"{str(node_id)[:80]!r} is not a NodeId (64 hex digits, lower case)", key=key)
    return ids
