"""Wrong usage, wrong files, no hub: the exit code, and three lines at most that say what to do."""

from __future__ import annotations

import json
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import _gossip_ext as ext
from broker.cli import main
from broker.protocol.ticket import Ticket
from tests.cli.conftest import Start
from tests.cli.processes import Running, broker

COMMANDS = ("hub", "demo", "serve", "call", "pub", "sub", "ls", "bench", "check", "key", "key new", "key show")
NOBODY = Ticket(node_id=ext.node_id(bytes(range(32))), addrs=("127.0.0.1:9",)).encode()


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("BROKER_")]:
        monkeypatch.delenv(name)


class Outcome:
    """What a command line in this process came to."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *args: object) -> None:
        self.status = main([str(arg) for arg in args])
        self.out, self.err = capfd.readouterr()


@pytest.mark.parametrize("command", COMMANDS)
def test_help(capfd: pytest.CaptureFixture[str], command: str) -> None:
    done = Outcome(capfd, *command.split(), "--help")
    assert (done.status, done.err) == (0, "")
    assert f"Usage: broker {command}" in done.out


def test_the_commands_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    out = Outcome(capfd, "--help").out
    assert all(command.partition(" ")[0] in out for command in COMMANDS)
    assert "--install-completion" in out
    assert Outcome(capfd, "--version").out.startswith("broker ")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "No such command 'nonsense'"),
        ("hub --nonsense", "No such option: --nonsense"),
        ("call", "Missing argument 'TICKET'"),
        ("call x op --timeout soon", "Invalid value for '--timeout'"),
        ("call x op --timeout -1", "Invalid value for '--timeout'"),
        ("call x op {", "INPUT is not JSON"),
        ("call x op @nowhere.json", "cannot be read from nowhere.json: No such file"),
        ("call x op --all --stream", "choose one"),
        ("call x op", "a ticket starts with 'hub1'"),
        ("call @nowhere op", "ticket file nowhere cannot be read: No such file"),
        ("pub x topic hello", "DATA is not JSON"),
        ("pub x topic 1 --file f", "not both"),
        ("pub x topic --file nowhere", "nowhere cannot be read: No such file"),
        ("pub x topic --file .", ". is a directory"),
        ("bench x --carrier datagram", "nobody acknowledges a datagram"),
        ("sub x a.* --carrier gossip", "not the pattern a.*"),
        ("pub x topic 1 --carrier pigeon", "Invalid value for '--carrier'"),
        ("sub x", "Missing argument 'TOPIC...'"),
        ("sub x t --since yesterday", "--since yesterday: give a seq from 1, or start"),
        ("sub x t --since 0", "--since 0"),
        ("sub x t --count 0", "Invalid value for '--count'"),
        ("ls x everything", "Invalid value for '[spokes|operations|topics]'"),
        ("serve", "which hub?"),
        ("serve x", "nothing to offer"),
        ("serve x --exec date", "give it as NAME=COMMAND"),
        ("serve x --exec a.b=no-such-program", "there is no program 'no-such-program'"),
        ("serve x --exec a.b=", "the command is empty"),
        ("serve --listen x mod:app", "--listen takes no ticket"),
        ("hub --bind nowhere", "bind: 'nowhere' is not HOST:PORT"),
        ("hub --http nowhere", "http: 'nowhere' is not HOST:PORT"),
        ("hub --relay nowhere", "is not a relay's URL"),
        ("hub --join hub1x --http off", "join"),
        ("hub --config nowhere.toml", "the config file cannot be read: No such file"),
        ("hub --http off --dial @nowhere", "ticket file nowhere cannot be read"),
        ("hub --http off --dial hub1x", "ticket"),
        ("hub --http off --key nowhere", "no identity file at nowhere"),
        ("ls x --key nowhere", "no identity file at nowhere"),
        ("check", "which file?"),
        ("key show nowhere", "broker key new nowhere"),
    ],
)
def test_wrong_usage(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = Outcome(capfd, *line.split())
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert says in done.err
    assert len(done.err.splitlines()) <= 3


def test_a_topic_against_the_rules(hub: Running) -> None:
    for line in (("pub", hub.ticket, "a b", "1"), ("pub", hub.ticket, "hub.x", "1"), ("sub", hub.ticket, "a..b")):
        done = broker(*line)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) <= 3


def test_a_ticket_that_was_cut_off(capfd: pytest.CaptureFixture[str]) -> None:
    done = Outcome(capfd, "ls", NOBODY[:-4])
    assert done.status == 2
    assert "cut off" in done.err


def test_a_ticket_file(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.write_text("\n")
    assert Outcome(capfd, "ls", f"@{file}").status == 2
    file.write_bytes(b"\xff\x00" * 50_000)
    assert "too long" in Outcome(capfd, "ls", f"@{file}").err


def test_nobody_answers() -> None:
    done = broker("call", NOBODY, "a.b", "--connect-timeout", "0.5")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: the hub did not answer")
    assert "is it running" in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_a_hub_that_is_not_open(start: Start, tmp_path: Path) -> None:
    hub = start("hub", "--http", "off", "--json")
    ticket = hub.row()["ticket"]
    key = tmp_path / "k"
    node_id = broker("key", "new", key).stdout.strip()
    done = broker("ls", ticket, "--key", key)
    assert done.returncode == 3
    assert "not admitted" in done.stderr
    assert node_id in done.stderr
    config = tmp_path / "hub.toml"
    config.write_text(f'[admission]\nallow = ["{node_id}"]\n')
    allowing = start("hub", "--http", "off", "--json", "--config", config)
    ticket = allowing.row()["ticket"]
    assert broker("ls", ticket, "--key", key).returncode == 0
    assert broker("ls", ticket, BROKER_KEY=str(key)).returncode == 0
    assert broker("ls", ticket).returncode == 3


@pytest.fixture
def taken() -> Iterator[int]:
    """A TCP and UDP port of 127.0.0.1 that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", tcp.getsockname()[1]))
        yield tcp.getsockname()[1]


