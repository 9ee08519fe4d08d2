"""What happens in a run, drawn from its seed: who is there, how the network is, what programs do and what breaks.

A scenario is a list of numbered items, spokes first and then actions in order of time. A run may keep some of them only
(`Scenario.only`), which is how a failing one is made small: the seed and the numbers kept are the whole of it. Not
here: doing it (runner.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from broker.protocol.routing import Policy
from tests.sim.network import Weather

__all__ = ["Action", "Rings", "Scenario", "SpokeSpec", "SubSpec", "draw"]

TOPICS = ("t", "t.a", "t.b", "u")
PATTERNS = (("t",), ("t.>",), (">",), ("u",), ("t", "t.*"), ("t.a", "u"))
SINCE = (None, None, "start", 3)
LARGE = 0.004
"""The part of all runs that has many spokes."""
REALM = 0.25
"""The part of those with gossip and few spokes that has two hubs."""
TICKETS = (("h1",), ("h1", "h2"), ("h2", "h1"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SubSpec:
    patterns: tuple[str, ...]
    since: Any = None
    policy: Policy = "block"
    patience: float = 2.0
    bound: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokeSpec:
    name: str
    offers: tuple[str, ...] = ()
    subs: tuple[SubSpec, ...] = ()
    unacked: int = 4_096
    retained: int = 10_000
    offset: float = 0.0
    rate: float = 1.0
    speed: int = 1_000_000
    pause: float = 0.01
    scopes: tuple[str, ...] = ()
    gossips: bool = False
    ticket: tuple[str, ...] = ("h1",)
    """The hubs that it names."""


@dataclass(frozen=True, slots=True)
class Action:
    """``kind`` is a method of the runner; ``args`` its arguments."""

    at: float
    kind: str
    who: str
    args: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.at:8.3f}  {self.kind} {self.who} {' '.join(map(str, self.args))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rings:
    """A hub's config, as far as it differs from run to run."""

    events: int = 10_000
    bytes: int = 1_000_000
    patience: float = 2.0
    carrier: Literal["auto", "stream", "gossip"] = "stream"
    uplink: float = 1e6
    """Bytes a second of one topic, above which ``auto`` is gossip."""
    gossips: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    seed: int
    gentle: bool
    """Nothing has to be lost: there is room for everything, and nobody loses its memory."""
    weather: Weather
    rings: Rings
    spokes: tuple[SpokeSpec, ...]
    actions: tuple[Action, ...]
    length: float
    scoped: bool = False
    under_way: int = 65_536
    """UNDER_WAY of spoke/subscription.py."""
    kept: tuple[int, ...] | None = None

    @property
    def items(self) -> int:
        return len(self.spokes) + len(self.actions)

    def numbered(self) -> Iterable[tuple[int, SpokeSpec | Action]]:
        return enumerate((*self.spokes, *self.actions))

    def only(self, kept: Iterable[int]) -> Scenario:
        """The same with these items alone, and without actions of spokes that are not there."""
        numbers = set(kept)
        spokes = tuple(one for at, one in enumerate(self.spokes) if at in numbers)
        names = {one.name for one in spokes}
        actions = tuple(
            one
            for at, one in enumerate(self.actions, len(self.spokes))
            if at in numbers and (one.who in names or not one.who.startswith("s"))
        )
        return replace(self, spokes=spokes, actions=actions, kept=tuple(sorted(numbers)))

    def disturbed(self) -> set[str]:
        """The kinds of faults there are."""
        return {one.kind for one in self.actions} & {"cut", "freeze", "crash", "split", "ban"}


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    one = _of_one_hub(seed)
    rng = random.Random(f"realm/{seed}")
    several = one.rings.gossips and len(one.spokes) < 100 and rng.random() < REALM
    return _of_two_hubs(rng, one) if several else one


