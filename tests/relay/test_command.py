"""``broker relay`` as a process, and what it says of wrong files, ports and keys."""

from __future__ import annotations

import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from tests.cli.processes import Running, broker
from tests.relay.stage import Stage


@pytest.fixture
def files(stage: Stage) -> tuple[str, ...]:
    return ("--tls-cert", str(stage.issued.cert), "--tls-key", str(stage.issued.key))


def test_a_hub_and_spokes_by_way_of_the_command_alone(stage: Stage, files: tuple[str, ...], tmp_path: Path) -> None:
    ticket, ca = tmp_path / "ticket", ("--relay-ca", str(stage.ca))
    relay = ("relay", "--bind", "127.0.0.1:0", "--http", "127.0.0.1:0", "--open", *files, "--json")
    with Running(*relay, errors=tmp_path / "relay.err") as server:
        ready = server.row()
        assert ready["event"] == "ready"
        assert ready["url"].startswith("https://127.0.0.1:")
        assert ready["quic"] == ready["address"], "one port is to be opened"
        hub = ("hub", "--open", "--http", "off", "--relay", ready["url"], *ca, "--ticket-file", ticket, "--json")
        with Running(*hub, errors=tmp_path / "hub.err") as running:
            running.row()
            serve = ("serve", f"@{ticket}", "--exec", "count=wc -c", "--bind", "[::1]:0", *ca, "--json")
            with Running(*serve, errors=tmp_path / "serve.err") as serving:
                assert serving.row()["event"] == "ready"
                called = broker("call", f"@{ticket}", "count", '"four"', *ca)
                assert called.stdout.strip() == "6", called.stderr
                listed = broker("ls", f"@{ticket}", "spokes", "--json", BROKER_RELAY_CA=str(stage.ca))
                assert '"path":"relay"' in listed.stdout, listed.stderr
        with urllib.request.urlopen(f"http://{ready['http']}/metrics", timeout=10) as response:
            metrics = response.read().decode()
        assert "broker_relay_server_accepted_total" in metrics
        assert 'broker_relay_server_bytes_total{direction="in"}' in metrics
        with urllib.request.urlopen(f"http://{ready['http']}/readyz", timeout=10) as response:
            assert response.status == 200
        assert server.end(signal.SIGTERM) == 0
        assert "stopping" in server.errors


def test_plain_http_is_said_loudly(tmp_path: Path) -> None:
    with Running("relay", "--bind", "127.0.0.1:0", "--http", "off", "--json", errors=tmp_path / "err") as server:
        assert server.row()["url"].startswith("http://")
        assert server.end(signal.SIGINT) == 130
        assert "NO TLS" in server.errors
        assert "nobody is admitted yet" in server.errors


CERT, KEY = ("--tls-cert", "relay.pem"), ("--tls-key", "relay.key")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tls-cert", "gone", *KEY), ("tls_cert: ", "No such file")),
        ((*CERT, "--tls-key", "other.key"), ("tls_key: ", "does not belong to the certificate")),
        (("--tls-cert", "nonsense", *KEY), ("tls_cert: ", "no PEM certificate")),
        ((*CERT, "--tls-key", "nonsense"), ("tls_key: ", "no PEM private key")),
        (CERT, ("go together", "tls_key")),
        (KEY, ("go together", "tls_key")),
        (("--allow-file", "list"), ("list:2: allow_file", "64 hex digits")),
        (("--allow", "nobody"), ("not a NodeId", "--allow")),
        (("--config", "nonsense"), ("nonsense", "not valid TOML")),
    ],
)
def test_mistakes_are_named(stage: Stage, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    here = stage.ca.parent
    stage.authority.issue("other", ["127.0.0.1"])
    (here / "nonsense").write_text("not PEM at all")
    (here / "list").write_text("# nobody\n" + "a" * 63 + "\n")
    ended = broker("relay", "--bind", "127.0.0.1:0", "--http", "off", "--open", *arguments, cwd=here)
    assert ended.returncode == 2, ended.stderr
    assert all(word in ended.stderr for word in words), ended.stderr
    assert len(ended.stderr.splitlines()) <= 3


def test_a_port_that_is_taken_by_anybody_is_named(files: tuple[str, ...]) -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            ended = broker("relay", "--bind", address, "--http", "off", "--open", *files)
            assert ended.returncode == 3, ended.stderr
            assert f"the relay cannot bind {address}" in ended.stderr
            assert "another program uses that port" in ended.stderr


def test_every_flag_has_a_key_and_a_variable(stage: Stage, tmp_path: Path) -> None:
    config = tmp_path / "relay.toml"
    config.write_text(f'bind = "127.0.0.1:0"\nhttp = "off"\ntls_cert = "{stage.issued.cert}"\nname = "relay.example"\n')
    relay, key = ("relay", "--config", config, "--json"), str(stage.issued.key)
    with Running(*relay, errors=tmp_path / "err", BROKER_RELAY_TLS_KEY=key, BROKER_RELAY_OPEN="1") as server:
        assert server.row()["url"].startswith("https://relay.example:")
        assert "nobody is admitted" not in server.errors
        assert server.end(signal.SIGTERM) == 0


def test_a_relays_config_is_checked_like_a_hubs(tmp_path: Path) -> None:
    config = tmp_path / "relay.toml"
    config.write_text('bind = "127.0.0.1:0"\nalow = []\n')
    ended = broker("check", "--relay", config)
    assert ended.returncode == 2
    assert "relay.toml:2: alow: unknown key; did you mean allow?" in ended.stderr
    keys = broker("check", "--relay", "--keys", "--json")
    assert '"variable":"BROKER_RELAY_TLS_CERT"' in keys.stdout


def test_a_file_of_authorities_that_is_none_is_named(tmp_path: Path) -> None:
    nonsense = tmp_path / "ca.pem"
    nonsense.write_text("nothing")
    hub = ("hub", "--http", "off", "--relay", "https://relay.example")
    for path, word in ((nonsense, "no PEM certificate in it"), (tmp_path / "gone", "cannot be read")):
        ended = broker(*hub, "--relay-ca", path)
        assert ended.returncode == 2
        assert "relay_ca: " in ended.stderr
        assert word in ended.stderr
    wrong = broker("call", "hub1x", "a.b", "--relay", "ftp://relay.example")
    assert wrong.returncode == 2
    assert "--relay" in wrong.stderr
