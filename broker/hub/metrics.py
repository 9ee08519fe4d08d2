"""What a hub, and a spoke, count. On the hot path these are plain integers; a collector makes Prometheus families of
them when somebody scrapes, and reads then what the owner knows anyway (:class:`HubGauges`).

Label values that a peer can choose are capped per hub, the rest is counted under ``other``. A NodeId or a spoke's name
is never a label. Not here: the text that is made of it (exposition.py), what the extension counts
(extension_metrics.py), the HTTP port (http.py).
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from broker.hub.exposition import CounterTable, Histogram, HistogramTable, TracedHistogram
from broker.hub.extension_metrics import extension_families
from broker.protocol.wire import CloseCode

if TYPE_CHECKING:
    from broker import _gossip_ext as ext

__all__ = ["HubGauges", "HubMetrics", "SpokeGauges", "SpokeMetrics", "TopicCounters", "close_word", "watch_loop_lag"]

OTHER: Final = "other"
MAX_REASONS: Final = 64
"""Distinct reasons of a disconnect or refusal, a label; ours are fewer."""
CALL_BUCKETS: Final = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Seconds. A handler that does not wait takes 5 us, a call on one machine 0.3 ms; the default timeout is 30 s."""
LAG_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
LAG_INTERVAL: Final = 0.5
BATCH_BITS: Final = 14
"""Batches are counted by powers of two, up to 8,192 and above."""
CALL_CODES: Final = frozenset(
    (
        *("OK", "OPERATION_NOT_FOUND", "ACCESS_DENIED", "VALIDATION_ERROR"),
        *("TIMEOUT", "ABORTED", "EXECUTION_ERROR", "UNKNOWN_ERROR"),
    )
)
"""A spoke may answer with any code; what is not in here is counted as the last one."""
EVENT_COUNTS: Final = {
    "published": "Events that authors have published.",
    "delivered": "Events handed to subscribers, once each.",
    "dropped": "Deliveries given up because a subscriber was too slow.",
    "repaired": "Deliveries made from the ring after a hole, a reconnect or a lag.",
    "lost": "Deliveries that can no longer be made: the range left the ring.",
    "duplicates": "Events that came again and were not passed on.",
}


class TopicCounters:
    """The counts of one topic on one carrier. Whoever routes its events holds this object and adds to it."""

    __slots__ = ("delivered", "dropped", "duplicates", "lost", "published", "repaired")

    def __init__(self) -> None:
        self.published = self.delivered = self.dropped = self.repaired = self.lost = self.duplicates = 0


class _Operation:
    __slots__ = ("codes", "seconds")

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.seconds = TracedHistogram(CALL_BUCKETS)


class _Calls:
    """Ended calls by operation, capped."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._operations: dict[str, _Operation] = {}
        self._other = _Operation()

    def ended(self, operation: str, code: str, seconds: float, trace: str = "") -> None:
        """``trace``: the requestId, shown as an exemplar of how long calls take."""
        known = self._operations.get(operation)
        if known is None:
            known = self._label(operation, code)
        if code not in CALL_CODES:
            code = "UNKNOWN_ERROR"
        known.codes[code] = known.codes.get(code, 0) + 1
        known.seconds.add(seconds, trace)

    def _label(self, operation: str, code: str) -> _Operation:
        # Names that nobody offers would let any caller use the labels up.
        if code in ("OPERATION_NOT_FOUND", "ACCESS_DENIED") or len(self._operations) >= self._limit:
            return self._other
        if operation == OTHER:  # an operation of that name shares the series of the rest
            return self._other
        return self._operations.setdefault(operation, _Operation())

    def families(self, prefix: str) -> Iterator[Metric]:
        seen = [one for one in (*self._operations.items(), (OTHER, self._other)) if one[1].codes]
        yield CounterTable(
            f"{prefix}_calls",
            "Calls that have ended, by their code (OK or an error's).",
            ("operation", "code"),
            [((name, code), count) for name, operation in seen for code, count in operation.codes.items()],
        )
        yield HistogramTable(
            f"{prefix}_call_seconds",
            "Time from a call's arrival to its end.",
            "operation",
            [(name, operation.seconds) for name, operation in seen],
        )


class _Topics:
    """Counters by topic and carrier, capped by topic."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._names: set[str] = set()
        self._counters: dict[tuple[str, str], TopicCounters] = {}

    def of(self, name: str, carrier: str) -> TopicCounters:
        if name not in self._names:
            if len(self._names) >= self._limit:
                name = OTHER
            else:
                self._names.add(name)
        counters = self._counters.get((name, carrier))
        if counters is None:
            counters = self._counters[(name, carrier)] = TopicCounters()
        return counters

    def families(self, prefix: str) -> Iterator[Metric]:
        for attribute, text in EVENT_COUNTS.items():
            rows = [(labels, getattr(counters, attribute)) for labels, counters in self._counters.items()]
            yield CounterTable(f"{prefix}_events_{attribute}", text, ("topic", "carrier"), rows)


