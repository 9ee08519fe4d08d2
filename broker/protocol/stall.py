"""Whether anything still comes through a connection that QUIC keeps.

QUIC sends again what was lost on a path when a later packet on that path is acknowledged, or when it gives the path up.
One by relay it gives up after 30 s and more (docs/decisions/0008), and what was sent over it before the connection
moved to a direct path holds up the whole stream meanwhile, while packets go to and fro on the direct one. So who sees a
path by relay fall silent, and another one speak, asks the hub for something over the stream, and leaves the connection
when there is no answer. A connection whose paths are all silent is QUIC's to end.

Pure: ``look(now, paths) -> effect``. Seconds, on any clock that does not go back. Not here: what is asked, and what
leaving means (spoke/stall.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

__all__ = ["TURN", "Effect", "Path", "Stall"]

TURN: Final = 0.25
"""Seconds between looks."""
MOST: Final = 2 * TURN
"""What counts of the time between two: who was held up itself has not listened meanwhile."""

Path = tuple[str, bool, int]
"""Its name, whether it is by relay, how many packets have come over it."""
Effect = Literal["ask", "leave"]


class Stall:
    """Of one connection. Each of its paths that is alive brings a packet every third of ``patience``; half of it is for
    a path to count as silent, and half for the answer: then it is as dead as if nothing had come."""

    def __init__(self, patience: float) -> None:
        self._patience, self._half = patience, patience / 2
        self._last: float | None = None
        self._clock = 0.0
        self._heard: dict[str, tuple[int, float]] = {}
        self._waited: float | None = None
        """For an answer, while another path spoke; or for room, if there was none for the question. None: neither."""
        self._asked = True
        self._answered: float | None = None
        """When, since the silence began."""

    def look(self, now: float, paths: Iterable[Path]) -> Effect | None:
        """To be called every TURN. After ``leave`` it is over."""
        passed = 0.0 if self._last is None else min(now - self._last, MOST)
        self._last = now
        self._clock += passed
        silent = speaks = False
        heard: dict[str, tuple[int, float]] = {}
        for name, by_relay, count in paths:
            before = self._heard.get(name)
            _, since = heard[name] = before if before is not None and before[0] == count else (count, self._clock)
            quiet = self._clock - since >= self._half
            silent |= quiet and by_relay
            speaks |= not quiet
        self._heard = heard
        if not silent:
            self._waited = self._answered = None
        elif speaks:
            return self._stuck(passed)
        return None

    def asked(self, sent: bool) -> None:
        """What became of ``ask``. Without room the question did not go out, and nobody can have answered it. So it is
        asked again, and the connection left only when there was no room for all of the patience."""
        if sent and not self._asked:
            self._waited = 0.0
        self._asked = sent

    def answered(self) -> None:
        """What was asked has been answered: nothing was on its way over the silent path."""
        self._waited, self._answered = None, self._clock

    def _stuck(self, passed: float) -> Effect | None:
        if self._waited is not None:
            self._waited += passed
            if self._waited >= (self._half if self._asked else self._patience):
                return "leave"
            return None if self._asked else "ask"
        if self._answered is None or self._clock - self._answered >= self._patience:
            self._waited, self._asked = 0.0, True
            return "ask"
        return None
