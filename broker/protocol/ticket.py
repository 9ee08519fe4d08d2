"""The one string that a spoke needs to find a hub: who it is, where it may be, and a secret if it asks for one.

Rules:
1. ``hub1`` + lower-case base32 without padding of version byte, JSON, and the first 8 bytes of their BLAKE2b. Case,
   blanks and line breaks from copying do no harm; anything else wrong is told apart and named.
2. One ticket has one spelling: decoding accepts nothing that `encode` would not write.
3. A ticket with a secret is itself a secret; ``repr`` does not show it.

Not here: files (``@FILE`` is the CLI's business) and whether the addresses work.
"""

from __future__ import annotations

import re
from base64 import b32decode, b32encode
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

import orjson

from broker.errors import TicketError

__all__ = ["MAX_ADDRS", "MAX_RELAYS", "MAX_TICKET", "MESSAGE_BYTES", "REALM_BYTES", "Ticket"]

PREFIX: Final = "hub1"
VERSION: Final = 1
CHECKSUM_BYTES: Final = 8
"""A mistyped ticket passes once in 2**64; base32 leaves no shorter form worth having."""
MAX_TICKET: Final = 8_192
"""Characters. Long enough for every bound below, short enough to paste."""
MAX_ADDRS: Final = 32
MAX_RELAYS: Final = 8
MAX_OTHERS: Final = 8
"""Further hubs of the realm."""
MAX_TEXT: Final = 256
"""One address, relay URL or secret."""
MESSAGE_BYTES: Final = 4_096
"""Of a gossip message, where a ticket says nothing of it: iroh-gossip's own default."""
REALM_BYTES: Final = 32_768
"""The same in a realm that was not told otherwise; its tickets say so."""
LEAST_MESSAGE, MOST_MESSAGE = 512, 65_536
"""Bytes of a gossip message."""

_ALPHABET: Final = frozenset("abcdefghijklmnopqrstuvwxyz234567")
_NODE_ID: Final = re.compile(r"[0-9a-f]{64}")
_ADVICE: Final = "Copy the whole ticket again from where the hub printed it (`hub ticket`)."


@dataclass(frozen=True, slots=True)
class Ticket:
    """``addrs`` are ``host:port``, ``relays`` URLs, in the order to try. ``others`` are further hubs of the same realm,
    to go to when this one is away; they have neither a secret nor others. ``message_bytes`` is the size of the realm's
    gossip messages; None: `MESSAGE_BYTES`, which is what programs take that do not know of it."""

    node_id: str
    addrs: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    secret: str | None = field(default=None, repr=False)
    others: tuple[Ticket, ...] = ()
    message_bytes: int | None = None

    def __post_init__(self) -> None:
        if fault := _fault(self.node_id, self.addrs, self.relays, self.secret):
            raise TicketError(f"not a ticket: {fault}")
        if len(self.others) > MAX_OTHERS or any(one.secret is not None or one.others for one in self.others):
            raise TicketError(f"not a ticket: at most {MAX_OTHERS} others, without secrets and others of their own")
        size = self.message_bytes
        if size is not None and not (type(size) is int and LEAST_MESSAGE <= size <= MOST_MESSAGE):
            raise TicketError(f"not a ticket: its gossip messages have {LEAST_MESSAGE} to {MOST_MESSAGE} bytes")

    def place(self) -> dict[str, Any]:
        """Who it is and where, as JSON."""
        body: dict[str, Any] = {"id": self.node_id}
        if self.addrs:
            body["addrs"] = self.addrs
        if self.relays:
            body["relays"] = self.relays
        return body

    @staticmethod
    def at(place: Any) -> Ticket:
        """The ticket of a :meth:`place`. TicketError when it is none."""
        if not isinstance(place, dict):
            raise TicketError("not a ticket: a place is an object")
        addrs, relays = place.get("addrs", []), place.get("relays", [])
        if fault := _fault(place.get("id"), addrs, relays, None):
            raise TicketError(f"not a ticket: {fault}")
        return Ticket(place["id"], tuple(addrs), tuple(relays))

    def encode(self) -> str:
        body = self.place()
        if self.secret is not None:
            body["secret"] = self.secret
        if self.others:
            body["others"] = [one.place() for one in self.others]
        if self.message_bytes is not None:
            body["max"] = self.message_bytes
        payload = bytes([VERSION]) + orjson.dumps(body)
        text = PREFIX + b32encode(payload + _checksum(payload)).decode().rstrip("=").lower()
        if len(text) > MAX_TICKET:
            raise TicketError(f"a ticket of {len(text)} characters, at most {MAX_TICKET} go: leave out some addresses")
        return text

    @staticmethod
    def decode(text: str) -> Ticket:
        """Raises :class:`TicketError`, which says what is wrong and what to do."""
        payload = _payload(_cleaned(text))
        if payload[0] != VERSION:
            raise TicketError(
                f"this ticket is of version {payload[0]}, this program reads version {VERSION}. Upgrade it."
            )
        try:
            body = orjson.loads(payload[1:])
        except orjson.JSONDecodeError as error:
            raise TicketError(f"the ticket's content is not JSON, though its checksum is right: {error}") from error
        if not isinstance(body, dict):
            raise TicketError("the ticket's content is not an object, though its checksum is right")
        addrs, relays = body.get("addrs", []), body.get("relays", [])
        if fault := _fault(body.get("id"), addrs, relays, body.get("secret")):
            raise TicketError(f"the ticket's checksum is right, but {fault}. The hub that made it is at fault.")
        others = body.get("others", [])
        if not isinstance(others, list):
            raise TicketError("the ticket's checksum is right, but its others are no list. Who made it is at fault.")
        known = tuple(map(Ticket.at, others))
        return Ticket(body["id"], tuple(addrs), tuple(relays), body.get("secret"), known, body.get("max"))