def test_a_port_in_use(taken: int) -> None:
    for flags in (("--http", f"127.0.0.1:{taken}"), ("--http", "off", "--bind", f"127.0.0.1:{taken}")):
        done = broker("hub", "--open", *flags)
        assert (done.returncode, done.stdout) == (3, "")
        assert f"127.0.0.1:{taken}" in done.stderr
        assert "in use" in done.stderr
        assert len(done.stderr.splitlines()) <= 3
    done = broker("serve", NOBODY, "--exec", "a.b=true", "--http", f"127.0.0.1:{taken}")
    assert done.returncode == 3
    assert "in use" in done.stderr


def test_a_data_directory_in_use(start: Start, tmp_path: Path) -> None:
    first = start("hub", "--http", "off", "--data", tmp_path / "d", "--json")
    first.row()
    done = broker("hub", "--http", "off", "--data", tmp_path / "d")
    assert done.returncode == 2
    assert f"in use by another live hub (process {first.process.pid})" in done.stderr


def test_a_config_file_with_a_mistake(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text("open = true\n[topics]\nring_event = 5\n")
    for line in (("check", file), ("hub", "--config", file)):
        done = Outcome(capfd, *line)
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith(f"error: {file}:3: topics.ring_event: unknown key; did you mean topics.ring_events?")
    file.write_text("open = true\n")
    assert Outcome(capfd, "check", file).status == 0
    assert json.loads(Outcome(capfd, "check", file, "--json").out) == {"event": "valid", "file": str(file)}


def test_every_key_of_the_config_is_listed(capfd: pytest.CaptureFixture[str]) -> None:
    keys = {row["key"]: row for row in map(json.loads, Outcome(capfd, "check", "--keys", "--json").out.splitlines())}
    assert keys["topics.ring_events"]["variable"] == "BROKER_TOPICS_RING_EVENTS"
    assert "topics.ring_events" in Outcome(capfd, "check", "--keys").out


def test_variables_configure_a_hub(start: Start, tmp_path: Path) -> None:
    env = {
        "BROKER_OPEN": "1",
        "BROKER_HTTP": "off",
        "BROKER_TICKET_FILE": str(tmp_path / "t"),
        "BROKER_LOG_FORMAT": "json",
    }
    hub = start("hub", "--json", **env)
    assert hub.row()["http"] is None
    assert broker("ls", f"@{tmp_path / 't'}").returncode == 0
    hub.end(signal.SIGTERM)
    logged = [json.loads(line) for line in hub.errors.splitlines() if line.startswith("{")]
    assert all(set(row) >= {"ts", "level", "logger", "message"} for row in logged)


def test_identities(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "k"
    made = Outcome(capfd, "key", "new", file)
    assert made.status == 0
    assert len(made.out.strip()) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Outcome(capfd, "key", "show", file).out == made.out
    assert json.loads(Outcome(capfd, "key", "show", file, "--json").out)["node_id"] == made.out.strip()
    assert file.read_text().strip() not in made.out
    again = Outcome(capfd, "key", "new", file)
    assert (again.status, again.out) == (2, "")
    assert "--force" in again.err
    assert Outcome(capfd, "key", "new", file, "--force").out != made.out
    file.chmod(0o640)
    refused = Outcome(capfd, "key", "show", file)
    assert (refused.status, refused.out) == (2, "")
    assert f"chmod 600 {file}" in refused.err
    assert Outcome(capfd, "ls", NOBODY, "--key", file).status == 2


def test_a_traceback_is_shown_only_for_debugging(tmp_path: Path) -> None:
    quiet = broker("ls", NOBODY, "--connect-timeout", "0.2")
    loud = broker("ls", NOBODY, "--connect-timeout", "0.2", "--log-level", "debug")
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr
    assert quiet.returncode == loud.returncode == 3


def test_interrupted_while_connecting(start: Start) -> None:
    done = start("ls", NOBODY, "--log-level", "info")
    while "connecting" not in done.errors:
        time.sleep(0.01)
    assert done.end(signal.SIGINT) == 130
    assert "error" not in done.errors
