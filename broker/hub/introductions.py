"""``hub.introduce``: a spoke asks to speak to another one directly. Both are told where the other is, and the one that
asks gets a grant, which names the operations that it may call there.

The one that is to be called is told first and may refuse, so that its door is open when the other comes. Who was
introduced is remembered as long as its grant counts: when one of the two must not be here any more, or may not call
what it was granted, the other is told (``hub.introduce`` without a grant) and cuts the connection. A spoke that comes
back, also to another hub of the realm or to one that was started anew, says with whom it has connections, and these are
watched too. Not here: what a grant is (protocol/grants.py), and what spokes do with it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from broker.errors import AccessDenied, CallError, ExecutionFailed, FrameError, ValidationFailed
from broker.hub.later import Later
from broker.hub.session import Session
from broker.protocol.grants import Claims, make
from broker.protocol.registration import MAX_ADDRS, MAX_PLACE, MAX_RELAYS
from broker.protocol.wire import DIRECT, CloseCode

if TYPE_CHECKING:
    from broker.hub.operations import HubOperations
    from broker.hub.router import Router

__all__ = ["GRANT_SECONDS", "Introductions"]

log = logging.getLogger("broker.hub")

GRANT_SECONDS: Final = 120.0
"""How long a grant counts: what spokes have to themselves while no hub can be reached, and for how long a ban may go
unheard by somebody who cannot be told."""
ANSWER_SECONDS: Final = 5.0
"""For the spoke that is to be called to say whether it will."""
MAX_WAITING: Final = 1_000
"""Introductions that wait for that word."""
MAX_PAIRS: Final = 20_000
"""Who may speak to whom, as far as it is watched."""
MAX_NAMED: Final = 256
"""Connections that one spoke says it has."""
_INPUT: Final = {
    "type": "object",
    "properties": {
        "spoke": {"type": "string", "description": "name or NodeId"},
        "addrs": {"type": "array", "items": {"type": "string"}},
        "relays": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["spoke"],
}


class _Refused(Exception):
    """``reason`` is a word for the metrics."""

    def __init__(self, reason: str, error: CallError) -> None:
        super().__init__(str(error))
        self.reason, self.error = reason, error


@dataclass(slots=True)
class _Waiting:
    """Asked, and not answered yet."""

    asker: str
    callee: Session
    grant: dict[str, Any]
    answer: Later
    timer: asyncio.TimerHandle


@dataclass(frozen=True, slots=True)
class _Pair:
    operations: frozenset[str]
    until: float
    """Monotonic seconds."""


class Introductions:
    """The part of a router that is about spokes speaking to each other."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._sign: Callable[[bytes], bytes]
        self._waiting: dict[str, _Waiting] = {}
        self._pairs: dict[tuple[str, str], _Pair] = {}
        """(who calls, who is called)."""
        self.controls: dict[str, Callable[[Session, Any], None]] = {"hub.introduced": self._told}

    def begin(self, operations: HubOperations, sign: Callable[[bytes], bytes]) -> None:
        """Offers the operation. ``sign`` with the hub's key."""
        self._sign = sign
        what = "the way to another spoke, and a grant to call it directly"
        operations.add("hub.introduce", what, self._introduce, kind="mutation", input_schema=_INPUT)

    # -- an introduction

    def _introduce(self, input: Any, asker: str) -> Later:
        try:
            spoke, place = _input_of(input)
            return self._ask(asker, self._find(spoke, asker), place)
        except _Refused as no:
            self._router.metrics.grant_refused(no.reason)
            raise no.error from None

    def _find(self, spoke: str, asker: str) -> Session:
        here = [one for one in self._router.sessions.values() if one.registered and not one.hub and not one.closing]
        found = [one for one in here if spoke in (one.node_id, one.registration.name)]
        if len({one.node_id for one in found}) > 1:
            ids = ", ".join(sorted({one.node_id[:10] for one in found})[:5])
            why = f"several spokes are called {spoke[:80]!r} ({ids}, ...): name one by its NodeId"
            raise _Refused("ambiguous", ValidationFailed(why))
        if not found:
            why = f"no spoke {spoke[:80]!r} is connected to this hub"
            raise _Refused("not_here", ExecutionFailed(why, retryable=True))
        callee = found[-1]
        if callee.node_id == asker:
            raise _Refused("itself", ValidationFailed("a spoke needs no introduction to itself"))
        if DIRECT not in callee.registration.capabilities:
            why = f"{callee.name} takes no introductions; calls to it go by way of the hub"
            raise _Refused("takes_none", AccessDenied(why))
        return callee

    def _ask(self, asker: str, callee: Session, place: dict[str, Any]) -> Later:
        router = self._router
        session = next(reversed(router.by_node[asker].values()))
        allowed = self._allowed(session, callee)
        if not allowed:
            why = f"{callee.name} offers nothing that this NodeId may call"
            raise _Refused("access", AccessDenied(why))
        if len(self._waiting) >= MAX_WAITING:
            why = f"{MAX_WAITING} introductions are under way, which is the limit"
            raise _Refused("limit", ExecutionFailed(why, retryable=True))
        grant = self._granted(session, callee, allowed)
        ref = secrets.token_hex(8)
        answer = Later()
        timer = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._silent, ref)
        self._waiting[ref] = _Waiting(asker, callee, grant, answer, timer)
        about = {"id": asker, "name": session.registration.name, **self._seen(session, place)}
        router.send(callee.peer, "hub.introduce", {"ref": ref, **about, "grant": grant, "now": _now_ms()})
        return answer

    def _allowed(self, session: Session, callee: Session) -> frozenset[str]:
        offered = self._router.calls.offered(callee.peer)
        return frozenset(one.id for one in offered if session.grant.may("call", one.id))

    def _granted(self, session: Session, callee: Session, allowed: frozenset[str]) -> dict[str, Any]:
        now = time.monotonic()
        if len(self._pairs) >= MAX_PAIRS:
            self._pairs = {key: pair for key, pair in self._pairs.items() if pair.until > now}
        if len(self._pairs) >= MAX_PAIRS:
            why = f"{MAX_PAIRS} introductions are in force, which is the limit"
            raise _Refused("limit", ExecutionFailed(why, retryable=True))
        self._pairs[session.node_id, callee.node_id] = _Pair(allowed, now + GRANT_SECONDS)
        issued = _now_ms()
        claims = Claims(
            caller=session.node_id,
            callee=callee.node_id,
            operations=allowed,
            scopes=tuple(session.grant.scopes),
            issued=issued,
            until=issued + int(GRANT_SECONDS * 1000),
        )
        return make(self._router.endpoint.node_id, claims, self._sign)

    def _seen(self, session: Session, said: dict[str, Any]) -> dict[str, Any]:
        """Where a spoke says it is, and from where the hub sees it come: behind a NAT it does not know that itself."""
        stats = self._router.endpoint.stats(session.peer)
        addrs = said["addrs"]
        if stats is not None and stats.path == "direct" and stats.remote_addr and stats.remote_addr not in addrs:
            addrs = [*addrs, stats.remote_addr]
        return {"addrs": addrs, "relays": said["relays"]}

    def _told(self, session: Session, detail: Any) -> None:
        """``hub.introduced``: the one that was asked has an answer, or one that came back says who it speaks to."""
        if not isinstance(detail, dict):
            raise FrameError("hub.introduced is an object", close_code=CloseCode.BAD_MESSAGE)
        if isinstance(names := detail.get("with"), list):
            self._watch(session, [one for one in names[:MAX_NAMED] if isinstance(one, str) and len(one) == 64])
            return
        ref = detail.get("ref")
        waiting = self._waiting.get(ref) if isinstance(ref, str) else None
        if waiting is None or not isinstance(ref, str) or waiting.callee is not session:
            return  # too late, or not its to answer
        if (why := detail.get("refused")) is not None:
            text = f"{session.name} does not take the introduction: {str(why)[:300]}"
            self._settle(ref, "spoke_refused", AccessDenied(text))
        else:
            self._settle(ref, None, None, _place_of(detail))

    def _settle(
        self, ref: str, reason: str | None, error: CallError | None, place: dict[str, Any] | None = None
    ) -> None:
        waiting = self._waiting.pop(ref)
        waiting.timer.cancel()
        if error is not None or place is None:
            self._pairs.pop((waiting.asker, waiting.callee.node_id), None)
            self._router.metrics.grant_refused(reason or "malformed")
            waiting.answer.fail(error or ExecutionFailed("the other spoke's answer cannot be read"))
            return
        self._router.metrics.grants_issued += 1
        callee = waiting.callee
        about = {"id": callee.node_id, "name": callee.registration.name, **self._seen(callee, place)}
        waiting.answer.give({**about, "grant": waiting.grant, "now": _now_ms()})

    def _silent(self, ref: str) -> None:
        waiting = self._waiting[ref]
        why = f"{waiting.callee.name} did not say in {ANSWER_SECONDS:g} s whether it takes the introduction"
        self._settle(ref, "silent", ExecutionFailed(why, retryable=True))
        self._router.settle()

    # -- what is over

    def gone(self, session: Session) -> None:
        """Its connection ended. What it was asked for has no answer; what it was granted counts on."""
        for ref in [ref for ref, waiting in self._waiting.items() if waiting.callee is session]:
            why = f"{session.name} went away before it answered"
            self._settle(ref, "not_here", ExecutionFailed(why, retryable=True))

    def access_changed(self) -> None:
        """The lists of who may do what are others now."""
        admission, now = self._router.admission, time.monotonic()
        for (caller, callee), pair in list(self._pairs.items()):
            if pair.until <= now:
                del self._pairs[caller, callee]
            elif not admission.policy.admitted(caller):
                self.cut(caller, "it is not admitted any more")
            elif not admission.policy.admitted(callee):
                self.cut(callee, "it is not admitted any more")
            elif not all(admission.grant(caller).may("call", one) for one in pair.operations):
                self._over(caller, callee, "what may be called there is something else now; ask again")

    def cut(self, node_id: str, why: str) -> None:
        """Nobody is to speak to this NodeId directly."""
        for caller, callee in [pair for pair in self._pairs if node_id in pair]:
            self._over(caller, callee, why)

    def _over(self, caller: str, callee: str, why: str) -> None:
        if self._pairs.pop((caller, callee), None) is not None:
            self._router.metrics.grants_withdrawn += 1
            for one, other in ((caller, callee), (callee, caller)):
                for peer in self._router.by_node.get(one, ()):
                    self._router.send(peer, "hub.introduce", {"id": other, "grant": None, "reason": why})

    def _watch(self, session: Session, others: list[str]) -> None:
        """Connections that were introduced by somebody else: by another hub, or before this one was started."""
        until = time.monotonic() + GRANT_SECONDS
        for other in others:
            if not self._router.admission.policy.admitted(other):
                why = {"id": other, "grant": None, "reason": "it is not admitted any more"}
                self._router.send(session.peer, "hub.introduce", why)
            elif len(self._pairs) < MAX_PAIRS:
                self._pairs.setdefault((session.node_id, other), _Pair(frozenset(), until))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _input_of(input: Any) -> tuple[str, dict[str, Any]]:
    spoke = input.get("spoke") if isinstance(input, dict) else None
    place = _place_of(input) if isinstance(input, dict) else None
    if not isinstance(spoke, str) or not spoke or place is None:
        raise _Refused("malformed", ValidationFailed("spoke is a name or a NodeId; addrs and relays are lists"))
    return (spoke.lower() if len(spoke) == 64 else spoke), place


def _place_of(detail: dict[str, Any]) -> dict[str, Any] | None:
    place: dict[str, Any] = {}
    for key, most in (("addrs", MAX_ADDRS), ("relays", MAX_RELAYS)):
        values = detail.get(key) or []
        if not isinstance(values, list) or len(values) > most:
            return None
        if not all(isinstance(one, str) and len(one) <= MAX_PLACE for one in values):
            return None
        place[key] = values
    return place
