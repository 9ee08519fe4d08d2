"""The hub's call table: who offers what, which calls are open, and how each of them ends.

Theory of operation: a *call* is what a caller asked under its own requestId; a *leg* is what the hub asked one spoke to
do for it, under an id that the hub chose. An ordinary call has one leg, a roll-call (``all``) one for each spoke that
offers the operation.
Three things drive the table: messages of peers (:meth:`~CallTable.requested` and its sisters), departures
(:meth:`~CallTable.gone`) and time (:meth:`~CallTable.tick`).

Rules:

1. A call that was accepted ends exactly once: one Ended, and one terminal message to the caller (``call.responded`` for
   a call, ``call.completed`` for a stream or roll-call, else ``call.error``), unless the caller gave up or has gone.
2. An answer counts only from the spoke that was asked, under the id it was asked with: legs are kept by spoke, so a
   guessed or foreign id finds nothing. What finds nothing is ignored and counted in ``stray``.
3. No leg outlives its call. A leg that ends other than by its own answer is told ``call.aborted``, and so are, to any
   depth, the calls made under it (``parentRequestId`` is the id of a leg). Calls under a leg that answered go on.
4. ``identity`` is stamped; what a peer wrote there is never read.
5. A requestId that is still in use is not taken again: an answer under it would be read as the end of the first call.
   The caller gets a Complain (``hub.error``) and the first call goes on.
6. ``timeoutMs`` wins over ``deadline``. Without either, a call has the default and a stream has none: it lives as long
   as both its ends.
7. A stream's window is the caller's ``credit``. A caller that sends none does not know credit: the hub then credits the
   spoke itself, and the caller's bounded queue is the limit (see :meth:`~CallTable.undeliverable`).

Keys of ours in ``call.requested``: ``timeoutMs``, ``all``, ``credit``, ``again``, and ``stream`` (true: items until
call.completed, also from a query; false: the first answer only, also from a subscription; absent: by the kind).

Not here: the limits, effects and records that it works with (call_records.py; those a user of the table needs can be
had from here), what the hub's own operations do (it is the peer ``HUB`` like any other), access policy, a spoke's side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from broker.errors import FrameError
from broker.protocol.answering import (
    CODES,
    Refused,
    again_of,
    credit_of,
    error_detail,
    flag_of,
    operation_of,
    timeout_of,
)
from broker.protocol.call_records import HUB, Call, CallLimits, Complain, Effect, Ended, Leg, Peer, Send, Spoke
from broker.protocol.choosing import spokes_for
from broker.protocol.codec import request_id_of
from broker.protocol.deadlines import Deadlines
from broker.protocol.registration import MAX_OPERATION_ID, Offers, Operation, OperationRow, Registration
from broker.protocol.wire import CloseCode

__all__ = ["HUB", "CallLimits", "CallTable", "Complain", "Effect", "Ended", "OperationRow", "Peer", "Send"]

MAX_REMEMBERED_ABORTS = 4_096
"""Aborted legs whose late children are refused: more than one batch of messages can hold on their way."""
MAX_CODE = 64
"""Characters of an error code that is passed on; a longer one becomes UNKNOWN_ERROR."""
MAX_REASON = 1_024
"""Characters of a reason that is passed on."""


class CallTable:
    """All calls of one hub. ``leg_prefix`` begins every id it chooses: give one that no earlier hub used, so that an
    answer from before a restart finds nothing.

    ``stray`` counts messages about calls that do not exist (any more): late answers, races of an abort, guesses.
    """

    def __init__(self, limits: CallLimits | None = None, *, leg_prefix: str = "h"):
        self.limits = limits or CallLimits()
        self.stray = 0
        self._prefix = leg_prefix
        self._peers: dict[Peer, Spoke] = {HUB: Spoke(HUB, "hub", "hub")}
        self._offers: Offers[Spoke] = Offers()
        self._deadlines: Deadlines[Call] = Deadlines()
        self._aborted: dict[str, None] = {}
        self._legs_made = 0
        self._legs = 0
        self._calls = 0

    def __len__(self) -> int:
        """Calls that have not ended."""
        return self._calls

    def in_flight(self, peer: Peer) -> int:
        """Legs that this peer has been asked and has not ended: what balancing compares."""
        spoke = self._peers.get(peer)
        return len(spoke.legs) if spoke else 0

    def asked(self, peer: Peer) -> int:
        """Calls of this peer that have not ended."""
        spoke = self._peers.get(peer)
        return len(spoke.calls) if spoke else 0

    def asks(self, peer: Peer, request_id: str) -> bool:
        """Whether this peer has a call under that id that has not ended."""
        spoke = self._peers.get(peer)
        return spoke is not None and request_id in spoke.calls

    # Who offers what

    def register(self, peer: Peer, node_id: str, name: str | None, registration: Registration) -> None:
        """Takes a peer in, or replaces what it offers. Calls in flight are not touched: they were accepted."""
        spoke = self._peers.get(peer)
        if spoke is None:
            spoke = self._peers[peer] = Spoke(peer, node_id, name)
        spoke.node_id, spoke.name = node_id, name
        self._offers.replace(spoke, registration.operations)

    def offered(self, peer: Peer) -> tuple[Operation, ...]:
        spoke = self._peers.get(peer)
        return tuple(spoke.operations.values()) if spoke else ()

    def operations(self) -> list[OperationRow]:
        """Everything on offer, by operation id."""
        return list(self._offers.rows())

    def operations_from(self, first: str) -> Iterator[OperationRow]:
        """The same from an id on, as far as it is read before anything changes."""
        return self._offers.rows(first)

    # Messages of callers

    def requested(
        self,
        peer: Peer,
        identity: dict[str, Any],
        detail: Any,
        now: float,
        now_ms: float,
        refused: Refused | None = None,
    ) -> list[Effect]:
        """``call.requested``: asks a spoke (or all), or answers at once why not. ``refused``: the hub has something
        against it, which is the answer."""
        request_id = request_id_of(detail, "call.requested")
        caller = self._peers.get(peer)
        if caller is None:
            raise FrameError("call.requested before hub.register", close_code=CloseCode.BAD_MESSAGE)
        if request_id in caller.calls:
            message = f"requestId {request_id!r} belongs to a call that has not ended"
            return [Complain(peer, "VALIDATION_ERROR", message, "call.requested")]
        try:
            if refused is not None:
                raise refused
            return self._accept(caller, request_id, identity, detail, now, now_ms)
        except Refused as no:
            operation = detail.get("operationId")
            named = operation[:MAX_OPERATION_ID] if isinstance(operation, str) else ""
            ended = Ended(named, None, no.code, 0.0, peer, None, request_id)
            return [Send(peer, "call.error", error_detail(request_id, no.code, no.message, no.details)), ended]

    def aborted(self, peer: Peer, detail: Any, now: float) -> list[Effect]:
        """``call.aborted``: a caller gives up its call, or a spoke gives up a leg (then the caller hears ABORTED)."""
        request_id = request_id_of(detail, "call.aborted")
        reason = detail.get("reason")
        if not isinstance(reason, str) or len(reason) > MAX_REASON:
            reason = "aborted"
        effects: list[Effect] = []
        spoke = self._peers.get(peer)
        if spoke is not None and (call := spoke.calls.get(request_id)) is not None:
            self._abort(self._remove(call, "ABORTED", now, effects), reason, now, effects)
        elif spoke is not None and (leg := spoke.legs.get(request_id)) is not None:
            self._leg_failed(leg, "ABORTED", reason, None, now, effects)
        else:
            self.stray += 1
        return effects

    def credit(self, peer: Peer, detail: Any, now: float) -> list[Effect]:
        """``call.credit`` of a caller: passed on to the spoke, as far as the largest window allows."""
        request_id = request_id_of(detail, "call.credit")
        spoke = self._peers.get(peer)
        call = spoke.calls.get(request_id) if spoke else None
        effects: list[Effect] = []
        if call is None:
            self.stray += 1
        elif type(more := detail.get("n")) is not int or more < 1:
            self._fail(call, "VALIDATION_ERROR", "call.credit: n is not a whole number from 1", None, now, effects)
        elif call.items:
            call.auto = 0
            (leg,) = call.legs.values()
            leg.grant(min(more, self.limits.max_window - leg.allowance), effects)
        return effects

    # Messages of the spokes that were asked

    def responded(self, peer: Peer, detail: Any, now: float) -> list[Effect]:
        """``call.responded``: the first ends a call; each is an item of a stream, or one answer to a roll-call."""
        leg = self._leg(peer, detail, "call.responded")
        if leg is None:
            return []
        call = leg.call
        output = detail.get("output")
        effects: list[Effect] = []
        if call.missing is not None:
            self._roll_answer(leg, {"output": output}, now, effects)
            return effects
        caller, request_id = call.caller.peer, call.request_id
        effects.append(Send(caller, "call.responded", {"requestId": request_id, "output": output}))
        if call.items:
            self._item(leg, now, effects)
            return effects
        if call.streaming:
            effects.append(Send(caller, "call.completed", {"requestId": request_id}))
        if call.kind == "subscription":
            self._abort(self._remove(call, "OK", now, effects), "the caller took one answer", now, effects)
        else:
            self._remove(call, "OK", now, effects)
        return effects

    def completed(self, peer: Peer, detail: Any, now: float) -> list[Effect]:
        """``call.completed``: the end of a stream. A call that ends so without an answer has failed."""
        leg = self._leg(peer, detail, "call.completed")
        effects: list[Effect] = []
        if leg is None:
            return effects
        if leg.call.streaming:
            effects.append(Send(leg.call.caller.peer, "call.completed", {"requestId": leg.call.request_id}))
            self._remove(leg.call, "OK", now, effects)
        else:
            self._leg_failed(leg, "EXECUTION_ERROR", "the operation ended without an answer", None, now, effects)
        return effects

    def error(self, peer: Peer, detail: Any, now: float) -> list[Effect]:
        """``call.error``: passed on with its code, also one that we do not know; a malformed one is UNKNOWN_ERROR."""
        leg = self._leg(peer, detail, "call.error")
        effects: list[Effect] = []
        if leg is None:
            return effects
        code, message = detail.get("code"), detail.get("message")
        if not isinstance(code, str) or not 0 < len(code) <= MAX_CODE:
            code = "UNKNOWN_ERROR"
        if not isinstance(message, str):
            message = "the operation failed without a message"
        self._leg_failed(leg, code, message, detail.get("details"), now, effects)
        return effects

    # Departures, time, and what could not be sent

    def gone(self, peer: Peer, now: float) -> list[Effect]:
        """A connection ended: its calls end and their spokes are told; those who waited for it hear so at once."""
        spoke = self._peers.pop(peer, None)
        effects: list[Effect] = []
        if spoke is None:
            return effects
        spoke.live = False
        self._offers.replace(spoke, ())
        if peer == HUB:
            self._peers[HUB] = Spoke(HUB, spoke.node_id, spoke.name)
        while spoke.calls:
            call = next(iter(spoke.calls.values()))
            self._abort(self._remove(call, "ABORTED", now, effects), "the caller has gone", now, effects)
        message = f"{spoke.name or spoke.node_id} went away before it answered"
        while spoke.legs:
            leg = next(iter(spoke.legs.values()))
            if (missing := leg.call.missing) is not None:
                missing.append(spoke)
                self._roll_drop(leg, now, effects)
            else:
                self._leg_failed(leg, "EXECUTION_ERROR", message, {"retryable": True}, now, effects)
        return effects

    def tick(self, now: float) -> list[Effect]:
        """Ends what is due: TIMEOUT for a call; for a roll-call the names of those that are missing."""
        effects: list[Effect] = []
        for call in self._deadlines.due(now):
            if call.missing is not None:
                self._roll_end(call, "TIMEOUT", now, effects)
            else:
                self._fail(call, "TIMEOUT", f"no answer within {now - call.started:.3g} s", None, now, effects)
        return effects

    def next_deadline(self) -> float | None:
        return self._deadlines.next()

    def undeliverable(self, send: Send, reason: str, now: float, *, retryable: bool = True) -> list[Effect]:
        """What follows when ``send`` could not be sent: its peer's queue is full, or it is too large for a frame. Do it
        before what comes after ``send`` in its list."""
        effects: list[Effect] = []
        spoke = self._peers.get(send.peer)
        if spoke is None:
            return effects
        request_id, details = send.detail["requestId"], {"retryable": retryable}
        if send.type == "call.requested" and (leg := spoke.legs.get(request_id)) is not None:
            self._leg_failed(leg, "EXECUTION_ERROR", reason, details, now, effects)
        elif send.type == "call.responded" and "from" in send.detail and "output" in send.detail:
            error = {"code": "EXECUTION_ERROR", "message": reason, "details": details}
            answer = {"requestId": request_id, "error": error, "from": send.detail["from"]}
            effects.append(Send(send.peer, "call.responded", answer))
        elif send.type == "call.responded" and (call := spoke.calls.get(request_id)) is not None:
            self._fail(call, "EXECUTION_ERROR", reason, details, now, effects)
        elif send.type == "call.responded":
            effects.append(Send(send.peer, "call.error", error_detail(request_id, "EXECUTION_ERROR", reason, details)))
        return effects

    # How a call begins

    def _accept(
        self,
        caller: Spoke,
        request_id: str,
        identity: dict[str, Any],
        detail: dict[str, Any],
        now: float,
        now_ms: float,
    ) -> list[Effect]:
        operation = operation_of(detail)
        roll, stream = flag_of(detail, "all"), flag_of(detail, "stream")
        again = again_of(detail)
        spokes = spokes_for(self._offers, operation, roll is True, again)
        kind = spokes[0].operations[operation].kind
        call = Call(caller, request_id, operation, kind, now, roll=roll is True, stream=stream)
        window = self._window(call, detail) if call.kind == "subscription" else None
        timeout = timeout_of(detail, now_ms, self.limits.max_timeout)
        if timeout is None and not call.streaming:
            timeout = self.limits.default_timeout
        parent = self._parent(caller, detail.get("parentRequestId"))
        self.limits.check_room(caller, spokes, self._legs)
        self._open(call, parent, timeout)
        shared = {"requestId": "", "operationId": operation, "input": detail.get("input"), "identity": identity}
        if timeout is not None:
            shared["timeoutMs"] = int(timeout * 1000) or 1
            shared["deadline"] = int(now_ms + timeout * 1000)
        if window is not None:
            shared["credit"] = window
        if again is not None:
            shared["again"] = again
        return [self._ask(call, spoke, shared, window or 0) for spoke in spokes]

    def _window(self, call: Call, detail: dict[str, Any]) -> int:
        """How many responses the spoke may send before it needs credit; notes who will give it."""
        credit = credit_of(detail)
        if not call.streaming:
            return 1
        if credit is None:
            call.auto = credit = self.limits.window
        return min(credit, self.limits.max_window)

    def _parent(self, caller: Spoke, id: Any) -> Leg | None:
        """The leg that the caller names, if it has it. One that was aborted takes its late children with it."""
        if id is None:
            return None
        if not isinstance(id, str):
            raise Refused("VALIDATION_ERROR", "parentRequestId is not a string")
        if id in self._aborted:
            raise Refused("ABORTED", "the parent call was aborted")
        return caller.legs.get(id)

    def _open(self, call: Call, parent: Leg | None, timeout: float | None) -> None:
        call.caller.calls[call.request_id] = call
        self._calls += 1
        if parent is not None:
            parent.adopt(call)
        if timeout is not None:
            self._deadlines.add(call.started + timeout, call, self._calls)

    def _ask(self, call: Call, spoke: Spoke, shared: dict[str, Any], allowance: int) -> Send:
        self._legs_made += 1
        self._legs += 1
        id = f"{self._prefix}{self._legs_made}"
        call.legs[id] = spoke.legs[id] = Leg(id, call, spoke, allowance)
        shared["requestId"] = id
        return Send(spoke.peer, "call.requested", shared if call.missing is None else shared.copy())

    # How a call goes on and ends

    def _leg(self, peer: Peer, detail: Any, type: str) -> Leg | None:
        """The leg that this peer, and no other, was asked under the id it names."""
        request_id = request_id_of(detail, type)
        spoke = self._peers.get(peer)
        leg = spoke.legs.get(request_id) if spoke is not None else None
        if leg is None:
            self.stray += 1
        return leg

    def _item(self, leg: Leg, now: float, effects: list[Effect]) -> None:
        """Counts one response of a stream that has just been passed on."""
        call = leg.call
        leg.allowance -= 1
        if call.auto and leg.allowance <= call.auto // 2:
            leg.grant(call.auto - leg.allowance, effects)
        elif leg.allowance < -self.limits.slack:
            message = f"the spoke sent {self.limits.slack} responses more than it had credit for"
            self._fail(call, "EXECUTION_ERROR", message, None, now, effects)

    def _fail(self, call: Call, code: str, message: str, details: Any, now: float, effects: list[Effect]) -> None:
        """Ends a call by the hub's own word: the caller hears the error, the spokes are told to stop."""
        effects.append(Send(call.caller.peer, "call.error", error_detail(call.request_id, code, message, details)))
        self._abort(self._remove(call, code, now, effects), message, now, effects)

    def _leg_failed(self, leg: Leg, code: str, message: str, details: Any, now: float, effects: list[Effect]) -> None:
        """A leg has ended with an error, and has no need to be told."""
        call = leg.call
        error = error_detail(call.request_id, code, message, details)
        if call.missing is not None:
            del error["requestId"]
            self._roll_answer(leg, {"error": error}, now, effects)
        else:
            effects.append(Send(call.caller.peer, "call.error", error))
            self._remove(call, code if code in CODES else "UNKNOWN_ERROR", now, effects)

    def _roll_answer(self, leg: Leg, answer: dict[str, Any], now: float, effects: list[Effect]) -> None:
        call = leg.call
        answer = {"requestId": call.request_id, **answer, "from": leg.spoke.who()}
        effects.append(Send(call.caller.peer, "call.responded", answer))
        self._roll_drop(leg, now, effects)

    def _roll_drop(self, leg: Leg, now: float, effects: list[Effect]) -> None:
        """Takes one leg out of its roll-call, which ends with the last."""
        call = leg.call
        del call.legs[leg.id], leg.spoke.legs[leg.id]
        self._legs -= 1
        if not call.legs:
            self._roll_end(call, "OK", now, effects)

    def _roll_end(self, call: Call, code: str, now: float, effects: list[Effect]) -> None:
        detail = {"requestId": call.request_id, "missing": call.absent()}
        effects.append(Send(call.caller.peer, "call.completed", detail))
        self._abort(self._remove(call, code, now, effects), "no answer by the deadline", now, effects)

    def _remove(self, call: Call, code: str, now: float, effects: list[Effect]) -> dict[str, Leg]:
        """Takes a call out of everything and says Ended. Returns its legs, to be aborted unless they had the last word:
        then calls made under them go on."""
        legs = call.detach()
        self._calls, self._legs = self._calls - 1, self._legs - len(legs)
        answerer = next(iter(legs.values())).spoke.peer if call.missing is None else None
        peer, request_id = call.caller.peer, call.request_id
        effects.append(Ended(call.operation, call.kind, code, now - call.started, peer, answerer, request_id))
        return legs

    def _abort(self, legs: dict[str, Leg], reason: str, now: float, effects: list[Effect]) -> None:
        """Tells the spokes of removed legs to stop, and ends the calls made under them. A loop, since a chain of calls
        may be as long as the table."""
        ending = list(legs.values())
        for leg in ending:
            if leg.spoke.live:
                effects.append(Send(leg.spoke.peer, "call.aborted", {"requestId": leg.id, "reason": reason}))
                self._remember_aborted(leg.id)
            for child in list(leg.children or ()):
                if child.caller.live:
                    error = error_detail(child.request_id, "ABORTED", "the parent call was aborted", None)
                    effects.append(Send(child.caller.peer, "call.error", error))
                ending += self._remove(child, "ABORTED", now, effects).values()

    def _remember_aborted(self, id: str) -> None:
        self._aborted[id] = None
        if len(self._aborted) > MAX_REMEMBERED_ABORTS:
            del self._aborted[next(iter(self._aborted))]
