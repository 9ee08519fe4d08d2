"""Virtual time: a heap of events, a source of chance for each who needs one, and the processes that live in it.

A run is the same each time it is made from the same seed: nothing here, or on top of it, reads a clock, draws from
anything but `World.chance`, or depends on where an object lies in memory: what the shells walk are dicts, in the order
of adding, and no sets of objects. Not here: what happens (network.py, gossip.py, hub.py, spoke.py) and whether it was
right (checker.py).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

__all__ = ["Alarm", "Failure", "Process", "World"]

MAX_STEPS = 1_500_000
"""Events of one run: a run of 1,000 spokes takes some 200,000."""


class Failure(Exception):
    """A promise was broken. The text names it."""


class World:
    def __init__(self, seed: int) -> None:
        self.seed, self.now, self.steps = seed, 0.0, 0
        self.current: Process | None = None
        """Whose code is running."""
        self.trace: Callable[[str], None] | None = None
        """Told each message as it arrives, for whoever looks at one run."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._added = 0

    def chance(self, *of: object) -> random.Random:
        """A generator of its own for each purpose, so that leaving out one thing changes few others."""
        return random.Random(f"{self.seed}/{of!r}")

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self._added += 1
        heapq.heappush(self._heap, (self.now + max(0.0, seconds), self._added, action))

    def run(self, until: float) -> None:
        """Everything up to ``until``, which is the time afterwards."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, action = heapq.heappop(heap)
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise Failure(f"livelock: {MAX_STEPS} events by {self.now:.3f} s, the next is {action!r}")
            action()
        self.now = max(self.now, until)


class Process:
    """One running program: it has a clock of its own, it may be frozen (SIGSTOP, a laptop's lid), and it ends once."""

    def __init__(self, world: World, name: str, *, offset: float = 0.0, rate: float = 1.0) -> None:
        self.world, self.name = world, name
        self.host = name.split("r")[0]
        """Where it runs: a process that was started again has another name there."""
        self._offset, self._rate = offset, rate
        self.alive = True
        self.frozen_until = 0.0
        self.chance = world.chance("process", name)

    @property
    def now(self) -> float:
        """What its monotonic clock says."""
        return self._offset + self.world.now * self._rate

    @property
    def frozen(self) -> bool:
        return self.world.now < self.frozen_until

    def run(self, action: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Its code runs: the clock and the chance that it sees are its own."""
        world = self.world
        before, world.current = world.current, self
        try:
            return action(*args, **more)
        finally:
            world.current = before

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """A timer of the program: it does not outlive it, and waits while it is frozen."""
        self.world.after(max(0.0, seconds) / self._rate, lambda: self.when_awake(action))

    def when_awake(self, action: Callable[[], None]) -> None:
        """Now, or when it is not frozen any more; never if it has ended by then."""
        if not self.alive:
            return
        if self.frozen:
            self.world.after(self.frozen_until - self.world.now, lambda: self.when_awake(action))
        else:
            self.run(action)


class Alarm:
    """One timer that can be moved: what a shell does with ``loop.call_later`` and a handle."""

    __slots__ = ("_action", "_at", "_process")

    def __init__(self, process: Process, action: Callable[[], None]) -> None:
        self._process, self._action = process, action
        self._at: float | None = None

    def by(self, due: float | None) -> None:
        """It goes off at ``due`` (on the process's clock) or earlier; None: nothing new is due."""
        if due is None or (self._at is not None and self._at <= due):
            return
        self._at = due
        self._process.later(due - self._process.now, lambda: self._fire(due))

    def _fire(self, due: float) -> None:
        if self._at == due:
            self._at = None
            self._action()
