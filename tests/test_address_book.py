"""The file of addresses: what is kept of whom, what goes, and what a broken file costs."""

from __future__ import annotations

import asyncio
import logging
import stat
from pathlib import Path

import orjson
import pytest

from broker import address_book
from broker.address_book import MOST_ADDRS, MOST_PEERS, AddressBook
from broker.protocol.ticket import Ticket
from tests.rig import until


def ids(count: int) -> list[str]:
    return [f"{n:064x}" for n in range(count)]


def test_what_is_learnt_is_there_after_a_restart_newest_first_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    book = AddressBook(path)
    (one, other) = ids(2)
    book.learn(Ticket(one, ("127.0.0.1:1",), ("https://relay.test/",), secret="s"))
    book.learn(Ticket(other, ("127.0.0.1:2",)))
    known = book.learn(Ticket(one, ("127.0.0.1:3",)))
    assert known == Ticket(one, ("127.0.0.1:3", "127.0.0.1:1"), ("https://relay.test/",), secret="s")
    assert book.keep(other, True)
    assert not book.keep(other, True)
    book.save()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = AddressBook(path)
    assert again.find(one) == known
    assert again.find(one).secret == "s"  # type: ignore[union-attr]
    assert again.kept() == [Ticket(other, ("127.0.0.1:2",))]
    assert again.find("f" * 64) is None
    assert [file.name for file in tmp_path.iterdir()] == ["peers.json"], "nothing is left of the writing"


def test_it_is_bounded_and_the_oldest_that_nobody_decided_about_goes() -> None:
    book = AddressBook(None)
    first, second, *others = ids(MOST_PEERS + 1)
    for node_id in (first, second, *others[:-1]):
        book.learn(Ticket(node_id, ("127.0.0.1:1",)))
    book.keep(first, True)
    book.learn(Ticket(others[-1], ("127.0.0.1:1",)))
    assert len(book) == MOST_PEERS
    assert book.find(second) is None
    assert book.find(first) is not None
    for port in range(1, 3 * MOST_ADDRS):
        book.learn(Ticket(first, (f"127.0.0.1:{port}",)))
    known = book.find(first)
    assert known is not None
    assert known.addrs == tuple(f"127.0.0.1:{port}" for port in range(3 * MOST_ADDRS - 1, 2 * MOST_ADDRS - 1, -1))


def row(node_id: object) -> dict[str, object]:
    return {"id": node_id, "addrs": ["127.0.0.1:1"]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "cannot be read"),
        (b'{"version":1,"peers":[{"id":"', "cannot be read"),
        (b"[]", "not an object"),
        (orjson.dumps({"version": 2, "peers": []}), "version 2"),
        (orjson.dumps({"version": 1, "peers": [row("x")]}), "NodeId"),
        (orjson.dumps({"version": 1, "peers": [7]}), "not an object"),
        (orjson.dumps({"version": 1, "peers": [row("0" * 64)] * (MOST_PEERS + 1)}), "at most"),
        (b" " * (address_book.MOST_BYTES + 1), "longer than"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_broken_file_is_told_and_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, why: str
) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "broker.addresses"):
        book = AddressBook(path)
    assert len(book) == 0
    (record,) = caplog.records
    assert str(path) in record.message
    assert why in record.message
    book.learn(Ticket("0" * 64, ("127.0.0.1:1",)))
    book.save()
    assert AddressBook(path).find("0" * 64) is not None


def test_a_file_that_cannot_be_read_or_written_costs_no_more_than_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "peers.json"
    path.mkdir()
    book = AddressBook(path)
    book.learn(Ticket("0" * 64, ("127.0.0.1:1",)))
    book.save()
    assert "begins anew" in caplog.text
    assert "cannot be written" in caplog.text
    assert book.find("0" * 64) is not None


async def test_changes_are_gathered_and_written_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_book, "SAVE_DELAY", 0.01)
    path = tmp_path / "peers.json"
    book = AddressBook(path)
    for node_id in ids(10):
        book.learn(Ticket(node_id, ("127.0.0.1:1",)))
    assert not path.exists()
    await until(path.exists)
    assert len(AddressBook(path)) == 10
    written = path.stat().st_mtime_ns
    book.learn(Ticket(ids(1)[0], ("127.0.0.1:1",)))
    await asyncio.sleep(0.05)
    assert path.stat().st_mtime_ns == written, "nothing new, nothing written"
