"""What is counted of topics over gossip, over all swarms of a hub and those that are over. No label is of a spoke's
choosing. Not here: the events of each topic, which are counted like all others (metrics.py, carrier ``gossip``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from broker.hub.swarm import TopicSwarm

__all__ = ["BAD", "SwarmTotals"]

BAD: Final = ("malformed", "wrong_topic", "bad_signature", "not_allowed", "bad_chain", "stale", "over_rate")
"""Why a batch was not taken, in the extension's words."""
NOW: Final = ("neighbours", "queued_events", "kept_bytes")
"""Counters of a swarm that are not totals."""


class SwarmTotals:
    """The counts of one hub. ``add`` takes in those of a swarm that is left."""

    def __init__(self) -> None:
        self.repairs_asked = self.repairs_served = self.repairs_merged = self.left_out = self.contradicted = 0
        self.left_behind = 0
        """Times a member held an author up until its patience was spent."""
        self.mismatched = 0
        """Events by stream that are not the ones that batches had named."""
        self.switches = {"gossip": 0, "stream": 0}
        self.joins = {"hub": 0, "member": 0}
        """By this hub; by members, which from then on get nothing by stream."""
        self._left: dict[str, int] = {}

    def add(self, counters: Mapping[str, int]) -> None:
        for name, count in counters.items():
            if name not in NOW:
                self._left[name] = self._left.get(name, 0) + count

    def _sums(self, swarms: Iterable[TopicSwarm]) -> dict[str, int]:
        sums = dict(self._left)
        for swarm in swarms:
            for handle in swarm.handles.values():
                for name, count in handle.counters().items():
                    sums[name] = sums.get(name, 0) + count
        return sums

    def families(self, swarms: Iterable[TopicSwarm]) -> Iterator[Metric]:
        """What Prometheus sees."""
        swarms = list(swarms)
        sums = self._sums(swarms)
        yield GaugeMetricFamily("broker_swarms", "Topics that travel by gossip.", value=len(swarms))
        yield GaugeMetricFamily(
            "broker_swarm_members",
            "Connections in swarms, counted once a topic.",
            value=sum(len(swarm.overlay) for swarm in swarms),
        )
        yield GaugeMetricFamily(
            "broker_swarm_neighbours", "The hub's neighbours in all swarms.", value=sums.get("neighbours", 0)
        )
        yield _directions("broker_swarm_batches", "Signed batches, heads left out.", sums, "batches")
        yield _directions("broker_swarm_events", "Events in signed batches.", sums, "events")
        yield _directions("broker_swarm_bytes", "Bytes of signed batches and heads.", sums, "bytes")
        bad = CounterMetricFamily("broker_swarm_bad_batches", "Batches that were not taken.", labels=("reason",))
        for reason in BAD:
            bad.add_metric((reason,), sums.get(reason, 0))
        bad.add_metric(("contradicts",), self.contradicted)
        yield bad
        yield CounterMetricFamily(
            "broker_swarm_mismatched",
            "Events that are not the ones that their batches had named by hash, and were not taken.",
            value=self.mismatched,
        )
        yield CounterMetricFamily("broker_swarm_lagged", "Times gossip overran the hub.", value=sums.get("lagged", 0))
        yield CounterMetricFamily(
            "broker_swarm_left_out",
            "Events that found no room in gossip and are left to repair.",
            value=self.left_out + sum(swarm.left_out for swarm in swarms),
        )
        yield CounterMetricFamily(
            "broker_swarm_left_behind",
            "Times a member held an author up for all of its patience, and was waited for no longer.",
            value=self.left_behind + sum(swarm.pacing.left_behind for swarm in swarms),
        )
        repairs = CounterMetricFamily(
            "broker_swarm_repairs",
            "Ranges that the hub asked for, or was asked for; merged: look-ups that an earlier one of these spared.",
            labels=("direction",),
        )
        repairs.add_metric(("asked",), self.repairs_asked)
        repairs.add_metric(("served",), self.repairs_served)
        repairs.add_metric(("merged",), self.repairs_merged)
        yield repairs
        joins = CounterMetricFamily("broker_swarm_joins", "Swarms joined, once a topic and generation.", labels=("by",))
        for who, count in self.joins.items():
            joins.add_metric((who,), count)
        yield joins
        switches = CounterMetricFamily("broker_carrier_switches", "Topics that changed their carrier.", labels=("to",))
        for carrier, count in self.switches.items():
            switches.add_metric((carrier,), count)
        yield switches
        yield _verdicts(swarms)


def _directions(name: str, text: str, sums: Mapping[str, int], what: str) -> Metric:
    family = CounterMetricFamily(name, text, labels=("direction",))
    for direction in ("in", "out"):
        family.add_metric((direction,), sums.get(f"{what}_{direction}", 0))
    return family


def _verdicts(swarms: Iterable[TopicSwarm]) -> Metric:
    """How whole the hub's own view of the sequences in swarms is."""
    words = dict.fromkeys(("complete", "repaired", "lost", "missing", "unknown"), 0)
    for swarm in swarms:
        for verdict in swarm.sequences.verdicts():
            words["missing" if verdict.missing else verdict.word.partition("(")[0]] += 1
    family = GaugeMetricFamily(
        "broker_swarm_sequences", "Authors' sequences in swarms, by the hub's verdict.", labels=("verdict",)
    )
    for word, count in words.items():
        family.add_metric((word,), count)
    return family
