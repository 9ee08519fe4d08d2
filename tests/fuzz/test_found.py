"""What fuzzing found in the hub, each fault by itself. Those of one function have their test in tests/protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from broker.protocol.codec import decode
from tests.fuzz.endpoint import Clock
from tests.fuzz.hub import FEW, RINGS, Play, frozen
from tests.fuzz.peers import NODES
from tests.fuzz.script import Script

ANN, BOB = 1, 2


@pytest.fixture
async def play() -> AsyncIterator[Play]:
    """A hub with Ann and Bob, and frames of 2 KiB."""
    clock = Clock()
    with frozen(clock):
        play = Play(Script(b""), clock)
        play.connect(ANN, NODES[1])
        play.connect(BOB, NODES[2])
        yield play
        play.router.stop()


def says(play: Play, conn: int, type: str, detail: Any) -> None:
    play.says(conn, orjson.dumps({"type": type, "detail": detail}))


def heard(play: Play, conn: int) -> list[str]:
    play.router.batch_done(1)
    sent, play.endpoint.sent = play.endpoint.sent, []
    return [decode(frame).type for to, frame in sent if to == conn]


async def test_a_stream_whose_one_answer_is_too_large_ends_once(play: Play) -> None:
    """It had been told call.error for the answer, and then call.completed for the stream."""
    says(play, BOB, "hub.register", {"operations": [{"id": "get", "kind": "query"}]})
    says(play, ANN, "call.requested", {"requestId": "x" * 128, "operationId": "get", "stream": True})
    play.router.batch_done(1)
    [leg] = [decode(sent.frame).detail["requestId"] for sent in play.endpoint.sent if b"call.requested" in sent.frame]
    heard(play, ANN)
    too_large_with_the_longer_id = "x" * (FEW.max_frame_bytes - 98)
    says(play, BOB, "call.responded", {"requestId": leg, "output": too_large_with_the_longer_id})
    assert heard(play, ANN) == ["call.error"]
    says(play, ANN, "call.requested", {"requestId": "2", "operationId": "get", "all": True})
    play.router.batch_done(1)
    [leg] = [decode(sent.frame).detail["requestId"] for sent in play.endpoint.sent if b"call.requested" in sent.frame]
    heard(play, ANN)
    says(play, BOB, "call.responded", {"requestId": leg, "output": too_large_with_the_longer_id})
    assert heard(play, ANN) == ["call.responded", "call.completed"], "of a roll-call it is one of several answers"


async def test_topics_that_end_in_the_batch_they_began_in_leave_no_bytes_behind(play: Play) -> None:
    """What they held was taken off the hub's sum and then added again, so that in the end it was over its bound."""
    for _ in range(10):
        for topic in "abcdefg":
            says(play, ANN, topic, "x" * 100)
        play.router.batch_done(1)
    channels = play.router.topics.channels
    assert len(channels) == RINGS.most_topics
    assert play.router.topics.ring_bytes == sum(channel.ring.bytes for channel in channels.values()) > 0
