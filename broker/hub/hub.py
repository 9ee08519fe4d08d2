"""A hub's life: identity, endpoint, HTTP port, and an orderly end. What it does meanwhile is router.py, whom it dials
dialling.py.

async with Hub(HubConfig(open=True)) as hub:
    print(hub.ticket)
    await hub.serve_forever()
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from broker import _gossip_ext as ext
from broker.address_book import AddressBook
from broker.border import attach
from broker.config import HubConfig, split_address
from broker.errors import BindError, ConfigError, TicketError, Unreachable
from broker.hub.administration import administer
from broker.hub.admission import Admission
from broker.hub.dialling import Dialling
from broker.hub.extension_metrics import RTT_BUCKETS
from broker.hub.http import serve_http
from broker.hub.joining import join_realm
from broker.hub.metrics import HubGauges, HubMetrics, watch_loop_lag
from broker.hub.operations import HubOperations
from broker.hub.realm import Realm
from broker.hub.relay_watch import RelayWatch
from broker.hub.router import Router
from broker.hub.whereabouts import watch_places
from broker.keys import (
    HubState,
    admin_key_path,
    claim_data_dir,
    key_path,
    load,
    load_or_create,
    read_state,
    write_atomically,
    write_state,
)
from broker.protocol.ticket import MESSAGE_BYTES, Ticket
from broker.protocol.wire import CloseCode
from broker.relays import read_authorities
from broker.version import VERSION

__all__ = ["Hub"]

log = logging.getLogger("broker.hub")

RETURN_TIME = 10.0
"""Seconds in which the spokes of a killed hub notice (limits.idle_timeout) and come back to the restarted one."""
ADDRESS_FILE = "peers.json"
"""In the data directory: where those are that the hub dials."""
CLOSE_TIMEOUT = 6.0
"""For peers to hear that the hub goes, and the port to be free: QUIC drains 3 s where a peer died in a handshake."""
DRAIN_POLL = 0.02
"""Seconds between looks at what is still in flight while draining: queues belong to the extension, which has no event
for it."""


class Hub:
    """One hub. Use as an async context manager; it accepts spokes once entered."""

    def __init__(self, config: HubConfig | None = None) -> None:
        self.config = config or HubConfig()
        self.node_id = ""
        self.ticket = ""
        self.http_address: str | None = None
        self._stack = AsyncExitStack()
        self._router: Router | None = None
        self._draining = self._restarted = False
        self._relay_watch: RelayWatch | None = None
        self._done = asyncio.Event()
        self._dialling: Dialling | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self._stack.aclose()

    @property
    def router(self) -> Router:
        """The running hub's inside."""
        if self._router is None:
            raise RuntimeError("the hub has not started; use it as `async with Hub(config) as hub:`")
        return self._router

    @property
    def ready(self) -> bool:
        """Accepts spokes."""
        return self._router is not None and not self._draining and not self._done.is_set()

    async def serve_forever(self) -> None:
        """Returns after :meth:`close`."""
        await self._done.wait()

    def close(self) -> None:
        """Ends :meth:`serve_forever`. Leaving the block closes the connections."""
        self._done.set()

    def dial(self, whom: str | Ticket) -> str:
        """Keeps a connection to a spoke that listens: the ticket that it printed, or the NodeId of one that the address
        book knows. Returns its NodeId. It is dialled again whenever it goes away, and with a data directory after a
        restart too, until :meth:`undial`. TicketError, and Unreachable for a NodeId of which nothing is known."""
        dialling = self._dials
        place = dialling.place_of(whom)
        dialling.keep(place)
        dialling.book.keep(place.node_id, True)
        return place.node_id

    def undial(self, node_id: str) -> bool:
        """It is dialled no more, and its connection ends. False: it was not dialled."""
        return self._dials.end(node_id.strip().lower())

    @property
    def _dials(self) -> Dialling:
        if self._dialling is None or not self.ready:
            raise RuntimeError("the hub is not running; use it as `async with Hub(config) as hub:`")
        return self._dialling

    async def drain(self, timeout: float | None = None) -> dict[str, int]:
        """Stops accepting, lets calls and queues run empty, and returns what was left at the deadline:
        ``calls`` and ``queued_bytes``."""
        self._draining = True
        router = self.router
        router.admission.drain([session.node_id for session in router.sessions.values()])
        try:
            async with asyncio.timeout(self.config.drain_timeout if timeout is None else timeout):
                while any(self._left().values()):  # noqa: ASYNC110 - the queues' owner has no event for it
                    await asyncio.sleep(DRAIN_POLL)
        except TimeoutError:
            log.warning("not all was done in time: %s", self._left())
        return self._left()

    def _left(self) -> dict[str, int]:
        router = self.router
        return {"calls": len(router.calls), "queued_bytes": sum(size for _, size in router.endpoint.queued())}

    # Start.

    async def _start(self) -> None:
        config = self.config
        secret, bind = self._identity()
        endpoint = self._bind(secret, bind)
        self._stack.callback(endpoint.close, CLOSE_TIMEOUT)
        self.node_id = endpoint.node_id
        admission = Admission(config, endpoint, data=config.data, admins=self._admins())
        self._stack.callback(admission.stop)
        metrics = HubMetrics(
            VERSION,
            topic_labels=config.metrics.topic_labels,
            operation_labels=config.metrics.operation_labels,
            gauges=self._gauges,
        )
        router = self._router = Router(endpoint, config, metrics, admission, await self._realm(endpoint))
        links = router.links
        dialling = self._dialling = self._dialler(router)
        links.own, links.dial, links.on_change = lambda: self._ticket(None), dialling.keep, self._write_ticket
        operations = HubOperations(router)
        administer(operations, router, self._ticket, dialling)
        router.introductions.begin(operations, lambda message: ext.sign(secret, message))
        if self._restarted:
            router.topics.places.expect(RETURN_TIME)
        router.bind_loop(asyncio.get_running_loop())
        self._stack.callback(router.stop)
        self._stack.callback(attach(endpoint, router, router.swarms if config.gossip.enabled else None))
        lag = asyncio.create_task(watch_loop_lag(metrics.loop_lagged), name="broker-loop-lag")
        self._stack.push_async_callback(_cancelled, lag)
        if config.relays:
            watch = self._relay_watch = RelayWatch(endpoint, config.relays, self._addresses_changed)
            metrics.registry.register(watch)
            watching = asyncio.create_task(watch.run(), name="broker-relay-watch")
            self._stack.push_async_callback(_cancelled, watching)
        moving = asyncio.create_task(watch_places(lambda: (endpoint.addrs(), endpoint.relay_urls()), self._moved))
        self._stack.push_async_callback(_cancelled, moving)
        if config.http:
            told = self._relay_watch.told if self._relay_watch is not None else dict
            self.http_address = await self._stack.enter_async_context(
                serve_http(
                    config.http, registry=metrics.registry, not_ready=self._not_ready, status=self._status, told=told
                )
            )
        self._announce(endpoint)
        router.links.start()
        self._dial_listed(dialling)

    def _dialler(self, router: Router) -> Dialling:
        config = self.config
        book = AddressBook(None if config.data is None else config.data / ADDRESS_FILE)
        dialling = Dialling(router, book, relays=tuple(config.relays), lookup=config.lookup is not None)
        self._stack.callback(dialling.stop)
        return dialling

    def _dial_listed(self, dialling: Dialling) -> None:
        """The spokes of the config, and those that were told to :meth:`dial`."""
        try:
            for place in (*map(dialling.place_of, self.config.dial), *dialling.book.kept()):
                dialling.keep(place)
        except (TicketError, Unreachable) as error:
            raise ConfigError(str(error), key="dial") from None

    async def _realm(self, endpoint: ext.Endpoint) -> Realm:
        """This hub's own, or the one that it joins: then it waits for a hub of that realm, the first time."""
        config = self.config
        if config.join is None:
            return Realm.of(config.data, self.node_id)
        try:
            ticket = Ticket.decode(config.join)
        except TicketError as error:
            raise ConfigError(str(error), key="join") from None
        if Realm.known(config.data):
            realm = Realm.of(config.data, self.node_id)
            if realm.others and ticket.node_id not in realm.hubs:
                raise ConfigError(
                    f"{config.data} belongs to another realm than the hub {ticket.node_id[:10]} of the ticket: its "
                    f"hubs are {', '.join(one[:10] for one in realm.others)}\n"
                    "give this hub an empty directory to join, or that hub its former one, or leave --join out",
                    key="join",
                )
            return realm
        own = Ticket(node_id=self.node_id, addrs=tuple(endpoint.addrs()), relays=tuple(config.relays))
        detail = await join_realm(endpoint, ticket, own)
        return Realm.given(config.data, self.node_id, detail)

    def _identity(self) -> tuple[bytes, str]:
        """The secret key, and the address to bind: with a data directory both outlast the process."""
        config = self.config
        if config.data is None:
            return (load(config.key) if config.key else secrets.token_bytes(32)), config.bind
        self._stack.enter_context(claim_data_dir(config.data))
        secret = load_or_create(config.key or key_path(config.data))
        host, port = split_address(config.bind)
        last = read_state(config.data)
        node_id = ext.node_id(secret)
        if last.node_id not in (None, node_id):
            raise ConfigError(
                f"{config.data} belongs to the hub {str(last.node_id)[:10]}, and this one is {node_id[:10]}: tickets, "
                "bans and realm there are the other's\n"
                "give this hub a directory of its own, or it that one's identity with --key",
                key="data",
            )
        self._restarted = last.port is not None
        return secret, _address(host, port or last.port or 0)

    def _admins(self) -> list[str]:
        """With a data directory, whoever can read it administers the hub: the identity is made on the first start."""
        data = self.config.data
        return [] if data is None else [ext.node_id(load_or_create(admin_key_path(data)))]

    def _bind(self, secret: bytes, bind: str) -> ext.Endpoint:
        limits = self.config.limits
        return ext.Endpoint.bind(
            secret,
            bind=bind,
            relay_urls=list(self.config.relays),
            relay_ca=read_authorities(self.config.relay_ca),
            lookup=self.config.lookup or "",
            accept=True,
            max_frame_bytes=limits.max_frame_bytes,
            calls_queue_bytes=limits.calls_queue_bytes,
            topics_queue_bytes=limits.topics_queue_bytes,
            inbox_bytes=limits.inbox_bytes,
            open_timeout=limits.open_timeout,
            frame_timeout=limits.frame_timeout,
            idle_timeout=limits.idle_timeout,
            gossip_message_bytes=self.config.gossip.message_bytes if self.config.gossip.enabled else 0,
        )

    def _announce(self, endpoint: ext.Endpoint) -> None:
        config = self.config
        addrs = endpoint.addrs()
        if config.data is not None and addrs:
            write_state(config.data, HubState(port=split_address(addrs[0])[1], node_id=self.node_id))
        try:
            self._write_ticket()
        except OSError as error:
            raise ConfigError(
                f"the ticket cannot be written to {config.ticket_file}: {error.strerror}\n"
                "make its directory writable for this user, or give another file",
                key="ticket_file",
            ) from None

    def _moved(self) -> None:
        """At other addresses than before: spokes are told, and so is whoever reads the ticket."""
        self.router.registrations.moved()
        self.router.links.changed()
        self.router.settle()
        self._write_ticket()

    def _write_ticket(self) -> None:
        self.ticket = self._ticket(None).encode()
        if self.config.ticket_file is not None:
            write_atomically(self.config.ticket_file, self.ticket.encode() + b"\n")

    def _addresses_changed(self) -> None:
        try:
            self._moved()
        except OSError as error:
            log.error("the ticket with the new addresses cannot be written: %s", error)

    def _ticket(self, secret: str | None) -> Ticket:
        """Where this hub is and where the realm's others are, with the secret of an invite."""
        endpoint = self.router.endpoint
        return Ticket(
            node_id=endpoint.node_id,
            addrs=tuple(endpoint.addrs()),
            relays=tuple(self.config.relays),
            secret=secret,
            others=tuple(self.router.swarms.realm.others.values()),
            message_bytes=None if (size := self.config.gossip.message_bytes) == MESSAGE_BYTES else size,
        )

    # What is shown.

    def _not_ready(self) -> str | None:
        if self._draining:
            return "draining"
        if not self.ready:
            return "starting or stopping"
        return self._relay_watch.not_ready() if self._relay_watch is not None else None

    def _status(self) -> str:
        return f"broker {VERSION}\nhub {self.node_id}\nspokes {len(self.router.sessions)}\n"

    def _gauges(self) -> HubGauges:
        router = self.router
        topics = router.topics
        overview = router.endpoint.overview(RTT_BUCKETS)
        spokes = {conn for conn, session in router.sessions.items() if not session.hub}
        return HubGauges(
            spokes=Counter(("iroh", path) for conn, path in overview.paths if conn in spokes),
            calls_in_flight=len(router.calls),
            queue_depth=overview.queued_frames,
            queue_bytes=overview.queued_bytes,
            slow_consumers=topics.readers.lagging,
            topics=len(topics.channels),
            patterns=len(topics.subscriptions),
            ring_events=sum(len(channel.ring) for channel in topics.channels.values()),
            ring_bytes=topics.ring_bytes,
            stray_answers=router.calls.stray,
            endpoint=router.endpoint.counters(),
            overview=overview,
            datagrams_refused=router.datagrams.refused,
        )


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_ = (BindError, CloseCode)
