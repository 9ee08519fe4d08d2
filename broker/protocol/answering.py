"""A spoke's incoming calls: what it was asked, what it may send, and when to stop.

Three things drive it: messages of the peer (:meth:`~Answering.on`), the program's results (:meth:`~Answering.respond`,
:meth:`~Answering.item`, :meth:`~Answering.finish`, :meth:`~Answering.fail`) and the end of the connection
(:meth:`~Answering.lost`).

Rules:

1. Every Start is ended exactly once: by one result that is sent, or by one Cancel, after which results go nowhere.
2. A stream sends no more items than it has credit for: :meth:`~Answering.item` gives None, and the program waits for
   CreditAdded.
3. A request id that is running is not started again, and messages about calls that do not run are ignored; both are
   counted in ``stray``.

What a call.requested may say is read by the functions at the end, which the hub uses too (it is asked before it asks).

Not here: running the operation, checking its input, the deadline's timer (``timeout`` of Start is the shell's; the hub
enforces its own).
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from broker.protocol.caller import MAX_TIMEOUT, Send
from broker.protocol.codec import request_id_of

__all__ = [
    "CODES",
    "Answering",
    "Cancel",
    "CreditAdded",
    "Effect",
    "Refused",
    "Send",
    "Start",
    "again_of",
    "credit_of",
    "error_detail",
    "flag_of",
    "operation_of",
    "timeout_of",
]

MAX_RUNNING = 1_024
"""Calls running in one spoke: what a hub asks of one. More are answered as busy, which callers may retry."""
DEFAULT_WINDOW = 256
MAX_WINDOW = 65_536
"""Credit that a stream may hold: what it may have on its way to one slow reader."""

CODES: frozenset[str] = frozenset(
    {
        "OPERATION_NOT_FOUND",
        "ACCESS_DENIED",
        "VALIDATION_ERROR",
        "TIMEOUT",
        "ABORTED",
        "EXECUTION_ERROR",
        "UNKNOWN_ERROR",
    }
)
"""Codes of a call.error that this version knows. Others are passed on."""


class Start(NamedTuple):
    """Run an operation. ``timeout`` is seconds from now, None without a limit. ``stream`` is what the caller asked for:
    False: one answer, also from a subscription; None: by the operation's kind (a hub always leaves it to that)."""

    request_id: str
    operation: str
    input: Any
    identity: dict[str, Any] | None
    timeout: float | None
    window: int
    stream: bool | None
    again: dict[str, Any] | None = None
    """It was asked over a direct connection before (docs/protocol.md, Spoke to spoke)."""


class Cancel(NamedTuple):
    """Stop: nobody waits for this any more."""

    request_id: str
    reason: str


class CreditAdded(NamedTuple):
    """The stream may send ``n`` more items."""

    request_id: str
    n: int


Effect: TypeAlias = Start | Cancel | CreditAdded | Send


