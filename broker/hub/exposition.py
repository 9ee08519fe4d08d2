"""How numbers become the text that Prometheus reads: in either format, and fast.

Families with many lines (by topic, by operation) are tables, which write their lines straight from the counts: the
library needs many times as long, and a scrape holds the event loop up. Small families go through the library. Both are
seen by a registry alike. Not here: what is counted (metrics.py), the HTTP port (http.py).
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import Exemplar, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

__all__ = ["CounterTable", "Histogram", "HistogramTable", "TracedHistogram", "content_type", "encode"]

TRACE_LABEL: Final = "trace_id"
MAX_TRACE_ID: Final = 120
"""Characters. OpenMetrics gives an exemplar's label 128, its name included; a longer id has no exemplar."""
UNTOUCHED: Final = "allow-utf-8"
"""Lets the library take names as they are. Else it looks at each character of each name, which is most of its time."""


class Histogram:
    """Counts by upper bounds, the last of which is infinity."""

    __slots__ = ("bounds", "counts", "edges", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0
        self.edges = _edges(bounds)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, count up to it), as the library wants them."""
        return list(zip(self.edges, map(float, accumulate(self.counts)), strict=True))


class TracedHistogram(Histogram):
    """One that remembers for each bucket the last value and whose it was."""

    __slots__ = ("traces", "values")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        super().__init__(bounds)
        self.traces = [""] * len(self.counts)
        self.values = [0.0] * len(self.counts)

    def add(self, value: float, trace: str = "") -> None:
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.total += value
        self.traces[bucket], self.values[bucket] = trace, value

    def exemplars(self) -> list[Exemplar | None]:
        """One for each bucket. Without a time: then it is that of the scrape."""
        return [
            Exemplar({TRACE_LABEL: trace}, value) if 0 < len(trace) <= MAX_TRACE_ID else None
            for trace, value in zip(self.traces, self.values, strict=True)
        ]


@lru_cache
def _edges(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return (*map(str, bounds), "+Inf")


@lru_cache(maxsize=4_096)
def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """In the library's order."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(zip(names, values, strict=True)))


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class Table(Metric):
    """A family that writes itself. Whoever asks for its samples gets the library's."""

    def lines(self, openmetrics: bool) -> Iterator[str]:
        name = self.name if openmetrics or self.type != "counter" else f"{self.name}_total"
        yield f"# HELP {name} {self.documentation}\n# TYPE {name} {self.type}\n"
        yield from self._lines(openmetrics)

    @abstractmethod
    def _lines(self, openmetrics: bool) -> Iterator[str]: ...

    @abstractmethod
    def _samples(self) -> Iterator[Sample]: ...

    @property
    def samples(self) -> list[Sample]:
        return list(self._samples())

    @samples.setter
    def samples(self, _none: list[Sample]) -> None:
        """The library begins with an empty list."""


class CounterTable(Table):
    """Counters: ``rows`` are label values and the count."""

    def __init__(
        self, name: str, text: str, labels: tuple[str, ...], rows: Sequence[tuple[tuple[str, ...], int]]
    ) -> None:
        super().__init__(name, text, "counter")
        self._names, self._rows = labels, rows

    def _lines(self, openmetrics: bool) -> Iterator[str]:
        name, names = f"{self.name}_total", self._names
        for values, count in self._rows:
            yield f"{name}{{{_labels(names, values)}}} {count}.0\n"

    def _samples(self) -> Iterator[Sample]:
        for values, count in self._rows:
            yield Sample(f"{self.name}_total", dict(zip(self._names, values, strict=True)), count)


class HistogramTable(Table):
    """Histograms by one label, with exemplars in OpenMetrics."""

    def __init__(self, name: str, text: str, label: str, rows: Iterable[tuple[str, TracedHistogram]]) -> None:
        super().__init__(name, text, "histogram")
        self._label, self._rows = label, list(rows)

    def _lines(self, openmetrics: bool) -> Iterator[str]:
        name = self.name
        for value, histogram in self._rows:
            labels = _labels((self._label,), (value,))
            told = map(_exemplar, histogram.exemplars()) if openmetrics else [""] * len(histogram.counts)
            count = 0
            for edge, more, exemplar in zip(histogram.edges, histogram.counts, told, strict=True):
                count += more
                yield f'{name}_bucket{{le="{edge}",{labels}}} {count}.0{exemplar}\n'
            yield f"{name}_count{{{labels}}} {count}.0\n{name}_sum{{{labels}}} {histogram.total!r}\n"

    def _samples(self) -> Iterator[Sample]:
        for value, histogram in self._rows:
            labels = {self._label: value}
            for (edge, count), exemplar in zip(histogram.buckets(), histogram.exemplars(), strict=True):
                yield Sample(f"{self.name}_bucket", {**labels, "le": edge}, count, None, exemplar)
            yield Sample(f"{self.name}_count", labels, sum(histogram.counts))
            yield Sample(f"{self.name}_sum", labels, histogram.total)


def _exemplar(exemplar: Exemplar | None) -> str:
    if exemplar is None:
        return ""
    return f' # {{{TRACE_LABEL}="{_escaped(exemplar.labels[TRACE_LABEL])}"}} {exemplar.value!r}'


class _Collected(Collector):
    """Families that were collected already, as the library wants to be given them."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def content_type(openmetrics: bool) -> str:
    return openmetrics_exposition.CONTENT_TYPE_LATEST if openmetrics else CONTENT_TYPE_PLAIN_0_0_4


def encode(registry: CollectorRegistry, *, openmetrics: bool) -> bytes:
    """Everything in the registry as text, in one of the two formats."""
    families = list(registry.collect())
    lines = [line for table in families if isinstance(table, Table) for line in table.lines(openmetrics)]
    small = _Collected([family for family in families if not isinstance(family, Table)])
    rest: bytes
    if openmetrics:
        rest = openmetrics_exposition.generate_latest(small, UNTOUCHED)  # type: ignore[no-untyped-call]
    else:
        rest = generate_latest(small, UNTOUCHED)
    return "".join(lines).encode() + rest
