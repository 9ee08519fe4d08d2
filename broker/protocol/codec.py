"""Messages to bytes and back: the JSON object of a frame, the length before it, and the reader that splits a stream.

Rules:

1. A frame is 4 bytes, big-endian length N, then N bytes of JSON: ``{"type": string, "detail": any, "meta"?: object}``.
2. Whatever the bytes are, reading gives a :class:`Message` or one FrameError with the close code of the fault.
3. What was read can be written again: nesting that orjson would read but not write is refused on reading, so a
   hub that passes a message on cannot be made to fail by it.

Not here: what a message means (calls, registration, routing), and splitting on the data path, which the extension does
in Rust; :class:`FrameReader` serves streams of other libraries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, overload

import orjson

from broker.errors import FrameError
from broker.protocol.wire import CloseCode

__all__ = [
    "MAX_FRAME_BYTES",
    "MAX_NESTING",
    "MAX_REQUEST_ID",
    "FrameReader",
    "Message",
    "Parts",
    "Places",
    "check_batch",
    "compact",
    "decode",
    "decode_batch",
    "decode_parts",
    "encode",
    "frame",
    "request_id_of",
]

MAX_FRAME_BYTES = 1_048_576
"""Default bound of one frame: the largest message that one peer can make another hold."""

MAX_NESTING = 250
"""Levels of arrays and objects in a frame. orjson reads 1,024 levels but writes only 254, so 254 is the true limit of a
message that is passed on; four are left for what the hub wraps around a peer's JSON (a schema in a listing)."""

MAX_REQUEST_ID = 128
"""Characters of a requestId: a UUID with a prefix fits three times, and each live call keeps one."""

HEADER_BYTES = 4

_new = tuple.__new__
"""A NamedTuple's own constructor is a function in Python; this is half its price, and one is made for every message."""


class Message(NamedTuple):
    """One message. ``detail`` is any JSON (None when absent); ``meta`` is None when absent or not an object."""

    type: str
    detail: Any
    meta: dict[str, Any] | None


M = TypeVar("M", bound=Message)

Parts = tuple[int, bytes]
"""How many events, and a JSON list of each one's detail and of an object with what it adds to ``meta``."""


@overload
def decode(frame: bytes) -> Message: ...
@overload
def decode(frame: bytes, into: type[M]) -> M: ...
def decode(frame: bytes, into: type[Message] = Message) -> Message:
    """The message in one frame's payload, as one of a class of the caller's. FrameError with code 16, 19, 20, 21 or 22
    names what is wrong with it."""
    try:
        value = orjson.loads(frame)
    except orjson.JSONDecodeError as error:
        raise _unreadable(frame, error) from None
    if type(value) is not dict:
        raise FrameError(f"the frame is {_json_type(value)}, not an object", close_code=CloseCode.NOT_AN_OBJECT)
    kind = value.get("type")
    if type(kind) is not str:
        what = "has no type" if kind is None else f"has a type that is {_json_type(kind)}, not a string"
        raise FrameError(f"the message {what}", close_code=CloseCode.NO_TYPE)
    # A level takes two bytes. The exact check costs a third of counting the brackets in the frame.
    if len(frame) > 2 * MAX_NESTING:
        _check_nesting(value)
    meta = value.get("meta")
    return _new(into, (kind, value.get("detail"), meta if type(meta) is dict else None))


def decode_batch(frames: list[bytes], into: type[M]) -> list[M]:
    """The messages of a signed batch's events, read as one JSON text, which costs two thirds of reading each. Only for
    frames of which the extension has seen that each, if it is JSON, is one object with a type and an object as meta
    (gossip_ext/src/event.rs). FrameError 19 or 20 when one is no JSON, or too nested."""
    return [_new(into, (value["type"], value.get("detail"), value["meta"])) for value in check_batch(frames)]


def check_batch(frames: list[bytes]) -> list[dict[str, Any]]:
    """The same for whoever passes them on: what the JSON is."""
    text = b"[%b]" % b",".join(frames)
    values = _list(text, len(frames), len(frames))
    if max(map(len, frames), default=0) > 2 * MAX_NESTING:
        for value in values:
            _check_nesting(value)
    return values


def decode_parts(parts: Parts, topic: str, author: str, epoch: str, first_seq: int, into: type[M]) -> list[M]:
    """The same of events that came in parts: without what their batch says of them, which is half of what there is to
    read. Of each the extension has seen that it is one value and one object, if the list is JSON, and no deeper than 64
    levels (gossip_ext/src/event.rs). FrameError 19 or 20 when the list is none."""
    count, text = parts
    values = _list(text, 2 * count, count)
    messages = []
    for seq, detail, meta in zip(range(first_seq, first_seq + count), values[::2], values[1::2], strict=True):
        meta["author"], meta["epoch"], meta["seq"] = author, epoch, seq
        messages.append(_new(into, (topic, detail, meta)))
    return messages


class Places(Sequence[M]):
    """The same of events of which nothing came but that they did: their place, and None for a detail. A message is made
    when it is looked at, and anew each time."""

    __slots__ = ("_into", "_origin", "_seqs")

    def __init__(self, seqs: range, topic: str, author: str, epoch: str, into: type[M]) -> None:
        self._seqs, self._into = seqs, into
        self._origin = (topic, author, epoch)

    def __len__(self) -> int:
        return len(self._seqs)

    @overload
    def __getitem__(self, at: int) -> M: ...
    @overload
    def __getitem__(self, at: slice) -> Places[M]: ...
    def __getitem__(self, at: int | slice) -> M | Places[M]:
        if isinstance(at, slice):
            return Places(self._seqs[at], *self._origin, self._into)
        return self._made(self._seqs[at])

    def __iter__(self) -> Iterator[M]:
        return map(self._made, self._seqs)

    def _made(self, seq: int) -> M:
        topic, author, epoch = self._origin
        return _new(self._into, (topic, None, {"author": author, "epoch": epoch, "seq": seq}))


