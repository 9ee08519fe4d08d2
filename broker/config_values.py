"""What single values of a hub's config may be, and the types that say so. A mistake is a ValueError that says what is
right. Not here: the keys (config.py)."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from broker.errors import TopicError
from broker.protocol.access import ADMIN, check_operation_pattern
from broker.protocol.routing import check_pattern

__all__ = [
    "KIB",
    "MIB",
    "CarrierChoice",
    "Count",
    "HttpAddress",
    "NodeId",
    "OperationPatterns",
    "PkarrUrl",
    "RelayUrl",
    "ScopeName",
    "Seconds",
    "TopicPattern",
    "TopicPatterns",
    "UdpAddress",
    "relay_url",
    "scope_name",
    "split_address",
]

KIB: Final = 1024
MIB: Final = 1024 * KIB
NODE_ID: Final = re.compile(r"[0-9a-fA-F]{64}")
OFF: Final = ("", "off")


def split_address(text: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``. ValueError says what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:0 (port 0 is a free one)")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 address stands in brackets, such as [{host}]:{port}")
    return host, int(port)


def _udp_address(text: str) -> str:
    host, port = split_address(text)
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ValueError(f"{host!r} is not an IP address; 0.0.0.0 or [::] takes every interface") from None
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _http_address(text: str) -> str:
    if text in OFF:
        return ""
    split_address(text)
    return text


def relay_url(text: str) -> str:
    """As everybody writes it: one relay has one URL. ValueError says what is wrong."""
    match = re.fullmatch(r"(https?)://([^/\s?#@]+?)/?", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not a relay's URL, such as https://relay.example.org")
    scheme, host = match[1].lower(), match[2].lower()
    return f"{scheme}://{host.removesuffix(':443' if scheme == 'https' else ':80')}"


def _node_id(text: str) -> str:
    if not NODE_ID.fullmatch(text):
        raise ValueError(f"{text!r} is not a NodeId, which is 64 hex digits; `broker key show FILE` prints one")
    return text.lower()


def _topic_pattern(text: str) -> str:
    try:
        check_pattern(text)
    except TopicError as error:
        raise ValueError(str(error)) from None
    return text


def _operation_pattern(text: str) -> str:
    check_operation_pattern(text)
    return text


def scope_name(text: str) -> str:
    """ValueError unless scopes may be called so."""
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", text):
        raise ValueError(f"{text[:80]!r} is not a scope's name: 1 to 64 letters, digits and _ . : -")
    if text == ADMIN:
        raise ValueError(f"{ADMIN!r} is what administrators are stamped with; admission.admins makes them")
    return text


def _pkarr_url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", text):
        raise ValueError(f"{text!r} is not the URL of a pkarr service, as in https://dns.example.org/pkarr")
    return text


NodeId = Annotated[str, AfterValidator(_node_id)]
ScopeName = Annotated[str, AfterValidator(scope_name)]
TopicPattern = Annotated[str, AfterValidator(_topic_pattern)]
TopicPatterns = tuple[TopicPattern, ...]
CarrierChoice = Literal["auto", "stream", "gossip"]
OperationPatterns = tuple[Annotated[str, AfterValidator(_operation_pattern)], ...]
PkarrUrl = Annotated[str, AfterValidator(_pkarr_url)]
RelayUrl = Annotated[str, AfterValidator(relay_url)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=100_000_000)]
UdpAddress = Annotated[str, AfterValidator(_udp_address)]
HttpAddress = Annotated[str, AfterValidator(_http_address)]
