"""A simulated hub: broker/hub's own router with all it has, and its dialling of other hubs, on a simulated endpoint.

Not here: its HTTP port, its files, the operations that it offers itself (broker/hub/hub.py), and the message by which a
further hub asks for the realm's secret (broker/hub/joining.py), of which `admits` is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, cast

import orjson

from broker.address_book import AddressBook
from broker.config import (
    AccessConfig,
    AdmissionConfig,
    CallsConfig,
    GossipConfig,
    HubConfig,
    LimitsConfig,
    MetricsConfig,
    ScopeConfig,
    TopicsConfig,
)
from broker.hub import limits
from broker.hub.admission import Admission
from broker.hub.dialling import Dialling
from broker.hub.metrics import HubMetrics
from broker.hub.realm import Realm
from broker.hub.router import Router
from broker.protocol.calls import CallTable, Effect, Ended
from broker.protocol.ticket import MESSAGE_BYTES, Ticket
from tests.sim.asks import Asks
from tests.sim.endpoint import SimEndpoint
from tests.sim.gossip import Gossip
from tests.sim.network import Wire
from tests.sim.recorders import RecordedRing
from tests.sim.scenario import Rings
from tests.sim.world import Failure, Process

__all__ = ["SimHub"]

REPAIR = b'{"type":"topic.repair"'
SUBSCRIBE = b'{"type":"__subscribe"'


def config(rings: Rings, scopes: Mapping[str, ScopeConfig], nodes: Mapping[str, tuple[str, ...]]) -> HubConfig:
    """Smaller than a file may ask for: what is at a bound is what is looked at here."""
    topics = TopicsConfig.model_construct(
        **{
            **TopicsConfig().model_dump(),
            "ring_events": rings.events,
            "ring_bytes": rings.bytes,
            "patience": rings.patience,
            "carrier": rings.carrier,
            "uplink_bytes": rings.uplink,
        }
    )
    return HubConfig.model_construct(
        **{
            **dict(HubConfig()),
            "open": True,
            "topics": topics,
            "access": AccessConfig(scopes=dict(scopes), nodes=dict(nodes)),
            "admission": AdmissionConfig(),
            "calls": CallsConfig(),
            "limits": LimitsConfig(),
            "metrics": MetricsConfig(),
            "gossip": GossipConfig(enabled=rings.gossips, message_bytes=MESSAGE_BYTES),  # its spokes name none
        }
    )


class SimHub(Process):
    """``kept``: what the process before it had in its data directory; without that, ``realm`` is what the hub that it
    joins has told (None: it is the first of its realm). ``dial`` tries to reach a hub for it: it calls `dialled` or
    `not_reached`, with the token."""

    def __init__(
        self,
        gossip: Gossip,
        name: str,
        node_id: str,
        config: HubConfig,
        asks: Asks,
        kept: SimHub | None,
        *,
        heard: Callable[[str, str], None],
        dial: Callable[[SimHub, int, str], None],
        realm: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(gossip.world, name, offset=1_000.0 if kept is None else kept._offset + 1_000.0)
        self.node_id, self._asks, self._heard = node_id, asks, heard
        self.repairs = 0
        """Questions that came."""
        self.endpoint = SimEndpoint(self, node_id, gossip)
        self.endpoint.dials = lambda token, whom: dial(self, token, whom)
        self.place = Ticket(node_id, tuple(self.endpoint.addrs()))
        self.realm: Realm
        self.admission: Admission
        self.router: Router
        self.run(self._begin, config, kept, realm)

    def _begin(self, config: HubConfig, kept: SimHub | None, realm: Mapping[str, Any] | None) -> None:
        endpoint = cast(Any, self.endpoint)
        if kept is not None:
            self.realm = _restored(kept.realm)
        else:
            self.realm = Realm.given(None, self.node_id, realm) if realm else Realm.of(None, self.node_id)
        self.admission = Admission(config, endpoint)
        if kept is not None:
            self.admission._state = kept.admission._state
            self.admission._apply()
        router = self.router = Router(endpoint, config, HubMetrics(), self.admission, self.realm)
        router.calls = RecordedCalls(router.calls, self._asks)
        loop = cast(Any, limits).asyncio.get_running_loop()  # on the stage, the process's
        router.bind_loop(loop)
        router.swarms.start(loop)
        if kept is not None:
            router.topics.places.expect(config.topics.patience)
        self.endpoint.of_swarms = router.swarms
        self.endpoint.batch_done = lambda: router.batch_done(1)
        router.links.own, router.links.dial = lambda: self.place, Dialling(router, AddressBook(None)).keep
        router.links.start()

    # -- tests.sim.network.End

    def opened(self, wire: Wire, node_id: str) -> None:
        self.endpoint.wires[wire.id] = wire
        self.run(self.router.opened, wire.id, node_id, True, 0)
        self.run(self.router.batch_done, 1)

    def dialled(self, wire: Wire, node_id: str, token: int) -> None:
        """Another hub is reached."""
        self.endpoint.wires[wire.id] = wire
        self.run(self.router.opened, wire.id, node_id, False, token)
        self.run(self.router.batch_done, 1)

    def not_reached(self, token: int) -> None:
        self.run(self.router.dial_failed, token, "unreachable", None, "simulated")
        self.run(self.router.batch_done, 1)

    def arrived(self, wire: Wire, frames: list[bytes]) -> None:
        if wire.id in self.endpoint.wires:
            self.repairs += sum(frame.startswith(REPAIR) for frame in frames)
            self.run(self.router.frames, wire.id, frames)
            for frame in frames:
                if frame.startswith(SUBSCRIBE):
                    self._heard(wire.spoke.name, orjson.loads(frame)["detail"]["tag"])
            self.run(self.router.batch_done, 1)

    def has_room(self, wire: Wire) -> None:
        self.run(self.router.drained, wire.id)
        self.run(self.router.batch_done, 1)

    def ended(self, wire: Wire, code: int | None) -> None:
        if self.endpoint.wires.pop(wire.id, None) is None:
            return
        self.run(self.router.closed, wire.id, code, "simulated", code is not None)
        if self.router.calls.in_flight(wire.id) or self.router.calls.asked(wire.id):
            raise Failure(f"{self.name} keeps calls of a connection that has ended")
        self.run(self.router.batch_done, 1)

    # -- the script

    def ban(self, node_id: str) -> None:
        self.run(self.admission.ban, node_id)
        self.run(self.router.settle)

    def admits(self, place: Ticket) -> dict[str, Any]:
        """Another hub comes into the realm by way of this one. What it is told."""
        self.run(self.router.links._learn, place)
        self.run(self.router.settle)
        return self.realm.told(self.place, secret=True)

    # -- the judge

    @property
    def busy(self) -> str | None:
        router = self.router
        if len(router.calls):
            return f"{self.name}: {len(router.calls)} calls"
        here = {session.node_id for session in router.links.sessions()}
        if away := [one[-4:] for one in self.realm.others if one not in here]:
            return f"{self.name}: is without the hubs {away}"
        if over := [conn for conn, wire in self.endpoint.wires.items() if wire.over]:
            return f"{self.name}: has not heard that {over} ended"
        for topic, channel in router.topics.channels.items():
            if channel.ring.readers or channel.pending or channel.unacked:
                return f"{self.name}: {topic} has {channel.ring.readers} readers, {channel.unacked} unacknowledged"
            if channel.swarm is not None and channel.swarm.sequences.next_due() is not None:
                return f"{self.name}: {topic} has holes"
        return None

    def counted(self, taken: int) -> None:
        """What its metrics claim is what was seen to come in and to go out."""
        topics, totals = list(self.router.metrics._topics._counters.values()), self.router.swarms.totals
        published, delivered, lost = (
            sum(getattr(one, what) for one in topics) for what in ("published", "delivered", "lost")
        )
        if published != taken:
            raise Failure(f"{self.name} counts {published} published, and took {taken}")
        if delivered != self.endpoint.handed:
            raise Failure(f"{self.name} counts {delivered} delivered, and handed over {self.endpoint.handed}")
        if lost < self.endpoint.handed_lost:
            raise Failure(f"{self.name} counts {lost} lost, and named {self.endpoint.handed_lost}")
        if not totals.repairs_served <= self.repairs:
            raise Failure(f"{self.name} counts {totals.repairs_served} repairs, and was asked {self.repairs} times")

    def check(self) -> None:
        for channel in self.router.topics.channels.values():
            cast(RecordedRing, channel.ring).check()


class RecordedCalls(CallTable):
    """The router's table, whose ends are counted."""

    def __init__(self, table: CallTable, asks: Asks) -> None:
        self.__dict__.update(table.__dict__)
        self._asks = asks

    def _counted(self, effects: list[Effect]) -> list[Effect]:
        self._asks.hub_ended += sum(isinstance(effect, Ended) for effect in effects)
        return effects

    def requested(self, *args: Any, **more: Any) -> list[Effect]:
        self._asks.hub_began += 1
        return self._counted(super().requested(*args, **more))

    def responded(self, *args: Any) -> list[Effect]:
        return self._counted(super().responded(*args))

    def completed(self, *args: Any) -> list[Effect]:
        return self._counted(super().completed(*args))

    def aborted(self, *args: Any) -> list[Effect]:
        return self._counted(super().aborted(*args))

    def error(self, *args: Any) -> list[Effect]:
        return self._counted(super().error(*args))

    def credit(self, *args: Any) -> list[Effect]:
        return self._counted(super().credit(*args))

    def gone(self, *args: Any) -> list[Effect]:
        return self._counted(super().gone(*args))

    def tick(self, *args: Any) -> list[Effect]:
        return self._counted(super().tick(*args))

    def undeliverable(self, *args: Any, **more: Any) -> list[Effect]:
        return self._counted(super().undeliverable(*args, **more))


def _restored(realm: Realm) -> Realm:
    """The same realm from its data directory."""
    again = copy(realm)
    again._kept, again.others, again._restored = dict(realm._kept), dict(realm.others), realm._base
    return again
