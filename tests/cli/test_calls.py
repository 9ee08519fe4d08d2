"""hub, serve --exec and call, across processes."""

from __future__ import annotations

import contextlib
import json
import signal
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import Start
from tests.cli.processes import PATIENCE, Running, broker, rows

SLEEPER = "sh -c 'echo $$ > PIDFILE; sleep 100'"


def serve(start: Start, hub: Running, *args: object, **more: object) -> Running:
    running = start("serve", hub.ticket, *args, "--json", **more)
    running.ready = running.row()
    assert running.ready["event"] == "ready"
    return running


def get(address: str, path: str) -> tuple[int, str]:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE) as response:
        return response.status, response.read().decode()


def test_a_hub_says_when_it_accepts(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "ticket"
    hub = start("hub", "--open", "--http", "127.0.0.1:0", "--ticket-file", file, "--json")
    ready = hub.row()
    assert set(ready) == {"event", "node_id", "ticket", "http"}
    assert ready["event"] == "ready"
    assert len(ready["node_id"]) == 64
    assert file.read_text() == ready["ticket"] + "\n"
    assert get(ready["http"], "/readyz")[0] == 200
    assert f"hub {ready['node_id']}" in get(ready["http"], "/")[1]
    assert broker("ls", f"@{file}").returncode == 0


def test_a_command_is_called(start: Start, hub: Running) -> None:
    serve(start, hub, "--exec", "echo.it=cat", "--exec", "fail.it=sh -c 'echo too bad >&2; exit 3'", "--name", "one")
    done = broker("call", hub.ticket, "echo.it", '{"a": [1, "é"]}')
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"a":[1,"é"]}\n', "")
    assert broker("call", hub.ticket, "echo.it", "-", input="[1]").stdout == "[1]\n"
    assert broker("call", hub.ticket, "echo.it").stdout == "null\n"
    failed = broker("call", hub.ticket, "fail.it")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "error: EXECUTION_ERROR: fail.it: sh ended with status 3: too bad\n"
    unknown = broker("call", hub.ticket, "no.such")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("error: OPERATION_NOT_FOUND: ")
    assert "broker ls" in unknown.stderr


def test_what_a_command_prints_must_be_json(start: Start, hub: Running) -> None:
    serve(start, hub, "--exec", "a.b=echo hello", "--exec", "big.one=head -c 3000000 /dev/zero")
    done = broker("call", hub.ticket, "a.b")
    assert (done.returncode, done.stdout) == (1, "")
    assert "a.b: echo did not print JSON" in done.stderr
    assert "'hello\\n'" in done.stderr
    assert "more than 1000000 bytes" in broker("call", hub.ticket, "big.one").stderr


def test_a_stream_prints_each_item(start: Start, hub: Running) -> None:
    serve(start, hub, "--exec-stream", "count.up=seq 1 1000", "--exec-stream", "bad.end=sh -c 'echo 1; exit 4'")
    done = broker("call", hub.ticket, "count.up", "--stream")
    assert (done.returncode, rows(done.stdout)) == (0, list(range(1, 1001)))
    done = broker("call", hub.ticket, "bad.end", "--stream")
    assert (done.returncode, done.stdout) == (1, "1\n")
    assert "status 4" in done.stderr


def test_everybody_is_asked(start: Start, hub: Running) -> None:
    one = serve(start, hub, "--exec", "who.is='echo' '1'", "--name", "one")
    serve(start, hub, "--exec", "who.is=sleep 30", "--name", "two")
    failing = serve(start, hub, "--exec", "who.is=false", "--name", "three")
    *answers, last = rows(broker("call", hub.ticket, "who.is", "--all", "--timeout", "2", "--json").stdout)
    assert {row["name"]: row.get("output", "error" in row) for row in answers} == {"one": 1, "three": True}
    assert {row["node_id"] for row in answers} == {one.ready["node_id"], failing.ready["node_id"]}
    assert last["event"] == "missing"
    assert [spoke["name"] for spoke in last["spokes"]] == ["two"]


