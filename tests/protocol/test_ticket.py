"""Tickets: what goes in comes out, and whatever happened to one on its way is named."""

from __future__ import annotations

import re
from base64 import b32encode
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import TicketError
from broker.protocol import ticket as ticket_module
from broker.protocol.ticket import MAX_ADDRS, MAX_RELAYS, Ticket

ID = "0123456789abcdef" * 4
PLAIN = Ticket(ID, ("127.0.0.1:4433", "[::1]:4433"), ("https://relay.example/",), "s3cret").encode()

text = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=40)
tickets = st.builds(
    Ticket,
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.lists(text, max_size=MAX_ADDRS).map(tuple),
    st.lists(text, max_size=MAX_RELAYS).map(tuple),
    st.none() | text,
    message_bytes=st.none() | st.integers(512, 65_536),
)


def fault(given: Any) -> str:
    with pytest.raises(TicketError) as caught:
        Ticket.decode(given)
    return str(caught.value)


@given(tickets)
def test_round_trip(ticket: Ticket) -> None:
    encoded = ticket.encode()
    assert re.fullmatch("hub1[a-z2-7]+", encoded)
    assert Ticket.decode(encoded) == ticket
    wrapped = "\n ".join(encoded[at : at + 30] for at in range(0, len(encoded), 30))
    assert Ticket.decode(f"  {wrapped.upper()}\r\n") == ticket


def test_every_changed_character_is_seen() -> None:
    for at, was in enumerate(PLAIN):
        for now in "abcdefghijklmnopqrstuvwxyz0123456789-=é":
            if now != was:
                assert fault(PLAIN[:at] + now + PLAIN[at + 1 :])


def test_every_cut_and_every_lost_or_doubled_character_is_seen() -> None:
    for at in range(len(PLAIN)):
        assert fault(PLAIN[:at])
        assert fault(PLAIN[:at] + PLAIN[at + 1 :])
        # Before its own twin a doubled character is the same wherever it stands.
        assert fault(PLAIN[:at] + PLAIN[at] + PLAIN[at:])
    assert fault(PLAIN + "a")


@given(tickets, st.data())
def test_swapped_characters_are_seen(ticket: Ticket, data: st.DataObject) -> None:
    encoded = ticket.encode()
    at = data.draw(st.integers(0, len(encoded) - 2))
    if encoded[at] != encoded[at + 1]:
        fault(encoded[:at] + encoded[at + 1] + encoded[at] + encoded[at + 2 :])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        (None, "string"),
        (PLAIN[:-4], "cut off"),
        (PLAIN[:-1], "cut off"),
        ("hub1", "cut off"),
        ("hub1aaaaaaaa", "cut off"),
        ("hub2" + PLAIN[4:], "Upgrade"),
        (ID, "bare NodeId"),
        ("https://example.org", "starts with 'hub1'"),
        ("hub1" + "a" * 9_000, "at most"),
        (PLAIN[:20] + "0" + PLAIN[21:], "character 21"),
    ],
)
def test_the_fault_is_named(given: Any, says: str) -> None:
    said = fault(given)
    assert says in said
    assert PLAIN[10:] not in said


def made(payload: bytes) -> str:
    raw = payload + ticket_module._checksum(payload)
    return "hub1" + b32encode(raw).decode().rstrip("=").lower()


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"\x02{}", "version 2"),
        (b"\x01{", "not JSON"),
        (b"\x01[]", "not an object"),
        (b"\x01{}", "NodeId"),
        (b"\x01" + orjson.dumps({"id": ID, "addrs": "x"}), "addrs"),
        (b"\x01" + orjson.dumps({"id": ID, "addrs": [1]}), "addrs"),
        (b"\x01" + orjson.dumps({"id": ID, "relays": ["x"] * 99}), "relays"),
        (b"\x01" + orjson.dumps({"id": ID, "secret": ""}), "secret"),
    ],
)
def test_tickets_made_wrong(payload: bytes, says: str) -> None:
    assert says in fault(made(payload))


def test_a_later_hub_may_add_keys() -> None:
    assert Ticket.decode(made(b"\x01" + orjson.dumps({"id": ID, "new": 1}))) == Ticket(ID)


@pytest.mark.parametrize(
    "wrong",
    [
        ("x",),
        (ID.upper(),),
        (ID, ("",)),
        (ID, ("a\n",)),
        (ID, ("x",) * 99),
        (ID, (), ("x" * 300,)),
        (ID, (), (), "\ud800"),
    ],
)
def test_only_what_can_be_read_is_made(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(TicketError):
        Ticket(*wrong)


def test_a_ticket_too_long_to_paste_is_not_made() -> None:
    with pytest.raises(TicketError, match="leave out some"):
        Ticket(ID, tuple("x" * 250 + str(n) for n in range(32))).encode()


def test_the_secret_is_not_shown() -> None:
    assert "s3cret" not in repr(Ticket.decode(PLAIN))


def test_the_size_of_gossip_messages_is_told_and_checked() -> None:
    """Who does not know the key reads the ticket all the same: it is one more in its JSON."""
    assert Ticket.decode(Ticket(ID, message_bytes=8_192).encode()).message_bytes == 8_192
    assert Ticket.decode(Ticket(ID).encode()).message_bytes is None
    for size in (511, 65_537, True, "4096"):
        with pytest.raises(TicketError, match="512 to 65536 bytes"):
            Ticket(ID, message_bytes=size)  # type: ignore[arg-type]
