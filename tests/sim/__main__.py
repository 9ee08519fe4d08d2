"""``python -m tests.sim``: many seeds, or one of them again. `make sim SEEDS=10000` and `make sim SEED=7` call it.

A seed that fails is made small, and the command that replays it is printed. Not here: what is simulated (runner.py).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.sim.runner import Run
from tests.sim.scenario import Scenario, draw
from tests.sim.shrink import failure_of, numbers, ranges, shrink

BAR = 30
MOST_SHOWN = 3
"""Failing seeds that are made small and printed; of more there is only the number."""


def outcome(seed: int) -> tuple[int, str | None]:
    return seed, failure_of(draw(seed))


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Progress:
    """A bar on a terminal; elsewhere a line for every tenth."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._failed = total, 0, 0
        self._began, self._drawn = time.monotonic(), 0.0
        self._live = sys.stderr.isatty()

    def step(self, failed: bool) -> None:
        self._done += 1
        self._failed += failed
        now = time.monotonic()
        tenth = self._done * 10 // self._total != (self._done - 1) * 10 // self._total
        if tenth if not self._live else (now - self._drawn > 0.1 or self._done == self._total):
            self._drawn = now
            left = (now - self._began) / self._done * (self._total - self._done)
            bar = ("#" * (self._done * BAR // self._total)).ljust(BAR, ".")
            text = f"[{bar}] {self._done}/{self._total} seeds, {self._failed} failed, {left:.0f} s left"
            sys.stderr.write(f"\r{text} " if self._live else f"{text}\n")
            if self._done == self._total and self._live:
                sys.stderr.write("\n")


def outcomes(seeds: Iterable[int], jobs: int) -> Iterator[tuple[int, str | None]]:
    if jobs == 1:
        yield from map(outcome, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(outcome, seeds, chunksize=20)


def many(first: int, count: int, jobs: int) -> int:
    """Runs seeds. Returns how many failed."""
    progress, failed = Progress(count), 0
    for seed, failure in outcomes(range(first, first + count), jobs):
        progress.step(failure is not None)
        if failure is not None:
            failed += 1
            if failed <= MOST_SHOWN:
                report(seed, failure)
    say(f"{count} seeds from {first}: {failed} failed")
    return failed


def report(seed: int, failure: str) -> None:
    say(f"\nseed {seed} fails: {failure}")
    kept, smaller = shrink(seed, failure)
    scenario = draw(seed)
    say(f"made small, {len(kept)} of {scenario.items} items: {smaller}")
    show(scenario.only(kept))
    say(f"the same again: make sim SEED={seed} ONLY={ranges(kept)}\n")


def show(scenario: Scenario) -> None:
    say(f"  {scenario.weather}\n  {scenario.rings}, gentle={scenario.gentle}, scoped={scenario.scoped}")
    for one in (*scenario.spokes, *scenario.actions):
        say(f"  {one}")


def once(seed: int, kept: list[int] | None, *, trace: bool) -> int:
    """One seed again, with all that is in it. Returns 1 when it fails."""
    scenario = draw(seed) if kept is None else draw(seed).only(kept)
    show(scenario)
    run = Run(scenario)
    if trace:
        run.world.trace = say
    try:
        run.run()
    except Exception as error:
        say(f"seed {seed} fails at {run.world.now:.3f} s, event {run.world.steps}: {type(error).__name__}: {error}")
        return 1
    say(f"seed {seed} holds: {run.world.steps} events in {run.world.now:.1f} virtual seconds, digest {run.digest()}")
    say("  " + ", ".join(f"{name} {count}" for name, count in sorted(run.counts().items())))
    return 0


def main() -> int:
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The shells have sets of strings; with one order of them a seed replays exactly.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]])
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many (1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    parser.add_argument("--seed", type=int, help="this one alone, with all that happens in it")
    parser.add_argument("--only", type=numbers, help="with --seed: only these items of its scenario, as 0,3-5")
    parser.add_argument("--trace", action="store_true", help="with --seed: every message, as it arrives")
    options = parser.parse_args()
    if options.seed is not None:
        return once(options.seed, options.only, trace=options.trace)
    return 1 if many(options.first, options.seeds, options.jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