def _of_two_hubs(rng: random.Random, one: Scenario) -> Scenario:
    """The same with a second hub in the realm: spokes are at both, and what breaks the first may break either."""
    carriers: tuple[Literal["auto", "stream", "gossip"], ...] = ("gossip", "gossip", "auto", "stream")
    actions = [replace(it, who=rng.choice(("h1", "h2"))) if it.who == "h1" else it for it in one.actions]
    actions = [_with_a_hub(rng, it) if it.kind == "split" else it for it in actions]
    actions.append(Action(rng.choice((0.0, rng.uniform(0.0, one.length))), "join", "h2", ("h1",)))
    for _ in range(rng.choice((0, 1, 2)) if one.disturbed() else 0):
        at, hub = rng.uniform(0.0, one.length), rng.choice(("h1", "h2"))
        if one.gentle or rng.random() < 0.3:
            actions.append(Action(at, "cut", hub, (rng.choice((0.0, 4.0)), rng.choice((0.0, 4.0)))))
        else:
            args = (rng.choice((0.1, 2.0, 20.0)), rng.choice((0.0, 0.1, 12.0)), False)
            actions.append(Action(at, "crash", hub, args))
    return replace(
        one,
        rings=replace(one.rings, carrier=rng.choice(carriers)),
        spokes=tuple(replace(it, ticket=rng.choice(TICKETS)) for it in one.spokes),
        actions=tuple(sorted(actions, key=lambda it: it.at)),
    )


def _with_a_hub(rng: random.Random, split: Action) -> Action:
    """Of a partition each side may have a hub of its own."""
    seconds, names = split.args
    return replace(split, args=(seconds, (*names, rng.choice(("h1", "h2"))))) if rng.random() < 0.7 else split


def _of_one_hub(seed: int) -> Scenario:
    rng = random.Random(f"scenario/{seed}")
    many = rng.random() < LARGE
    gentle = rng.random() < 0.25
    count = rng.choice((300, 1_000)) if many else rng.choice((2, 3, 3, 4, 5, 6, 8, 12))
    scoped = rng.random() < 0.1
    length = rng.choice((2.0, 6.0, 20.0, 40.0))
    gossips = rng.random() < 0.6
    spokes = tuple(_spoke(rng, f"s{n}", many=many, gentle=gentle, scoped=scoped) for n in range(1, count + 1))
    if gossips:
        spokes = tuple(replace(one, gossips=rng.random() < 0.85) for one in spokes)
    names = [one.name for one in spokes]
    actions = _programs(rng, spokes, length, many=many)
    if rng.random() < 0.85:
        actions += _faults(rng, names, length, gentle=gentle, many=many)
    return Scenario(
        seed=seed,
        gentle=gentle,
        weather=_weather(rng),
        rings=_rings(rng, gentle=gentle, gossips=gossips),
        spokes=spokes,
        actions=tuple(sorted(actions, key=lambda one: one.at)),
        length=length,
        scoped=scoped,
        under_way=rng.choice((2, 50, 65_536)),
    )


def _rings(rng: random.Random, *, gentle: bool, gossips: bool) -> Rings:
    carriers: tuple[Literal["auto", "stream", "gossip"], ...] = ("gossip", "gossip", "auto")
    way = Rings(
        carrier=rng.choice(carriers) if gossips else "stream", uplink=rng.choice((500.0, 5_000.0)), gossips=gossips
    )
    if gentle:
        return way
    return replace(
        way,
        events=rng.choice((3, 10, 40, 10_000)),
        bytes=rng.choice((600, 4_000, 1_000_000)),
        patience=rng.choice((0.0, 2.0)),
    )


def _weather(rng: random.Random) -> Weather:
    return Weather(
        latency=rng.choice((0.0003, 0.002, 0.05)),
        jitter=rng.choice((0.0, 0.01, 0.1)),
        loss=rng.choice((0.0, 0.0, 0.02, 0.3)),
        room=rng.choice((1, 5, 50, 500)),
        burst=rng.choice((1, 7, 64)),
        gossip_loss=rng.choice((0.0, 0.0, 0.02, 0.3)),
        gossip_copies=rng.choice((0.0, 0.1)),
        message_bytes=rng.choice((300, 4_000)),
    )


def _spoke(rng: random.Random, name: str, *, many: bool, gentle: bool, scoped: bool) -> SpokeSpec:
    offers = tuple(one for one in ("echo", "count", "relay") if rng.random() < (0.02 if many else 0.4))
    subs = tuple(_sub(rng, gentle=gentle, many=many) for _ in range(1 if many else rng.choice((0, 1, 1, 1, 2))))
    return SpokeSpec(
        name=name,
        offers=offers,
        subs=subs,
        unacked=rng.choice((2, 10, 4_096)),
        retained=10_000 if gentle else rng.choice((0, 5, 10_000)),
        offset=rng.choice((0.0, rng.uniform(0.0, 1e5))),
        rate=rng.choice((1.0, 1.0, 0.99, 1.01)),
        speed=1_000_000 if many else rng.choice((1, 5, 1_000_000)),
        pause=rng.choice((0.0, 0.01, 0.3)),
        scopes=(rng.choice(("all", "reader", "t")),) if scoped else (),
    )


