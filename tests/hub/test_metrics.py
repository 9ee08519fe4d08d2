"""What is counted, as Prometheus sees it."""

from __future__ import annotations

import asyncio
import subprocess

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from broker.hub.metrics import HubGauges, HubMetrics, SpokeGauges, SpokeMetrics, close_word, watch_loop_lag

NODE_ID = "ab" * 32


def value(metrics: HubMetrics | SpokeMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def busy() -> HubMetrics:
    gauges = HubGauges(
        spokes={("iroh", "direct"): 3, ("iroh", "relay"): 1},
        calls_in_flight=2,
        queue_bytes=70,
        endpoint={"relay_bytes_in": 4, "direct_bytes_out": 5, "refused_banned": 6},
    )
    metrics = HubMetrics("1.2", topic_labels=2, operation_labels=1, gauges=lambda: gauges)
    metrics.connected()
    metrics.disconnected(None)
    metrics.refused("limit")
    metrics.protocol_error(20)
    metrics.call_ended("stock.get", "OK", 0.0003)
    metrics.batch(3)
    metrics.loop_lagged(0.02)
    metrics.topic("orders").published += 7
    return metrics


def test_what_was_counted_is_told() -> None:
    metrics = busy()
    assert value(metrics, "broker_spokes_connected", transport="iroh", path="direct") == 3
    assert value(metrics, "broker_calls_in_flight") == 2
    assert value(metrics, "broker_queue_bytes") == 70
    assert value(metrics, "broker_connects_total") == 1
    assert value(metrics, "broker_disconnects_total", reason="path_died") == 1
    assert value(metrics, "broker_refused_total", reason="limit") == 1
    assert value(metrics, "broker_refused_total", reason="banned") == 6
    assert value(metrics, "broker_relay_bytes_total", direction="in") == 4
    assert value(metrics, "broker_direct_bytes_total", direction="out") == 5
    assert value(metrics, "broker_protocol_errors_total", code="bad_json") == 1
    assert value(metrics, "broker_events_published_total", topic="orders", carrier="stream") == 7
    assert value(metrics, "broker_calls_total", operation="stock.get", code="OK") == 1
    assert value(metrics, "broker_loop_lag_seconds_count") == 1


def test_a_hub_without_spokes_says_so() -> None:
    """No series would look like a hub that cannot be reached, and compares with nothing."""
    for path in ("direct", "relay"):
        assert value(HubMetrics(), "broker_spokes_connected", transport="iroh", path=path) == 0


def test_histograms_are_cumulative_and_their_edges_belong_to_the_lower_bucket() -> None:
    metrics = HubMetrics()
    for seconds in (0.00005, 0.0001, 0.3, 1_000.0):
        metrics.call_ended("a", "OK", seconds)
    assert value(metrics, "broker_call_seconds_bucket", operation="a", le="0.0001") == 2
    assert value(metrics, "broker_call_seconds_bucket", operation="a", le="0.5") == 3
    assert value(metrics, "broker_call_seconds_bucket", operation="a", le="+Inf") == 4
    assert value(metrics, "broker_call_seconds_sum", operation="a") == pytest.approx(1000.30015)
    for size in (1, 2, 3, 4, 5, 10**9):
        metrics.batch(size)
    assert value(metrics, "broker_border_batch_items_bucket", le="1") == 1
    assert value(metrics, "broker_border_batch_items_bucket", le="4") == 4
    assert value(metrics, "broker_border_batch_items_bucket", le="8192") == 5
    assert value(metrics, "broker_border_batch_items_count") == 6


def test_topics_beyond_the_limit_share_one_label() -> None:
    metrics = HubMetrics(topic_labels=2)
    first = metrics.topic("a")
    metrics.topic("b").published += 1
    metrics.topic("c").published += 1
    metrics.topic("d").published += 1
    assert metrics.topic("a") is first
    assert metrics.topic("c") is metrics.topic("d")
    assert metrics.topic("a", "gossip") is not first
    assert value(metrics, "broker_events_published_total", topic="other", carrier="stream") == 2
    assert value(metrics, "broker_events_published_total", topic="c", carrier="stream") is None


def test_operations_beyond_the_limit_share_one_label() -> None:
    metrics = HubMetrics(operation_labels=1)
    for operation in ("a", "b", "c"):
        metrics.call_ended(operation, "OK", 0.1)
    assert value(metrics, "broker_calls_total", operation="a", code="OK") == 1
    assert value(metrics, "broker_calls_total", operation="other", code="OK") == 2


def test_callers_cannot_use_up_labels_with_names_that_nobody_offers() -> None:
    metrics = HubMetrics(operation_labels=10)
    for number in range(100):
        metrics.call_ended(f"made.up.{number}", "OPERATION_NOT_FOUND", 0.0)
        metrics.call_ended("real", f"CODE_{number}", 0.0)
    assert value(metrics, "broker_calls_total", operation="other", code="OPERATION_NOT_FOUND") == 100
    assert value(metrics, "broker_calls_total", operation="real", code="UNKNOWN_ERROR") == 100


def test_reasons_are_words_and_bounded() -> None:
    assert (close_word(1), close_word(None), close_word(999)) == ("going_away", "path_died", "other")
    metrics = HubMetrics()
    for number in range(1_000):
        metrics.disconnected(f"reason {number}")
    text = generate_latest(metrics.registry).decode()
    assert text.count("broker_disconnects_total{") <= 65
    assert value(metrics, "broker_disconnects_total", reason="other") == 1_000 - 64


def test_two_hubs_of_a_process_count_apart() -> None:
    one, two = HubMetrics(), HubMetrics()
    one.connected()
    assert (value(one, "broker_connects_total"), value(two, "broker_connects_total")) == (1, 0)


def test_a_label_may_hold_anything() -> None:
    metrics = HubMetrics()
    metrics.topic('a"\n\\b').published += 1
    text = openmetrics(metrics.registry).decode()  # type: ignore[no-untyped-call]
    families = {family.name: family for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
    labels = [sample.labels["topic"] for sample in families["broker_events_published"].samples]
    assert labels == ['a"\n\\b']


def test_a_spoke_counts_its_own() -> None:
    metrics = SpokeMetrics("1", gauges=lambda: SpokeGauges(connected=True, connects=2, published=3, received=4))
    metrics.call_ended("a", "OK", 0.1)
    assert value(metrics, "broker_spoke_connected") == 1
    assert value(metrics, "broker_spoke_connects_total") == 2
    assert value(metrics, "broker_spoke_events_received_total") == 4
    assert value(metrics, "broker_spoke_calls_total", operation="a", code="OK") == 1


async def test_loop_lag_is_measured() -> None:
    measured: asyncio.Queue[float] = asyncio.Queue()
    task = asyncio.create_task(watch_loop_lag(measured.put_nowait))
    assert 0 <= await measured.get() < 5
    task.cancel()


@pytest.mark.system
def test_promtool_finds_nothing() -> None:
    for metrics in (busy(), SpokeMetrics("1")):
        text = generate_latest(metrics.registry)
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")
