"""What is fuzzed: functions of bytes that return nothing and raise when something does not hold.

Those of raw bytes are here: what a peer may send, read by everything that reads it. Those that act out a script with a
machine are in machines.py, the hub as a whole in hub.py. Where a test of tests/protocol already says what must hold,
its own body is run (``body``), or, for strategies of any JSON, Hypothesis reads the bytes (``fuzz_one_input``).

Not here: who makes the bytes (drive.py under atheris, test_corpora.py in CI).
"""

from __future__ import annotations

from base64 import b32decode, b32encode
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast, get_args

from broker import _gossip_ext as ext
from broker.errors import FrameError, TicketError, TopicError
from broker.protocol import codec, place, registration, routing
from broker.protocol.access import Action, Grant, Scope, check_operation_pattern
from broker.protocol.codec import FrameReader, decode, encode
from broker.protocol.registration import MAX_SCANNED, Offerer, Offers, Operation, Registration
from broker.protocol.routing import References, check_pattern, check_topic, is_reserved, matches
from broker.protocol.ticket import Ticket
from broker.protocol.wire import CloseCode
from tests.ext.test_batches import AUTHOR, EPOCH, MAX_SEQ, signed, u
from tests.fuzz import machines
from tests.fuzz.hub import hub
from tests.fuzz.script import Script
from tests.protocol import (
    test_access,
    test_answering,
    test_caller,
    test_calls_model,
    test_codec,
    test_registration,
    test_routing,
    test_ticket,
)

__all__ = ["TARGETS", "Target"]

Target = Callable[[bytes], None]


def body(test: Any) -> Callable[..., None]:
    """A property's own function, for arguments that we choose."""
    return cast("Callable[..., None]", test.hypothesis.inner_test)


# Messages


def messages(data: bytes) -> None:
    """One frame's payload: a message or one FrameError; and all that is read from a message is right or refused."""
    body(test_codec.test_any_bytes_give_a_message_or_one_frame_error)(data)
    with suppress(FrameError):
        message = decode(data)
        assert decode(encode(*message)) == message
        encode("listing", {"output": [[message.detail]]})
        _read(message.type, message.detail, message.meta)


def _read(type: str, detail: Any, meta: dict[str, Any] | None) -> None:
    fields = detail if isinstance(detail, dict) else {}
    if (id := _or_refused(codec.request_id_of, detail, type)) is not None:
        assert 0 < len(id) <= codec.MAX_REQUEST_ID
    if (origin := _or_refused(place.origin, meta)) is not None:
        place.check_seq(origin.seq, 1)
    for since in (detail, fields.get("since")):
        if isinstance(parsed := _or_refused(place.parse_since, since), dict):
            assert {topic: {a: list(at) for a, at in authors.items()} for topic, authors in parsed.items()} == since
    for name in (type, fields.get("operationId"), *_listed(fields.get("topics"))):
        _named(name)
    registered = _or_refused(registration.parse, detail, close_code=CloseCode.BAD_REGISTRATION)
    if registered is not None:
        assert registration.parse(registration.to_detail(registered)) == registered


def _or_refused(read: Callable[..., Any], *given: Any, close_code: int = CloseCode.BAD_MESSAGE) -> Any:
    try:
        return read(*given)
    except FrameError as error:
        fault = error
    assert fault.close_code == close_code
    return None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# Frames


def frames(data: bytes) -> None:
    """A stream in any chunks: the same frames and the same fault, and less than a frame held. The layout of an input
    is that of gossip_ext/fuzz: a byte for the limit, a count of cuts, a byte for each cut, the stream."""
    script = Script(data)
    limit, cuts = script.number(1, 64), script.many(15, script.byte)
    stream = script.rest()
    body(test_codec.test_chunks_do_not_matter_for_faults_either)(stream, cuts, limit)
    expected, fault = _split(stream, limit)
    assert test_codec.read(test_codec.cut(stream, cuts), limit) == (expected, fault)
    reader = FrameReader(limit)
    with suppress(FrameError):
        for chunk in test_codec.cut(stream, cuts):
            reader.feed(chunk)
            assert len(reader._buffer) < codec.HEADER_BYTES + limit


