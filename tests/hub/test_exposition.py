"""The text of the scrape page: what the library would write, whoever writes it, and an exemplar beside each bucket."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeHistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from broker.hub.exposition import MAX_TRACE_ID, CounterTable, HistogramTable, TracedHistogram, encode
from broker.hub.metrics import HubMetrics

BOUNDS = (0.001, 0.1, 1.0)
EXEMPLAR = re.compile(rb'# \{trace_id="(?:[^"\\]|\\.)*"\} \S+')


class Families(Collector):
    def __init__(self, *families: Metric) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


def registry(*families: Metric) -> CollectorRegistry:
    made = CollectorRegistry(auto_describe=False)
    made.register(Families(*families))
    return made


def timed(*calls: tuple[float, str]) -> TracedHistogram:
    histogram = TracedHistogram(BOUNDS)
    for value, trace in calls:
        histogram.add(value, trace)
    return histogram


def parsed(text: bytes, *, openmetrics: bool) -> list[Metric]:
    """By name. The samples of a family in any order."""
    found = parse_openmetrics(text.decode()) if openmetrics else parse_text(text.decode())  # type: ignore[no-untyped-call]
    families = sorted(found, key=lambda family: family.name)
    for family in families:
        family.samples.sort(key=lambda sample: (sample.name, sorted(sample.labels.items())))
    return families


@pytest.mark.parametrize("openmetrics", [False, True])
@given(names=st.lists(st.text(max_size=5), unique=True, max_size=3), traces=st.lists(st.text(max_size=5), max_size=4))
@example(names=["n"], traces=['"', 'a"b', "\\"])
def test_tables_read_as_what_the_library_writes(names: list[str], traces: list[str], openmetrics: bool) -> None:
    # A surrogate or a carriage return is in no label: JSON has none, or the text has no word for it in either writer.
    names, traces = (
        [text.encode("utf-8", "replace").decode().replace("\r", "") for text in all_] for all_ in (names, traces)
    )
    rows = [((name, "stream"), number**20) for number, name in enumerate(dict.fromkeys(names))]

    def written(traces: list[str]) -> tuple[bytes, bytes]:
        calls = timed(*((10.0**-number, trace) for number, trace in enumerate(traces)))
        ours = registry(
            CounterTable("t_events", "Events.", ("topic", "carrier"), rows),
            HistogramTable("t_seconds", "Seconds.", "operation", [(name, calls) for name in dict.fromkeys(names)]),
        )
        library = openmetrics_latest(ours) if openmetrics else generate_latest(ours)  # type: ignore[no-untyped-call]
        return encode(ours, openmetrics=openmetrics), library

    mine, library = written(traces)
    assert sorted(EXEMPLAR.findall(mine)) == sorted(EXEMPLAR.findall(library))
    # The library's reader takes no quote in an exemplar, not even from its own writer.
    mine, library = written([trace.replace('"', "'") for trace in traces])
    assert parsed(mine, openmetrics=openmetrics) == parsed(library, openmetrics=openmetrics)


def test_all_of_a_hub_reads_as_what_the_library_writes() -> None:
    metrics = HubMetrics("1.2")
    metrics.topic("orders").published += 7
    metrics.call_ended("stock.get", "OK", 0.0003, "r-1")
    metrics.loop_lagged(0.02)
    stop = CollectorRegistry(auto_describe=False)
    stop.register(Families(*metrics.collect()))
    for openmetrics in (False, True):
        library = openmetrics_latest(stop) if openmetrics else generate_latest(stop)  # type: ignore[no-untyped-call]
        mine = encode(stop, openmetrics=openmetrics)
        assert parsed(mine, openmetrics=openmetrics) == parsed(library, openmetrics=openmetrics)


def test_an_exemplar_is_the_last_of_its_bucket_and_only_in_openmetrics() -> None:
    table = HistogramTable(
        "t_seconds", "Seconds.", "operation", [("get", timed((0.0005, "a-1"), (0.05, "a-2"), (0.07, "a-3")))]
    )
    text = encode(registry(table), openmetrics=True).decode()
    assert 't_seconds_bucket{le="0.001",operation="get"} 1.0 # {trace_id="a-1"} 0.0005\n' in text
    assert 't_seconds_bucket{le="0.1",operation="get"} 3.0 # {trace_id="a-3"} 0.07\n' in text
    assert 't_seconds_bucket{le="1.0",operation="get"} 3.0\n' in text
    (family,) = parsed(text.encode(), openmetrics=True)
    told = {sample.labels["le"]: sample.exemplar for sample in family.samples if sample.exemplar}
    assert {edge: (exemplar.labels, exemplar.value) for edge, exemplar in told.items()} == {
        "0.001": ({"trace_id": "a-1"}, 0.0005),
        "0.1": ({"trace_id": "a-3"}, 0.07),
    }
    assert "#" not in encode(registry(table), openmetrics=False).decode().partition("histogram\n")[2]


def test_an_id_that_is_too_long_for_openmetrics_is_left_out() -> None:
    rows = [("fits", timed((0.5, "x" * MAX_TRACE_ID))), ("not", timed((0.5, "y" * (MAX_TRACE_ID + 1))))]
    text = encode(registry(HistogramTable("t_seconds", "Seconds.", "operation", rows)), openmetrics=True).decode()
    assert text.count(" # {") == 1
    assert "y" * 10 not in text
    parsed(text.encode(), openmetrics=True)  # the library refuses a longer one


def test_small_families_go_through_the_library() -> None:
    family = GaugeHistogramMetricFamily("t_rtt", "RTT.", labels=("path",))
    family.add_metric(("direct",), [("0.1", 1.0), ("+Inf", 3.0)], 2.5)
    assert 't_rtt_bucket{le="+Inf",path="direct"} 3.0' in encode(registry(family), openmetrics=False).decode()
    assert 't_rtt_gcount{path="direct"} 3.0' in encode(registry(family), openmetrics=True).decode()
