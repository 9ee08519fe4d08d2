"""A hub's config: layers, and mistakes that are named with their key and line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.config import HubConfig, describe_keys, key_lines, load_config, split_address
from broker.errors import ConfigError

NODE_ID = "ab" * 32


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hub.toml"
    path.write_text(text)
    return path


def mistake(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), {})
    return caught.value


def test_defaults_are_closed_and_local() -> None:
    config = load_config(None, {})
    assert config == HubConfig()
    assert (config.bind, config.http, config.open) == ("127.0.0.1:0", "127.0.0.1:9464", False)
    assert not config.relays


def test_a_file_is_read(tmp_path: Path) -> None:
    text = f"""
    bind = "[::]:4433"
    http = "off"
    relays = ["https://relay.example.org"]
    open = true
    ticket_file = "t"
    [topics]
    patience = 1        # a whole number is a number
    ring_events = 1_000
    [admission]
    allow = ["{NODE_ID.upper()}"]
    """
    config = load_config(write(tmp_path, text), {})
    assert (config.bind, config.http, config.open, config.ticket_file) == ("[::]:4433", "", True, Path("t"))
    assert config.relays == ("https://relay.example.org",)
    assert (config.topics.patience, config.topics.ring_events) == (1.0, 1_000)
    assert config.admission.allow == (NODE_ID,)


def test_variables_win_over_the_file_and_flags_over_both(tmp_path: Path) -> None:
    path = write(tmp_path, 'bind = "127.0.0.1:1"\nhttp = "127.0.0.1:1"\nname = "file"\n')
    env = {"BROKER_HTTP": "127.0.0.1:2", "BROKER_NAME": "variable", "BROKER_TOPICS_RING_EVENTS": "77"}
    config = load_config(path, env, {"name": "flag", "drain_timeout": None, "data": Path("d")})
    assert (config.bind, config.http, config.name) == ("127.0.0.1:1", "127.0.0.1:2", "flag")
    assert (config.topics.ring_events, config.data, config.drain_timeout) == (77, Path("d"), 10.0)


def test_variables_have_the_types_of_their_keys() -> None:
    env = {
        "BROKER_OPEN": "yes",
        "BROKER_RELAYS": "https://a.example, https://b.example",
        "BROKER_DRAIN_TIMEOUT": "2.5",
        "BROKER_ADMISSION_DENY": NODE_ID,
        "BROKER_LOG_LEVEL": "debug",
        "BROKER_PORT": "tcp://10.0.0.1:80",  # Kubernetes, for a service called broker
    }
    config = load_config(None, env)
    assert (config.open, config.drain_timeout, config.log_level) == (True, 2.5, "debug")
    assert config.relays == ("https://a.example", "https://b.example")
    assert config.admission.deny == (NODE_ID,)


@pytest.mark.parametrize(
    ("text", "key", "line", "says"),
    [
        ("\nbnid = 'x'", "bnid", 2, "did you mean bind?"),
        ("[topics]\n\n# a comment = 1\nring_event = 5", "topics.ring_event", 4, "did you mean topics.ring_events?"),
        ("patience = 2", "patience", 1, "did you mean topics.patience?"),
        ("open = 'yes'", "open", 1, 'not "yes"'),
        ("open = true\nbind = 'nowhere'", "bind", 2, "HOST:PORT"),
        ("bind = 'example.org:1'", "bind", 1, "IP address"),
        ("bind = '::1:1'", "bind", 1, "brackets"),
        ("http = '127.0.0.1:65536'", "http", 1, "HOST:PORT"),
        ("relays = [\n 'https://ok.example',\n 'ftp://no.example'\n]", "relays[1]", 1, "relay's URL"),
        ("[admission]\nallow = ['abc']", "admission.allow[0]", 2, "64 hex digits"),
        ("topics = 3", "topics", 1, "object"),
        ("topics = {ring_events = 1.5}", "topics.ring_events", 1, "integer"),
        ("[limits]\nmax_frame_bytes = 10", "limits.max_frame_bytes", 2, "4096"),
        ("[topics]\npatience = nan", "topics.patience", 2, "number"),
        ("drain_timeout = -1", "drain_timeout", 1, "greater than or equal to 0"),
        ("log_level = 'loud'", "log_level", 1, "'debug'"),
        ("name = 'a'\n[nope]\nx = 1", "nope", 2, "unknown key"),
        ("note = '''\n[topics]\nring_events = 1\n'''\nbind = 3", "bind", 5, "string"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_line(tmp_path: Path, text: str, key: str, line: int, says: str) -> None:
    error = mistake(tmp_path, text.replace("note = ", "realm = 'r'\nname = ") if "note" in text else text)
    if "note" in text:
        line += 1
    assert (error.key, error.line) == (key, line)
    assert says in str(error)
    assert str(error).startswith(f"{tmp_path}/hub.toml:{line}: {key}: ")
    assert error.exit_status == 2


@pytest.mark.parametrize(("text", "line"), [("a = 1\nb = [", 2), ("\n\nx =", 3), ("a = 1\na = 2\n", 2), ("'", 1)])
def test_a_syntax_error_has_its_line(tmp_path: Path, text: str, line: int) -> None:
    error = mistake(tmp_path, text)
    assert error.line == line
    assert "not valid TOML" in str(error)


def test_several_mistakes_are_counted(tmp_path: Path) -> None:
    assert "(and 2 more)" in str(mistake(tmp_path, "bnd = 1\nopem = 1\nhtp = 1"))


def test_where_a_mistake_came_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bind: .* \(from BROKER_BIND\)"):
        load_config(None, {"BROKER_BIND": "x"})
    with pytest.raises(ConfigError, match=r"topics.ring_events: 'x' is not a whole number \(from BROKER_TOPICS_RING_"):
        load_config(None, {"BROKER_TOPICS_RING_EVENTS": "x"})
    with pytest.raises(ConfigError, match="neither true nor false"):
        load_config(None, {"BROKER_OPEN": "maybe"})
    with pytest.raises(ConfigError, match=r"drain_timeout: .* \(from --drain-timeout\)"):
        load_config(write(tmp_path, "drain_timeout = 3"), {}, {"drain_timeout": -1.0})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "none", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, {})
    path = tmp_path / "latin"
    path.write_bytes(b"name = '\xe9'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(path, {})


def test_a_config_does_not_change() -> None:
    with pytest.raises(ValidationError):
        HubConfig().open = True


@pytest.mark.parametrize("text", ["", "host", ":1", "host:", "host:x", "host:-1", "host:65536", "::1:1", "h:\u0661"])
def test_split_address_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        split_address(text)


def test_split_address() -> None:
    assert split_address("[::1]:80") == ("::1", 80)
    assert split_address("localhost:0") == ("localhost", 0)


def test_every_key_is_described() -> None:
    rows = {row.key: row for row in describe_keys()}
    assert rows["topics.ring_events"].variable == "BROKER_TOPICS_RING_EVENTS"
    assert rows["topics.ring_events"].default == 65_536
    assert rows["bind"].default == "127.0.0.1:0"
    assert load_config(None, {row.variable: "" for row in rows.values() if row.key == "dial"}).dial == ()


# The line finder, against tomllib: each key that tomllib finds has a line, and the key's last part stands on it.

NAMES = st.text("abcxyz_-09", min_size=1, max_size=5)
VALUES = st.sampled_from(
    [
        *("1", "1.5", "true", '"a = b # c"', "'[x]'", "[1,\n 2, # ]\n 3]", "{q = 1}"),
        *('"""\n[t]\nk = 1\n"""', "'''\n'\n'''", '"""a\\""""'),
    ]
)


@st.composite
def toml_texts(draw: st.DrawFn) -> str:
    names = st.lists(NAMES, max_size=4, unique=True)
    lines = [f"{name} = {draw(VALUES)}  # {draw(NAMES)} = 1" for name in draw(names)]
    for table in draw(st.lists(NAMES, max_size=3, unique=True)):
        lines.append(draw(st.sampled_from(["", "# [c]"])))
        lines.append(f"[t-{table}]" if draw(st.booleans()) else f'[ "t-{table}" ]')
        lines += [f"{name}={draw(VALUES)}" for name in draw(names)]
    return "\n".join(lines)


def paths(value: dict[str, Any], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, inner in value.items():
        found.append((*before, key))
        if isinstance(inner, dict) and "q" not in inner:
            found += paths(inner, (*before, key))
    return found


@given(toml_texts())
def test_key_lines_finds_what_tomllib_finds(text: str) -> None:
    lines, source = key_lines(text), text.split("\n")
    wanted = paths(tomllib.loads(text))
    assert sorted(lines) == sorted(wanted)
    for path in wanted:
        assert path[-1] in source[lines[path] - 1]


SCOPE = "[access.scopes.reader]\ncall = ['hub.*']\nsubscribe = ['a.>']\n"


@pytest.mark.parametrize(
    ("text", "key", "line", "words"),
    [
        (
            SCOPE + "pubish = ['x']",
            "access.scopes.reader.pubish",
            4,
            "unknown key; did you mean access.scopes.reader.pub",
        ),
        (SCOPE + "[access.node]", "access.node", 4, "unknown key; did you mean access.nodes"),
        (SCOPE + "publish = ['a.>.b']", "access.scopes.reader.publish[0]", 4, "must be the last token"),
        (SCOPE + "publish = ['hub.x']", "access.scopes.reader.publish[0]", 4, "reserved"),
        (SCOPE + "offer = ['a..b']", "access.scopes.reader.offer[0]", 4, "is not a pattern"),
        (SCOPE + "[access.nodes]\nabc = ['reader']", "access.nodes.abc", 5, "is not a NodeId"),
        (SCOPE + f"[access.nodes]\n{NODE_ID} = ['writer']", "access.nodes", 4, "there is no [access.scopes.writer]"),
        ("[access]\ndefault = ['writer']", "access.default", 2, "there is no [access.scopes.writer]"),
        ("[access.scopes.admin]\ncall = ['>']", "access.scopes.admin", 1, "admission.admins"),
    ],
)
def test_a_mistake_in_a_policy_is_named_with_its_line(
    tmp_path: Path, text: str, key: str, line: int, words: str
) -> None:
    error = mistake(tmp_path, text)
    assert (error.key, error.line) == (key, line)
    assert words in str(error)


def test_a_policy_is_read(tmp_path: Path) -> None:
    text = SCOPE + f"[access.nodes]\n{NODE_ID.upper()} = ['reader']\n[access]\ndefault = ['reader']"
    access = load_config(write(tmp_path, text), {}).access
    assert access.scopes["reader"].subscribe == ("a.>",)
    assert (access.nodes, access.default) == ({NODE_ID: ("reader",)}, ("reader",))
    scopes = {"BROKER_ACCESS_SCOPES": '{"one": {"call": ["x"]}}', "BROKER_ACCESS_DEFAULT": "one"}
    assert load_config(None, scopes).access.scopes["one"].call == ("x",)


@pytest.mark.parametrize(
    ("text", "key", "line", "words"),
    [
        ("[topics]\ncarrier = 'fast'", "topics.carrier", 2, "'auto', 'stream' or 'gossip'"),
        ("[topics.carriers]\n'orders.>' = 'fast'", "topics.carriers.orders.>", 2, "'auto', 'stream' or 'gossip'"),
        ("[topics.carriers]\n'a.>.b' = 'stream'", "topics.carriers.a.>.b", 2, "must be the last token"),
        ("[topics]\nuplink_bytes = 5", "topics.uplink_bytes", 2, "1024"),
        ("[gossip]\nmessage_bytes = 100", "gossip.message_bytes", 2, "512"),
        ("[gossip]\nenabled = false\n[topics]\ncarrier = 'gossip'", "gossip", 1, "one of the two has to go"),
        ("[topics.carriers]\na = 'gossip'\n[gossip]\nenabled = false", "gossip", 3, "one of the two has to go"),
    ],
)
def test_a_mistake_about_carriers_is_named_with_its_line(
    tmp_path: Path, text: str, key: str, line: int, words: str
) -> None:
    error = mistake(tmp_path, text)
    assert (error.key, error.line) == (key, line)
    assert words in str(error)


def test_carriers_are_read(tmp_path: Path) -> None:
    text = "[topics]\ncarrier = 'stream'\n[topics.carriers]\n'orders.*' = 'gossip'\n[gossip]\nmessage_bytes = 1024"
    config = load_config(write(tmp_path, text), {"BROKER_TOPICS_UPLINK_BYTES": "1e6"})
    assert (config.topics.carrier, config.topics.carriers) == ("stream", {"orders.*": "gossip"})
    assert (config.gossip.enabled, config.gossip.message_bytes) == (True, 1_024)
    assert config.topics.uplink_bytes == 1e6