def _split(stream: bytes, limit: int) -> tuple[list[bytes], int | None]:
    """The rules, once more and all at once."""
    found: list[bytes] = []
    while stream:
        size = int.from_bytes(stream[:4], "big")
        if len(stream) >= 4 and size == 0:
            return found, CloseCode.EMPTY_FRAME
        if len(stream) >= 4 and size > limit:
            return found, CloseCode.FRAME_TOO_LARGE
        if len(stream) < 4 + size or len(stream) < 4:
            return found, CloseCode.FRAME_CUT_SHORT
        found.append(stream[4 : 4 + size])
        stream = stream[4 + size :]
    return found, None


# Any JSON, as the strategies of tests/protocol make it

DETAILS: Final[tuple[Callable[..., Any], ...]] = (
    test_calls_model.test_any_json_gives_effects_or_one_frame_error,
    test_registration.test_any_json_gives_a_registration_or_one_frame_error,
    test_caller.test_any_json_gives_effects_or_one_frame_error,
    test_answering.test_any_json_gives_effects_or_one_frame_error,
    test_registration.test_what_is_written_is_read,
)


def details(data: bytes) -> None:
    """Any JSON as the detail of a message: to the call table, to a registration, to a spoke's two sides of calls."""
    if data:
        test: Any = DETAILS[data[0] % len(DETAILS)]
        test.hypothesis.fuzz_one_input(data[1:])


# Who offers what

IDS: Final = ("get", "put", "watch", "a.b", "hub.ls", "x" * 255)


def offers(data: bytes) -> None:
    """Peers register, again and again: what is on offer is what they said last, and the least busy is picked."""
    script = Script(data)
    table: Offers[Offerer] = Offers()
    peers = [Offerer(f"id-{n}", None) for n in range(script.number(1, 40))]
    said: dict[int, list[str]] = {}
    for _ in range(100):
        if not script:
            break
        at = script.number(0, len(peers) - 1)
        if script.flag():
            said[at] = script.some(IDS)
            detail = registration.to_detail(Registration(tuple(map(Operation, said[at]))))
            table.replace(peers[at], registration.parse(detail, from_hub=True).operations)
        else:
            peers[at].legs = dict.fromkeys(map(str, range(script.number(0, 3))))
        _agree(table, peers, said)
    for peer in peers:
        table.replace(peer, ())
    assert list(table.rows()) == []


def _agree(table: Offers[Offerer], peers: list[Offerer], said: dict[int, list[str]]) -> None:
    for id in IDS:
        offering = {peers[at].node_id: peers[at] for at, ids in said.items() if id in ids}
        assert {peer.node_id for peer in table.all(id)} == offering.keys()
        assert (id in table) == bool(offering)
        picked = table.pick(id)
        assert (picked is None) == (not offering)
        if picked is not None:
            assert picked.node_id in offering
            if len(offering) <= MAX_SCANNED:
                assert len(picked.legs) == min(len(peer.legs) for peer in offering.values())
    listed = {row.operation.id: {node for node, _ in row.spokes} for row in table.rows()}
    assert listed == {id: {peer.node_id for peer in table.all(id)} for id in IDS if id in table}


# Topics, patterns, and what they let through

TOKENS: Final = ("a", "b", "c", "*")


def _pattern(script: Script) -> str:
    return ".".join([script.one(TOKENS) for _ in range(script.number(0, 3))] + [script.one((*TOKENS, ">"))])


def _topic(script: Script) -> str:
    return ".".join(script.one("abc") for _ in range(script.number(1, 4)))


