"""Relays as hubs and spokes use them: which ones, and whose certificates are believed.

Not here: being a relay (relay.py), and what the extension does with one (docs/decisions/0008).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from broker.errors import ConfigError
from broker.protocol.ticket import Ticket

__all__ = ["on_this_machine", "read_authorities", "way"]


def read_authorities(path: Path | str | None, *, key: str = "relay_ca") -> bytes | None:
    """The PEM file of those who sign the relays' certificates; None: whoever a browser believes. Raises ConfigError."""
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the file of certificate authorities cannot be read: {error.strerror}: {path}", key=key
        ) from None
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise ConfigError(f"{path} has no PEM certificate in it", key=key)
    return content


def way(ticket: Ticket | None, own: Iterable[str]) -> tuple[str, list[str]]:
    """How to go to the hubs of a ticket, with relays of one's own: the address to bind, and the relays, each once."""
    hubs = (ticket, *ticket.others) if ticket is not None else ()
    addrs = ticket.addrs if ticket is not None else ()
    relays = list(dict.fromkeys([*own, *(url for hub in hubs for url in hub.relays)]))
    return "127.0.0.1:0" if on_this_machine(addrs, relays) else "0.0.0.0:0", relays


def on_this_machine(addrs: Iterable[str], relays: Iterable[str]) -> bool:
    """Whether all of these are, so that whoever goes there needs no other interface than loopback."""
    hosts = [
        *(address.rpartition(":")[0].strip("[]") for address in addrs),
        *(urlsplit(url).hostname for url in relays),
    ]
    return all(_is_loopback(host or "") for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