def close_word(code: int | None) -> str:
    """The label for how a connection ended: the close code's name in lower case."""
    if code is None:
        return "path_died"
    try:
        return CloseCode(code).name.lower()
    except ValueError:
        return OTHER


class _Reasons:
    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, reason: str | int | None) -> None:
        word = reason if isinstance(reason, str) else close_word(reason)
        if word not in self.counts and len(self.counts) >= MAX_REASONS:
            word = OTHER
        self.counts[word] = self.counts.get(word, 0) + 1

    def family(self, name: str, text: str, label: str = "reason", more: Mapping[str, int] | None = None) -> Metric:
        family = CounterMetricFamily(name, text, labels=(label,))
        for reason in self.counts.keys() | (more or {}).keys():
            family.add_metric((reason,), self.counts.get(reason, 0) + (more or {}).get(reason, 0))
        return family


@dataclass(frozen=True, slots=True, kw_only=True)
class HubGauges:
    """What a hub knows without counting, read when somebody scrapes."""

    spokes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Connected spokes by (transport, path), as in ``("iroh", "direct")``."""
    calls_in_flight: int = 0
    queue_depth: int = 0
    """Frames in the writers of all connections."""
    queue_bytes: int = 0
    slow_consumers: int = 0
    """Subscribers that are read from a ring now, because their connection was full."""
    topics: int = 0
    patterns: int = 0
    ring_events: int = 0
    ring_bytes: int = 0
    stray_answers: int = 0
    """Answers to a call that was over, unknown, or another's. Only grows."""
    endpoint: Mapping[str, int] = field(default_factory=dict)
    """``Endpoint.counters()``."""
    overview: ext.Overview | None = None
    datagrams_refused: Mapping[str, int] = field(default_factory=dict)
    """Datagrams that came and were not passed on, by reason. Only grows."""


_GAUGES: Final = {
    "calls_in_flight": "Calls that have not ended.",
    "queue_depth": "Frames waiting in the writers of all connections.",
    "queue_bytes": "Bytes waiting in the writers of all connections.",
    "slow_consumers": "Subscribers that lag and are read from a ring now.",
    "topics": "Topics that the hub knows.",
    "patterns": "Patterns that are subscribed to, counted once a spoke.",
    "ring_events": "Events in the rings of all topics.",
    "ring_bytes": "Bytes in the rings of all topics.",
}


class HubMetrics(Collector):
    """One hub's numbers and the registry that shows them."""

    def __init__(
        self,
        version: str = "",
        *,
        topic_labels: int = 200,
        operation_labels: int = 200,
        gauges: Callable[[], HubGauges] = HubGauges,
    ) -> None:
        self.gauges = gauges
        self.swarms: Callable[[], Iterable[Metric]] = lambda: ()
        """What there is to tell of topics over gossip (swarm_metrics.py)."""
        self.connects = 0
        self.grants_issued = self.grants_withdrawn = 0
        self._grants_refused = _Reasons()
        self._version = version
        self._disconnects, self._refused, self._protocol_errors = _Reasons(), _Reasons(), _Reasons()
        self._limited = _Reasons()
        self._calls, self._topics = _Calls(operation_labels), _Topics(topic_labels)
        self.call_ended = self._calls.ended
        self._lag = Histogram(LAG_BUCKETS)
        self._batches = [0] * (BATCH_BITS + 1)
        self._batch_items = 0
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def topic(self, name: str, carrier: str = "stream") -> TopicCounters:
        """The counters to keep at hand for a topic; a shared one when the label limit is reached."""
        return self._topics.of(name, carrier)

    def connected(self) -> None:
        """A spoke has registered for the first time on a connection."""
        self.connects += 1

    def disconnected(self, reason: str | int | None) -> None:
        """A connected spoke has gone: a word, or the close code (None: the path died)."""
        self._disconnects.add(reason)

    def refused(self, reason: str | int) -> None:
        """A connection that did not become a spoke. Those the extension refuses are counted there."""
        self._refused.add(reason)

    def protocol_error(self, code: str | int) -> None:
        """A peer broke the wire rules: a close code, or the code of a complaint."""
        self._protocol_errors.add(code)

    def limited(self, limit: str) -> None:
        """A bound was met: of a NodeId (limits.py), of a connection, or of the hub."""
        self._limited.add(limit)

    def grant_refused(self, reason: str) -> None:
        """An introduction that was asked for and did not come about."""
        self._grants_refused.add(reason)

    def batch(self, size: int) -> None:
        """The border handed over ``size`` items at once."""
        self._batches[min(max(size - 1, 0).bit_length(), BATCH_BITS)] += 1
        self._batch_items += size

    def loop_lagged(self, seconds: float) -> None:
        """The event loop came so much later than it was asked to."""
        self._lag.add(seconds)

    def collect(self) -> Iterable[Metric]:
        gauges = self.gauges()
        yield _build_info(self._version)
        yield from self._connections(gauges)
        yield from self._calls.families("broker")
        yield from self._topics.families("broker")
        yield from self.swarms()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"broker_{name}", text, value=getattr(gauges, name))
        yield CounterMetricFamily(
            "broker_stray_answers", "Answers that no live call was waiting for.", value=gauges.stray_answers
        )
        yield self._protocol_errors.family(
            "broker_protocol_errors", "Breaches of the wire rules by peers, by their code.", label="code"
        )
        yield CounterMetricFamily("broker_grants_issued", "Introductions of spokes.", value=self.grants_issued)
        yield CounterMetricFamily(
            "broker_grants_withdrawn", "Introductions that were taken back.", value=self.grants_withdrawn
        )
        yield self._grants_refused.family("broker_grants_refused", "Introductions that did not come about, and why.")
        yield self._limited.family("broker_limited", "Times a limit was met, by the limit's name.", label="limit")
        yield from extension_families(gauges.endpoint, gauges.overview, gauges.datagrams_refused)
        yield self._batch_family()
        yield _plain_histogram("broker_loop_lag_seconds", "How late the event loop is.", self._lag)

    def _connections(self, gauges: HubGauges) -> Iterator[Metric]:
        spokes = GaugeMetricFamily("broker_spokes_connected", "Spokes connected now.", labels=("transport", "path"))
        # Without anybody there would be no series, which looks like a hub that says nothing.
        for labels, count in {("iroh", "direct"): 0, ("iroh", "relay"): 0, **gauges.spokes}.items():
            spokes.add_metric(labels, count)
        yield spokes
        yield CounterMetricFamily("broker_connects", "Spokes that have connected.", value=self.connects)
        yield self._disconnects.family("broker_disconnects", "Spokes that have gone, and how.")
        early = {word: gauges.endpoint.get(f"refused_{word}", 0) for word in ("not_admitted", "banned")}
        yield self._refused.family("broker_refused", "Connections that were refused, and why.", more=early)

    def _batch_family(self) -> Metric:
        edges = [*(str(1 << bit) for bit in range(BATCH_BITS)), "+Inf"]
        buckets = list(zip(edges, map(float, accumulate(self._batches)), strict=True))
        text = "Items that one wake-up of the loop brought from the extension."
        return HistogramMetricFamily("broker_border_batch_items", text, buckets=buckets, sum_value=self._batch_items)


