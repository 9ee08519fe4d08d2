"""A relay of one's own: who may use it, its certificate, its numbers, its HTTP port.

The work is the extension's (``Relay`` in _gossip_ext.pyi). Files are looked at again and again, so that a list of
NodeIds or a renewed certificate counts without a restart. Not here: using a relay (relays.py), the command
(cli/relay.py).

async with RelayServer(RelayConfig(open=True)) as relay:
    print(relay.url)
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final, Literal, Self

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from pydantic import Field, ValidationInfo, field_validator

from broker import _gossip_ext as ext
from broker.config import Table, split_address
from broker.config_values import HttpAddress, NodeId, UdpAddress
from broker.errors import ConfigError
from broker.hub.http import serve_http
from broker.loop import run_network
from broker.version import VERSION

__all__ = ["RELAY_PREFIX", "RelayConfig", "RelayServer"]

log = logging.getLogger("broker.relay")

RELAY_PREFIX: Final = "BROKER_RELAY_"
LOOK_INTERVAL: Final = 1.0
"""Seconds between looks at files that may have changed."""
HTTPS_PORT: Final = 443
MOST_LIST_BYTES: Final = 64 * 1024 * 1024
"""A list of a million NodeIds."""


GAUGES: Final = {"clients": "NodeIds that are connected to the relay.", "connections": "Their connections."}
COUNTERS: Final = {
    "accepted": "Connections that were let in.",
    "refused": "Connections of NodeIds that are not admitted.",
    "cut": "NodeIds that were cut off because they are admitted no longer.",
    "packets_dropped": "Packets for NodeIds that were not there.",
}


class RelayConfig(Table):
    """Everything that a relay can be told."""

    bind: UdpAddress = "127.0.0.1:3340"
    """For https by TCP, and for QUIC address discovery by UDP."""
    tls_cert: Path | None = None
    """PEM chain. Read again when it changes."""
    tls_key: Annotated[Path | None, Field(validate_default=True)] = None
    """Its PEM key."""
    http: HttpAddress = "127.0.0.1:9465"
    """Metrics and health. ``""`` or ``"off"``: none."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:\[\]-]{1,253}$")] | None = None
    """The host in its URL; the address of ``bind`` if not given, this machine's name if that is every interface."""
    open: bool = False
    """Admits every NodeId."""
    allow: tuple[NodeId, ...] = ()
    allow_file: Path | None = None
    """NodeIds, one a line; what follows a ``#`` is not read. Read again when it changes."""
    drain_timeout: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] = 10.0
    """Seconds, at most, for its connections to be closed in order when it stops."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @field_validator("tls_key")
    @classmethod
    def _together(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if (value is None) != (info.data.get("tls_cert") is None):
            raise ValueError("tls_cert and tls_key go together")
        return value


class RelayServer:
    """One relay. It serves inside its ``async with`` block."""

    def __init__(self, config: RelayConfig | None = None) -> None:
        self.config = config or RelayConfig()
        self.http_address: str | None = None
        self.draining = False
        self._stack = AsyncExitStack()
        self._relay: ext.Relay | None = None

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
        await self._stack.aclose()

    @property
    def url(self) -> str:
        """Where hubs and spokes find it."""
        host, port = split_address(self.relay.address())
        if self.config.name is not None:
            host = self.config.name
        elif host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        secure = self.config.tls_cert is not None
        return f"{'https' if secure else 'http'}://{shown}" + ("" if secure and port == HTTPS_PORT else f":{port}")

    @property
    def relay(self) -> ext.Relay:
        if self._relay is None:
            raise RuntimeError("the relay has not started; use it as `async with RelayServer(config) as relay:`")
        return self._relay

    async def _start(self) -> None:
        config = self.config
        run_network(asyncio.get_running_loop())
        certificate = _Certificate(config)
        admitted = _Admitted(config)
        self._relay = _started(config, certificate, admitted)
        self._stack.callback(self._relay.close, config.drain_timeout)
        if config.tls_cert is None:
            log.warning(
                "NO TLS: this relay is for a lab. Whoever listens in sees who speaks to whom, and no endpoint behind "
                "NAT learns its address from it, so what begins through this relay stays with it"
            )
        registry = CollectorRegistry()
        registry.register(RelayCollector(self._relay))
        ProcessCollector(registry=registry)
        watching = asyncio.create_task(self._watch(certificate, admitted), name="broker-relay-files")
        self._stack.push_async_callback(_cancelled, watching)
        if config.http:
            self.http_address = await self._stack.enter_async_context(
                serve_http(config.http, registry=registry, not_ready=self._not_ready, status=self._status)
            )

    async def _watch(self, certificate: _Certificate, admitted: _Admitted) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            try:
                if admitted.changed():
                    cut = self.relay.admit(open=self.config.open, allow=admitted.read())
                    log.info("%s has changed: %d NodeIds are admitted, %d were cut off", *admitted.now(cut))
                if certificate.changed():
                    self.relay.certify(*certificate.read())
                    log.info("the certificate has changed")
            except (ConfigError, ValueError) as error:
                log.error("what was there before stays in force: %s", error)

    def _not_ready(self) -> str | None:
        return "draining" if self.draining else None

    def _status(self) -> str:
        counters = self.relay.counters()
        return f"broker relay {VERSION}\n{self.url}\nclients {counters['clients']}\n\n/metrics /healthz /readyz\n"


def _started(config: RelayConfig, certificate: _Certificate, admitted: _Admitted) -> ext.Relay:
    allow = admitted.read()
    if not config.open and not allow and config.allow_file is None:
        log.warning("nobody is admitted yet: --allow NODE_ID, --allow-file F or --open changes that")
    cert, key = certificate.read()
    try:
        return ext.Relay.start(bind=config.bind, tls_cert=cert, tls_key=key, open=config.open, allow=allow)
    except ValueError as error:
        name, colon, text = str(error).partition(": ")
        if name not in ("tls_cert", "tls_key") or not colon:
            raise
        raise ConfigError(f"{getattr(config, name)}: {text}", key=name) from None


class _Watched:
    """Files that may be replaced at any time."""

    def __init__(self, *paths: Path | None) -> None:
        self._paths = [path for path in paths if path is not None]
        self._seen = self._stamps()

    def changed(self) -> bool:
        """Whether they have, since this was last asked."""
        before, self._seen = self._seen, self._stamps()
        return before != self._seen

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class _Certificate(_Watched):
    def __init__(self, config: RelayConfig) -> None:
        super().__init__(config.tls_cert, config.tls_key)
        self._cert, self._key = config.tls_cert, config.tls_key

    def read(self) -> tuple[bytes, bytes] | tuple[None, None]:
        if self._cert is None or self._key is None:
            return None, None
        return _content(self._cert, "tls_cert"), _content(self._key, "tls_key")


class _Admitted(_Watched):
    def __init__(self, config: RelayConfig) -> None:
        super().__init__(config.allow_file)
        self._file, self._allow, self._count = config.allow_file, config.allow, 0

    def read(self) -> list[str]:
        """NodeIds. Raises ConfigError, which names the line that is none."""
        found = list(self._allow)
        if self._file is not None:
            lines = _content(self._file, "allow_file").decode("utf-8", "replace").splitlines()
            found += [node_id for node_id in map(self._line, range(1, len(lines) + 1), lines) if node_id]
        self._count = len(set(found))
        return found

    def _line(self, number: int, line: str) -> str:
        text = line.partition("#")[0].strip()
        if text and not re.fullmatch(r"[0-9a-fA-F]{64}", text):
            message = f"{text[:80]!r} is not a NodeId, which is 64 hex digits"
            raise ConfigError(message, key="allow_file", line=number, file=str(self._file))
        return text.lower()

    def now(self, cut: int) -> tuple[Path | None, int, int]:
        return self._file, self._count, cut


def _content(path: Path, key: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MOST_LIST_BYTES)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", key=key) from None


class RelayCollector(Collector):
    """A relay's numbers, read when somebody scrapes."""

    def __init__(self, relay: ext.Relay) -> None:
        self._relay = relay

    def collect(self) -> Iterator[Metric]:
        counters = self._relay.counters()
        yield InfoMetricFamily("broker_build", "What runs here.", value={"version": VERSION})
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"broker_relay_server_{name}", text, value=counters[name])
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"broker_relay_server_{name}", text, value=counters[name])
        for name in ("bytes", "packets"):
            family = CounterMetricFamily(
                f"broker_relay_server_{name}", f"{name} relayed.".title(), labels=("direction",)
            )
            for way in ("in", "out"):
                family.add_metric((way,), counters[f"{name}_{way}"])
            yield family


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
