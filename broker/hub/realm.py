"""The realm's secret and the generations of its topics: what a swarm's id is made of, and who its hubs are.

The first hub of a realm makes the secret and keeps it beside its identity; further hubs are given it (joining.py). A
ban raises the base of all generations: topics that the banned NodeId never knew keep theirs, every other has an id that
it cannot compute. Of two hubs' generations of a topic the higher counts, so hubs that told each other agree. Not
here: who knows which id (protocol/overlay.py), and what hubs tell each other (realm_links.py).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from broker import _gossip_ext as ext
from broker.errors import ConfigError, TicketError
from broker.keys import load_or_create, save, write_atomically
from broker.protocol.ticket import Ticket

__all__ = ["Realm"]

log = logging.getLogger("broker.hub")

KEY_FILE: Final = "realm.key"
STATE_FILE: Final = "realm.json"
MAX_HUBS: Final = 8
"""Of a realm: each holds a connection to every other."""
MAX_KEPT: Final = 100_000
"""Topics whose generation is told from hub to hub."""


class Realm:
    """``hub`` is this hub's NodeId, ``others`` the realm's other hubs and where they are."""

    def __init__(
        self,
        secret: bytes,
        hub: str,
        *,
        path: Path | None = None,
        base: int = 1,
        kept: Mapping[str, int] | None = None,
        others: Iterable[Ticket] = (),
        restored: bool = False,
    ) -> None:
        self.hub = hub
        self.others = {one.node_id: one for one in others if one.node_id != hub}
        self.adopting = False
        """Another hub's generations are being taken over: a ban that comes with them needs none of our own."""
        self._secret, self._path = secret, path
        self._base, self._kept = base, dict(kept or {})
        self._restored = base if restored else 0

    @classmethod
    def of(cls, data: Path | None, hub: str) -> Realm:
        """The realm of a data directory, made on its first start; without one, a realm for as long as the process."""
        if data is None:
            return cls(secrets.token_bytes(32), hub)
        restored = (data / KEY_FILE).exists()
        secret = load_or_create(data / KEY_FILE)
        base, kept, others = _read(data / STATE_FILE)
        return cls(secret, hub, path=data / STATE_FILE, base=base, kept=kept, others=others, restored=restored)

    @classmethod
    def given(cls, data: Path | None, hub: str, detail: Mapping[str, Any]) -> Realm:
        """The realm that another hub has told of (`told`), kept from now on."""
        secret = bytes.fromhex(detail["secret"])
        if data is not None:
            save(data / KEY_FILE, secret)
        realm = cls(secret, hub, path=None if data is None else data / STATE_FILE)
        realm.merge(detail)
        return realm

    @staticmethod
    def known(data: Path | None) -> bool:
        """Whether a data directory belongs to a realm already."""
        return data is not None and (data / KEY_FILE).exists()

    @property
    def hubs(self) -> tuple[str, ...]:
        """The NodeIds that may sign for authors who cannot gossip."""
        return (self.hub, *self.others)

    @property
    def shared(self) -> bool:
        """Whether there are other hubs, or have been."""
        return bool(self.others)

    def add(self, place: Ticket) -> bool:
        """Another hub is there. Whether that is new."""
        if place.node_id == self.hub or self.others.get(place.node_id) == place:
            return False
        if place.node_id not in self.others and len(self.others) >= MAX_HUBS:
            log.error("hub %s is left out: a realm has at most %d others", place.node_id[:10], MAX_HUBS)
            return False
        self.others[place.node_id] = place
        self._save()
        return True

    def told(self, own: Ticket, *, secret: bool) -> dict[str, Any]:
        """What another hub is told of generations and hubs; ``secret`` for one that joins."""
        hubs = [own.place(), *(one.place() for one in self.others.values())]
        detail: dict[str, Any] = {"base": self._base, "kept": self._kept, "hubs": hubs}
        return {**detail, "secret": self._secret.hex()} if secret else detail

    def merge(self, detail: Mapping[str, Any]) -> bool:
        """Takes over what another hub has told. Whether anything is another now. ValueError when it is malformed."""
        base, kept = _generations(detail)
        hubs = [Ticket.at(place) for place in detail["hubs"]][:MAX_HUBS]
        topics = {topic: max(self.generation(topic), kept.get(topic, base)) for topic in (*self._kept, *kept)}
        most = max(self._base, base)
        before = (self._base, self._kept, dict(self.others))
        self._base, self._kept = most, {topic: number for topic, number in topics.items() if number != most}
        for one in hubs:
            if one.node_id != self.hub and (one.addrs or one.relays) and len(self.others) < MAX_HUBS:
                self.others[one.node_id] = one
        changed = before != (self._base, self._kept, self.others)
        if changed:
            self._save()
        return changed

    def generation(self, topic: str) -> int:
        """The present one."""
        return self._kept.get(topic, self._base)

    def is_old(self, generation: int) -> bool:
        """Whether it may be from before this process: then nobody remembers who knew it."""
        return generation <= self._restored

    @property
    def restored(self) -> bool:
        """Whether there was a hub of this realm before this process."""
        return self._restored > 0

    def id(self, topic: str, generation: int) -> bytes:
        """Who knows it may join."""
        return ext.topic_id(self._secret, topic, generation)

    def rekey(self, kept: Mapping[str, int]) -> int:
        """A new base, for every topic but ``kept`` (with their generations). It counts even if it cannot be written."""
        self._base = max([self._base, *self._kept.values()]) + 1
        self._kept = dict(kept)
        self._save()
        return self._base

    def _save(self) -> None:
        if self._path is None:
            return
        hubs = [one.place() for one in self.others.values()]
        content = orjson.dumps({"base": self._base, "kept": self._kept, "hubs": hubs})
        try:
            write_atomically(self._path, content + b"\n", mode=0o600)
        except OSError as error:
            log.error(
                "%s cannot be written (%s): after a restart of the hub a banned NodeId knows the ids of its topics",
                self._path.name,
                error.strerror,
            )


def _generations(value: Mapping[str, Any]) -> tuple[int, dict[str, int]]:
    base, kept = value["base"], dict(value["kept"])
    if len(kept) > MAX_KEPT or not all(type(number) is int and number > 0 for number in (base, *kept.values())):
        raise ValueError("generations are whole numbers from 1")
    return base, kept


def _read(path: Path) -> tuple[int, dict[str, int], list[Ticket]]:
    """A file that cannot be read is no empty one: who was banned would know the ids again."""
    try:
        value = orjson.loads(path.read_bytes())
        return *_generations(value), [Ticket.at(place) for place in value.get("hubs", [])]
    except FileNotFoundError:
        return 1, {}, []
    except (OSError, ValueError, LookupError, TypeError, TicketError) as error:
        raise ConfigError(
            f"the realm's generations cannot be read ({error})\nrepair the file or restore it from a backup; without "
            "it banned NodeIds know the ids of topics again",
            file=str(path),
        ) from None
