"""What a spoke's ``/metrics`` tells of direct connections with other spokes. Not here: the counting (spoke/directs.py,
spoke/calls.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from broker import Spoke

__all__ = ["DirectCollector"]

COUNTS = {
    "answered": "Calls that came over direct connections.",
    "denied": "Of those that came, the ones that no grant covers.",
    "again": "Calls asked once more by way of the hub, since their direct connection ended.",
    "resumed": "The same, at the spoke that was asked.",
    "forgotten": "Calls and streams stopped, since their direct connection had ended and nobody asked for them again.",
    "cut": "Direct connections and grants that the hub has taken back.",
}


class DirectCollector(Collector):
    """Read when somebody scrapes."""

    def __init__(self, spoke: Spoke) -> None:
        self._spoke = spoke

    def collect(self) -> Iterator[Metric]:
        counts = self._spoke.direct_counts()
        text = "Other spokes that can be called directly now."
        yield GaugeMetricFamily("broker_spoke_direct_connections", text, value=counts["connections"])
        asked = CounterMetricFamily("broker_spoke_calls_asked", "Calls made, by their path.", labels=("path",))
        for path, key in (("direct", "asked"), ("hub", "by_hub")):
            asked.add_metric((path,), counts[key])
        yield asked
        for key, text in COUNTS.items():
            yield CounterMetricFamily(f"broker_spoke_direct_{key}", text, value=counts.get(key, 0))
        refused = CounterMetricFamily(
            "broker_spoke_grants_refused", "Grants not taken here, and why.", labels=("reason",)
        )
        for key, count in counts.items():
            if key.startswith("refused_"):
                refused.add_metric((key.removeprefix("refused_"),), count)
        yield refused
