"""One run: a scenario is put on the stage, lived through, brought to rest and judged.

At the end of the script whatever is down comes up and programs read all they can; then time passes until nothing is
under way any more. A run that does not come to rest is a livelock, named by who is still busy. Not here: what the judge
asks (checker.py, asks.py), many runs (__main__.py) and making a failing one small (shrink.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from broker.config import ScopeConfig
from broker.protocol.ticket import Ticket
from tests.sim.asks import Asks
from tests.sim.checker import Checker, Key, lost_numbers
from tests.sim.gossip import Gossip
from tests.sim.hub import SimHub, config
from tests.sim.network import Network
from tests.sim.scenario import Action, Scenario, SpokeSpec, draw
from tests.sim.spoke import SimSpoke
from tests.sim.stage import stage
from tests.sim.world import Failure, World

__all__ = ["Run", "run"]

REST = 600.0
"""Virtual seconds in which a run comes to rest: a hole is given up after 31, and the last may open late."""
LONG = 25.0
"""Seconds of partition after which a hole may have been asked for in vain: an author takes some more to return."""
LOOKS = 0.5
QUIET, QUIET_SWARM = 3, 26
"""Looks at which nothing was under way. In a swarm the end of a sequence is told every 10 s."""
SCOPES = {
    "all": ScopeConfig(call=(">",), offer=(">",), publish=(">",), subscribe=(">",)),
    "reader": ScopeConfig(subscribe=(">",)),
    "t": ScopeConfig(call=("echo",), publish=("t.>", "t"), subscribe=("t", "t.*")),
}
DIAL_TIMEOUT = 1.0
ADDRS = ("10.0.0.1:7",)
"""Everybody is found by its NodeId."""


class Run:
    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.world = World(scenario.seed)
        self.net = Network(self.world, scenario.weather)
        self.gossip = Gossip(self.world, self.net)
        self.checker, self.asks = Checker(self.world), Asks(self.world)
        stands = {"freeze", "split"} & scenario.disturbed()
        self.checker.excused = self.asks.excused = bool(stands) or scenario.weather.loss > 0.1
        self.specs = {one.name: one for one in scenario.spokes}
        self.node_ids = {one.name: f"{int(one.name[1:]):064x}" for one in scenario.spokes}
        self.names = {node_id: name for name, node_id in self.node_ids.items()}
        self.hub_ids = {name: f"{0xB000 + int(name[1:]):064x}" for name in ("h1", "h2")}
        self.hubs: dict[str, SimHub] = {}
        self.joining: set[str] = set()
        self.homes: dict[str, str] = {}
        """The hub that each spoke was at last."""
        self.spokes: dict[str, SimSpoke] = {}
        self.lives: dict[str, int] = {}

    # -- processes

    def _life(self, name: str) -> int:
        self.lives[name] = self.lives.get(name, 0) + 1
        return self.lives[name]

    def _start_hub(self, name: str, realm: dict[str, Any] | None = None) -> None:
        life = self._life(name)
        scoped = self.scenario.scoped
        scopes = SCOPES if scoped else {}
        nodes = {self.node_ids[one.name]: one.scopes for one in self.scenario.spokes} if scoped else {}
        self.hubs[name] = SimHub(
            self.gossip,
            name if life == 1 else f"{name}r{life}",
            self.hub_ids[name],
            config(self.scenario.rings, scopes, nodes),
            self.asks,
            self.hubs.get(name),
            heard=self.checker.heard,
            dial=self._hub_dials,
            realm=realm,
        )

    def _start_spoke(self, spec: SpokeSpec, memory: SimSpoke | None = None) -> None:
        life = self._life(spec.name)
        spoke = self.spokes[spec.name] = SimSpoke(
            self.gossip,
            spec.name if life == 1 else f"{spec.name}r{life}",
            self.node_ids[spec.name],
            spec,
            self.checker,
            self.asks,
            life=life,
            ticket=self._ticket(*(self.hub_ids[hub] for hub in spec.ticket)),
            dial=self._spoke_dials,
            answerable=self._answerable,
        )
        for at, sub in enumerate(spec.subs):
            since = sub.since
            if memory is not None and (known := memory.subs[at]._sequences.positions()):
                since = known
            spoke.subscribe(sub, since)
        spoke.keep()

    @staticmethod
    def _ticket(first: str, *others: str) -> Ticket:
        return Ticket(first, ADDRS, others=tuple(Ticket(one, ADDRS) for one in others))

    def _spoke_dials(self, spoke: SimSpoke, node_id: str) -> None:
        def reached(hub: SimHub) -> None:
            if not hub.admission.policy.admitted(spoke.node_id):
                spoke.banned = True
                return
            wire = self.net.open(spoke, hub)
            hub.opened(wire, spoke.node_id)
            spoke.opened(wire)
            if self.homes.setdefault(spoke.name, hub.node_id) != hub.node_id:
                self.homes[spoke.name] = hub.node_id
                self.checker.count("spokes moved")

        self._dial(spoke, node_id, reached, spoke.not_reached)

    def _hub_dials(self, hub: SimHub, token: int, node_id: str) -> None:
        def reached(other: SimHub) -> None:
            wire = self.net.open(hub, other)
            other.opened(wire, hub.node_id)
            hub.dialled(wire, other.node_id, token)

        self._dial(hub, node_id, reached, lambda: hub.not_reached(token))

    def _dial(
        self, who: SimSpoke | SimHub, node_id: str, reached: Callable[[SimHub], None], failed: Callable[[], None]
    ) -> None:
        def arrive() -> None:
            hub = next((hub for hub in self.hubs.values() if hub.node_id == node_id), None)
            if not who.alive:
                return
            if hub is None or not hub.alive or hub.frozen or who.frozen or not self.net.reach(who.host, hub.host):
                self.world.after(DIAL_TIMEOUT, lambda: who.when_awake(failed))
            else:
                reached(hub)

        self.world.after(self.scenario.weather.latency * 2, arrive)

    # -- what the script does

    def _do(self, action: Action) -> None:
        getattr(self, f"do_{action.kind}")(action.who, *action.args)

    def _up(self, who: str) -> SimSpoke | None:
        """The spoke if its program runs now."""
        spoke = self.spokes.get(who)
        return spoke if spoke is not None and spoke.alive and not spoke.frozen else None

    def do_publish(self, who: str, topic: str, count: int, size: int) -> None:
        if (spoke := self._up(who)) is not None:
            spoke.publish(topic, ["x" * size] * count)

    def do_slow(self, who: str, speed: int, pause: float) -> None:
        if (spoke := self._up(who)) is not None:
            spoke.speed, spoke.pause = speed, pause

    def do_call(
        self,
        who: str,
        operation: str,
        kind: str,
        work: float,
        fail: bool,
        hang: bool,
        items: int,
        timeout: float | None,
        window: int,
        pause: float,
        given_up: float | None,
    ) -> None:
        if (spoke := self._up(who)) is None:
            return
        input = {"work": work, "fail": fail, "hang": hang, "items": items, "timeout": timeout}
        id = spoke.calls.start(operation, input, kind=kind, timeout=timeout, window=window, pause=pause)
        if given_up is not None or (timeout is None and hang):
            spoke.later(given_up or 20.0, lambda: spoke.calls.give_up(id))

    def do_cut(self, who: str, spoke_hears: float, hub_hears: float) -> None:
        """A spoke's connection breaks; or a hub's to other hubs."""
        spoke, hub = self.spokes.get(who), self.hubs.get(who)
        if spoke is not None and spoke.link.wire is not None:
            spoke.link.wire.cut(spoke_hears, hub_hears)
        for wire in self.net.of(hub) if hub is not None else ():
            if isinstance(wire.spoke, SimHub):
                wire.cut(spoke_hears, hub_hears)

    def do_join(self, who: str, by: str) -> None:
        """A further hub comes into the realm, as soon as the one that lets it in can be reached."""
        hub = self.hubs[by]
        if not hub.alive or hub.frozen or not self.net.reach(who, by):
            self.joining.add(who)
            self.world.after(DIAL_TIMEOUT, lambda: self.do_join(who, by))
            return
        self.joining.discard(who)
        self.checker.count("hubs joined")
        self._start_hub(who, hub.admits(self._ticket(self.hub_ids[who])))

    def _processes(self) -> list[SimHub | SimSpoke]:
        return [*self.hubs.values(), *self.spokes.values()]

    def do_freeze(self, who: str, seconds: float) -> None:
        process = self.spokes.get(who) or self.hubs.get(who)
        if process is not None:
            process.frozen_until = max(process.frozen_until, self.world.now + seconds)

    def do_crash(self, who: str, down: float, heard_after: float, memory: bool) -> None:
        process = self.spokes.get(who) or self.hubs.get(who)
        if process is None or not process.alive:
            return
        process.alive = False
        for wire in self.net.of(process):
            wire.cut(heard_after, heard_after)
        if isinstance(process, SimSpoke):
            self.asks.caller_gone(process.name)
            for sub in process.subs:
                process.reading_of(sub).over = True
            spec = self.specs[who]
            self.world.after(down, lambda: self._start_spoke(spec, process if memory else None))
        else:
            self.asks.hub_ended += len(process.router.calls)  # they end at their callers, and with the process here
            self.world.after(down, lambda: self._start_hub(who))

    def do_split(self, _who: str, seconds: float, names: tuple[str, ...]) -> None:
        self.net.split({name: 1 for name in names if name in self.specs or name in self.hub_ids}, seconds)

    def do_deaf(self, who: str, seconds: float) -> None:
        """Its connection to the hub is all right, its way to other spokes is not."""
        self.gossip.deaf[who] = max(self.gossip.deaf.get(who, 0.0), self.world.now + seconds)

    def do_ban(self, who: str) -> None:
        """At one hub, of which the others hear."""
        if who in self.node_ids:
            hub = self.world.chance("ban", who).choice(list(self.hubs.values()))
            hub.ban(self.node_ids[who])
            loss = self.scenario.weather.loss
            told = loss < 0.1 if len(self.hubs) == 1 else not loss and hub.router.links.sessions()
            if not self.scenario.disturbed() - {"ban"} and told:
                self.checker.banned_at[who] = self.world.now + 2 * self.scenario.weather.jitter

    # -- what the judge asks

    def _answerable(self, spoke: SimSpoke) -> Iterable[tuple[Key, int]]:
        hub = spoke.link.wire.hub if spoke.link.wire is not None else None
        if isinstance(hub, SimHub):
            for topic, channel in hub.router.topics.channels.items():
                for author, epoch, seq in channel.ring.heads():
                    yield from (((topic, author, epoch), at) for at in range(1, seq + 1))

    def author_lives(self, key: Key) -> bool:
        spoke = self.spokes[self.names[key[1]]]
        return spoke.alive and not spoke.banned and (key[0], key[2]) in spoke.epochs()

    def hub_knows(self, key: Key, seq: int) -> bool:
        if len(self.hubs) > 1 and self.spokes[self.names[key[1]]].banned:
            return False  # a hub takes nothing of who is banned, though another had it before the ban
        channels = (hub.router.topics.channels.get(key[0]) for hub in self.hubs.values() if hub.alive)
        return any(one is not None and one.ring.newest(key[1], key[2]) >= seq for one in channels)

    # -- what is told of it

    def counts(self) -> dict[str, int]:
        calls = {f"calls {end}": count for end, count in self.asks.counts.items()}
        swarms = {f"gossip {what}": count for what, count in self.gossip.counts.items()}
        return {**self.checker.counts, **calls, **swarms}

    def digest(self) -> str:
        """Two runs with the same digest were the same run."""
        told = [(one.name, one.arrivals, one.read, one.sequences.verdicts()) for one in self.checker.readings]
        ends = [(ask.id, ask.outcome, ask.ran) for ask in self.asks.all.values()]
        whole = repr((self.world.steps, self.world.now, self.counts(), told, ends))
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    # -- the course of it

    def run(self) -> None:
        with stage(self.world, self.checker, UNDER_WAY=self.scenario.under_way):
            self._start_hub("h1")
            for spec in self.scenario.spokes:
                self._start_spoke(spec)
            for action in self.scenario.actions:
                self.world.after(action.at, lambda action=action: self._do(action))  # type: ignore[misc]
            while self.world.now < self.scenario.length:
                self.world.run(min(self.world.now + LOOKS, self.scenario.length))
                self._check()
            self._rest()
            self._judge()

    def _check(self) -> None:
        for process in self._processes():
            if process.alive:
                process.check()

    def _rest(self) -> None:
        until, quiet = self.world.now + REST, 0
        while quiet < (QUIET_SWARM if self.scenario.rings.gossips else QUIET):
            if self.world.now > until:
                raise Failure(f"livelock: after {REST:g} s of rest {self._busy()}")
            for spoke in self.spokes.values():
                if spoke.alive:
                    spoke.hurry()
            self.world.run(self.world.now + LOOKS)
            self._check()
            quiet = 0 if self._busy() else quiet + 1

    def _busy(self) -> str | None:
        if self.joining:
            return f"{self.joining} have not joined"
        for process in self._processes():
            if not process.alive or process.frozen:
                return f"{process.name} is not up"
            if process.busy:
                return process.busy
        if not self.net.whole or any(until > self.world.now for until in self.gossip.deaf.values()):
            return "the network is not whole"
        # Swarms keep the connections busy for ever: who is in them, and where they end.
        wire = next((wire for wire in self.net.wires.values() if wire.busy and not self.scenario.rings.gossips), None)
        return None if wire is None else f"{wire} carries something"

    def _judge(self) -> None:
        for spoke in self.spokes.values():
            for sub in spoke.subs:
                spoke.reading_of(sub).over |= spoke.banned
            if spoke.banned:
                self.asks.caller_gone(spoke.name)
        self.checker.judge(self)
        for hub in self.hubs.values():
            hub.counted(self.checker.taken_by.get(hub.name, 0))
        self._agreed()
        self.asks.judge(callers_saw=not self.scenario.disturbed() and "not sent" not in self.asks.counts)
        splits = [one for one in self.scenario.actions if one.kind == "split"]
        apart = any(self.hub_ids.keys() & set(one.args[1]) for one in splits)
        # Hubs may be apart for longer than a hole is asked for: what is on the other side alone is lost, by name.
        if self.scenario.gentle and not apart and not self.scenario.disturbed() & {"crash", "ban"}:
            self._whole()

    def _agreed(self) -> None:
        """Hubs of one realm know equally far of every sequence: they have it up to there, or know what is lost."""
        far: dict[Key, set[int]] = {}
        for hub in self.hubs.values():
            for topic, channel in hub.router.topics.channels.items():
                for author, epoch, seq in channel.heads(baseline=False):
                    given_up = 0 if channel.swarm is None else channel.swarm.top((author, epoch))
                    far.setdefault((topic, author, epoch), set()).add(max(seq, given_up))
        for key, newest in far.items():
            if len(newest) > 1 and not self.spokes[self.names[key[1]]].banned:
                raise Failure(f"of {key[0]} by {self.names[key[1]]} the hubs have {sorted(newest)}")

    def _whole(self) -> None:
        """With room for everything, broken connections and slow readers cost nothing. But a hole is asked for no longer
        than 31 s: from an author that is out of reach for nearly as long it may come to its hub too late."""
        long = sum(one.args[0] for one in self.scenario.actions if one.kind == "split") >= LONG
        for one in self.checker.readings:
            if one.over:
                continue
            late = {(key, seq) for key, numbers in one.vain.items() for seq in numbers} if long else set()
            lost = {(key, seq) for key, numbers in lost_numbers(one.sequences.verdicts()).items() for seq in numbers}
            if needless := lost - late:
                raise Failure(f"{one.name}: lost {len(needless)} events that need not be")
            missed = [(key, seq) for key, seq in one.due - late if seq not in one.read.get(key, ())]
            if missed:
                raise Failure(f"{one.name}: never read {missed[:5]}")


def run(seed: int, kept: Iterable[int] | None = None) -> Run:
    """The run of a seed, to its end. Raises `Failure`."""
    scenario = draw(seed)
    made = Run(scenario if kept is None else scenario.only(kept))
    made.run()
    return made
