"""Where peers were last, kept in one file: who knows a NodeId finds it again after a restart, without a relay or a
lookup service.

An entry is a NodeId with addresses (the newest first), relays, and the secret of the peer's own ticket if there was
one, so the file is readable by its owner alone. The newest entries stay. A file that cannot be read costs what it
knew, with a warning, and nothing else. Not here: who is dialled (hub/dialling.py, spoke/hubs.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import orjson

from broker.errors import TicketError
from broker.keys import write_atomically
from broker.protocol.ticket import Ticket

__all__ = ["MOST_ADDRS", "MOST_PEERS", "AddressBook"]

log = logging.getLogger("broker.addresses")

MOST_PEERS: Final = 1_000
"""Entries; beyond them the one that was learnt first goes."""
MOST_ADDRS: Final = 8
"""Of one peer: its interfaces, and where it was before."""
MOST_BYTES: Final = 4 * 1024 * 1024
"""Of the file. A full book has less."""
SAVE_DELAY: Final = 1.0
"""Seconds in which changes are gathered: spokes that come together are written together."""


@dataclass(frozen=True, slots=True)
class _Entry:
    place: Ticket
    kept: bool = False
    """An administrator has decided that it is dialled."""


class AddressBook:
    """``path`` None: nothing outlasts the process. Call :meth:`save` at the end."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: dict[str, _Entry] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._changed = False
        if path is not None:
            self._read(path)

    @property
    def durable(self) -> bool:
        return self._path is not None

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, node_id: str) -> Ticket | None:
        """Where it was last."""
        entry = self._entries.get(node_id)
        return None if entry is None else entry.place

    def learn(self, place: Ticket) -> Ticket:
        """It is there now. Returns all that is known of it."""
        before = self._entries.pop(place.node_id, None)
        if before is None:
            while len(self._entries) >= MOST_PEERS:
                del self._entries[self._first()]
            entry = _Entry(_merged(place, Ticket(place.node_id)))
        else:
            entry = replace(before, place=_merged(place, before.place))
        self._entries[place.node_id] = entry
        if entry != before:
            self._touch()
        return entry.place

    def keep(self, node_id: str, kept: bool) -> bool:
        """Whether it is dialled after a restart too. Returns whether that is new."""
        entry = self._entries.get(node_id)
        if entry is None or entry.kept is kept:
            return False
        self._entries[node_id] = replace(entry, kept=kept)
        self._touch()
        return True

    def kept(self) -> list[Ticket]:
        return [entry.place for entry in self._entries.values() if entry.kept]

    def save(self) -> None:
        """Writes what has changed, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._path is None or not self._changed:
            return
        content = orjson.dumps({"version": 1, "peers": [_row(entry) for entry in self._entries.values()]})
        try:
            write_atomically(self._path, content + b"\n", mode=0o600)
        except OSError as error:
            log.error("the address book %s cannot be written: %s", self._path, error.strerror)
            return
        self._changed = False

    # Inside.

    def _first(self) -> str:
        """The one to go: of those that nobody has decided about, if there are any."""
        return next((one for one, entry in self._entries.items() if not entry.kept), next(iter(self._entries)))

    def _touch(self) -> None:
        self._changed = True
        if self._path is not None and self._timer is None:
            with contextlib.suppress(RuntimeError):  # no loop: the caller saves
                self._timer = asyncio.get_running_loop().call_later(SAVE_DELAY, self.save)

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise ValueError(f"it is longer than {MOST_BYTES} bytes")
            for row in _rows(orjson.loads(content)):
                place = replace(Ticket.at(row), secret=_secret(row))
                self._entries[place.node_id] = _Entry(place, kept=row.get("kept") is True)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TicketError) as error:
            self._entries.clear()
            log.warning("the address book %s cannot be read and begins anew: %s", path, str(error).splitlines()[0])


def _merged(new: Ticket, old: Ticket) -> Ticket:
    return Ticket(
        new.node_id,
        tuple(dict.fromkeys((*new.addrs, *old.addrs)))[:MOST_ADDRS],
        new.relays or old.relays,
        new.secret or old.secret,
    )


def _row(entry: _Entry) -> dict[str, Any]:
    row = entry.place.place()
    if entry.place.secret is not None:
        row["secret"] = entry.place.secret
    return {**row, "kept": True} if entry.kept else row


def _rows(content: Any) -> list[dict[str, Any]]:
    match content:
        case {"version": 1, "peers": list(rows)} if len(rows) <= MOST_PEERS and all(type(row) is dict for row in rows):
            return rows
        case {"version": int(version)} if version != 1:
            raise ValueError(f"it is of version {version}, this program reads version 1")
        case _:
            raise ValueError(f"it is not an object with at most {MOST_PEERS} peers")


def _secret(row: dict[str, Any]) -> str | None:
    secret = row.get("secret")
    return secret if isinstance(secret, str) else None
