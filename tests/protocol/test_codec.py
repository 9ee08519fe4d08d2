"""Bytes to messages and back, and the splitting of streams: whatever the bytes are, a result or one FrameError."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import FrameError
from broker.events import Event
from broker.protocol.codec import (
    MAX_NESTING,
    MAX_REQUEST_ID,
    FrameReader,
    Message,
    Places,
    decode,
    decode_batch,
    decode_parts,
    encode,
    frame,
    request_id_of,
)

READABLE = {16, 19, 20, 21, 22}

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
json = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


def nested(levels: int, value: Any = 1) -> Any:
    for _ in range(levels):
        value = [value]
    return value


def tried(data: bytes) -> tuple[int | None, Message | None]:
    try:
        return None, decode(data)
    except FrameError as error:
        return error.close_code, None


@given(st.text(), json, st.none() | st.dictionaries(st.text(), json, max_size=3))
def test_what_is_written_is_read(type: str, detail: Any, meta: dict[str, Any] | None) -> None:
    assert decode(encode(type, detail, meta)) == Message(type, detail, meta)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_one_frame_error(data: bytes) -> None:
    code, message = tried(data)
    assert (message is None) == (code in READABLE)
    assert message is None or isinstance(message.type, str)


@given(json)
def test_any_json_gives_a_message_or_one_frame_error(value: Any) -> None:
    code, message = tried(orjson.dumps(value))
    if message is None:
        assert code == (22 if isinstance(value, dict) else 21)
    else:
        assert message.type == value["type"]
        assert encode(*message)


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (b"", 16, "empty"),
        (b'{"type":"a\xff"}', 19, "UTF-8 at byte 10"),
        (b"\xed\xa0\x80", 19, "UTF-8"),
        (b"{", 20, "JSON"),
        (b"nonsense", 20, "JSON"),
        (b'{"type":"\\ud800"}', 20, "JSON"),
        (b'{"type":"a","detail":NaN}', 20, "JSON"),
        (b'{"type":"a"} x', 20, "JSON"),
        (b"[" * 2000 + b"]" * 2000, 20, "nesting"),
        (b'{"type":"a","detail":' + b"[" * 300 + b"]" * 300 + b"}", 20, "nesting"),
        (b"[" * 100_000, 20, "nesting"),
        (b"null", 21, "null"),
        (b"true", 21, "boolean"),
        (b"7", 21, "number"),
        (b'"x"', 21, "string"),
        (b"[]", 21, "array"),
        (b"{}", 22, "no type"),
        (b'{"type":null}', 22, "no type"),
        (b'{"type":{}}', 22, "object"),
        (b'{"type":5}', 22, "number"),
    ],
)
def test_a_fault_has_its_close_code_and_says_what_it_is(data: bytes, code: int, says: str) -> None:
    with pytest.raises(FrameError, match=says) as caught:
        decode(data)
    assert caught.value.close_code == code


def test_absent_and_unknown_keys() -> None:
    assert decode(b'{"type":"a"}') == Message("a", None, None)
    assert decode(b'{"type":"a","detail":1,"more":2}') == Message("a", 1, None)


@pytest.mark.parametrize("meta", [b"null", b"[]", b"3", b'"x"', b"false"])
def test_meta_that_is_not_an_object_is_none(meta: bytes) -> None:
    assert decode(b'{"type":"a","meta":' + meta + b"}").meta is None


def test_what_is_just_nested_enough_can_be_written_again_with_more_around_it() -> None:
    deep = nested(MAX_NESTING - 1)  # the message's own object is a level
    message = decode(encode("a", deep))
    encode("listing", {"output": [[message.detail]]})
    with pytest.raises(FrameError, match="nesting") as caught:
        decode(encode("a", nested(MAX_NESTING)))
    assert caught.value.close_code == 20


def test_brackets_in_strings_are_not_nesting() -> None:
    assert decode(encode("a", "[{" * 5_000)).detail == "[{" * 5_000
    assert decode(encode("a", [[] for _ in range(5_000)])).detail == [[]] * 5_000


@pytest.mark.parametrize("detail", [{1: 2}, {"a": {3, 4}}, b"bytes", 2**64, "\ud800", object(), nested(300)])
def test_what_json_cannot_carry_is_a_value_error_that_names_the_type(detail: Any) -> None:
    with pytest.raises(ValueError, match=r"orders\.created: cannot be sent as JSON"):
        encode("orders.created", detail)


def test_not_a_number_is_null() -> None:
    assert decode(encode("a", [float("nan"), float("inf")])).detail == [None, None]


@pytest.mark.parametrize(
    "detail", [None, 5, "x", [], True, {}, {"requestId": None}, {"requestId": 7}, {"requestId": ""}]
)
def test_a_call_without_a_request_id_is_a_bad_message(detail: Any) -> None:
    with pytest.raises(FrameError, match=r"call\.credit: ") as caught:
        request_id_of(detail, "call.credit")
    assert caught.value.close_code == 24


def test_a_request_id_has_a_longest() -> None:
    assert request_id_of({"requestId": "x" * MAX_REQUEST_ID}, "call.error") == "x" * MAX_REQUEST_ID
    with pytest.raises(FrameError, match="1 to 128"):
        request_id_of({"requestId": "x" * (MAX_REQUEST_ID + 1)}, "call.error")


# The reader of streams


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(data)) for place in at), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def read(chunks: list[bytes], limit: int = 100) -> tuple[list[bytes], int | None]:
    """The frames, and the close code that the stream ended with."""
    reader, frames = FrameReader(limit), []
    try:
        for chunk in chunks:
            frames += reader.feed(chunk)
        reader.finish()
    except FrameError as error:
        return frames, error.close_code
    return frames, None


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(0, 400), max_size=12))
def test_chunks_do_not_matter(payloads: list[bytes], at: list[int]) -> None:
    assert read(cut(b"".join(map(frame, payloads)), at)) == (payloads, None)


@given(st.binary(max_size=120), st.lists(st.integers(0, 120), max_size=12), st.integers(1, 30))
def test_chunks_do_not_matter_for_faults_either(data: bytes, at: list[int], limit: int) -> None:
    assert read(cut(data, at), limit) == read([data], limit)


def test_frames_before_a_fault_come_first() -> None:
    reader = FrameReader(10)
    assert reader.feed(frame(b"one") + frame(b"two") + b"\0\0\0\0" + frame(b"three")) == [b"one", b"two"]
    assert reader.fault is not None
    for _ in range(2):
        with pytest.raises(FrameError, match="empty frame"):
            reader.feed(frame(b"four"))


def test_a_length_over_the_limit_is_refused_by_its_header() -> None:
    assert read([frame(b"x" * 10)], 10) == ([b"x" * 10], None)
    assert read([(11).to_bytes(4, "big")], 10) == ([], 17)
    assert read([b"\xff\xff\xff\xff"], 10) == ([], 17)


@pytest.mark.parametrize("end", [1, 3, 4, 6])
def test_a_stream_that_ends_inside_a_frame_was_cut_short(end: int) -> None:
    assert read([frame(b"abc") + frame(b"def")[:end]]) == ([b"abc"], 18)


def test_a_reader_holds_less_than_a_frame() -> None:
    reader = FrameReader(100)
    for _ in range(1_000):
        reader.feed(frame(b"x" * 100) + frame(b"y" * 50)[:30])
        reader.feed(frame(b"y" * 50)[30:])
        assert len(reader._buffer) <= 104


@pytest.mark.parametrize("payload", [b""])
def test_an_empty_frame_is_not_written(payload: bytes) -> None:
    with pytest.raises(ValueError, match="holds 1 to"):
        frame(payload)


def test_a_message_is_read_as_what_the_caller_wants_it_to_be() -> None:
    written = encode("a.b", [1], {"author": "x", "seq": 7})
    event = decode(written, Event)
    assert type(event) is Event
    assert (event.author, event.seq, event.reliable) == ("x", 7, True)
    assert event == decode(written) == Message("a.b", [1], {"author": "x", "seq": 7})
    assert repr(event) == "Event(type='a.b', detail=[1], meta={'author': 'x', 'seq': 7})"


@given(st.lists(st.tuples(st.text(), json, st.dictionaries(st.text(), json, max_size=3)), max_size=5))
def test_a_batch_is_read_as_its_messages_are(said: list[tuple[str, Any, dict[str, Any]]]) -> None:
    frames = [encode(*one) for one in said]
    assert decode_batch(frames, Event) == [decode(frame) for frame in frames] == [Message(*one) for one in said]


@pytest.mark.parametrize("detail", [b"tru", b"01", b'"\xff"', b"[1}", b"NaN", orjson.dumps(nested(MAX_NESTING))])
def test_of_a_batch_with_one_that_is_unreadable_nothing_is_read(detail: bytes) -> None:
    right, wrong = encode("a", 1, {"seq": 1}), b'{"type":"a","detail":%b,"meta":{"seq":2}}' % detail
    with pytest.raises(FrameError) as alone:
        decode(wrong)
    for frames in ([right, wrong], [wrong, right], [wrong]):
        with pytest.raises(FrameError) as caught:
            decode_batch(frames, Event)
        assert caught.value.close_code == alone.value.close_code


def test_of_a_batch_whose_frames_are_not_one_message_each_nothing_is_read() -> None:
    one, two = encode("a", 1, {"seq": 1}), encode("a", 2, {"seq": 2})
    for frames in ([one + b"," + two], [one + b"," + two, one], [one[:-1], two[1:]]):
        with pytest.raises(FrameError):
            decode_batch(frames, Event)


def parts(*events: tuple[Any, dict[str, Any]]) -> tuple[int, bytes]:
    """As the extension makes them."""
    return len(events), orjson.dumps([one for event in events for one in event])


@given(st.lists(st.tuples(json, st.dictionaries(st.text(), json, max_size=3)), max_size=5), st.integers(1, 2**53 - 6))
def test_a_batch_in_parts_is_read_as_its_messages_are(said: list[tuple[Any, dict[str, Any]]], first: int) -> None:
    told = [(detail, {k: v for k, v in more.items() if k not in ("author", "epoch", "seq")}) for detail, more in said]
    place = {"author": "a" * 64, "epoch": "e" * 16}
    messages = [Message("t.x", detail, {**more, **place, "seq": seq}) for seq, (detail, more) in enumerate(told, first)]
    read = decode_parts(parts(*told), "t.x", "a" * 64, "e" * 16, first, Event)
    assert read == messages
    assert all(type(event) is Event for event in read)


@pytest.mark.parametrize("detail", [b"tru", b"01", b'"\xff"', b"[1}", b"NaN", b"", b"{", b"]"])
def test_of_parts_with_one_that_is_unreadable_nothing_is_read(detail: bytes) -> None:
    for text in (b"[%b,{}]", b"[1,{},%b,{}]", b"[%b,{},1,{}]", b'[1,{"ts":%b},1,{}]'):
        with pytest.raises(FrameError):
            decode_parts((text.count(b"{}"), text % detail), "t", "a", "e", 1, Event)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_parts_that_are_not_as_many_as_they_say_are_not_read(count: int) -> None:
    with pytest.raises(FrameError, match=f"{count} events of a batch read as 4 values"):
        decode_parts((count, b"[1,{},2,{}]"), "t", "a", "e", 1, Event)


@given(st.integers(0, 5), st.integers(1, 2**53 - 6), st.integers(-7, 7), st.integers(-7, 7))
def test_places_are_messages_that_are_made_when_they_are_looked_at(count: int, first: int, a: int, b: int) -> None:
    seqs = range(first, first + count)
    made = [Message("t.x", None, {"author": "a" * 64, "epoch": "e" * 16, "seq": seq}) for seq in seqs]
    run = Places(seqs, "t.x", "a" * 64, "e" * 16, Event)
    assert (len(run), list(run), list(reversed(run))) == (count, made, made[::-1])
    assert all(type(event) is Event for event in run)
    assert (list(run[a:b]), len(run[a:b])) == (made[a:b], len(made[a:b]))
    for at in range(-count, count):
        assert run[at] == made[at]
    for at in (count, -count - 1):
        with pytest.raises(IndexError):
            run[at]
    if count:
        assert run[0] is not run[0], "whoever changes one changes nobody else's"