def _cleaned(text: str) -> str:
    if not isinstance(text, str):
        raise TicketError(f"a ticket is a string that starts with {PREFIX!r}")
    text = "".join(text.split()).lower()
    if not text:
        raise TicketError(f"the ticket is empty. {_ADVICE}")
    if len(text) > MAX_TICKET:
        raise TicketError(f"{len(text)} characters are no ticket (at most {MAX_TICKET}). {_ADVICE}")
    if not text.startswith(PREFIX):
        raise TicketError(_foreign(text))
    return text


def _foreign(text: str) -> str:
    if re.match(r"hub\d", text):
        return f"this ticket starts with {text[:4]!r}, this program reads {PREFIX!r}. Upgrade it, or make a new ticket."
    if _NODE_ID.fullmatch(text):
        return f"this is a bare NodeId, not a ticket: a ticket starts with {PREFIX!r}. {_ADVICE}"
    return f"a ticket starts with {PREFIX!r}, this starts with {text[:8]!r}. {_ADVICE}"


def _payload(text: str) -> bytes:
    digits = text[len(PREFIX) :]
    for place, digit in enumerate(digits, len(PREFIX) + 1):
        if digit not in _ALPHABET:
            raise TicketError(f"{digit!r} at character {place} cannot be in a ticket. {_ADVICE}")
    # 1, 3 or 6 digits over a multiple of 8 encode no whole number of bytes.
    cut = f"the ticket is cut off or mistyped ({len(text)} characters, checksum wrong). {_ADVICE}"
    if len(digits) % 8 in (1, 3, 6):
        raise TicketError(cut)
    raw = b32decode(digits.upper() + "=" * (-len(digits) % 8))
    payload, checksum = raw[:-CHECKSUM_BYTES], raw[-CHECKSUM_BYTES:]
    # Base32 ignores the spare bits of the last digit: compare the spelling too, or one character could differ unseen.
    spelling = b32encode(raw).decode().rstrip("=").lower()
    if not payload or _checksum(payload) != checksum or spelling != digits:
        raise TicketError(cut)
    return payload


def _checksum(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=CHECKSUM_BYTES, person=b"hub-ticket").digest()


def _fault(node_id: object, addrs: object, relays: object, secret: object) -> str | None:
    if not isinstance(node_id, str) or not _NODE_ID.fullmatch(node_id):
        return "its NodeId is not 64 hex digits"
    for name, value, most in (("addrs", addrs, MAX_ADDRS), ("relays", relays, MAX_RELAYS)):
        if not isinstance(value, (list, tuple)) or not all(_is_text(one) for one in value):
            return f"its {name} are not a list of strings of 1 to {MAX_TEXT} printable characters"
        if len(value) > most:
            return f"it has {len(value)} {name}, at most {most} go"
    if secret is not None and not _is_text(secret):
        return f"its secret is not a string of 1 to {MAX_TEXT} printable characters"
    return None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()
