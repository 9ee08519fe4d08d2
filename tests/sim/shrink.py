"""Makes a failing run small: items of its scenario are left out as long as it still fails in the same way.

Not here: what an item is (scenario.py). What comes out is a list of numbers that, with the seed, is the whole run.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.sim.runner import Run
from tests.sim.scenario import Scenario, draw

__all__ = ["failure_of", "numbers", "ranges", "shrink"]

MOST_RUNS = 600
"""After so many tries it is small enough."""


def failure_of(scenario: Scenario) -> str | None:
    """What is wrong with a run, or None."""
    try:
        Run(scenario).run()
    except Exception as error:  # a machine that raises is as wrong as one that lies
        return f"{type(error).__name__}: {error}"
    return None


def same(one: str, other: str) -> bool:
    """Whether two failures are probably one: their words are, whatever their numbers."""
    return _words(one) == _words(other)


def _words(failure: str) -> list[str]:
    return re.findall(r"[a-z]{3,}", failure)[:8]


def shrink(
    seed: int, failure: str, fails: Callable[[Scenario], str | None] = failure_of, most: int = MOST_RUNS
) -> tuple[list[int], str]:
    """The items to keep, and how the smaller run fails."""
    whole = draw(seed)
    kept, size, runs = list(range(whole.items)), whole.items // 2, 0
    while size and runs < most:
        at, found = 0, False
        while at < len(kept) and runs < most:
            fewer = kept[:at] + kept[at + size :]
            runs += 1
            other = fails(whole.only(fewer)) if fewer else None
            if other is not None and same(other, failure):
                kept, failure, found = fewer, other, True
            else:
                at += size
        size = size if found and size == 1 else size // 2
    return kept, failure


def ranges(numbers: list[int]) -> str:
    """``0,3-5``."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def numbers(text: str) -> list[int]:
    """What `ranges` wrote."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
