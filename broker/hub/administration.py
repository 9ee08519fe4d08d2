"""Administration while the hub runs: hub.invite, hub.ban, hub.unban, hub.kick, hub.admissions, hub.dial, hub.undial,
hub.dials.

They are operations like any other: whoever can call can administer, if its NodeId is an administrator's.
Not here: what the lists do (admission.py), the commands (cli/admit.py).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, Final

from broker.errors import AccessDenied, TicketError, Unreachable, ValidationFailed
from broker.hub.admission import DEFAULT_TTL, MAX_SCOPES
from broker.hub.dialling import Dialling
from broker.hub.operations import Handler, HubOperations
from broker.hub.router import Router
from broker.protocol.registration import Kind
from broker.protocol.ticket import Ticket

__all__ = ["administer"]

log = logging.getLogger("broker.hub")

MOST_ROWS: Final = 4_000
"""Of each list: what fits in a frame of 1 MiB with room to spare."""
WHO_MAY: Final = (
    "{} is for administrators: the NodeIds in the hub's config (admission.admins) and the identity in admin.key of its "
    "data directory (--key DATA/admin.key)"
)

_NODE_ID: Final = re.compile(r"[0-9a-f]{64}")
_NODE_INPUT: Final = {
    "type": "object",
    "properties": {"node_id": {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"}},
    "required": ["node_id"],
}
_DIAL_INPUT: Final = {
    "type": "object",
    "properties": {
        "ticket": {"type": "string", "description": "of a spoke that listens"},
        "node_id": {"type": "string", "pattern": "^[0-9a-fA-F]{64}$", "description": "of one that the hub has dialled"},
    },
}
_INVITE_INPUT: Final = {
    "type": "object",
    "properties": {
        "scopes": {"type": "array", "items": {"type": "string"}},
        "ttl": {"type": "number", "exclusiveMinimum": 0, "description": "seconds until it is void"},
    },
}


def administer(
    operations: HubOperations, router: Router, ticket: Callable[[str | None], Ticket], dialling: Dialling
) -> None:
    """Adds the operations. ``ticket`` makes the hub's ticket with an invite's secret."""
    admission = router.admission

    def invite(input: Any, _: str) -> dict[str, Any]:
        scopes, ttl = _invite_of(input)
        secret, expires = admission.invite(scopes, ttl)
        answer = {"ticket": ticket(secret).encode(), "expires": expires, "scopes": list(scopes)}
        return {**answer, "durable": admission.durable}

    def ban(input: Any, caller: str) -> dict[str, Any]:
        node_id = _node_of(input)
        if node_id in (caller, router.endpoint.node_id):
            raise ValidationFailed("neither yourself nor the hub: nobody could take that back")
        if node_id in router.swarms.realm.others:
            raise ValidationFailed(
                "this is a hub of the realm, and knows its secret: a ban would keep nothing from it. Stop it, and give "
                "the others a new realm (docs/operations.md)"
            )
        ended = len(router.by_node.get(node_id, ()))
        changed = admission.ban(node_id)
        return {"node_id": node_id, "changed": changed, "connections": ended, "durable": admission.durable}

    def unban(input: Any, _: str) -> dict[str, Any]:
        node_id = _node_of(input)
        changed = admission.unban(node_id)
        admitted = bool(admission.policy.admitted(node_id))
        return {"node_id": node_id, "changed": changed, "admitted": admitted, "durable": admission.durable}

    def kick(input: Any, _: str) -> dict[str, Any]:
        node_id = _node_of(input)
        return {"node_id": node_id, "connections": router.kick(node_id, "kicked by an administrator")}

    def dial(input: Any, _: str) -> dict[str, Any]:
        try:
            place = dialling.place_of(_whom(input))
            dialling.keep(place)
        except (TicketError, Unreachable) as error:
            raise ValidationFailed(str(error)) from None
        dialling.book.keep(place.node_id, True)
        return {"node_id": place.node_id, "durable": dialling.book.durable}

    def undial(input: Any, _: str) -> dict[str, Any]:
        node_id = _node_of(input)
        return {"node_id": node_id, "changed": dialling.end(node_id), "durable": dialling.book.durable}

    def add(id: str, description: str, schema: dict[str, Any] | None, handler: Handler) -> None:
        def checked(input: Any, caller: str) -> Any:
            if not admission.policy.administers(caller):
                raise AccessDenied(WHO_MAY.format(id))
            if schema is not None:
                log.info("%s by %s: %s", id, caller[:10], _shown(input))
            return handler(input, caller)

        kind: Kind = "mutation" if schema is not None else "query"
        operations.add(id, f"{description} (administrators)", checked, kind=kind, input_schema=schema)

    add("hub.invite", "a ticket that admits one NodeId", _INVITE_INPUT, invite)
    add("hub.ban", "ends a NodeId's connections and refuses it from now on", _NODE_INPUT, ban)
    add("hub.unban", "takes a ban back", _NODE_INPUT, unban)
    add("hub.kick", "ends a NodeId's connections; it may come back", _NODE_INPUT, kick)
    add("hub.dial", "keeps a connection to a spoke that listens", _DIAL_INPUT, dial)
    add("hub.undial", "ends that, and the connection", _NODE_INPUT, undial)
    add("hub.dials", "whom this hub dials", None, lambda _, __: dialling.rows()[:MOST_ROWS])
    add("hub.admissions", "who is admitted, banned and invited", None, lambda _, __: admission.listing(MOST_ROWS))


def _node_of(input: Any) -> str:
    node_id = input.get("node_id") if isinstance(input, dict) else None
    if not isinstance(node_id, str) or not _NODE_ID.fullmatch(node_id.lower()):
        raise ValidationFailed("node_id is needed: 64 hex digits, as `broker ls TICKET spokes --json` shows them")
    return node_id.lower()


def _whom(input: Any) -> str:
    """A ticket or a NodeId."""
    given = input if isinstance(input, dict) else {}
    whom = given.get("ticket") or given.get("node_id")
    if not isinstance(whom, str):
        raise ValidationFailed("ticket is needed, of a spoke that listens, or node_id, of one that was dialled before")
    return whom


def _shown(input: Any) -> Any:
    """For the log: who has a ticket may be that spoke's hub."""
    return {**input, "ticket": "..."} if isinstance(input, dict) and "ticket" in input else input


def _invite_of(input: Any) -> tuple[tuple[str, ...], float]:
    given = {} if input is None else input
    if not isinstance(given, dict):
        raise ValidationFailed("the input is an object with scopes and ttl, or nothing")
    scopes, ttl = given.get("scopes") or [], given.get("ttl")
    if not isinstance(scopes, list) or len(scopes) > MAX_SCOPES or not all(isinstance(one, str) for one in scopes):
        raise ValidationFailed(f"scopes is a list of at most {MAX_SCOPES} names")
    if ttl is not None and type(ttl) not in (int, float):
        raise ValidationFailed("ttl is a number of seconds")
    return tuple(dict.fromkeys(scopes)), DEFAULT_TTL if ttl is None else float(ttl)
