"""pub and sub, across processes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Start
from tests.cli.processes import COMMAND, PATIENCE, Running, broker, environment, rows

LINES = 20_000


def subscribe(start: Start, hub: Running, *args: object, output: Path | None = None) -> Running:
    """A subscriber that has told the hub so. It sends in order, so it gets what is published from now on."""
    running = start("sub", hub.ticket, *args, "--log-level", "info", output=output)
    while "subscribed to" not in running.errors:
        assert running.process.poll() is None, running.errors
        time.sleep(0.01)
    return running


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of events, one a line."""
    path = tmp_path_factory.mktemp("events") / "orders.ndjson"
    path.write_text("".join(f'{{"id": {n}, "name": "Zoë", "total": {n / 4}}}\n' for n in range(LINES)))
    return path


def metric(hub: Running, name: str) -> float:
    with urllib.request.urlopen(f"http://{hub.ready['http']}/metrics", timeout=PATIENCE) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def test_a_file_reaches_three_subscribers_complete(start: Start, hub: Running, events: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in "abc"]
    subs = [
        subscribe(start, hub, "orders.*", "--count", LINES, "--check", "--json", output=output) for output in outputs
    ]
    done = broker("pub", hub.ticket, "orders.created", "--file", events, "--json")
    assert done.returncode == 0, done.stderr
    published = json.loads(done.stdout)
    assert set(published) == {"event", "count", "first_seq", "last_seq", "epoch", "author"}
    assert (published["event"], published["count"]) == ("published", LINES)
    assert (published["first_seq"], published["last_seq"]) == (1, LINES)
    for sub, output in zip(subs, outputs, strict=True):
        assert sub.end() == 0, sub.errors
        *received, verdict = rows(output.read_text())
        assert [row["detail"]["id"] for row in received] == list(range(LINES))
        assert received[0]["type"] == "orders.created"
        assert received[0]["meta"]["author"] == published["author"]
        assert {
            key: verdict[key] for key in ("event", "topic", "author", "epoch", "received", "duplicates", "lost")
        } == {
            "event": "verdict",
            "topic": "orders.created",
            "author": published["author"],
            "epoch": published["epoch"],
            "received": LINES,
            "duplicates": 0,
            "lost": [],
        }
        assert (verdict["verdict"], verdict["repaired"]) == ("complete", 0)
    assert metric(hub, "broker_events_published_total") == LINES
    assert metric(hub, "broker_events_delivered_total") == 3 * LINES
    assert metric(hub, "broker_events_lost_total") == 0


def test_one_event(start: Start, hub: Running) -> None:
    sub = subscribe(start, hub, "a.>", "b", "--count", 3)
    for topic, data in (("a.x", '{"n": 1}'), ("b", '"text"'), ("a.y.z", None)):
        args = [data] if data is not None else []
        done = broker("pub", hub.ticket, topic, *args)
        assert (done.returncode, json.loads(done.stdout)["count"]) == (0, 1)
    received = [(row["type"], row["detail"]) for row in sub.rest()]
    assert received == [("a.x", {"n": 1}), ("b", "text"), ("a.y.z", None)]
    assert sub.end() == 0


def test_events_from_stdin_as_they_come(start: Start, hub: Running) -> None:
    sub = subscribe(start, hub, "live.*", "--count", 2)
    pub = start("pub", hub.ticket, "live.data", "--file", "-")
    assert pub.process.stdin is not None
    pub.process.stdin.write(b"1\n")
    pub.process.stdin.flush()
    assert sub.row()["detail"] == 1  # while pub still waits for more
    pub.process.stdin.write(b"\n2")  # an empty line is none; the last one needs no end
    pub.process.stdin.close()
    assert sub.row()["detail"] == 2
    assert pub.row()["count"] == 2
    assert pub.end() == 0


def test_a_bad_line_is_named_and_the_rest_told(hub: Running, tmp_path: Path) -> None:
    file = tmp_path / "e.ndjson"
    file.write_text('1\n2\n\n{"a": \n5\n')
    done = broker("pub", hub.ticket, "a.b", "--file", file, "--json")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {file}:4: not JSON: ")
    assert len(done.stderr.splitlines()) <= 3
    assert json.loads(done.stdout)["count"] == 2


def test_what_is_lost_is_not_waited_for(start: Start, tmp_path: Path) -> None:
    ticket = start("hub", "--open", "--http", "off", "--json", BROKER_TOPICS_RING_EVENTS="16").row()["ticket"]
    file = tmp_path / "e.ndjson"
    file.write_text("".join(f"{n}\n" for n in range(1, 101)))
    assert broker("pub", ticket, "a.b", "--file", file).returncode == 0
    done = broker("sub", ticket, "a.b", "--since", "start", "--count", 100)
    assert [row["detail"] for row in rows(done.stdout)] == list(range(85, 101))
    assert (done.returncode, "16 of 100 events came" in done.stderr) == (1, True)
    fewer = broker("sub", ticket, "a.b", "--since", "start", "--count", 90, "--check")
    assert [row.get("detail") for row in rows(fewer.stdout)] == [*range(85, 101), None]
    assert (fewer.returncode, rows(fewer.stdout)[-1]["lost"]) == (1, [[1, 84]])
    enough = broker("sub", ticket, "a.b", "--since", "start", "--count", 16)
    assert [row["detail"] for row in rows(enough.stdout)] == list(range(85, 101))
    assert (enough.returncode, enough.stderr) == (0, "")


