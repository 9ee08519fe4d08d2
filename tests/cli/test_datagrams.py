"""``pub --carrier datagram`` and ``sub``, as processes."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path

import pytest

from tests.cli.conftest import Start
from tests.cli.processes import PATIENCE, Running, broker
from tests.cli.test_topics import subscribe

pytestmark = pytest.mark.timeout(180)  # up to six processes, one after the other

FLOOD = 10_000


def test_they_come_marked_and_are_counted_apart(start: Start, hub: Running) -> None:
    sub = subscribe(start, hub, "a.*", "--count", 3, "--check")
    alone = subscribe(start, hub, "a.b", "--count", 2, "--check", "--carrier", "datagram")
    for number, carrier in ((1, "datagram"), (2, "stream"), (3, "datagram")):
        done = broker("pub", hub.ticket, "a.b", number, "--carrier", carrier, "--json")
        assert done.returncode == 0, done.stderr
        row = json.loads(done.stdout)
        if carrier == "datagram":
            assert {key: row[key] for key in ("count", "first_seq", "last_seq", "epoch", "dropped", "carrier")} == {
                **{"count": 1, "first_seq": 0, "last_seq": 0, "epoch": "", "dropped": 0, "carrier": "datagram"}
            }
    *events, verdict, last = sub.rest()
    assert sorted(row["detail"] for row in events) == [1, 2, 3]
    assert [row["meta"].get("carrier") for row in sorted(events, key=lambda row: row["detail"])] == [
        *("datagram", None, "datagram")
    ]
    assert (verdict["received"], verdict["verdict"]) == (1, "complete")
    assert last == {"event": "datagrams", "datagrams": 2, "dropped": 0}
    assert sub.end() == 0
    *events, last = alone.rest()
    assert [row["detail"] for row in events] == [1, 3]
    assert last == {"event": "datagrams", "datagrams": 2, "dropped": 0}
    assert alone.end() == 0


def test_one_over_the_limit_names_it(hub: Running) -> None:
    done = broker("pub", hub.ticket, "a.b", json.dumps("x" * 70_000), "--carrier", "datagram")
    assert done.returncode != 0
    assert "above the path's limit of" in done.stderr
    assert "Traceback" not in done.stderr


def test_ten_thousand_to_a_process_that_has_stopped(start: Start, tmp_path: Path) -> None:
    """The hub holds no more for it than QUIC's share, counts the rest, and serves the others."""
    hub = start("hub", "--open", "--http", "127.0.0.1:0", "--json", BROKER_LIMITS_IDLE_TIMEOUT="15")
    hub.ready = hub.row()
    stopped = subscribe(start, hub, "t", "--carrier", "datagram", output=tmp_path / "stopped")
    other = subscribe(start, hub, "t", "--count", 500, "--carrier", "datagram")
    pub = start("pub", hub.ticket, "t", "--file", "-", "--carrier", "datagram", "--rate", 5_000, "--json")
    assert pub.process.stdin is not None
    pub.process.stdin.write(b"0\n")
    pub.process.stdin.flush()
    assert other.row()["detail"] == 0
    stopped.process.send_signal(signal.SIGSTOP)
    try:
        fill = "x" * 800
        pub.process.stdin.write(b"".join(b'{"n":%d,"fill":"%s"}\n' % (n, fill.encode()) for n in range(1, FLOOD)))
        pub.process.stdin.close()
        assert (pub.row()["count"], pub.end()) == (FLOOD, 0)
        assert value(hub, 'broker_datagrams_dropped_total{direction="out",reason="no_room"} ') > 0
        assert value(hub, "broker_queue_bytes ") == 0, "no lane holds any"
    finally:
        stopped.process.send_signal(signal.SIGCONT)
    assert len(other.rest()) == 499
    assert other.end() == 0
    assert hub.process.poll() is None
    assert hub.end(signal.SIGTERM) == 0, hub.errors


def value(hub: Running, sample: str) -> float:
    """Of one sample, by the beginning of its line."""
    with urllib.request.urlopen(f"http://{hub.ready['http']}/metrics", timeout=PATIENCE) as response:
        (line,) = [line for line in response.read().decode().splitlines() if line.startswith(sample)]
    return float(line.rpartition(" ")[2])
