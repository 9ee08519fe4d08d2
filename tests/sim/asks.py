"""The judge's record of calls: what was asked, which handlers ran for it, and each end that its caller was told of.

A promise that is broken raises `Failure`: a call ends once and in time, its answer is its own, its handler runs at most
once, it knows who asked, a stream's items are all there and in order. Not here: events (checker.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.sim.world import Failure, World

__all__ = ["Ask", "Asks"]

SLACK = 0.001


@dataclass(eq=False)
class Ask:
    """One call, as its program made it. ``kind``: call, stream or roll."""

    id: str
    caller: str
    node_id: str
    kind: str
    operation: str
    items: int
    deadline: float | None
    """By when it is over, whatever happens, on the world's clock."""
    outcome: str = ""
    got: list[Any] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    gone: bool = False
    """Its caller ended before it."""


class Asks:
    def __init__(self, world: World) -> None:
        self.world = world
        self.all: dict[str, Ask] = {}
        self.counts: dict[str, int] = {}
        self.hub_ended = self.hub_began = 0
        self.excused = False
        """Something stood still: calls may end late."""

    def began(self, ask: Ask) -> None:
        self.all[ask.id] = ask

    def handler(self, id: str, spoke: str, identity: dict[str, Any] | None) -> None:
        """An operation is run for a call."""
        ask = self.all[id]
        if identity is None or identity.get("id") != ask.node_id:
            raise Failure(f"call {id}: its handler at {spoke} is told it is for {identity}, it is for {ask.node_id}")
        if spoke in ask.ran or (ask.ran and ask.kind != "roll"):
            raise Failure(f"call {id}: run at {spoke}, and before at {ask.ran}")
        ask.ran.append(spoke)

    def item(self, id: str, output: Any) -> None:
        """Its program has taken an item."""
        ask = self.all[id]
        if ask.outcome:
            raise Failure(f"call {id}: an item after its end ({ask.outcome})")
        if output.get("call") != id or (ask.kind == "stream" and output.get("item") != len(ask.got)):
            raise Failure(f"call {id}: item {len(ask.got)} is {output}")
        ask.got.append(output)

    def ended(self, id: str, outcome: str, output: Any = None) -> None:
        """Its program is told the end, or gave up."""
        ask = self.all[id]
        if ask.outcome:
            raise Failure(f"call {id}: ends with {outcome}, and had ended with {ask.outcome}")
        ask.outcome = outcome
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        if outcome == "answered" and output.get("call") != id:
            raise Failure(f"call {id}: has the answer of {output}")
        if outcome == "answered" and not ask.ran:
            raise Failure(f"call {id}: answered, and no handler ran")
        if outcome == "finished" and ask.kind == "stream" and len(ask.got) != ask.items:
            raise Failure(f"call {id}: finished after {len(ask.got)} of {ask.items} items")
        if (
            ask.kind == "call"
            and ask.deadline is not None
            and self.world.now > ask.deadline + SLACK
            and not self.excused
        ):
            raise Failure(f"call {id}: {outcome} at {self.world.now:.3f}, its deadline was {ask.deadline:.3f}")

    def caller_gone(self, caller: str) -> None:
        for ask in self.all.values():
            if ask.caller == caller and not ask.outcome:
                ask.gone = True

    def judge(self, callers_saw: bool) -> None:
        """``callers_saw``: no connection broke, so that what the hub counts is what callers were told."""
        for ask in self.all.values():
            if not ask.outcome and not ask.gone:
                raise Failure(f"call {ask.id} of {ask.caller} ({ask.kind} {ask.operation}) never ended")
        if self.hub_began != self.hub_ended:
            raise Failure(f"the hubs took {self.hub_began} calls and ended {self.hub_ended}")
        if callers_saw and self.hub_ended != len(self.all):
            raise Failure(f"the hubs count {self.hub_ended} calls, {len(self.all)} were made")