def _sub(rng: random.Random, *, gentle: bool, many: bool) -> SubSpec:
    policies: tuple[Policy, ...] = ("block", "block", "drop_oldest", "disconnect")
    return SubSpec(
        patterns=("t",) if many else rng.choice(PATTERNS),
        since=rng.choice(SINCE),
        policy="block" if gentle or many else rng.choice(policies),
        patience=rng.choice((0.0, 2.0)),
        bound=rng.choice((2, 10, 1_000)),
    )


def _programs(rng: random.Random, spokes: tuple[SpokeSpec, ...], length: float, *, many: bool) -> list[Action]:
    actions: list[Action] = []
    authors = rng.sample(spokes, min(len(spokes), rng.randint(1, 3)))
    for _ in range(rng.randint(1, 5 if many else 14)):
        who = rng.choice(authors).name
        topic = "t" if many else rng.choice(TOPICS)
        size = rng.choice((0, 0, 20, 400))
        actions.append(Action(rng.uniform(0.0, length), "publish", who, (topic, rng.choice((1, 3, 15, 40)), size)))
    actions += [_call(rng, rng.choice(spokes).name, length) for _ in range(rng.choice((0, 0, 4, 12)))]
    for _ in range(rng.choice((0, 0, 2))):
        args = (rng.choice((1, 20)), rng.choice((0.01, 0.5)))
        actions.append(Action(rng.uniform(0.0, length), "slow", rng.choice(spokes).name, args))
    return actions


def _call(rng: random.Random, who: str, length: float) -> Action:
    operation = rng.choice(("echo", "echo", "count", "relay", "nobody"))
    kind = "stream" if operation == "count" else rng.choice(("call", "call", "roll"))
    work = rng.choice((0.0, 0.01, 0.5, 3.0))
    timeout = rng.choice((0.3, 2.0, 5.0))
    return Action(
        rng.uniform(0.0, length),
        "call",
        who,
        (
            operation,
            kind,
            work,
            rng.random() < 0.1,
            rng.random() < 0.1,
            rng.choice((0, 3, 40)),
            None if kind == "stream" and rng.random() < 0.5 else timeout,
            rng.choice((1, 4, 16)),
            rng.choice((0.0, 0.02)),
            rng.choice((None, None, 0.2)),
        ),
    )


def _faults(rng: random.Random, names: list[str], length: float, *, gentle: bool, many: bool) -> list[Action]:
    actions: list[Action] = []
    for _ in range(rng.choice((1, 2, 5, 8))):
        at, who = rng.uniform(0.0, length), rng.choice(names)
        hears = (rng.choice((0.0, 0.1, 4.0)), rng.choice((0.0, 0.1, 4.0)))
        kind = rng.choice(("cut", "cut", "cut", "freeze", "split", "deaf") if gentle else FAULTS)
        match kind:
            case "cut":
                actions.append(Action(at, "cut", who, hears))
            case "freeze":
                who = rng.choice((who, "h1"))
                actions.append(Action(at, "freeze", who, (rng.choice((0.05, 2.0, 9.0)),)))
            case "crash":
                who = rng.choice((who, who, "h1"))
                down, hears_after = rng.choice((0.1, 2.0, 20.0)), rng.choice((0.0, 0.1, 12.0))
                actions.append(Action(at, "crash", who, (down, hears_after, rng.random() < 0.5)))
            case "deaf":
                actions.append(Action(at, "deaf", who, (rng.choice((0.5, 6.0, 20.0)),)))
            case "split":
                sides = tuple(sorted(rng.sample(names, rng.randint(1, min(len(names), 500 if many else 4)))))
                actions.append(Action(at, "split", "net", (rng.choice((0.3, 5.0, 25.0)), sides)))
            case _:
                actions.append(Action(at, "ban", who, ()))
    return actions


FAULTS = ("cut", "cut", "freeze", "crash", "crash", "split", "deaf", "ban")
