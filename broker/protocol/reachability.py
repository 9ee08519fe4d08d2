"""Whether a hub can be reached through its relays, and what to do when it cannot.

A hub is reachable through one relay at a time, its home; the others in its ticket are where it goes when that one
fails. It is probed through its home: a dial to itself that has no other way. Pure: ``handle(event, now) -> effects``.
Seconds, on any clock that does not go back.

A relay that is away is left for another one, and comes back into the choice after a while. A relay that is there, but
does not bring the probe through, holds a connection of ours that is dead without anybody knowing: it is made anew, and
if that does not help the relay is left as well. Whoever has one relay can only ask it again.

And there is a case in which no relay brings anything, although all but one are well: the endpoint itself is stuck on
what it has for the one that is dead (docs/decisions/0008). So when a relay that is there is silent while another one is
known to be gone, or a new connection to it did not help, the endpoint is made anew first. That costs those who come by
relay their connections, so the times between grow.

Not here: how a probe is made (the extension), what is shown of all this (hub/relay_watch.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Effect", "Insert", "Outcome", "Probe", "Rebuild", "Remove", "Renew", "Watch"]

INTERVAL: Final = 2.0
"""Between a probe that came through and the next. With the limits below, the worst relay (it takes what is sent and is
silent) is found out in 2 + 2 + 2 seconds, so that the hub is elsewhere within 10."""
LIMIT: Final = 2.0
"""For a probe: two round trips by relay."""
FIRST_LIMIT: Final = 4.0
"""For one that begins with making its own connection to the relay: six round trips."""
SETTLE: Final = 0.5
"""For what was done to have its effect, before it is looked at."""
UNKNOWN_INTERVAL: Final = 10.0
"""Between probes of a relay that does not let them in."""
AWAY_FIRST: Final = 30.0
AWAY_MOST: Final = 600.0
"""A relay that failed is out of the choice for so long; twice as long each time that it fails again."""
GOOD: Final = 120.0
"""A relay that has brought probes through for so long is as good as one that never failed."""
GONE: Final = 90.0
"""For so long after a relay was found to be gone the endpoint may be stuck on it: iroh's paths by it end after 30 s,
and the actor that takes nothing out of its queue 60 s after that."""
REBUILD_FIRST: Final = 60.0
REBUILD_MOST: Final = 600.0
"""Between two times that the endpoint is made anew; twice as long each time, unless all was well for GOOD meanwhile."""
LOST: Final = 15.0
"""A probe whose end was not told by then is over."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Dial this hub through ``url``."""

    url: str
    limit: float


@dataclass(frozen=True, slots=True)
class Remove:
    """Leave the relay."""

    url: str


@dataclass(frozen=True, slots=True)
class Insert:
    """It may be home again."""

    url: str


