"""Grants: a hub's signed word that one spoke may call another over a connection of their own.

A grant says who, whom, which operations, with which scopes, and until when. Whoever is shown one needs nothing but the
public key of the hub (its NodeId), so the hub may be gone by then. It is worth nothing in other hands: the NodeId of
the connection has to be that of ``caller``.

On the wire it is ``{hub, claims, signature}``: ``claims`` is JSON in a string, signed as it stands (Ed25519, over
DOMAIN and the string), so that nobody has to agree on how to write JSON. Times are the hub's clock, Unix milliseconds.

Not here: keys and clocks (``sign``, ``verify`` and ``now`` are given), who is worth a grant (hub/introductions.py), and
what is done on a connection (spoke/direct.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import orjson

from broker.protocol.registration import MAX_OPERATION_ID, MAX_OPERATIONS

__all__ = ["DOMAIN", "MAX_LIFE", "BadGrant", "Claims", "check", "make", "read"]

DOMAIN: Final = b"iroh-broker grant v1\0"
"""Begins what is signed: nothing else that a hub signs begins like it."""
MAX_LIFE: Final = 3_600_000
"""Milliseconds. A longer one is refused: a ban that could not be told would not count for so long."""
MAX_SCOPES: Final = 1_000
MAX_CLAIMS: Final = 524_288
"""Characters: the operations of one spoke, each as long as it may be, and half of a frame."""

_NODE_ID: Final = re.compile(r"[0-9a-f]{64}")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{128}")


class BadGrant(Exception):
    """``reason`` is a word for counters: malformed, foreign, forged, other_caller, other_callee, expired, too_long."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a hub says. NodeIds are 64 hex digits."""

    caller: str
    callee: str
    operations: frozenset[str]
    scopes: tuple[str, ...] = ()
    """The caller's, as the hub stamps them on its calls."""
    issued: int
    until: int

    @property
    def life(self) -> int:
        """Milliseconds."""
        return self.until - self.issued


def make(hub: str, claims: Claims, sign: Callable[[bytes], bytes]) -> dict[str, Any]:
    """A grant as it is on the wire."""
    said = {
        "caller": claims.caller,
        "callee": claims.callee,
        "operations": sorted(claims.operations),
        "scopes": list(claims.scopes),
        "issued": claims.issued,
        "until": claims.until,
    }
    text = orjson.dumps(said)
    return {"hub": hub, "claims": text.decode(), "signature": sign(DOMAIN + text).hex()}


def read(value: Any, hubs: Collection[str], verify: Callable[[str, bytes, bytes], bool]) -> Claims:
    """What a grant says, if one of ``hubs`` has said it. BadGrant. Nothing of it is read before the signature holds."""
    if not isinstance(value, dict):
        raise BadGrant("malformed", "a grant is an object")
    hub, text, signature = value.get("hub"), value.get("claims"), value.get("signature")
    if not isinstance(hub, str) or not isinstance(text, str) or not isinstance(signature, str):
        raise BadGrant("malformed", "a grant has hub, claims and signature, which are strings")
    if len(text) > MAX_CLAIMS or not _SIGNATURE.fullmatch(signature):
        raise BadGrant("malformed", f"claims have at most {MAX_CLAIMS} characters, a signature 128 hex digits")
    if hub not in hubs:
        raise BadGrant("foreign", f"signed by {hub[:10]}, which is no hub of this spoke's realm")
    try:
        signed = DOMAIN + text.encode()
    except UnicodeEncodeError:
        raise BadGrant("malformed", "claims are not Unicode") from None
    if not verify(hub, signed, bytes.fromhex(signature)):
        raise BadGrant("forged", "the signature is not the hub's")
    return _claims(text)


def check(claims: Claims, *, caller: str, callee: str, now: float) -> None:
    """Whether it is this caller's, for this callee, now (the hub's milliseconds). BadGrant."""
    if claims.caller != caller:
        raise BadGrant("other_caller", f"the grant is {claims.caller[:10]}'s, and {caller[:10]} shows it")
    if claims.callee != callee:
        raise BadGrant("other_callee", f"the grant is for calls to {claims.callee[:10]}, and this is {callee[:10]}")
    if claims.life > MAX_LIFE:
        raise BadGrant("too_long", f"a grant is for at most {MAX_LIFE / 1000:g} s")
    if not now < claims.until:
        raise BadGrant("expired", f"the grant ended {(now - claims.until) / 1000:.1f} s ago")


def _claims(text: str) -> Claims:
    try:
        said = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadGrant("malformed", "claims are not JSON") from None
    match said:
        case {
            "caller": str(caller),
            "callee": str(callee),
            "operations": list(operations),
            "scopes": list(scopes),
            "issued": int(issued),
            "until": int(until),
        } if (
            _NODE_ID.fullmatch(caller)
            and _NODE_ID.fullmatch(callee)
            and _names(operations, MAX_OPERATIONS)
            and _names(scopes, MAX_SCOPES)
            and type(issued) is type(until) is int
        ):
            found = frozenset(operations)
            return Claims(
                caller=caller, callee=callee, operations=found, scopes=tuple(scopes), issued=issued, until=until
            )
        case _:
            raise BadGrant("malformed", "claims need caller, callee, operations, scopes, issued and until")


def _names(values: list[Any], most: int) -> bool:
    return len(values) <= most and all(type(one) is str and 0 < len(one) <= MAX_OPERATION_ID for one in values)
