"""A spoke's outgoing calls: what it asked, and what each message of the hub means for those who wait.

Three things drive it: the program (:meth:`~Caller.start`, :meth:`~Caller.consumed`, :meth:`~Caller.give_up`), messages
of the peer (:meth:`~Caller.on`) and time (:meth:`~Caller.tick`).

Rules:

1. Every call that was started ends exactly once for its program: Resolved, Finished or Failed, or by its own give_up.
2. A message about a call that is not there is ignored and counted in ``stray``: a late answer, or a guess.
3. The hub's TIMEOUT is the one that counts; the local deadline is later by GRACE, for a hub that has gone silent.
4. Items wait in the program's queue, never more than window + SLACK of them: a peer that sends more ends the stream.

Not here: futures and queues (the shell maps effects to them), the choice of request ids, retrying.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any, NamedTuple, TypeAlias

from broker.errors import ExecutionFailed
from broker.protocol.codec import MAX_REQUEST_ID, request_id_of
from broker.protocol.deadlines import Deadlines

__all__ = ["Caller", "Effect", "Error", "Failed", "Finished", "Item", "Member", "Resolved", "Send"]

MAX_CALLS = 1_024
"""Calls of one spoke in flight: what a hub takes of one caller."""
MAX_ROLL_CALL = 65_536
"""Answers to one roll-call: more spokes than a hub holds."""
DEFAULT_TIMEOUT = 30.0
MAX_TIMEOUT = 3_600.0
"""A longer one is taken as an hour, by the hub too."""
DEFAULT_WINDOW = 256
SLACK = 512
"""Items beyond the window before a stream is ended: the hub ends it at 256, so this is for one that does not."""
GRACE = 2.0
"""Seconds after the deadline in which the hub's own TIMEOUT should have come."""


class Resolved(NamedTuple):
    """A call has its answer."""

    request_id: str
    output: Any


class Member(NamedTuple):
    """Who answered a roll-call, or did not."""

    node_id: str
    name: str | None


class Error(NamedTuple):
    """The arguments of ``broker.errors.call_error``."""

    code: str
    message: str
    details: Any


class Item(NamedTuple):
    """One response of a stream, or what one spoke answered to a roll-call: then ``sender`` says who, and ``error``
    is there when it failed."""

    request_id: str
    output: Any
    sender: Member | None = None
    error: Error | None = None


class Finished(NamedTuple):
    """A stream or roll-call is over. ``missing``: who did not answer the roll-call."""

    request_id: str
    missing: list[Member]


class Failed(NamedTuple):
    """A call, stream or roll-call ended with an error: the arguments of ``broker.errors.call_error``."""

    request_id: str
    code: str
    message: str
    details: Any


class Send(NamedTuple):
    """A message for the peer."""

    type: str
    detail: dict[str, Any]


Effect: TypeAlias = Resolved | Item | Finished | Failed | Send


class _Outgoing:
    __slots__ = ("granted", "live", "many", "most", "operation", "request_id", "roll", "waiting", "window")

    def __init__(self, request_id: str, operation: str, window: int, *, many: bool, roll: bool):
        self.request_id, self.operation, self.window, self.many, self.roll = request_id, operation, window, many, roll
        self.live = True
        self.waiting = 0
        """Items that came and were not consumed."""
        self.granted = self.most = window
        """Credit for items that have not come, and how much of it there may be."""

    def room(self) -> int:
        """For how many items there may be credit now."""
        return max(min(self.most, self.window - self.waiting), 0)


