"""What a spoke does about a connection through which nothing comes, with an endpoint that says what its paths bring."""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson

from broker.protocol.stall import TURN
from broker.spoke.link import Link
from broker.spoke.stall import StallWatch
from tests.spoke.test_link import TICKET, FakeEndpoint, link_to_a_hub

PATIENCE = 6.0
HELLO = b'{"type": "hub.register", "detail": {"operations": []}}'


class Paths(FakeEndpoint):
    """A direct path that speaks, and one by relay that does not."""

    count = 0

    def paths(self, conn: int) -> list[tuple[str, bool, int]]:
        self.count += 1
        return [("0", True, 7), ("1", False, self.count)] if conn in (1, 2) else []


class Stuck:
    def __init__(self) -> None:
        self.endpoint = Paths()
        self.link: Link = link_to_a_hub(self.endpoint)
        self.answers: list[tuple[str, Any]] = []
        for type in ("call.responded", "call.error"):
            self.link.receivers[type] = partial(self._answered, type)
        self.link.frames(1, [HELLO])
        self.watch, self.now = StallWatch(self.link, PATIENCE), 0.0
        self.endpoint.sent.clear()

    def _answered(self, type: str, detail: Any) -> None:
        self.answers.append((type, detail))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += TURN
            self.watch._turn(self.now)

    def asked(self) -> list[Any]:
        return [message["detail"] for message in map(orjson.loads, self.endpoint.sent)]

    def says(self, type: str, **detail: Any) -> None:
        self.link.frames(1, [orjson.dumps({"type": type, "detail": detail})])


async def test_it_asks_the_hub_and_leaves_when_there_is_no_answer() -> None:
    stuck = Stuck()
    stuck.run(PATIENCE / 2 + 2 * TURN)
    (question,) = stuck.asked()
    assert (question["operationId"], stuck.link.up) == ("hub.topics", True)
    stuck.run(PATIENCE / 2 + TURN)
    assert (stuck.endpoint.ended, stuck.link.up, stuck.link.conn) == ([(1, 0)], False, None)
    assert "nothing came through it" in str(stuck.link.trouble())


async def test_any_answer_will_do_and_those_to_the_programs_calls_go_where_they_belong() -> None:
    for type, rest in (("call.responded", {"output": []}), ("call.error", {"code": "OPERATION_NOT_FOUND"})):
        stuck = Stuck()
        stuck.run(PATIENCE / 2 + 2 * TURN)
        (question,) = stuck.asked()
        stuck.says("call.responded", requestId="mine", output=1)
        stuck.says(type, requestId=question["requestId"], **rest)
        stuck.says(type, requestId="mine too", **rest)
        stuck.run(PATIENCE - 2 * TURN)
        assert [detail["requestId"] for _, detail in stuck.answers] == ["mine", "mine too"]
        assert (stuck.endpoint.ended, len(stuck.asked())) == ([], 1)


async def test_a_question_that_has_no_room_is_asked_again() -> None:
    stuck = Stuck()
    stuck.endpoint.room = False
    stuck.run(PATIENCE)
    assert (stuck.asked(), stuck.endpoint.ended) == ([], [])
    stuck.endpoint.room = True
    stuck.run(2 * TURN)
    (question,) = stuck.asked()
    stuck.says("call.responded", requestId=question["requestId"], output=[])
    stuck.run(PATIENCE - 2 * TURN)
    assert stuck.endpoint.ended == []


async def test_the_next_connection_begins_anew() -> None:
    stuck = Stuck()
    stuck.run(PATIENCE / 2 + 2 * TURN)
    stuck.link.closed(1, None, "gone", True)
    stuck.run(TURN)
    stuck.link.opened(2, TICKET.node_id, True, 0)
    stuck.link.frames(2, [HELLO])
    stuck.run(PATIENCE / 2 - 2 * TURN)
    assert (stuck.link.conn, stuck.endpoint.ended) == (2, [])
