"""``hub.register`` in the hub: what a peer says of itself is read and answered, and what it may offer is offered.

Not here: the reading of the fields and the balancing of calls (protocol/registration.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from broker.hub.session import Session
from broker.protocol.calls import HUB
from broker.protocol.registration import MAX_ADDRS, MAX_RELAYS, Registration, parse, to_detail
from broker.protocol.wire import DIRECT, GOSSIP, PROTOCOL_VERSION, REALM, CloseCode

if TYPE_CHECKING:
    from broker.hub.router import Router

__all__ = ["Registrations"]

CAPABILITIES = ("topic.ack", "topic.repair", "call.credit", "call.all", DIRECT)


class Registrations:
    """The part of a router that is about who is there and what they offer."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def receive(self, session: Session, detail: Any) -> None:
        """A peer's ``hub.register``; a later one takes the place of the earlier."""
        if isinstance(detail, dict) and type(secret := detail.get("invite")) is str:
            # If it is spent, this one is a spoke that came back.
            self._router.admission.redeem(session.node_id, secret)
        if self._router.links.registered(session, detail):
            return
        session.registration = parse(detail)
        if "join" in detail:
            why = "a hub joins with an invite of the scope realm (`broker invite TICKET --scopes realm`)"
            self._router.close(session.peer, CloseCode.NOT_ADMITTED, why)
            return
        session.registered = True
        if session.registration.capabilities:
            self._router.endpoint.write_at_once(session.peer)  # none of upstream's kind on PyPI's iroh
        self.hello(session)
        self.offer(session)
        self._router.links.tell_spoke(session)
        self._router.swarms.members.registered(session)
        self._router.registered(session)

    def hello(self, session: Session, invite: str | None = None) -> None:
        """The hub's own, once a connection. ``invite``: the secret of the ticket by which the spoke was dialled."""
        if not session.said_hello:
            session.said_hello = True
            self._say(session, invite)

    def moved(self) -> None:
        """The hub is at other addresses now: whoever has registered is told."""
        for session in self._router.sessions.values():
            if session.registered and not session.hub:
                self._say(session, None)

    def _say(self, session: Session, invite: str | None) -> None:
        endpoint = self._router.endpoint
        registration = Registration(
            operations=self._router.calls.offered(HUB),
            name="hub",
            protocol=PROTOCOL_VERSION,
            capabilities=(*CAPABILITIES, GOSSIP, REALM) if self._router.swarms.enabled else CAPABILITIES,
            max_frame_bytes=self._router.limits.max_frame_bytes,
            addrs=tuple(endpoint.addrs())[:MAX_ADDRS],
            relays=tuple(endpoint.relay_urls())[:MAX_RELAYS],
            **self._router.swarms.registration(),
        )
        detail = to_detail(registration)
        self._router.send(session.peer, "hub.register", detail if invite is None else {**detail, "invite": invite})

    def offer(self, session: Session) -> None:
        """Puts on offer what it may offer of what it registered. It is told of what is left out."""
        registration, grant = session.registration, session.grant
        allowed = tuple(one for one in registration.operations if grant.may("offer", one.id))
        if len(allowed) < len(registration.operations):
            for one in registration.operations:
                if not grant.may("offer", one.id):
                    self._router.deny(session, "offer", one.id)
        kept = allowed[: self._router.of_node.operations(session, [one.id for one in allowed])]
        if len(kept) < len(registration.operations):
            registration = replace(registration, operations=kept)
        self._router.calls.register(session.peer, session.node_id, registration.name, registration)