def _build_info(version: str) -> Metric:
    family = GaugeMetricFamily("broker_build_info", "Always 1; what is running.", labels=("version", "python"))
    family.add_metric((version, platform.python_version()), 1)
    return family


def _plain_histogram(name: str, text: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=histogram.buckets(), sum_value=histogram.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokeGauges:
    """What a spoke knows, read when somebody scrapes. All but the first two only grow."""

    connected: bool = False
    calls_running: int = 0
    connects: int = 0
    published: int = 0
    given_up: int = 0
    received: int = 0
    datagrams_sent: int = 0
    datagrams_unsent: int = 0
    datagrams_received: int = 0
    datagrams_bad: int = 0


class SpokeMetrics(Collector):
    """A spoke's own few numbers, for ``broker serve --http``."""

    def __init__(
        self, version: str = "", *, operation_labels: int = 200, gauges: Callable[[], SpokeGauges] = SpokeGauges
    ) -> None:
        self.gauges = gauges
        self._version = version
        self._calls = _Calls(operation_labels)
        self.call_ended = self._calls.ended
        self._lag = Histogram(LAG_BUCKETS)
        self.loop_lagged = self._lag.add
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def collect(self) -> Iterable[Metric]:
        gauges = self.gauges()
        yield _build_info(self._version)
        yield _plain_histogram("broker_loop_lag_seconds", "How late the event loop is.", self._lag)
        yield GaugeMetricFamily("broker_spoke_connected", "Whether the hub is connected.", value=int(gauges.connected))
        yield GaugeMetricFamily("broker_spoke_calls_running", "Calls being answered.", value=gauges.calls_running)
        yield CounterMetricFamily("broker_spoke_connects", "Connections to the hub so far.", value=gauges.connects)
        yield CounterMetricFamily("broker_spoke_events_published", "Events published.", value=gauges.published)
        gone = "Events published for another hub that are larger than this one takes."
        yield CounterMetricFamily("broker_spoke_events_given_up", gone, value=gauges.given_up)
        yield CounterMetricFamily("broker_spoke_events_received", "Events received.", value=gauges.received)
        unsent = "Datagrams that were not sent: there was no hub, or no room."
        yield CounterMetricFamily("broker_spoke_datagrams_unsent", unsent, value=gauges.datagrams_unsent)
        yield CounterMetricFamily(
            "broker_spoke_datagrams_bad", "Datagrams that were no event.", value=gauges.datagrams_bad
        )
        yield from self._calls.families("broker_spoke")


async def watch_loop_lag(record: Callable[[float], None]) -> None:
    """Measures for ever how late the running loop is."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL
        await asyncio.sleep(LAG_INTERVAL)
        record(max(0.0, loop.time() - due))
