"""A stream that changes from its direct connection to the way through the hub: all of its items, once, in order, and
never more of them waiting than its window. Not here: calls, and what is remembered (test_outcomes.py)."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.protocol.answering import Answering, CreditAdded, Start
from broker.protocol.caller import Caller, Finished, Item, Send
from broker.protocol.outcomes import BESIDE, Asked, Outcomes

MOVES = ("make", "hear", "read", "credit")
SCRIPT = st.lists(st.tuples(st.sampled_from(MOVES), st.integers(1, 12)), max_size=20)


class Going:
    """One stream: who reads it, who makes it, and what is under way between them, as the shells put them together."""

    def __init__(self, window: int, items: int, most: int) -> None:
        self.window, self.items, self.most = window, items, most
        self.caller, self.maker, self.outcomes = Caller(), Answering(), Outcomes()
        detail = self.caller.start("1", "watch", None, 0.0, stream=True, window=window)
        self.way = self.maker
        """What gives the items out: the one that makes them, then the one for the hub."""
        assert isinstance(self.maker.requested(detail), Start)
        life = self.outcomes.open("ann", "c")
        assert life is not None
        self.life = life
        assert self.outcomes.began(life, "1", "watch", stream=True)
        self.asked: Asked = life.calls["1"]
        self.taken: str | None = None
        """By the way through the hub, and not given yet."""
        self.there: deque[tuple[str, Any]] = deque()
        self.back: deque[dict[str, Any]] = deque()
        self.heard = self.made = 0
        self.queue: deque[int] = deque()
        self.got: list[int] = []
        self.finished = False

    def make(self) -> bool:
        """The next step of what makes items, and of what takes them to the caller."""
        moved = self._makes()
        return self._passes() or moved if self.asked.taken else moved

    def _makes(self) -> bool:
        if not self.asked.running:
            return False
        if self.made == self.items:
            self.maker.finish("1")
            self.outcomes.ended(self.life, "1", b"end")
            if not self.asked.taken:
                self.outcomes.sent(self.life, "1")
                self.there.append(("call.completed", {"requestId": "1"}))
            return True
        effects = self.maker.item("1", self.made)
        if effects is None:
            return False
        self.outcomes.item(self.asked, b"%d" % self.made)
        if not self.asked.taken:
            self.there.extend((send.type, send.detail) for send in effects if isinstance(send, Send))
        self.made += 1
        return True

    def _passes(self) -> bool:
        if self.taken is None:
            answer = self.outcomes.take(self.asked)
            if answer is None:
                more = 2 - self.maker.credit("1")
                return bool(more > 0 and self.maker.on("call.credit", {"requestId": "1", "n": more}, 0.0))
            assert isinstance(answer, bytes)
            self.taken = answer.decode()
        if self.taken == "end":
            effects: Any = self.way.finish("1")
        else:
            effects = self.way.item("1", int(self.taken))
        if effects is None:
            return False
        self.taken = None
        self.there.extend((send.type, send.detail) for send in effects)
        return True

    def hear(self) -> bool:
        if not self.there:
            return False
        self.heard += 1
        for effect in self.caller.on(*self.there.popleft(), 0.0):
            match effect:
                case Item(output=output):
                    self.queue.append(output)
                case Finished():
                    self.finished = True
        assert len(self.queue) <= self.window
        return True

    def read(self) -> bool:
        if not self.queue:
            return False
        self.got.append(self.queue.popleft())
        self.back.extend(send.detail for send in self.caller.consumed("1") if isinstance(send, Send))
        return True

    def credit(self) -> bool:
        if not self.back:
            return False
        detail = self.back.popleft()
        if not self.asked.taken:
            self.outcomes.credited(self.life, "1", detail["n"])
        added = self.way.on("call.credit", detail, 0.0)
        assert all(isinstance(effect, CreditAdded) for effect in added)
        return True

    def cut(self) -> None:
        """What is under way is lost; the caller asks again by way of the hub."""
        self.there.clear()
        self.back.clear()
        self.maker.hold()
        assert self.maker.item("1", None) in (None, []), "it waits until somebody goes on with it"
        if self.finished:
            return
        detail = {"requestId": "1", "operationId": "watch", "credit": self.caller.moved("1", self.most)}
        assert self.outcomes.again("ann", "c", "1", self.heard, "watch") is self.asked
        self.way = Answering()
        assert isinstance(self.way.requested(detail), Start)


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 10), SCRIPT, SCRIPT)
@example(4, 40, 9, [("make", 6), ("hear", 6)], [("make", 12), ("hear", 12)])
@example(4, 40, 2, [("make", 6), ("hear", 6)], [("read", 4), ("credit", 2), ("make", 12), ("hear", 12)])
def test_it_goes_on_where_it_was_wherever_it_is_cut(
    window: int, items: int, most: int, before: list[tuple[str, int]], after: list[tuple[str, int]]
) -> None:
    going = Going(window, items, most)
    for script in (before, after):
        for move, times in script:
            for _ in range(times):
                getattr(going, move)()
            assert len(going.asked.frames) <= window + 1
            assert script is before or len(going.there) <= max(most, 1) + 1, "and the end"
        if script is before:
            going.cut()
    while any(getattr(going, move)() for move in MOVES):
        pass
    assert going.got == list(range(items))
    assert going.finished
    assert going.outcomes.bytes == sum(len(frame) + BESIDE for _number, frame in going.asked.frames)