@dataclass(frozen=True, slots=True)
class Renew:
    """Make the connection to it anew."""

    url: str


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Make the endpoint that talks to relays anew."""


Effect = Probe | Remove | Insert | Renew | Rebuild
Outcome = str
"""``ok``, ``unreachable``, ``silent``, ``refused``: see ``Endpoint.probed`` in _gossip_ext.pyi."""


@dataclass(slots=True)
class _Relay:
    reachable: bool | None = None
    """None: not known."""
    message: str = ""
    fresh: bool = True
    """The next probe makes its own connection first."""
    strikes: int = 0
    """Probes that it did not bring through: after the first one the next makes sure, then it is renewed, then the
    endpoint made anew, then it is left."""
    gone: float | None = None
    """When it was last found to be away."""
    since: float = 0.0
    """When its probes began to come through."""
    until: float | None = None
    """It is out of the choice, at most until then."""
    away: float = AWAY_FIRST


class Watch:
    """All relays of one hub. ``moves``, ``renewals`` and ``rebuilds`` count what was done."""

    def __init__(self, urls: Sequence[str], now: float) -> None:
        self._relays = {url: _Relay() for url in urls}
        self._next = now + SETTLE
        self._probing: tuple[str, float] | None = None
        self.home: str | None = None
        self._trouble: str | None = None
        self._rebuild_from, self._rebuild_pause = now, REBUILD_FIRST
        self.moves = self.renewals = self.rebuilds = 0

    # What happens.

    def look(self, now: float, home: str | None, trouble: str | None = None) -> list[Effect]:
        """To be called some times a second. ``home``: the relay that the endpoint is connected to, or would be.
        ``trouble``: what it says of it, when it will not be let in there."""
        known = home is not None and home in self._relays
        self.home, self._trouble = (home, trouble) if known else (None, None)
        effects: list[Effect] = []
        for url, relay in self._relays.items():
            if relay.until is not None and now >= relay.until:
                relay.until = None
                effects.append(Insert(url))
        if self._probing is not None and now - self._probing[1] >= LOST:
            effects += self.probed(now, "unreachable", "the probe did not end")
        if self._probing is None and now >= self._next and (target := self._target()) is not None:
            self._probing = target, now
            effects.append(Probe(target, FIRST_LIMIT if self._relays[target].fresh else LIMIT))
        return effects

    def probed(self, now: float, outcome: Outcome, message: str) -> list[Effect]:
        """The probe has ended."""
        if self._probing is None:
            return []
        url, _ = self._probing
        self._probing = None
        relay = self._relays[url]
        relay.fresh = outcome != "ok"
        if outcome == "ok":
            return self._came_through(relay, now)
        if outcome == "refused" and not (url == self.home and self._trouble):
            relay.reachable, relay.message = None, f"it lets no probe in: {message}"
            self._next = now + UNKNOWN_INTERVAL
            return []
        return self._did_not(url, relay, outcome, message, now)

    def lost(self, now: float, urls: Iterable[str]) -> None:
        """Connections to these have ended, and they let nobody in. What that means is asked at once."""
        for relay in [self._relays[url] for url in urls if url in self._relays]:
            relay.gone = now
            self._next = min(self._next, now)

    # What is known.

    @property
    def reachable(self) -> bool | None:
        """Through any relay. None: not known, or not yet."""
        known = [relay.reachable for relay in self._relays.values()]
        if any(known):
            return True
        return False if False in known else None

    def relays(self) -> dict[str, tuple[bool | None, str]]:
        """Of each: whether the hub can be reached through it, and what is wrong. Known is only what is home or was."""
        return {url: (relay.reachable, relay.message) for url, relay in self._relays.items()}

    # Inside.

    def _chosen(self, url: str) -> bool:
        return self._relays[url].until is None

    def _target(self) -> str | None:
        if self.home is not None and self._chosen(self.home):
            return self.home
        return next(filter(self._chosen, self._relays), None)

    def _came_through(self, relay: _Relay, now: float) -> list[Effect]:
        if relay.reachable is not True:
            relay.since = now
        relay.reachable, relay.message, relay.strikes, relay.gone = True, "", 0, None
        if now - relay.since >= GOOD:
            relay.away, self._rebuild_pause = AWAY_FIRST, REBUILD_FIRST
        self._next = now + INTERVAL
        return []

    def _did_not(self, url: str, relay: _Relay, outcome: Outcome, message: str, now: float) -> list[Effect]:
        if outcome == "unreachable":
            relay.gone = now
            relay.strikes = 1  # once it is there again, and not we on it, our connection is made anew at once
            return self._failed(url, message, now)
        relay.strikes += 1
        why = self._trouble if outcome == "refused" else f"it does not bring this hub what is for it: {message}"
        if outcome == "silent" and now >= self._rebuild_from and (relay.strikes >= 3 or self._stuck(url, now)):
            return self._rebuilt(url, str(why), now)
        if outcome == "silent" and relay.strikes == 1:
            self._next = now
            return []
        if relay.strikes == 2 or len(self._relays) == 1:
            return self._renewed(url, str(why), now)
        return self._failed(url, str(why), now)

    def _renewed(self, url: str, message: str, now: float) -> list[Effect]:
        self._relays[url].reachable, self._relays[url].message = False, message
        self.renewals += 1
        self._next = now + SETTLE
        return [Renew(url)]

    def _stuck(self, url: str, now: float) -> bool:
        others = [relay for one, relay in self._relays.items() if one != url]
        return any(relay.gone is not None and now - relay.gone < GONE for relay in others)

    def _rebuilt(self, url: str, message: str, now: float) -> list[Effect]:
        self._relays[url].reachable, self._relays[url].message = False, message
        self.rebuilds += 1
        self._next = now + SETTLE
        self._rebuild_from = now + self._rebuild_pause
        self._rebuild_pause = min(self._rebuild_pause * 2, REBUILD_MOST)
        return [Rebuild()]

    def _failed(self, url: str, message: str, now: float) -> list[Effect]:
        """Leaves it, if there is another one to go to."""
        relay = self._relays[url]
        relay.reachable, relay.message = False, message
        self._next = now + SETTLE
        others = [one for one in self._relays if one != url]
        if not others:
            return []
        effects: list[Effect] = []
        if not any(map(self._chosen, others)):
            for one in others:  # each has failed: any may be there again
                self._relays[one].until = None
                effects.append(Insert(one))
        relay.strikes = 0
        relay.until, relay.away = now + relay.away, min(relay.away * 2, AWAY_MOST)
        self.moves += 1
        return [*effects, Remove(url)]