def subscriptions(data: bytes) -> None:
    """The table of patterns against a set of them, and a spoke's count of its listeners against their number."""
    script = Script(data)
    topic = _topic(script)
    steps = [(script.flag(), script.number(1, 4), _pattern(script)) for _ in range(min(40, len(data) // 4))]
    body(test_routing.test_the_trie_finds_what_matches)(steps, topic)
    references, model = References(), dict[str, int]()
    for add, _, pattern in steps:
        count = model.get(pattern, 0)
        assert (references.add if add else references.remove)(pattern) == (count == (0 if add else 1))
        model[pattern] = count + 1 if add else max(count - 1, 0)
    assert sorted(references.patterns()) == sorted(pattern for pattern, count in model.items() if count)


def access(data: bytes) -> None:
    """A pattern is let through only when all that it can ever match is. The other half of the input is any text."""
    script = Script(data)
    if script.flag():
        allowed = script.many(6, lambda: _of_two(script))
        pattern = _of_two(script)
        body(test_access.test_containment_is_what_counting_all_topics_says)(allowed, pattern)
        body(test_access.test_containment_at_full_depth_lets_nothing_through)(allowed, pattern)
    else:
        _named(script.rest().decode(errors="replace"))


def _of_two(script: Script) -> str:
    """As test_access has them: c is what nobody has listed."""
    return _pattern(script).replace("c", "b")


SCOPE: Final = Scope(**dict.fromkeys(get_args(Action), ("a.>", "*.b")))


def _named(name: Any) -> None:
    """Any value as a topic, as a pattern and as an operation."""
    for check, bad in ((check_topic, "BAD_TOPIC"), (check_pattern, "BAD_PATTERN")):
        code = _refusal(check, name)
        assert code in (None, bad, "RESERVED_TOPIC")
        if code != bad:
            assert is_reserved(name) == (code is not None)
            assert len(name.encode()) <= routing.MAX_TOPIC_BYTES
            assert matches(name, name)
            assert check is check_pattern or matches(">", name)
    if isinstance(name, str):
        with suppress(ValueError):
            check_operation_pattern(name)
        nobody, some = Grant((), ()), Grant(("some",), [SCOPE])  # new ones, for they remember what they decided
        for action in get_args(Action):
            assert not nobody.may(action, name)
            assert not some.may(action, name) or name.startswith("a.") or name.split(".")[1] == "b"


def _refusal(check: Callable[[object], None], name: object) -> str | None:
    try:
        check(name)
    except TopicError as error:
        return error.code
    return None


# Tickets


def tickets(data: bytes) -> None:
    """Any text, and any content under a right checksum: a ticket that has this one spelling, or a TicketError."""
    for text in (data.decode(errors="replace"), test_ticket.made(b"\x01" + data), _digits(data)):
        try:
            ticket = Ticket.decode(text)
        except TicketError:
            continue
        assert Ticket.decode(ticket.encode()) == ticket
        digits = "".join(text.split()).upper().removeprefix("HUB1")
        raw = b32decode(digits + "=" * (-len(digits) % 8))
        assert _digits(raw) == f"hub1{digits.lower()}", "a second spelling"


def _digits(data: bytes) -> str:
    return "hub1" + b32encode(data).decode().rstrip("=").lower()


# Signed batches, by the built extension

BATCH_TOPIC: Final = "t"
RAW, HEAD, LATE = 1, 2, 4


def batches(data: bytes) -> None:
    """What a member of a swarm signed: refused by name, or events that say what their batch says. The fuzzer of it is
    gossip_ext/fuzz/batches.rs; the layout of an input is told there."""
    flags, number, *_ = (*data[:2], 0, 0)
    first = MAX_SEQ - number if flags & LATE else number
    keys = bytes.fromhex(ext.node_id(AUTHOR)) * 2
    numbers = bytes.fromhex(EPOCH) + u(8, first) + u(8, 0)
    body = bytes([1, bool(flags & HEAD)]) + keys + numbers + bytes(32) + u(1, 1) + BATCH_TOPIC.encode() + data[2:]
    try:
        author, epoch, at, messages = ext.open_batch(BATCH_TOPIC, data[2:] if flags & RAW else signed(body))
    except ValueError as error:
        fault = str(error)
    else:
        fault = ""
        assert not flags & (RAW | HEAD)
        assert (author, epoch, at) == (ext.node_id(AUTHOR), EPOCH, first)
        for seq, message in enumerate(messages, first):
            with suppress(FrameError):
                if isinstance(message, bytes):
                    type, _, meta = decode(message)
                    assert (type, place.origin(meta)) == (BATCH_TOPIC, place.Origin(author, epoch, seq))
    assert not fault or fault.partition(":")[0] in {"malformed", "wrong_topic", "bad_signature"}


TARGETS: Final[dict[str, Target]] = {
    target.__name__: target
    for target in (
        messages,
        frames,
        details,
        offers,
        machines.calls,
        machines.streams,
        machines.again,
        subscriptions,
        machines.ring,
        machines.sequence,
        access,
        tickets,
        hub,
        batches,
    )
}