class Caller:
    """All outgoing calls of one spoke."""

    def __init__(self, *, max_calls: int = MAX_CALLS, grace: float = GRACE):
        self.stray = 0
        self._max_calls = max_calls
        self._grace = grace
        self._calls: dict[str, _Outgoing] = {}
        self._deadlines: Deadlines[_Outgoing] = Deadlines()

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._calls

    @property
    def full(self) -> bool:
        """Whether :meth:`start` would refuse: wait for one to end."""
        return len(self._calls) >= self._max_calls

    def start(
        self,
        request_id: str,
        operation: str,
        input: Any,
        now: float,
        timeout: float | None = None,
        *,
        parent: str | None = None,
        all: bool = False,
        stream: bool = False,
        window: int = DEFAULT_WINDOW,
    ) -> dict[str, Any]:
        """The detail of the call.requested to send. Without ``timeout`` a call has the default, and a stream none.

        ``parent`` is the id of the incoming call on whose behalf this one is made. ValueError for misuse, which changes
        nothing; ExecutionFailed, retryable, when full.
        """
        if request_id in self._calls or not 0 < len(request_id) <= MAX_REQUEST_ID:
            raise ValueError(f"request id {request_id!r} is in use, or not of 1 to {MAX_REQUEST_ID} characters")
        if window < 1 or (all and stream):
            raise ValueError("a window is at least 1, and a roll-call is not a stream")
        if self.full:
            raise ExecutionFailed(f"{self._max_calls} calls are in flight, which is the limit", retryable=True)
        if timeout is None and not stream:
            timeout = DEFAULT_TIMEOUT
        if timeout is not None and math.isnan(timeout):
            raise ValueError("a timeout is not NaN")
        detail: dict[str, Any] = {"requestId": request_id, "operationId": operation, "input": input}
        if all:
            detail["all"] = True
        else:
            detail["stream"] = stream
        if stream:
            detail["credit"] = window
        if parent is not None:
            detail["parentRequestId"] = parent
        call = self._calls[request_id] = _Outgoing(request_id, operation, window, many=stream or all, roll=all)
        if timeout is not None:
            milliseconds = detail["timeoutMs"] = max(1, round(min(timeout, MAX_TIMEOUT) * 1000))
            self._deadlines.add(now + milliseconds / 1000 + self._grace, call, len(self._calls))
        return detail

    def on(self, type: str, detail: Any, now: float) -> list[Effect]:
        """A call.responded, .completed, .error or .aborted of the peer. FrameError 24 when it cannot name a call."""
        call = self._calls.get(request_id_of(detail, type))
        if call is None:
            self.stray += 1
            return []
        match type:
            case "call.responded":
                return self._responded(call, detail)
            case "call.completed":
                return self._completed(call, detail)
            case "call.error":
                return [self._fail(call, *_error_of(detail))]
            case "call.aborted":
                reason = detail.get("reason")
                return [self._fail(call, "ABORTED", reason if isinstance(reason, str) else "aborted", None)]
            case _:
                self.stray += 1
                return []

    def consumed(self, request_id: str, n: int = 1) -> list[Effect]:
        """The program took ``n`` items of a stream: the credit to send, when half of the window is due."""
        call = self._calls.get(request_id)
        if call is None or not call.many or call.roll:
            return []
        n = min(n, call.waiting)
        call.waiting -= n
        due = call.room() - call.granted
        if not n or due * 2 < call.most:
            return []
        call.granted += due
        return [Send("call.credit", {"requestId": request_id, "n": due})]

    def give_up(self, request_id: str, reason: str = "the caller gave up") -> list[Effect]:
        """The program does not want it any more: the abort to send. Nothing when it has ended."""
        call = self._calls.get(request_id)
        if call is None:
            return []
        self._end(call)
        return [Send("call.aborted", {"requestId": request_id, "reason": reason})]

    def moved(self, request_id: str, most: int) -> int:
        """A stream goes another way from here on, which takes ``most`` items at a time: the credit that it has there,
        beside the items that wait here."""
        call = self._calls[request_id]
        call.most = min(max(most, 1), call.window)
        call.granted = call.room()
        return call.granted

    def tick(self, now: float) -> list[Effect]:
        """Fails what the hub has left without a word since its deadline."""
        effects: list[Effect] = []
        for call in self._deadlines.due(now):
            message = f"{call.operation}: no answer, and no word from the hub about the deadline"
            effects.append(self._fail(call, "TIMEOUT", message, {"retryable": True}))
            effects.append(Send("call.aborted", {"requestId": call.request_id, "reason": "deadline"}))
        return effects

    def next_deadline(self) -> float | None:
        return self._deadlines.next()

    def lost(self, reason: str = "the connection was lost", *, spared: Container[str] = ()) -> list[Effect]:
        """The connection ended: everything fails, retryable, but what was asked another way (``spared``)."""
        return [
            failed
            for request_id in list(self._calls)
            if request_id not in spared
            for failed in self.fail(request_id, reason)
        ]

    def fail(self, request_id: str, reason: str) -> list[Effect]:
        """One call fails, retryable. Nothing when it has ended."""
        if (call := self._calls.get(request_id)) is None:
            return []
        return [self._fail(call, "EXECUTION_ERROR", f"{call.operation}: {reason}", {"retryable": True})]

    def _responded(self, call: _Outgoing, detail: dict[str, Any]) -> list[Effect]:
        output = detail.get("output")
        if not call.many:
            self._end(call)
            return [Resolved(call.request_id, output)]
        call.waiting += 1
        call.granted = max(call.granted - 1, 0)
        if call.waiting > (MAX_ROLL_CALL if call.roll else call.window + SLACK):
            message = f"{call.operation}: more items than its window lets wait"
            abort = Send("call.aborted", {"requestId": call.request_id, "reason": message})
            return [self._fail(call, "EXECUTION_ERROR", message, None), abort]
        if not call.roll:
            return [Item(call.request_id, output)]
        sender, error = _who(detail.get("from")), detail.get("error")
        if sender is None:
            self.stray += 1
            return []
        return [Item(call.request_id, output, sender, _error_of(error) if isinstance(error, dict) else None)]

    def _completed(self, call: _Outgoing, detail: dict[str, Any]) -> list[Effect]:
        if not call.many:
            return [self._fail(call, "EXECUTION_ERROR", f"{call.operation} ended without an answer", None)]
        self._end(call)
        missing = detail.get("missing")
        rows = [_who(row) for row in missing] if isinstance(missing, list) else []
        return [Finished(call.request_id, [row for row in rows if row is not None])]

    def _fail(self, call: _Outgoing, code: str, message: str, details: Any) -> Failed:
        self._end(call)
        return Failed(call.request_id, code, message, details)

    def _end(self, call: _Outgoing) -> None:
        call.live = False
        del self._calls[call.request_id]


def _error_of(detail: dict[str, Any]) -> Error:
    code, message = detail.get("code"), detail.get("message")
    return Error(
        code if isinstance(code, str) and code else "UNKNOWN_ERROR",
        message if isinstance(message, str) else "the call failed without a message",
        detail.get("details"),
    )


def _who(row: Any) -> Member | None:
    if isinstance(row, dict) and isinstance(node_id := row.get("id"), str):
        name = row.get("name")
        return Member(node_id, name if isinstance(name, str) else None)
    return None
