"""Who may do what at a hub. A policy is a value; every question has a yes/no answer with the reason in words.

Rules:
1. Identity is the NodeId that the transport proved; nothing a peer writes about itself counts.
2. ``deny`` wins over everything, then ``admins``, then ``allow``, then ``open``.
3. A reason is for the log and for the refused peer: it never says who else is allowed.

Not here: rate limits, and where the policy is read from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from broker.errors import ConfigError

__all__ = ["MAX_ENTRIES", "Decision", "Policy"]

MAX_ENTRIES: Final = 100_000
"""NodeIds in one list: about 10 MB. More belongs into a directory service, not a config file."""

_NODE_ID: Final = re.compile(r"[0-9a-f]{64}")


class Decision(NamedTuple):
    """An answer that is true or false in an ``if``, and says why."""

    allowed: bool
    reason: str

    def __bool__(self) -> bool:
        return self.allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """``open``: whoever is on no list may connect. The default lets in nobody but those listed."""

    open: bool = False
    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    admins: frozenset[str] = frozenset()

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

    def may_call(self, node_id: str, operation: str) -> Decision:
        """Whether it may call ``operation``. Today: whoever is admitted; ``hub.admin.*`` is for admins."""
        if operation.startswith("hub.admin."):
            return self._admin(node_id)
        return self.admitted(node_id)

    def may_offer(self, node_id: str, operation: str) -> Decision:
        """Whether it may answer ``operation``. Today: whoever is admitted; ``hub.*`` is the hub's own."""
        if operation.startswith("hub."):
            return Decision(False, "operations that start with hub. are the hub's own")
        return self.admitted(node_id)

    def may_publish(self, node_id: str, topic: str) -> Decision:
        """Whether it may send events of ``topic``. Today: whoever is admitted."""
        return self.admitted(node_id)

    def may_subscribe(self, node_id: str, pattern: str) -> Decision:
        """Whether it may get the topics of ``pattern``. Today: whoever is admitted."""
        return self.admitted(node_id)

    def scopes(self, node_id: str) -> tuple[str, ...]:
        """What the hub stamps as ``identity.scopes``."""
        return ("admin",) if node_id in self.admins and node_id not in self.deny else ()

    def denying(self, node_id: str) -> Policy:
        """This policy with one NodeId banned."""
        return replace(self, deny=self.deny | {node_id})

    def _admin(self, node_id: str) -> Decision:
        admitted = self.admitted(node_id)
        if not admitted:
            return admitted
        return Decision(True, "admin") if node_id in self.admins else Decision(False, "for admins only")


def _node_ids(key: str, value: Iterable[str]) -> frozenset[str]:
    if isinstance(value, str):
        raise ConfigError("a list of NodeIds, not one string", key=key)
    ids = frozenset(value)
    if len(ids) > MAX_ENTRIES:
        raise ConfigError(f"{len(ids)} NodeIds, at most {MAX_ENTRIES} go", key=key)
    for node_id in ids:
        if not isinstance(node_id, str) or not _NODE_ID.fullmatch(node_id):
            raise ConfigError(f"{str(node_id)[:80]!r} is not a NodeId (64 hex digits, lower case)", key=key)
    return ids
