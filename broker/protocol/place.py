"""Where an event, or a subscriber, is in the sequences of a topic, as a peer may write it.

Not here: what follows from it (sequence.py at the subscriber, ring.py at the hub).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from broker.errors import FrameError
from broker.protocol.cursor import Source
from broker.protocol.tracker import MAX_SEQ
from broker.protocol.wire import CloseCode

__all__ = ["Origin", "Positions", "RingSince", "Since", "already_had", "check_seq", "origin", "parse_since"]

MAX_NAME: Final = 128
"""Characters of an author or epoch from a peer: a NodeId has 64, an epoch 16."""

Positions = Mapping[str, Mapping[str, tuple[str, int]]]
Since = Literal["start"] | int | Positions | None
RingSince = Literal["start"] | int | Mapping[str, tuple[str, int]] | None
"""The same for one topic: positions are {author: (epoch, seq)}."""


class Origin(NamedTuple):
    """Who sent an event, and as which of theirs."""

    author: str
    epoch: str
    seq: int


def check_seq(seq: int, least: int) -> None:
    if type(seq) is not int or not least <= seq <= MAX_SEQ:
        raise _wrong(f"sequence number {seq!r} is not an integer from {least} to {MAX_SEQ}")


def _wrong(message: str) -> FrameError:
    return FrameError(message, close_code=CloseCode.BAD_MESSAGE)


def origin(meta: Mapping[str, Any] | None) -> Origin | None:
    """Author, epoch and seq of a message's ``meta``; None when it has none (an upstream peer).

    FrameError when it has some of them, or what cannot be one: taken for none it would be numbered a second time.
    """
    if meta is None or not ("author" in meta or "epoch" in meta or "seq" in meta):
        return None
    author, epoch, seq = meta.get("author"), meta.get("epoch"), meta.get("seq")
    if not (_is_name(author) and _is_name(epoch) and type(seq) is int and 1 <= seq <= MAX_SEQ):
        raise _wrong("meta: author and epoch are strings, seq an integer from 1")
    return Origin(author, epoch, seq)  # type: ignore[arg-type]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME


def parse_since(value: Any) -> Since:
    """The ``since`` of a ``__subscribe``; FrameError when it is none of its four forms."""
    if value is None:
        return None
    if value == "start":
        return "start"
    if type(value) is int and 0 <= value <= MAX_SEQ:
        return value
    if isinstance(value, dict):
        return {topic: _authors(authors) for topic, authors in value.items()}
    raise _wrong("since: null, 'start', a number from 0, or {topic: {author: [epoch, seq]}}")


def _authors(authors: Any) -> dict[str, tuple[str, int]]:
    if isinstance(authors, dict):
        found = {author: tuple(at) for author, at in authors.items() if isinstance(at, (list, tuple))}
        if len(found) == len(authors) and all(
            len(at) == 2 and _is_name(at[0]) and type(at[1]) is int and 0 <= at[1] <= MAX_SEQ for at in found.values()
        ):
            return found
    raise _wrong("since: positions are {topic: {author: [epoch, seq]}}")


def already_had(since: RingSince, sources: Sequence[Source]) -> dict[Source, int]:
    """Up to which number of each source a seeker has everything; ``sources`` are in the order of their first event.

    An author that positions do not name began after they were taken. Of several epochs of one author, those heard of
    before the named one are behind it.
    """
    if not isinstance(since, Mapping):
        return dict.fromkeys(sources, max(0, since - 1) if isinstance(since, int) else 0)
    known = {(source.author, source.epoch) for source in sources}
    had: dict[Source, int] = {}
    reached: set[str] = set()
    for source in sources:
        epoch, seq = since.get(source.author, ("", 0))
        if epoch == source.epoch:
            reached.add(source.author)
            had[source] = seq
        else:
            behind = source.author not in reached and (source.author, epoch) in known
            had[source] = source.newest if behind else 0
    return had
