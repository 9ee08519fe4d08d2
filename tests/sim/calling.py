"""A spoke's calls, made and answered: Caller and Answering put together as spoke/calls.py and answers.py do.

What mirrors what: `start`, `receive`, `lost`, `give_up`, `_apply` and `_tick` of `Calls` are those of Calls there, and
`_step` is the program that reads a stream. Of `Answers`, `receive`, `lost`, `_apply`, `_start` and the three ends of a
handler are those of Answers; its handlers do what the input says. Left out: outputs that no frame takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from broker.errors import ExecutionFailed
from broker.protocol import answering, caller
from tests.sim.asks import Ask, Asks
from tests.sim.world import Alarm, Failure, Process

__all__ = ["OPERATIONS", "Answers", "Calls"]

OPERATIONS = {"echo": "query", "count": "subscription", "relay": "query"}
"""What spokes may offer, and its kind. ``relay`` asks ``echo`` on behalf of its caller."""


@dataclass(eq=False)
class Stream:
    items: deque[caller.Item] = field(default_factory=deque)
    window: int = 0
    over: caller.Finished | None = None
    reading: bool = False


class Calls:
    def __init__(
        self,
        process: Process,
        node_id: str,
        asks: Asks,
        send: Callable[[str, Any], bool],
        control: Callable[[str, Any], None],
    ) -> None:
        self._process, self._node_id, self._asks = process, node_id, asks
        self._send, self._control = send, control
        self._caller = caller.Caller()
        self._streams: dict[str, Stream] = {}
        self._count = 0
        self._then: dict[str, Callable[[Any], None]] = {}
        self._pause: dict[str, float] = {}
        self._alarm = Alarm(process, self._tick)

    def start(
        self,
        operation: str,
        input: dict[str, Any],
        *,
        kind: str = "call",
        timeout: float | None = None,
        window: int = 8,
        pause: float = 0.0,
        parent: str | None = None,
        then: Callable[[Any], None] | None = None,
    ) -> str:
        """``pause``: seconds between two items that the program takes. ``then``: told the output, or None."""
        self._count += 1
        process = self._process
        id = f"{process.name}-{self._count}"
        limit = caller.DEFAULT_TIMEOUT if timeout is None and kind != "stream" else timeout
        deadline = None if limit is None else process.world.now + (limit + caller.GRACE) * 1.01 + 0.01
        items = input.get("items", 0)
        self._asks.began(Ask(id, process.name, self._node_id, kind, operation, items, deadline))
        input = {**input, "call": id}
        roll, stream = kind == "roll", kind == "stream"
        if kind != "call":
            self._streams[id] = Stream(window=window if stream else caller.MAX_ROLL_CALL)
        self._pause[id] = pause
        if then is not None:
            self._then[id] = then
        sent = False
        try:
            now = process.now
            detail = self._caller.start(
                id, operation, input, now, timeout, parent=parent, all=roll, stream=stream, window=window
            )
            sent = self._send("call.requested", detail)
        except ExecutionFailed:
            pass
        if not sent:
            self._caller.give_up(id, "not sent")
            self._end(id, "not sent")
        self._alarm.by(self._caller.next_deadline())
        return id

    def give_up(self, id: str) -> None:
        if id in self._caller:
            self._apply(self._caller.give_up(id))
            self._end(id, "given up")

    def receive(self, type: str, detail: Any) -> None:
        self._apply(self._caller.on(type, detail, self._process.now))

    def lost(self) -> None:
        self._apply(self._caller.lost())

    def _apply(self, effects: Iterable[caller.Effect]) -> None:
        for effect in effects:
            match effect:
                case caller.Resolved(id, output):
                    self._end(id, "answered", output)
                case caller.Item(id):
                    self._streams[id].items.append(effect)
                    self._read(id)
                case caller.Finished(id):
                    self._streams[id].over = effect
                    self._read(id)
                case caller.Failed(id, code):
                    self._end(id, code)
                case caller.Send(type, detail):
                    self._control(type, detail)

    def _read(self, id: str) -> None:
        stream = self._streams.get(id)
        if stream is not None and not stream.reading:
            stream.reading = True
            self._process.later(self._pause[id], lambda: self._step(id))

    def _step(self, id: str) -> None:
        """The program takes one item, or learns of the end."""
        stream = self._streams.get(id)
        if stream is None:
            return
        stream.reading = False
        if stream.items:
            item = stream.items.popleft()
            if item.error is None:
                self._asks.item(id, item.output)
            self._apply(self._caller.consumed(id))
            self._read(id)
        elif stream.over is not None:
            self._end(id, "finished")

    def _end(self, id: str, outcome: str, output: Any = None) -> None:
        self._streams.pop(id, None)
        self._pause.pop(id, None)
        self._asks.ended(id, outcome, output)
        if (then := self._then.pop(id, None)) is not None:
            then(output)

    def _tick(self) -> None:
        self._apply(self._caller.tick(self._process.now))
        self._alarm.by(self._caller.next_deadline())

    @property
    def busy(self) -> str | None:
        return f"{len(self._caller)} calls" if len(self._caller) or self._streams else None

    def check(self) -> None:
        for id, stream in self._streams.items():
            if len(stream.items) > (window := stream.window):
                raise Failure(f"call {id}: {len(stream.items)} items wait for its program, the window is {window}")


class Answers:
    def __init__(
        self,
        process: Process,
        asks: Asks,
        calls: Calls,
        send: Callable[[str, Any], bool],
        control: Callable[[str, Any], None],
    ) -> None:
        self._process, self._asks, self._calls = process, asks, calls
        self._send, self._control = send, control
        self._answering = answering.Answering()
        self._items: dict[str, int] = {}
        """Streams that run: the next item."""
        self._inputs: dict[str, Any] = {}
        self._children: dict[str, str] = {}
        self.ended: dict[str, int] = {}

    def receive(self, type: str, detail: Any) -> None:
        self._apply(self._answering.on(type, detail, self._process.now))

    def lost(self) -> None:
        self._apply(self._answering.lost())

    def _apply(self, effects: Iterable[answering.Effect]) -> None:
        for effect in effects:
            match effect:
                case answering.Start():
                    self._start(effect)
                case answering.Cancel(id):
                    self._over(id)
                    if (child := self._children.pop(id, None)) is not None:
                        self._calls.give_up(child)
                case answering.CreditAdded(id):
                    self._next(id)
                case answering.Send(type, detail):
                    self._control(type, detail)

    def _send_last(self, id: str, effects: list[answering.Effect]) -> None:
        """What ends a call is sent; nothing when it had been cancelled."""
        if effects:
            self._over(id)
            self._apply(effects)

    def _over(self, id: str) -> None:
        if self._inputs.pop(id, None) is None:
            raise Failure(f"{self._process.name}: the call {id} it answers ends twice")
        self._items.pop(id, None)

    def _start(self, start: answering.Start) -> None:
        id, input = start.request_id, start.input
        if id in self._inputs:
            raise Failure(f"{self._process.name}: the call {id} was started twice")
        self._asks.handler(input["call"], self._process.name, start.identity)
        self._inputs[id] = input
        if start.timeout is not None:
            self._process.later(start.timeout, lambda: self._fail(id, "TIMEOUT"))
        work = lambda: self._work(id, start.operation)  # noqa: E731
        self._process.later(input["work"], work)

    def _work(self, id: str, operation: str) -> None:
        input = self._inputs.get(id)
        if input is None or input.get("hang"):
            return
        if input.get("fail"):
            self._fail(id, "EXECUTION_ERROR")
        elif operation == "count":
            self._items[id] = 0
            self._next(id)
        elif operation == "relay":
            asked = {"work": input["work"]}
            done: Callable[[Any], None] = lambda output: self._relayed(id, output)  # noqa: E731
            self._children[id] = ""
            child = self._calls.start("echo", asked, timeout=input.get("timeout"), parent=id, then=done)
            if id in self._children:
                self._children[id] = child
        else:
            self._respond(id)

    def _relayed(self, id: str, output: Any) -> None:
        if self._children.pop(id, None) is not None and id in self._inputs:
            if output is None:
                self._fail(id, "EXECUTION_ERROR")
            else:
                self._respond(id)

    def _respond(self, id: str) -> None:
        output = {"call": self._inputs[id]["call"], "by": self._process.name}
        self._send_last(id, self._answering.respond(id, output))

    def _fail(self, id: str, code: str) -> None:
        self._send_last(id, self._answering.fail(id, code, "it was to fail"))

    def _next(self, id: str) -> None:
        """A stream goes on while it has credit."""
        while id in self._items:
            at, input = self._items[id], self._inputs[id]
            if at >= input["items"]:
                self._send_last(id, self._answering.finish(id))
                return
            effects = self._answering.item(id, {"call": input["call"], "item": at})
            if effects is None:
                return
            self._items[id] = at + 1
            self._apply(effects)

    @property
    def busy(self) -> str | None:
        return f"{len(self._answering)} calls being answered" if len(self._answering) else None

    def check(self) -> None:
        if len(self._answering) > answering.MAX_RUNNING or set(self._inputs) != set(self._answering._credit):
            raise Failure(f"{self._process.name} runs {list(self._inputs)}, Answering has {len(self._answering)}")