def test_past_events(hub: Running, tmp_path: Path) -> None:
    file = tmp_path / "e.ndjson"
    file.write_text("".join(f"{n}\n" for n in range(1, 11)))
    broker("pub", hub.ticket, "past.one", "--file", file)
    start = rows(broker("sub", hub.ticket, "past.*", "--since", "start", "--count", 10).stdout)
    assert [row["detail"] for row in start] == list(range(1, 11))
    later = rows(broker("sub", hub.ticket, "past.one", "--since", "8", "--count", 3, "--check").stdout)
    assert [row.get("detail") for row in later] == [8, 9, 10, None]
    assert later[-1]["verdict"] == "complete"
    none = broker("sub", hub.ticket, "past.one", "--seconds", 0.3)
    assert (none.returncode, none.stdout) == (0, "")


def test_an_interrupted_subscriber_tells_its_verdict(start: Start, hub: Running) -> None:
    sub = subscribe(start, hub, "a.b", "--check")
    broker("pub", hub.ticket, "a.b", "1")
    assert sub.row()["detail"] == 1
    sub.process.send_signal(signal.SIGINT)
    assert [row["event"] for row in sub.rest()] == ["verdict"]
    assert sub.end() == 130
    assert "Traceback" not in sub.errors


def test_an_interrupted_publisher_tells_what_it_published(start: Start, hub: Running) -> None:
    sub = subscribe(start, hub, "a.b", "--count", 1)
    pub = start("pub", hub.ticket, "a.b", "--file", "-")
    assert pub.process.stdin is not None
    pub.process.stdin.write(b"1\n")
    pub.process.stdin.flush()
    sub.row()
    pub.process.send_signal(signal.SIGINT)
    assert pub.row()["count"] == 1
    assert pub.end() == 130


def test_a_rate_is_kept(hub: Running, tmp_path: Path) -> None:
    file = tmp_path / "e.ndjson"
    file.write_text("1\n" * 50)
    broker("pub", hub.ticket, "slow.one", "--file", file, "--rate", 100)
    stamps = [
        row["meta"]["ts"] for row in rows(broker("sub", hub.ticket, ">", "--since", "start", "--count", 50).stdout)
    ]
    assert 400 <= stamps[-1] - stamps[0] < 5_000


def test_nobody_reads_the_output_any_more(hub: Running, tmp_path: Path, events: Path) -> None:
    broker("pub", hub.ticket, "orders.x", "--file", events)
    errors = tmp_path / "errors"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            [*COMMAND, "sub", hub.ticket, "orders.x", "--since", "start"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(),
        ) as sub,
    ):
        assert sub.stdout is not None
        assert sub.stdout.readline()
        sub.stdout.close()
        assert sub.wait(PATIENCE) == 0
    assert errors.read_text() == ""


def test_a_reader_that_pauses_gets_everything(start: Start, hub: Running, events: Path) -> None:
    """A full pipe stops the subscriber, not its connection: the hub keeps what it will ask for."""
    sub = subscribe(start, hub, "orders.*", "--count", LINES, "--check", "--patience", "60")
    pub = start("pub", hub.ticket, "orders.y", "--file", events)
    first = sub.row()  # and then nothing is read while the publisher works as far as it is let
    assert first["detail"]["id"] == 0
    received = sub.rest()
    assert len(received) == LINES
    assert received[-1]["verdict"] == "complete"
    assert pub.row()["count"] == LINES
    assert (sub.end(), pub.end()) == (0, 0)


def restart(start: Start, data: Path) -> Running:
    hub = start("hub", "--open", "--http", "off", "--data", data, "--json")
    hub.ready = hub.row()
    return hub


def test_a_ticket_outlives_a_hub_that_was_killed(start: Start, tmp_path: Path, events: Path) -> None:
    hub = restart(start, tmp_path / "data")
    spoke = start("serve", hub.ticket, "--exec", "a.b=echo 1", "--json")
    spoke.row()
    outputs = [tmp_path / name for name in "ab"]
    subs = [subscribe(start, hub, "orders.*", "--count", LINES, "--check", output=output) for output in outputs]
    pub = start("pub", hub.ticket, "orders.created", "--file", events, "--rate", 8_000)
    eventually(lambda: all(output.stat().st_size > 100_000 for output in outputs))
    hub.end(signal.SIGKILL)
    again = restart(start, tmp_path / "data")
    assert again.ready["ticket"] == hub.ready["ticket"]
    assert pub.row()["count"] == LINES
    assert pub.end() == 0, pub.errors
    for sub, output in zip(subs, outputs, strict=True):
        assert sub.end() == 0, sub.errors
        *received, verdict = rows(output.read_text())
        assert [row["detail"]["id"] for row in received] == list(range(LINES))
        assert (verdict["received"], verdict["lost"], verdict["missing"]) == (LINES, [], [])
    eventually(lambda: broker("call", again.ticket, "a.b").stdout == "1\n")
    assert again.end(signal.SIGTERM) == 0


def eventually(check: Callable[[], bool]) -> None:
    """Returns as soon as it is so; the test's own timeout bounds it."""
    while not check():
        time.sleep(0.01)