def test_a_call_that_times_out_ends_its_command(start: Start, hub: Running, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    serve(start, hub, "--exec", "slow.one=" + SLEEPER.replace("PIDFILE", str(pid)))
    done = broker("call", hub.ticket, "slow.one", "--timeout", "1.5")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: TIMEOUT: ")
    assert_gone(int(pid.read_text()))


def test_an_interrupted_call_ends_its_command(start: Start, hub: Running, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    serve(start, hub, "--exec-stream", f"slow.one=sh -c 'echo $$ > {pid}; echo 1; sleep 100'")
    call = start("call", hub.ticket, "slow.one", "--stream")
    assert call.row() == 1
    assert call.end(signal.SIGINT) == 130
    assert call.errors == ""
    assert_gone(int(pid.read_text()))


def assert_gone(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(PATIENCE)


def test_a_spoke_that_ends_finishes_its_calls(start: Start, hub: Running, tmp_path: Path) -> None:
    flag, go = tmp_path / "began", tmp_path / "go"
    command = f"sh -c 'touch {flag}; until [ -e {go} ]; do sleep 0.05; done; echo 7'"
    spoke = serve(start, hub, "--exec", f"slow.one={command}")
    call = start("call", hub.ticket, "slow.one")
    wait_for(flag)
    spoke.process.send_signal(signal.SIGTERM)
    # Draining: not offered any more, while the call goes on.
    while broker("call", hub.ticket, "slow.one").returncode == 0:
        pass
    go.touch()
    assert call.row() == 7
    assert spoke.end() == 0
    assert "nothing was dropped" in spoke.errors


def test_a_hub_that_ends_finishes_calls(start: Start, tmp_path: Path) -> None:
    hub = start("hub", "--open", "--http", "off", "--json")
    hub.ready = hub.row()
    flag, go = tmp_path / "began", tmp_path / "go"
    serve(start, hub, "--exec", f"slow.one=sh -c 'touch {flag}; until [ -e {go} ]; do sleep 0.05; done; echo 7'")
    call = start("call", hub.ticket, "slow.one")
    wait_for(flag)
    hub.process.send_signal(signal.SIGINT)
    refused = broker("call", hub.ticket, "slow.one", "--connect-timeout", "5")
    assert refused.returncode == 3
    go.touch()
    assert call.row() == 7
    assert hub.end() == 130
    assert "drained; nothing was dropped" in hub.errors


def test_a_hub_says_what_it_dropped(start: Start, tmp_path: Path) -> None:
    hub = start("hub", "--open", "--http", "off", "--json", "--drain-timeout", "0.2")
    hub.ready = hub.row()
    flag = tmp_path / "began"
    serve(start, hub, "--exec", f"slow.one=sh -c 'touch {flag}; sleep 100'")
    call = start("call", hub.ticket, "slow.one")
    wait_for(flag)
    assert hub.end(signal.SIGTERM) == 0
    assert "dropped: 1 calls" in hub.errors
    assert call.end() == 1
    assert "EXECUTION_ERROR" in call.errors


def test_a_second_signal_ends_a_hub_at_once(start: Start, tmp_path: Path) -> None:
    hub = start("hub", "--open", "--http", "off", "--json", "--drain-timeout", "60")
    hub.ready = hub.row()
    flag = tmp_path / "began"
    serve(start, hub, "--exec", f"slow.one=sh -c 'touch {flag}; sleep 100'")
    start("call", hub.ticket, "slow.one")
    wait_for(flag)
    hub.process.send_signal(signal.SIGTERM)
    while "draining" not in hub.errors:
        time.sleep(0.01)
    assert hub.end(signal.SIGTERM) == 130
    assert "Traceback" not in hub.errors


def wait_for(path: Path) -> None:
    """Until another process has made the file; the test's own timeout bounds it."""
    while not path.exists():
        time.sleep(0.01)


APP = """
from typing import AsyncIterator
from broker import Spoke

app = Spoke("shop")
not_a_spoke = 5

@app.operation("stock.get")
async def get(sku: str, n: int = 1) -> dict[str, int]:
    "How many there are."
    return {sku: n}

@app.operation("stock.watch")
async def watch(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i
"""


def test_an_app_is_served(start: Start, hub: Running, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    spoke = serve(start, hub, "shop:app", "--exec", "extra.one=echo 1", "--http", "127.0.0.1:0", cwd=tmp_path)
    assert spoke.ready["operations"] == ["stock.get", "stock.watch", "extra.one"]
    assert broker("call", hub.ticket, "stock.get", '{"sku": "a1"}').stdout == '{"a1":1}\n'
    assert rows(broker("call", hub.ticket, "stock.watch", '{"n": 3}', "--stream").stdout) == [0, 1, 2]
    wrong = broker("call", hub.ticket, "stock.get", '{"sku": 1}')
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: VALIDATION_ERROR: stock.get: sku: ")
    assert [row["name"] for row in rows(broker("ls", hub.ticket, "spokes", "--json").stdout)] == ["shop"]
    metrics = get(spoke.ready["http"], "/metrics")[1]
    assert 'broker_spoke_calls_total{code="OK",operation="stock.get"} 1.0' in metrics
    assert 'broker_spoke_calls_total{code="VALIDATION_ERROR",operation="stock.get"} 1.0' in metrics
    assert get(spoke.ready["http"], "/readyz")[0] == 200


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ("nothing.here:app", "there is no module nothing.here"),
        ("shop", "is not MODULE:APP"),
        ("shop:none", "has no none; its Spokes are app"),
        ("shop:not_a_spoke", "is a int, not a Spoke"),
        ("broken:app", "importing broken failed with ZeroDivisionError"),
        ("needy:app", "needs the module not_installed"),
    ],
)
def test_an_app_that_cannot_be_served(tmp_path: Path, app: str, says: str) -> None:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "needy.py").write_text("import not_installed")
    done = broker("serve", "hub1x", app, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_a_spoke_is_dialled(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "spoke-ticket"
    spoke = start("serve", "--listen", "--exec", "a.b=echo 5", "--ticket-file", file, "--json", "--name", "listener")
    listening = spoke.row()
    assert listening["event"] == "listening"
    assert file.read_text().strip() == listening["ticket"]
    assert file.stat().st_mode & 0o077 == 0, "who has it may be its hub"
    hub = start("hub", "--open", "--http", "off", "--json", "--dial", f"@{file}")
    ticket = hub.row()["ticket"]
    assert spoke.row()["event"] == "ready"
    assert broker("call", ticket, "a.b").stdout == "5\n"


def test_what_is_there_is_listed(start: Start, hub: Running) -> None:
    spoke = serve(start, hub, "--exec", "a.b=echo 5", "--name", "lister")
    sub = start("sub", hub.ticket, "x.*")
    while not (topics := rows(broker("ls", hub.ticket, "topics", "--json").stdout)):
        pass
    assert set(topics[0]) >= {"topic", "subscribers", "carrier", "authors", "events"}
    assert (topics[0]["topic"], topics[0]["subscribers"]) == ("x.*", 1)
    spokes = {row["name"]: row for row in rows(broker("ls", hub.ticket, "spokes", "--json").stdout)}
    assert set(spokes) == {"lister", "broker sub"}
    assert set(spokes["lister"]) >= {"node_id", "name", "transport", "path", "rtt_ms", "queued", "dropped"}
    assert spokes["lister"]["node_id"] == spoke.ready["node_id"]
    assert spokes["lister"]["path"] == "direct"
    operations = {row["operation"]: row for row in rows(broker("ls", hub.ticket, "operations", "--json").stdout)}
    assert [one["name"] for one in operations["a.b"]["spokes"]] == ["lister"]
    assert operations["hub.spokes"]["kind"] == "query"
    table = broker("ls", hub.ticket).stdout
    assert all(word in table for word in ("lister", "a.b", "x.*", "direct"))
    sub.end(signal.SIGINT)


def test_a_bench_counts(hub: Running) -> None:
    sizes = ["--calls", 200, "--inflight", 8, "--events", 500, "--subscribers", 3]
    done = broker("bench", hub.ticket, *sizes, "--json")
    result = json.loads(done.stdout)
    assert (done.returncode, result["event"]) == (0, "bench")
    assert (result["calls"]["calls"], result["calls"]["failed"]) == (200, {})
    assert result["calls"]["p50_us"] <= result["calls"]["p99_us"] <= result["calls"]["max_us"]
    events = result["events"]
    assert (events["deliveries"], events["missing"], events["verdicts"]) == (1_500, 0, ["complete"])
    done = broker("bench", hub.ticket, "--calls", 0, *sizes[4:], "--native", "--processes", 2, "--json")
    events = json.loads(done.stdout)["events"]
    assert (events["deliveries"], events["native"], events["processes"]) == (1_500, True, 2)


def test_a_bench_by_gossip_counts_in_rust_and_knows_that_all_came(hub: Running) -> None:
    sizes = ["--calls", 0, "--events", 500, "--subscribers", 3, "--carrier", "gossip", "--json"]
    told = [json.loads(broker("bench", hub.ticket, *sizes, *more).stdout)["events"] for more in ((), ("--native",))]
    for events in told:
        assert (events["deliveries"], events["carrier"], events["verdicts"]) == (1_500, "gossip", ["complete"])
    assert [events["native"] for events in told] == [False, True]
    assert "p50_ms" in told[0]
    assert "p50_ms" not in told[1], "somebody read an event"
