"""What a spoke's ``/metrics`` tells of topics over gossip, under the names that a hub uses. Not here: the counting
(spoke/swarms.py, spoke/repairs.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from broker.hub.swarm_metrics import BAD

if TYPE_CHECKING:
    from broker import Spoke

__all__ = ["SwarmCollector"]

VERDICTS = ("complete", "repaired", "lost", "pending", "unknown")
BAD_HERE = ("unreadable", "uninvited", "bad_batches")
"""Of those that a spoke finds out itself."""


class SwarmCollector(Collector):
    """Read when somebody scrapes."""

    def __init__(self, spoke: Spoke) -> None:
        self._spoke = spoke

    def collect(self) -> Iterator[Metric]:
        counts = self._spoke.gossip_counts()
        yield GaugeMetricFamily("broker_swarms", "Topics' swarms that it is in.", value=counts.get("swarms", 0))
        yield GaugeMetricFamily(
            "broker_swarm_neighbours", "Neighbours in all swarms.", value=counts.get("neighbours", 0)
        )
        for what, text in (("batches", "Signed batches"), ("events", "Events in them"), ("bytes", "Their bytes")):
            yield _labelled(
                f"broker_swarm_{what}",
                f"{text}, in and out.",
                "direction",
                {way: counts.get(f"{what}_{way}", 0) for way in ("in", "out")},
            )
        bad = {reason: counts.get(reason, 0) for reason in (*BAD, *BAD_HERE)}
        yield _labelled("broker_swarm_bad_batches", "Batches that were not taken.", "reason", bad)
        yield CounterMetricFamily(
            "broker_swarm_lagged", "Times gossip overran this spoke.", value=counts.get("lagged", 0)
        )
        repairs = {"asked": counts.get("repairs_wanted", 0), "served": counts.get("repairs_asked", 0)}
        yield _labelled("broker_swarm_repairs", "Ranges that it asked for, or was asked for.", "direction", repairs)
        words = self._spoke.verdict_counts()
        verdicts = GaugeMetricFamily(
            "broker_subscription_sequences", "Authors' sequences in subscriptions, by verdict.", labels=("verdict",)
        )
        for word in VERDICTS:
            verdicts.add_metric((word,), words.get(word, 0))
        yield verdicts


def _labelled(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for value, count in values.items():
        family.add_metric((value,), count)
    return family
