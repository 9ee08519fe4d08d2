"""What the shells stand on, replaced for the time of a run: clock, chance, event loop and extension.

The hubs' and the spokes' own code runs as it is: broker/hub's router with all it has (topics, readers, places, swarms,
limits, admission, the links of a realm) and its dialling, and of broker/spoke the subscriptions, the publisher, the
swarms and the repairs. They call the extension, ``time``, ``random``, ``secrets`` and ``asyncio.get_running_loop()``
through their modules, and there they find the running process's (`World.current`). No asyncio runs: the loop knows
`call_later` and `call_soon` alone.
Three machines are replaced by recorders of themselves (recorders.py). Not here: the stand-ins of the extension
(endpoint.py, gossip.py), and the shells that need tasks, which are mirrored (spoke.py, calling.py).
"""

from __future__ import annotations

import importlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from broker import _gossip_ext as real
from tests.sim.checker import Checker
from tests.sim.gossip import open_batch
from tests.sim.recorders import recorders
from tests.sim.world import Process, World

__all__ = ["Timer", "stage"]

HUB = (
    *("admission", "dialling", "fan_out", "forwards", "guests", "holes", "limits", "peers", "places", "readers"),
    *("realm", "realm_links", "registrations", "router", "swarm", "swarm_members", "swarm_messages", "swarms"),
    *("topic_messages", "topics"),
)
SPOKE = ("publisher", "repairs", "subscription", "subscriptions", "swarm", "swarms")
SHELLS = (*(f"broker.hub.{name}" for name in HUB), *(f"broker.spoke.{name}" for name in SPOKE))
T = TypeVar("T")


class Timer:
    """asyncio.TimerHandle, as far as shells use it."""

    def __init__(self, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._action: Callable[..., None] | None = action
        self._args = args

    def cancel(self) -> None:
        self._action = None

    def __call__(self) -> None:
        if self._action is not None:
            self._action(*self._args)


class Loop:
    """The running loop of whichever process is running."""

    def __init__(self, world: World) -> None:
        self._world = world

    def call_later(self, seconds: float, action: Callable[..., None], *args: Any) -> Timer:
        timer = Timer(action, args)
        _process(self._world).later(seconds, timer)
        return timer

    def call_soon(self, action: Callable[..., None], *args: Any) -> Timer:
        return self.call_later(0.0, action, *args)


class Asyncio:
    """What shells find instead of the module."""

    def __init__(self, loop: Loop) -> None:
        self.get_running_loop: Callable[[], Loop] = lambda: loop


class Clock:
    """Instead of ``time``."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        return _process(self._world).now

    def time(self) -> float:
        return 1.7e9 + _process(self._world).now

    def time_ns(self) -> int:
        return int(self.time() * 1e9)


class Chance:
    """Instead of ``random`` and ``secrets``: each process has its own."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _own(self) -> random.Random:
        return _process(self._world).chance

    def random(self) -> float:
        return self._own().random()

    def uniform(self, a: float, b: float) -> float:
        return self._own().uniform(a, b)

    def getrandbits(self, bits: int) -> int:
        return self._own().getrandbits(bits)

    def sample(self, among: Sequence[T], count: int) -> list[T]:
        return self._own().sample(among, count)

    def shuffle(self, items: list[T]) -> None:
        self._own().shuffle(items)

    def token_hex(self, size: int) -> str:
        return self._own().randbytes(size).hex()

    def token_bytes(self, size: int) -> bytes:
        return self._own().randbytes(size)


class Extension:
    """Instead of ``ext``: batches are opened as gossip.py has made them; constants and topic ids are the real ones."""

    def __init__(self) -> None:
        self.open_batch = open_batch

    def __getattr__(self, name: str) -> Any:
        return getattr(real, name)


def _process(world: World) -> Process:
    assert world.current is not None, "a shell runs outside of any process"
    return world.current


@contextmanager
def stage(world: World, checker: Checker, **constants: int) -> Iterator[None]:
    """Everything is replaced inside, and as it was afterwards. ``constants``: bounds of the shells, by name."""
    chance, loop = Chance(world), Loop(world)
    stand_ins: dict[str, Any] = {
        "time": Clock(world),
        "random": chance,
        "secrets": chance,
        "asyncio": Asyncio(loop),
        "ext": Extension(),
        **recorders(world, checker),
        **constants,
    }
    before: list[tuple[Any, str, Any]] = []
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        for name in SHELLS:
            module = importlib.import_module(name)
            for attribute, value in stand_ins.items():
                if hasattr(module, attribute):
                    before.append((module, attribute, getattr(module, attribute)))
                    setattr(module, attribute, value)
        yield
    finally:
        for module, attribute, value in before:
            setattr(module, attribute, value)
        logging.disable(level)