class Answering:
    """All incoming calls of one connection."""

    def __init__(self, *, max_running: int = MAX_RUNNING):
        self.stray = 0
        self.credited = True
        """Whether the peer gives credit. One of the specification's alone does not: its streams are bounded by the
        connection's queue only."""
        self._max_running = max_running
        self._credit: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._credit)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._credit

    def credit(self, request_id: str) -> int:
        """Items that :meth:`item` would give now; 0 for a call that has ended."""
        return self._credit.get(request_id, 0)

    def requested(self, detail: Any) -> Start | Send | None:
        """A call.requested of the peer: what :meth:`on` gives for it, if anything."""
        request_id = request_id_of(detail, "call.requested")
        if request_id not in self._credit:
            return self._requested(request_id, detail)
        self.stray += 1
        return None

    def on(self, type: str, detail: Any, now: float) -> list[Effect]:
        """A call.requested, call.aborted or call.credit of the peer. FrameError 24 when it names no call."""
        if type == "call.requested":
            effect = self.requested(detail)
            return [] if effect is None else [effect]
        request_id = request_id_of(detail, type)
        if request_id not in self._credit:
            self.stray += 1
            return []
        match type:
            case "call.aborted":
                del self._credit[request_id]
                reason = detail.get("reason")
                return [Cancel(request_id, reason if isinstance(reason, str) else "aborted")]
            case "call.credit":
                return self._credited(request_id, detail.get("n"))
            case _:
                self.stray += 1
                return []

    def respond(self, request_id: str, output: Any) -> list[Effect]:
        """The answer of a query or mutation, which ends it. Nothing when it had been cancelled."""
        return self._last(request_id, "call.responded", {"requestId": request_id, "output": output})

    def ends(self, request_id: str) -> bool:
        """The same for a program that makes the message itself: whether its last word is to be sent. It has ended."""
        return self._credit.pop(request_id, None) is not None

    def item(self, request_id: str, output: Any) -> list[Effect] | None:
        """One item of a stream. None without credit: wait for CreditAdded. Nothing when it had been cancelled."""
        credit = self._credit.get(request_id)
        if credit is None:
            return []
        if credit < 1 and self.credited:
            return None
        self._credit[request_id] = max(credit - 1, 0)
        return [Send("call.responded", {"requestId": request_id, "output": output})]

    def finish(self, request_id: str) -> list[Effect]:
        """The end of a stream. Nothing when it had been cancelled."""
        return self._last(request_id, "call.completed", {"requestId": request_id})

    def fail(self, request_id: str, code: str, message: str, details: Any = None) -> list[Effect]:
        """The operation failed. Nothing when it had been cancelled."""
        return self._last(request_id, "call.error", error_detail(request_id, code, message, details))

    def hold(self) -> None:
        """The connection ended, and somebody may go on with what came by it: until he gives credit, streams wait."""
        self._credit = dict.fromkeys(self._credit, 0)

    def lost(self, reason: str = "the connection was lost") -> list[Effect]:
        """The connection ended: everything stops."""
        ids = list(self._credit)
        self._credit.clear()
        return [Cancel(request_id, reason) for request_id in ids]

    def _last(self, request_id: str, type: str, detail: dict[str, Any]) -> list[Effect]:
        return [] if self._credit.pop(request_id, None) is None else [Send(type, detail)]

    def _requested(self, request_id: str, detail: dict[str, Any]) -> Start | Send:
        identity = detail.get("identity")
        try:
            operation = operation_of(detail)
            timeout, credit, stream, again = (
                timeout_of(detail, None, MAX_TIMEOUT),
                credit_of(detail),
                flag_of(detail, "stream"),
                again_of(detail),
            )
            if len(self._credit) >= self._max_running:
                message = f"busy: {self._max_running} calls are running, which is the limit"
                raise Refused("EXECUTION_ERROR", message, {"retryable": True})
        except Refused as no:
            return Send("call.error", error_detail(request_id, no.code, no.message, no.details))
        window = self._credit[request_id] = min(DEFAULT_WINDOW if credit is None else credit, MAX_WINDOW)
        known = identity if isinstance(identity, dict) else None
        return Start(request_id, operation, detail.get("input"), known, timeout, window, stream, again)

    def _credited(self, request_id: str, more: Any) -> list[Effect]:
        if type(more) is not int or more < 1:
            self.stray += 1
            return []
        had = self._credit[request_id]
        self._credit[request_id] = min(had + more, MAX_WINDOW)
        added = self._credit[request_id] - had
        return [CreditAdded(request_id, added)] if added else []


class Refused(Exception):
    """A call.requested that can be answered, and is not accepted."""

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None):
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


def operation_of(detail: dict[str, Any]) -> str:
    operation = detail.get("operationId")
    if type(operation) is str:
        return operation
    raise Refused("VALIDATION_ERROR", "operationId is not a string")


def timeout_of(detail: dict[str, Any], now_ms: float | None, most: float) -> float | None:
    """Seconds from now, at most ``most``; None when nothing is said. Only who gives ``now_ms`` reads ``deadline``."""
    until, start = detail.get("timeoutMs"), 0.0
    if until is None and now_ms is not None:
        until, start = detail.get("deadline"), now_ms
    if until is None:
        return None
    if type(until) is not int and type(until) is not float:
        raise Refused("VALIDATION_ERROR", "timeoutMs or deadline is not a number of milliseconds")
    if not until > start:
        raise Refused("TIMEOUT", "the deadline had passed when the call arrived")
    # Compared before it is subtracted: there are integers that no float holds.
    return most if until >= start + most * 1000 else (until - start) / 1000


def credit_of(detail: dict[str, Any]) -> int | None:
    """Responses that the caller takes before it gives call.credit; None: it does not know credit."""
    credit = detail.get("credit")
    if credit is None or (type(credit) is int and credit >= 0):
        return credit
    raise Refused("VALIDATION_ERROR", "credit is not a whole number from 0")


def flag_of(detail: dict[str, Any], key: str) -> bool | None:
    value = detail.get(key)
    if value is None or type(value) is bool:
        return value
    raise Refused("VALIDATION_ERROR", f"{key} is not a boolean")


def again_of(detail: dict[str, Any]) -> dict[str, Any] | None:
    """Which call over a direct connection this is, asked once more: ``id`` of the spoke that was asked, ``connection``,
    ``requestId`` there and how many answers were ``heard``."""
    if (again := detail.get("again")) is None:
        return None
    match again:
        case {"id": str(id), "connection": str(connection), "requestId": str(request_id), "heard": int(heard)} if (
            heard >= 0
        ):
            return {"id": id, "connection": connection, "requestId": request_id, "heard": heard}
    raise Refused("VALIDATION_ERROR", "again needs id, connection, requestId and heard")


def error_detail(request_id: str, code: str, message: str, details: Any = None) -> dict[str, Any]:
    """The detail of a call.error."""
    error = {"requestId": request_id, "code": code, "message": message}
    return error if details is None else {**error, "details": details}
