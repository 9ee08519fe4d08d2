"""Bytes as a script: what a fuzzer wrote, read as choices; and machines of the model tests that act it out.

A byte that is not there any more is zero, so every input is a script, and a shorter one the beginning of a longer one.
Not here: which choices there are (machines.py, targets.py), and the models: they are in tests/protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from hypothesis.stateful import RuleBasedStateMachine

__all__ = ["MAX_STEPS", "Drawn", "Script", "act"]

MAX_STEPS = 200
"""Steps of one script: models look at everything after each of them, so a long script is slower than two short ones."""

T = TypeVar("T")
M = TypeVar("M", bound=RuleBasedStateMachine)


class Script:
    """Reads an input from its beginning to its end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        """Whether there is more."""
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included: one byte where that is enough."""
        span, value, room = high - low + 1, self.byte(), 256
        while room < span:
            value, room = value * 256 + self.byte(), room * 256
        return low + value % span

    def flag(self) -> bool:
        return bool(self.byte() & 1)

    def one(self, options: Sequence[T]) -> T:
        return options[self.byte() % len(options)]

    def some(self, options: Sequence[T]) -> list[T]:
        """Any of at most eight, in their order."""
        bits = self.byte()
        return [option for place, option in enumerate(options) if bits >> place & 1]

    def many(self, most: int, make: Callable[[], T]) -> list[T]:
        """Up to ``most``."""
        return [make() for _ in range(self.byte() % (most + 1))]

    def take(self, most: int) -> bytes:
        """Up to ``most`` bytes as they are."""
        size = min(self.number(0, most), len(self._data) - self._at)
        return self._cut(max(size, 0))

    def rest(self) -> bytes:
        return self._cut(len(self._data))

    def _cut(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece


class Drawn:
    """In place of Hypothesis's ``data()``: what a rule draws, in its order, whichever strategy it names."""

    def __init__(self, *values: Any) -> None:
        self._values = iter(values)

    def draw(self, _strategy: Any, _label: Any = None) -> Any:
        return next(self._values)


def act(
    machine: M, moves: Sequence[Callable[[M, Script], None]], invariants: Sequence[Callable[[M], None]], script: Script
) -> None:
    """Has the machine of a model test do what the script says, and looks at its invariants after every step."""
    try:
        for _ in range(MAX_STEPS):
            if not script:
                break
            script.one(moves)(machine, script)
            for invariant in invariants:
                invariant(machine)
    except BaseException:
        with suppress(Exception):  # what was wrong first is what is told
            machine.teardown()
        raise
    machine.teardown()
