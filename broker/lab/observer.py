"""The testbed's observer: a subscriber that reads everything and says, as metrics, what became of it.

Not here: how it knows (protocol/sequence.py), and its command line (cli/lab.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from broker.protocol.verdict import Verdict

__all__ = ["WORDS", "VerdictCollector"]

WORDS = ("complete", "repaired", "lost", "pending", "unknown")
"""The first word of a verdict."""
COUNTS = {
    "received": "Events received, each counted once.",
    "duplicates": "Events that came again, and were dropped.",
    "repaired": "Events that were missing first and came then.",
    "lost": "Events that nobody has any more.",
}


class VerdictCollector(Collector):
    """Reads the verdicts of a subscription at each scrape."""

    def __init__(self, verdicts: Callable[[], list[Verdict]]) -> None:
        self._verdicts = verdicts

    def collect(self) -> Iterable[Metric]:
        verdicts = self._verdicts()
        words = Counter(verdict.word.partition("(")[0] for verdict in verdicts)
        gauge = GaugeMetricFamily(
            "broker_observer_sequences", "Sequences (author, epoch, topic) by their verdict.", labels=["verdict"]
        )
        for word in WORDS:
            gauge.add_metric([word], words[word])
        yield gauge
        for name, text in COUNTS.items():
            yield CounterMetricFamily(f"broker_observer_events_{name}", text, value=_sum(verdicts, name))


def _sum(verdicts: list[Verdict], name: str) -> int:
    if name == "lost":
        return sum(last - first + 1 for verdict in verdicts for first, last in verdict.lost)
    return sum(getattr(verdict, name) for verdict in verdicts)
