"""What the extension and the kernel count anyway: QUIC, sockets, gossip's messages, tokio. Read when somebody scrapes,
of a hub and of a spoke under the same names. Not here: what this package counts itself (metrics.py,
swarm_metrics.py)."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from broker import _gossip_ext as ext

__all__ = ["RTT_BUCKETS", "ExtensionCollector", "extension_families", "socket_counts"]

RTT_BUCKETS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
"""Seconds: one machine to a satellite behind a far relay."""
RTT_EDGES: Final = (*map(str, RTT_BUCKETS), "+Inf")
PROC_NET: Final = Path("/proc/net")
DIRECTIONS: Final = ("in", "out")

COUNTERS: Final = {
    "full_queues": ("lane_full", "Times a connection's queue had no room for what was to be sent."),
    "silent_connections": ("stream_timeouts", "Connections closed because they did not say anything in time."),
    "quic_connections_opened": ("connections_opened", "QUIC connections that were made, of every protocol."),
    "quic_connections_closed": ("connections_closed", "QUIC connections that have ended."),
    "udp_datagrams_received": ("udp_datagrams_in", "UDP datagrams received."),
    "udp_batches_received": ("udp_batches_in", "Times that several datagrams came with one system call."),
    "holepunch_attempts": ("holepunch_attempts", "Times that a way through NAT was tried for a connection."),
    "relay_connects": ("relay_connects", "Connections to relays that were made."),
    "relay_connects_failed": ("relay_connects_failed", "Attempts to reach a relay that came to nothing."),
    "relay_disconnects": ("relay_disconnects", "Connections to relays that have ended."),
    "relay_cut_connections": (
        "relay_cut",
        "Connections ended because their relay, or the endpoint that it led to, was gone and there was another.",
    ),
    "gossip_dials_failed": ("gossip_dials_failed", "Dials to peers for gossip that came to nothing."),
}
"""Name of the metric: name of the counter, text."""
BY_DIRECTION: Final = {
    "direct_bytes": ("direct_bytes", "Bytes over direct paths."),
    "relay_bytes": ("relay_bytes", "Bytes over relay paths."),
    "frames": ("frames", "Messages on streams, of calls and topics alike."),
    "stream_bytes": ("bytes", "Their bytes, with their headers."),
    "datagrams": ("datagrams", "Unreliable events."),
}
DATAGRAMS_DROPPED: Final = {
    ("in", "no_room"): "datagrams_dropped",
    ("out", "no_room"): "datagrams_full",
    ("out", "too_large"): "datagrams_too_large",
    ("out", "unsupported"): "datagrams_unsupported",
}
"""(direction, reason): name of the counter. ``out``: one for each receiver that was left out."""
QUIC: Final = {
    "quic_packets_sent": ("packets_out", "QUIC packets sent, those left out that only acknowledge."),
    "quic_packets_lost": ("packets_lost", "QUIC packets that were declared lost."),
    "quic_lost_bytes": ("bytes_lost", "Bytes in lost packets: what QUIC sends again."),
    "quic_congestion_events": ("congestion_events", "Times that QUIC slowed down because of loss."),
}
QUIC_BY_DIRECTION: Final = {
    "quic_datagrams": ("datagrams", "UDP datagrams of QUIC connections."),
    "quic_bytes": ("bytes", "Bytes in them."),
}
RUNTIME: Final = {
    "workers": "Threads that run the network's tasks.",
    "alive_tasks": "The network's tasks.",
    "queue_depth": "Tasks of the network that were woken from outside and wait for their turn.",
}
RUNTIME_TOTALS: Final = {
    "busy_seconds": "Time in which the network's tasks ran.",
    "parks": "Times that the network had nothing to do.",
}


def extension_families(
    counters: Mapping[str, int], overview: ext.Overview | None, datagrams_refused: Mapping[str, int] | None = None
) -> Iterator[Metric]:
    """``counters``: of ``Endpoint.counters``. Without an overview, those alone. ``datagrams_refused``: by reason, what
    came to Python and went no further."""
    for name, (counter, text) in COUNTERS.items():
        yield CounterMetricFamily(f"broker_{name}", text, value=counters.get(counter, 0))
    for name, (counter, text) in BY_DIRECTION.items():
        yield _labelled(name, text, "direction", {way: counters.get(f"{counter}_{way}", 0) for way in DIRECTIONS})
    changes = {to: counters.get(f"paths_to_{to}", 0) for to in ("direct", "relay")}
    yield _labelled(
        "path_changes", "Connections that went over to another kind of path after their first message.", "to", changes
    )
    yield _datagrams_dropped(counters, datagrams_refused or {})
    yield from _gossip(counters)
    if overview is not None:
        yield from _quic(overview)
        yield from _sockets(overview.sockets)
        yield from _runtime()


def _labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"broker_{name}", text, labels=(label,))
    for value, count in values.items():
        family.add_metric((value,), count)
    return family


def _datagrams_dropped(counters: Mapping[str, int], refused: Mapping[str, int]) -> Metric:
    text = "Datagrams that came and were not passed on, and receivers that did not get one."
    family = CounterMetricFamily("broker_datagrams_dropped", text, labels=("direction", "reason"))
    for (way, reason), counter in DATAGRAMS_DROPPED.items():
        family.add_metric((way, reason), counters.get(counter, 0))
    for reason, count in refused.items():
        family.add_metric(("in", reason), count)
    return family


def _gossip(counters: Mapping[str, int]) -> Iterator[Metric]:
    labels = ("kind", "direction")
    messages = CounterMetricFamily("broker_gossip_messages", "Messages of iroh-gossip, over all swarms.", labels=labels)
    sizes = CounterMetricFamily("broker_gossip_message_bytes", "Their bytes.", labels=labels)
    for kind in ("control", "data"):
        for way in DIRECTIONS:
            messages.add_metric((kind, way), counters.get(f"gossip_{kind}_{way}", 0))
            sizes.add_metric((kind, way), counters.get(f"gossip_{kind}_bytes_{way}", 0))
    yield from (messages, sizes)
    changes = {way: counters.get(f"gossip_neighbours_{way}", 0) for way in ("up", "down")}
    yield _labelled("gossip_neighbour_changes", "Neighbours that came and went, over all swarms.", "change", changes)
    cut = {why: counters.get(f"gossip_{why}", 0) for why in ("cut", "stalled", "unused")}
    yield _labelled("gossip_connections_ended", "Gossip connections that this side has ended.", "reason", cut)


def _quic(overview: ext.Overview) -> Iterator[Metric]:
    for name, (counter, text) in QUIC.items():
        yield _labelled(name, text, "alpn", {alpn: totals[counter] for alpn, totals in sorted(overview.quic.items())})
    for name, (counter, text) in QUIC_BY_DIRECTION.items():
        family = CounterMetricFamily(f"broker_{name}", text, labels=("alpn", "direction"))
        for alpn, totals in sorted(overview.quic.items()):
            for way in DIRECTIONS:
                family.add_metric((alpn, way), totals[f"{counter}_{way}"])
        yield family
    connections = GaugeMetricFamily("broker_quic_connections", "QUIC connections now.", labels=("alpn", "path"))
    trips = GaugeHistogramMetricFamily(
        "broker_quic_rtt_seconds", "Round trips of the connections that there are now.", labels=("alpn", "path")
    )
    for alpn, paths in sorted(overview.rtt.items()):
        for path, (counts, total) in sorted(paths.items()):
            connections.add_metric((alpn, path), sum(counts))
            trips.add_metric((alpn, path), list(zip(RTT_EDGES, map(float, accumulate(counts)), strict=True)), total)
    yield from (connections, trips)


def _runtime() -> Iterator[Metric]:
    stats = ext.runtime_stats()
    for name, text in RUNTIME.items():
        yield GaugeMetricFamily(f"broker_tokio_{name}", text, value=stats[name])
    for name, text in RUNTIME_TOTALS.items():
        yield CounterMetricFamily(f"broker_tokio_{name}", text, value=stats[name])


def _sockets(addresses: Iterable[str]) -> Iterator[Metric]:
    counts = socket_counts(addresses)
    if counts is not None:
        drops, waiting = counts
        text = "Datagrams that the kernel dropped because the UDP socket's buffer was full."
        yield CounterMetricFamily("broker_udp_receive_drops", text, value=drops)
        text = "Bytes in the UDP socket's receive buffer."
        yield GaugeMetricFamily("broker_udp_receive_queue_bytes", text, value=waiting)


def socket_counts(addresses: Iterable[str], folder: Path = PROC_NET) -> tuple[int, int] | None:
    """(datagrams dropped, bytes waiting) of the UDP sockets that are bound to these ``ip:port``, as Linux counts them;
    None where it does not say."""
    drops = waiting = 0
    wanted = [_kernel_address(address) for address in addresses]
    try:
        lines = [line for name in ("udp", "udp6") for line in (folder / name).read_text().splitlines()]
    except OSError:
        return None
    for line in lines:
        if any(address in line for address in wanted):
            fields = line.split()
            if fields[1] in wanted:
                drops += int(fields[-1])
                waiting += int(fields[4].partition(":")[2], 16)
    return drops, waiting


def _kernel_address(address: str) -> str:
    """As /proc/net writes it: in hex, each 32 bits in the machine's own order."""
    host, _, port = address.rpartition(":")
    packed = ipaddress.ip_address(host.strip("[]").partition("%")[0]).packed
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{int(port):04X}"


class ExtensionCollector(Collector):
    """For a spoke: its endpoint's, while it has one, and how much one wake-up of its loop brought."""

    def __init__(self, endpoint: Callable[[], ext.Endpoint | None]) -> None:
        self._endpoint = endpoint

    def collect(self) -> Iterator[Metric]:
        if (endpoint := self._endpoint()) is not None:
            counters = endpoint.counters()
            text = "Items that one wake-up of the loop brought from the extension."
            yield SummaryMetricFamily(
                "broker_border_batch_items",
                text,
                count_value=counters["wakeups"],
                sum_value=counters["drained_items"],
            )
            yield from extension_families(counters, endpoint.overview(RTT_BUCKETS))
