"""The words of the wire: close codes, complaint codes and the names of our own messages. The table in docs/protocol.md
is checked against this file. Not here: what any of them does."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

ALPN: Final = "alkhub/1"
PROTOCOL_VERSION: Final = 1
RESERVED_PREFIXES: Final = ("call.", "hub.", "topic.", "__")
GOSSIP: Final = "gossip/1"
"""The capability of a peer that can be in a topic's swarm."""
REALM: Final = "realm/1"
"""The capability of a hub that shares topics with this one."""
DIRECT: Final = "direct/1"
"""The capability of a spoke that takes introductions to others, and of a hub that makes them."""
DIRECT_STREAMS: Final = "direct.streams/1"
"""The capability of a spoke that goes on with a stream when it is asked again by way of the hub."""
REALM_SCOPE: Final = "realm"
"""The scope of an invite that lets a further hub into the realm."""


class CloseCode(IntEnum):
    """Why a connection was ended, as QUIC application close codes."""

    NORMAL = 0
    GOING_AWAY = 1
    INTERNAL = 2
    EMPTY_FRAME = 16
    FRAME_TOO_LARGE = 17
    FRAME_CUT_SHORT = 18
    BAD_UTF8 = 19
    BAD_JSON = 20
    NOT_AN_OBJECT = 21
    NO_TYPE = 22
    BAD_REGISTRATION = 23
    BAD_MESSAGE = 24
    NOT_ADMITTED = 32
    BANNED = 33
    KICKED = 34
    SECOND_STREAM = 36
    NO_STREAM = 37
    SLOW_CONSUMER = 38
    FRAME_TOO_SLOW = 39
    LIMIT = 40
