"""A router in a container: what is behind it gets out with its address, and nothing unasked gets in.

It needs NET_ADMIN (nft, ip) as root, and ``net.ipv4.ip_forward`` (docker-compose.yml gives both). The rules are those
of the lab's routers. Not here: these (internet.py), and the way of the hosts behind it to it (docker-compose.yml).
"""

from __future__ import annotations

import json
import os
import socket

from broker.errors import UsageError
from broker.lab.internet import CHAINS, Nat, translation
from broker.lab.network import TABLE, do

__all__ = ["route"]


def route(nat: Nat, outside: str) -> str:
    """From now on, until the container ends. ``outside``: a host of the public segment, by its name. Returns the device
    that leads there."""
    if os.getppid() != 1:  # whoever's network this is would lose its way out
        raise UsageError("a router is a container of its own; docker-compose.yml has two in the profile nat")
    try:
        address = socket.gethostbyname(outside)
    except OSError as error:
        raise UsageError(f"no host {outside} is known here: {error.strerror}; a router is on its network") from None
    (way,) = json.loads(do("ip", "-json", "route", "get", address))
    if "gateway" in way:
        raise UsageError(f"{outside} ({address}) is not on a network of this router")
    device: str = way["dev"]
    # No way out but the segment: the engine would give one past it.
    do("ip", "route", "flush", "default")
    rules = [f"add table {TABLE}", f"delete table {TABLE}", f"add table {TABLE}"]
    rules += [f"add chain {TABLE} {chain} {{ type {hook}; }}" for chain, hook in CHAINS.items()]
    rules += [f"add rule {TABLE} {chain} {rule}" for chain, some in translation(nat, device).items() for rule in some]
    do("nft", "; ".join(rules))
    return device
