"""Every error this package raises, in one tree. It says whose fault it is and whether trying again can help.

    BrokerError
    ├── UsageError            the caller's input: exit status 2
    │   ├── ConfigError         a config file or option: names the key and the line
    │   ├── TicketError         a ticket that cannot be read
    │   ├── KeyFileError        an identity file that is missing, unreadable or open to others
    │   └── TopicError          a topic or pattern that breaks the naming rules, or is reserved
    ├── ConnectError          no connection: exit status 3
    │   ├── Unreachable         nobody answered at the addresses of the ticket
    │   ├── Refused             the peer closed the connection: its code and reason
    │   ├── BindError           a local address that cannot be bound (in use, not ours)
    │   └── ConnectionLost      a live connection went away; retryable
    ├── FrameError            the peer broke the wire rules: has the close code that ends its connection
    ├── CallError             the remote's answer to a call: exit status 1
    │   ├── OperationNotFound, AccessDenied, ValidationFailed, CallTimeout, CallAborted,
    │   └── ExecutionFailed, UnknownFailure
    ├── EventTooLarge         an event over the limit of its carrier: names size and limit
    ├── SlowConsumer          a subscription with policy ``disconnect`` fell behind
    └── Closed                used after close

``code`` is the word on the wire (docs/protocol.md); ``retryable`` says whether the same request can succeed later
without a change by the caller. The extension raises these classes too. Not here: Python's own errors for misuse of the
API (TypeError and the like).
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AccessDenied",
    "BindError",
    "BrokerError",
    "CallAborted",
    "CallError",
    "CallTimeout",
    "Closed",
    "ConfigError",
    "ConnectError",
    "ConnectionLost",
    "EventTooLarge",
    "ExecutionFailed",
    "FrameError",
    "KeyFileError",
    "OperationNotFound",
    "Refused",
    "SlowConsumer",
    "TicketError",
    "TopicError",
    "UnknownFailure",
    "Unreachable",
    "UsageError",
    "ValidationFailed",
    "call_error",
]


class BrokerError(Exception):
    """Base of all errors here. ``str()`` is one to three lines: what happened, whose fault, what to do next."""

    code: str = "UNKNOWN_ERROR"
    retryable: bool = False
    exit_status: ClassVar[int] = 1


class UsageError(BrokerError):
    """The input is wrong; trying again without a change cannot help."""

    code = "USAGE"
    exit_status = 2


class ConfigError(UsageError):
    """A config file or option is wrong. ``key`` is dotted, ``line`` counts from 1 (None when there is no file)."""

    def __init__(self, message: str, *, key: str | None = None, line: int | None = None, file: str | None = None):
        where = ":".join(str(part) for part in (file, line) if part is not None)
        super().__init__(": ".join(part for part in (where, key, message) if part))
        self.key, self.line, self.file = key, line, file


class TicketError(UsageError):
    """A ticket that cannot be read: not ours, cut off, or of a later version."""


class KeyFileError(UsageError):
    """An identity file that is missing, unreadable, malformed, or that others can read."""


class TopicError(UsageError):
    """A topic or pattern against the rules. ``code`` is ``BAD_TOPIC``, ``BAD_PATTERN`` or ``RESERVED_TOPIC``."""

    def __init__(self, message: str, *, code: str = "BAD_TOPIC"):
        super().__init__(message)
        self.code = code


class ConnectError(BrokerError):
    """No connection to the peer."""

    code = "CONNECT"
    retryable = True
    exit_status = 3


class Unreachable(ConnectError):
    """Nobody answered: not running, moved, or a network in between that drops packets."""

    code = "UNREACHABLE"


class Refused(ConnectError):
    """The peer closed the connection. ``close_code`` and ``reason`` are its words (table in docs/protocol.md)."""

    code = "REFUSED"
    retryable = False

    def __init__(self, message: str, *, close_code: int = 0, reason: str = ""):
        super().__init__(message)
        self.close_code, self.reason = close_code, reason


class BindError(ConnectError):
    """A local address could not be bound. The message names it."""

    code = "BIND"
    retryable = False


class ConnectionLost(ConnectError):
    """A live connection ended. ``close_code`` is None when the path died without a word."""

    code = "CONNECTION_LOST"

    def __init__(self, message: str, *, close_code: int | None = None, reason: str = ""):
        super().__init__(message)
        self.close_code, self.reason = close_code, reason


class FrameError(BrokerError):
    """A peer broke the wire rules. ``close_code`` ends its connection with ``str(self)`` as the reason."""

    code = "PROTOCOL"

    def __init__(self, message: str, *, close_code: int):
        super().__init__(message)
        self.close_code = close_code


class CallError(BrokerError):
    """A call ended with an error. ``details`` is JSON, or None; ``retryable=True`` is said there too, if it is a map or
    None, since that is where the wire has it: whoever raises this in a handler tells the caller.
    """

    def __init__(self, message: str, *, details: Any = None, retryable: bool | None = None):
        super().__init__(message)
        if retryable is not None:
            self.retryable = retryable
        if retryable and (details is None or isinstance(details, dict)):
            details = {**(details or {}), "retryable": True}
        self.message, self.details = message, details


class OperationNotFound(CallError):
    """No connected spoke offers the operation."""

    code = "OPERATION_NOT_FOUND"


class AccessDenied(CallError):
    """The hub's policy does not let this NodeId do that."""

    code = "ACCESS_DENIED"


class ValidationFailed(CallError):
    """The input does not fit the operation's schema; ``details`` lists where."""

    code = "VALIDATION_ERROR"


class CallTimeout(CallError):
    """No answer by the deadline."""

    code = "TIMEOUT"
    retryable = True


class CallAborted(CallError):
    """The caller, or its parent call, gave up."""

    code = "ABORTED"


class ExecutionFailed(CallError):
    """The operation raised, or the spoke that ran it went away (then ``retryable``)."""

    code = "EXECUTION_ERROR"


class UnknownFailure(CallError):
    """A code that this version does not know; ``details`` keeps what came."""

    code = "UNKNOWN_ERROR"


class EventTooLarge(BrokerError):
    """An event over its carrier's limit, refused before it is sent. ``size`` and ``limit`` are bytes."""

    code = "EVENT_TOO_LARGE"

    def __init__(self, message: str, *, size: int, limit: int):
        super().__init__(message)
        self.size, self.limit = size, limit


class SlowConsumer(BrokerError):
    """A subscription with policy ``disconnect`` fell behind and was ended. ``pending`` counts its unread events."""

    code = "SLOW_CONSUMER"

    def __init__(self, message: str, *, pending: int):
        super().__init__(message)
        self.pending = pending


class Closed(BrokerError):
    """Used after it was closed."""

    code = "CLOSED"


_BY_CODE: dict[str, type[CallError]] = {
    cls.code: cls
    for cls in (OperationNotFound, AccessDenied, ValidationFailed, CallTimeout, CallAborted, ExecutionFailed)
}


def call_error(code: str, message: str, details: Any = None) -> CallError:
    """The class for a wire ``code``; an unknown code is kept in :class:`UnknownFailure`, never dropped."""
    retryable = True if isinstance(details, dict) and details.get("retryable") is True else None
    if (cls := _BY_CODE.get(code)) is not None:
        return cls(message, details=details, retryable=retryable)
    return UnknownFailure(message, details={"code": code, "details": details}, retryable=retryable)
