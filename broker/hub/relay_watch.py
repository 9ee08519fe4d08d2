"""The hub's watch on its relays: probes itself through them, goes to another one, makes a connection anew or the
endpoint, and tells /readyz, the metrics and the log. What to do is the core's to say (protocol/reachability.py).

It also sees when the hub's own addresses change, which relays are what finds them out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from broker import _gossip_ext as ext
from broker.config_values import relay_url
from broker.errors import Closed
from broker.protocol.reachability import Effect, Insert, Outcome, Probe, Rebuild, Remove, Renew, Watch
from broker.relays import on_this_machine

__all__ = ["RelayWatch"]

log = logging.getLogger("broker.hub")

TURN: Final = 0.25
"""Seconds between looks at what the extension knows; most cost a lock and a comparison."""


class RelayWatch(Collector):
    """Of one hub. ``on_addresses`` is called when its addresses have changed."""

    def __init__(self, endpoint: ext.Endpoint, urls: Sequence[str], on_addresses: Callable[[], None]) -> None:
        self._endpoint, self._on_addresses = endpoint, on_addresses
        self._watch = Watch([relay_url(url) for url in urls], time.monotonic())
        self._addrs = endpoint.addrs()
        self._said: dict[str, bool | None] = {}
        self._outcomes: dict[Outcome, int] = {}
        self._seconds = 0.0

    async def run(self) -> None:
        """For as long as the hub lives."""
        while True:
            await asyncio.sleep(TURN)
            try:
                self._turn()
            except Closed:
                return

    def not_ready(self) -> str | None:
        """Why spokes do not reach this hub, if it has no other way for them than relays."""
        if not on_this_machine(self._endpoint.addrs(), ()):
            return None
        if self._watch.reachable is False:
            return f"not reachable through its relays: {self._wrong()}"
        return None if self._outcomes else "its relays have not been reached yet"

    def told(self) -> dict[str, Any]:
        """What /readyz says besides."""
        rows = [
            {"url": url, "home": url == self._watch.home, "reachable": reachable, "message": message}
            for url, (reachable, message) in self._watch.relays().items()
        ]
        return {"relays": rows}

    def collect(self) -> Iterable[Metric]:
        text = "Whether a probe of its own reaches the hub through the relay. Left out where nothing is known."
        reachable = GaugeMetricFamily("broker_relay_reachable", text, labels=("relay",))
        home = GaugeMetricFamily(
            "broker_relay_home", "1: the relay that the hub is reachable through.", labels=("relay",)
        )
        for url, (known, _) in self._watch.relays().items():
            if known is not None:
                reachable.add_metric((url,), int(known))
            home.add_metric((url,), int(url == self._watch.home))
        yield from (reachable, home, *self._counts())

    # Inside.

    def _counts(self) -> Iterator[Metric]:
        text = "Probes of the hub through its relays, by how they ended."
        probes = CounterMetricFamily("broker_relay_probes", text, labels=("outcome",))
        for outcome, count in self._outcomes.items():
            probes.add_metric((outcome,), count)
        yield probes
        yield GaugeMetricFamily("broker_relay_probe_seconds", "What the last probe took.", value=self._seconds)
        done = {
            "moves": ("Times that the hub left a relay for another.", self._watch.moves),
            "renewals": ("Times that the hub made its connection to a relay anew.", self._watch.renewals),
            "rebuilds": ("Times that the hub made its endpoint for relays anew.", self._watch.rebuilds),
        }
        for name, (text, count) in done.items():
            yield CounterMetricFamily(f"broker_relay_{name}", text, value=count)

    def _turn(self) -> None:
        now, home = time.monotonic(), self._endpoint.home_relay()
        effects: list[Effect] = []
        self._watch.lost(now, map(relay_url, self._endpoint.lost_relays()))
        if error := self._endpoint.rebuilt():
            log.warning("the endpoint for relays could not be made anew, the old one stays: %s", error)
        if (probed := self._endpoint.probed()) is not None:
            outcome, self._seconds, message = probed
            self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
            log.debug("probe by relay: %s after %.3f s: %s", outcome, self._seconds, message)
            effects += self._watch.probed(now, outcome, message)
        url, _, trouble, denied = home or ("", False, None, False)
        effects += self._watch.look(now, relay_url(url) if url else None, trouble if denied else None)
        for effect in effects:
            self._carry_out(effect)
        self._say()
        if (addrs := self._endpoint.addrs()) != self._addrs:
            log.info("the hub's addresses are %s now, no longer %s", ", ".join(addrs), ", ".join(self._addrs))
            self._addrs = addrs
            self._on_addresses()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Probe(url, limit):
                self._endpoint.probe(url, limit)
            case Remove(url):
                log.warning("leaving the relay %s for another one", url)
                self._endpoint.remove_relay(url)
            case Insert(url):
                self._endpoint.insert_relay(url)
            case Renew(url):
                log.warning("making the connection to the relay %s anew", url)
                self._endpoint.renew_relay(url)
            case Rebuild():
                log.warning("making the endpoint for relays anew: %s", self._wrong())
                self._endpoint.rebuild()

    def _say(self) -> None:
        """What has changed since it was last said."""
        for url, (reachable, message) in self._watch.relays().items():
            if self._said.get(url) == reachable:
                continue
            self._said[url] = reachable
            if reachable is False:
                log.warning("this hub is not reachable through the relay %s: %s", url, message)
            elif reachable:
                log.info("this hub is reachable through the relay %s", url)

    def _wrong(self) -> str:
        relays = self._watch.relays().items()
        return "; ".join(f"{url}: {message}" for url, (reachable, message) in relays if reachable is False)