def _list(text: bytes, length: int, events: int) -> list[Any]:
    """What a batch's events read as: if they are fewer or more, the numbers of the rest would be wrong."""
    try:
        values: list[Any] = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _unreadable(text, error) from None
    if len(values) != length:
        what = f"{events} events of a batch read as {len(values)} values in place of {length}"
        raise FrameError(what, close_code=CloseCode.BAD_JSON)
    return values


def encode(type: str, detail: Any, meta: dict[str, Any] | None = None) -> bytes:
    """The payload of one frame. ValueError says what JSON cannot carry; NaN and infinities become null (orjson)."""
    message = {"type": type, "detail": detail} if meta is None else {"type": type, "detail": detail, "meta": meta}
    try:
        return compact(orjson.dumps(message))
    except orjson.JSONEncodeError as error:
        raise ValueError(f"{type}: cannot be sent as JSON: {error}") from error


def compact(text: bytes) -> bytes:
    """A copy without the room that orjson leaves behind what it has written: 4 KiB after a small message, ten times the
    size of a large one. What is kept would hold it, whatever a bound counts, and touch as many pages of memory."""
    return b"%b" % text


def frame(payload: bytes) -> bytes:
    """The payload with its length before it. ValueError for an empty one, and for one that 4 bytes cannot count."""
    if not 0 < len(payload) < 1 << 32:
        raise ValueError(f"a frame holds 1 to 4294967295 bytes, not {len(payload)}")
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


def request_id_of(detail: Any, type: str) -> str:
    """The requestId of a ``call.*`` message. Without one there is nobody to answer: FrameError 24."""
    if isinstance(detail, dict):
        request_id = detail.get("requestId")
        if isinstance(request_id, str) and 0 < len(request_id) <= MAX_REQUEST_ID:
            return request_id
        raise FrameError(
            f"{type}: requestId is not a string of 1 to {MAX_REQUEST_ID} characters", close_code=CloseCode.BAD_MESSAGE
        )
    raise FrameError(f"{type}: detail is {_json_type(detail)}, not an object", close_code=CloseCode.BAD_MESSAGE)


class FrameReader:
    """Splits a byte stream into frames. Holds less than one frame; a length over the limit is refused by its header.

    Frames that came whole before a fault are handed out first: :meth:`feed` then returns them, ``fault`` is set, and
    the next call raises it. After a fault nothing is read any more.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES):
        self.fault: FrameError | None = None
        self._limit = max_frame_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole now. Raises FrameError 16 or 17 when the stream has reached a bad header."""
        if self.fault is None:
            self._buffer += data
            frames = self._split()
            if frames or self.fault is None:
                return frames
        raise self.fault

    def finish(self) -> None:
        """Call at the end of the stream. FrameError 18 when it ended inside a frame."""
        if self.fault is None and self._buffer:
            self._fail(f"the stream ended {len(self._buffer)} bytes into a frame", CloseCode.FRAME_CUT_SHORT)
        if self.fault is not None:
            raise self.fault

    def _split(self) -> list[bytes]:
        frames: list[bytes] = []
        buffer, start = self._buffer, 0
        while len(buffer) - start >= HEADER_BYTES:
            body = start + HEADER_BYTES
            size = int.from_bytes(buffer[start:body], "big")
            if size == 0:
                self._fail("empty frame", CloseCode.EMPTY_FRAME)
                return frames
            if size > self._limit:
                self._fail(f"a frame of {size} bytes is over the limit of {self._limit}", CloseCode.FRAME_TOO_LARGE)
                return frames
            if len(buffer) - body < size:
                break
            start = body + size
            frames.append(bytes(buffer[body:start]))
        del buffer[:start]
        return frames

    def _fail(self, message: str, close_code: int) -> None:
        self.fault = FrameError(message, close_code=close_code)
        self._buffer.clear()


def _unreadable(frame: bytes, error: orjson.JSONDecodeError) -> FrameError:
    """orjson tells bad UTF-8 only in words, so ask Python; this is the path of a connection that ends."""
    if not frame:
        return FrameError("empty frame", close_code=CloseCode.EMPTY_FRAME)
    try:
        frame.decode()
    except UnicodeDecodeError as bad:
        return FrameError(f"bad UTF-8 at byte {bad.start}", close_code=CloseCode.BAD_UTF8)
    if "depth" in error.msg or "ecursion" in error.msg:
        return _too_nested()
    return FrameError(f"bad JSON: {error.msg} (byte {error.pos})", close_code=CloseCode.BAD_JSON)


def _check_nesting(value: Any) -> None:
    """Writes it once with the margin around it: orjson counts levels far faster than Python could walk them."""
    try:
        orjson.dumps([[[[value]]]])  # 254 levels are written, MAX_NESTING are left
    except orjson.JSONEncodeError:
        raise _too_nested() from None


def _too_nested() -> FrameError:
    return FrameError(f"bad JSON: nesting deeper than {MAX_NESTING} levels", close_code=CloseCode.BAD_JSON)


def _json_type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"
