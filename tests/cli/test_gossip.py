"""pub, sub and bench over gossip, across processes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Start
from tests.cli.processes import Running, broker, rows
from tests.cli.test_topics import subscribe


def test_events_go_over_gossip_and_the_verdict_is_complete(start: Start, hub: Running, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in "ab"]
    subs = [
        subscribe(start, hub, "a.b", "--carrier", "gossip", "--count", 500, "--check", "--json", output=output)
        for output in outputs
    ]
    lines = "".join(f'{{"n": {n}}}\n' for n in range(500))
    done = broker("pub", hub.ticket, "a.b", "--file", "-", "--carrier", "gossip", "--json", input=lines)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["count"] == 500
    for sub, output in zip(subs, outputs, strict=True):
        assert sub.end() == 0, sub.errors
        *received, verdict = rows(output.read_text())
        assert [row["detail"]["n"] for row in received] == list(range(500))
        assert (verdict["event"], verdict["received"], verdict["lost"]) == ("verdict", 500, [])
        assert set(verdict) >= {"topic", "author", "epoch", "received", "duplicates", "repaired", "lost"}
    (topic,) = rows(broker("ls", hub.ticket, "topics", "--json").stdout)
    assert (topic["topic"], topic["carrier"]) == ("a.b", "gossip")


def test_a_hub_that_keeps_to_streams_says_so(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "hub.toml"
    config.write_text('[topics]\ncarrier = "stream"\n')
    hub = start("hub", "--config", config, "--open", "--http", "off", "--json")
    hub.ready = hub.row()
    for command in (("pub", hub.ticket, "a.b", "1"), ("sub", hub.ticket, "a.b", "--seconds", "1")):
        done = broker(*command, "--carrier", "gossip")
        assert done.returncode == 2
        assert "a.b: the hub will have no swarm for it" in done.stderr


def test_bench_says_which_carrier_it_measured(hub: Running) -> None:
    bench = ("bench", hub.ticket, "--calls", "0", "--events", "600", "--subscribers", "3", "--json")
    for carrier in ("gossip", "stream"):
        done = broker(*bench, "--carrier", carrier)
        assert done.returncode == 0, done.stderr
        events = json.loads(done.stdout)["events"]
        assert (events["carrier"], events["deliveries"], events["missing"]) == (carrier, 1_800, 0)
