"""Connections of the simulated network: in order and reliable until they break, bounded, slow, and cut at any point.

A `Wire` stands for one QUIC connection with its stream and the two lanes of each writer (calls before topics), as
`broker/_gossip_ext.pyi` promises them: `Pipe.send` takes all or nothing, says False when the lane is full, and its
end is told when there is room again. What was taken and had not arrived when the wire broke is gone, and each end hears
of the break at a time of its own. Lost packets are late frames here, since QUIC sends them again. Not here: gossip
(swarm.py), which keeps no order.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tests.sim.world import Failure, World

__all__ = ["CALLS", "TOPICS", "End", "Network", "Pipe", "Weather", "Wire"]

CALLS, TOPICS = 0, 1
CALLS_ROOM = 100_000
"""Frames. The hub's bound is of bytes, and ends the connection; no scenario is to come near it."""
FLYING = 64
"""Frames on their way or not read yet, before the writer has to wait: QUIC's windows and the inbox."""
IDLE = 15.0
"""Seconds after which an end that hears nothing takes the other for dead (Endpoint.bind, idle_timeout)."""


class End(Protocol):
    """A process at one end of wires."""

    @property
    def name(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def alive(self) -> bool: ...
    @property
    def frozen(self) -> bool: ...
    @property
    def frozen_until(self) -> float: ...
    def arrived(self, wire: Wire, frames: list[bytes]) -> None: ...
    def has_room(self, wire: Wire) -> None: ...
    def ended(self, wire: Wire, code: int | None) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How the network is in one run."""

    latency: float = 0.001
    jitter: float = 0.0
    loss: float = 0.0
    room: int = 64
    burst: int = 64
    """Frames a departure."""
    gossip_loss: float = 0.0
    """The part of gossip's messages that a neighbour does not pass on, and half as often its program does not get."""
    gossip_copies: float = 0.0
    """The part that comes twice: signed by another, or after gossip has forgotten it."""
    message_bytes: int = 4_000


class Batch(NamedTuple):
    frames: list[bytes]
    lands: float


class Pipe:
    """One direction of a wire."""

    __slots__ = (
        "_burst",
        "_chance",
        "_departing",
        "_landing",
        "_last",
        "flying",
        "lanes",
        "refused",
        "room",
        "to",
        "wire",
    )

    def __init__(self, wire: Wire, to: End, chance: random.Random, room: int, burst: int) -> None:
        self.wire, self.to, self.room = wire, to, room
        self._chance, self._burst = chance, burst
        self.lanes: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self.flying: deque[Batch] = deque()
        self.refused = self._departing = self._landing = False
        self._last = 0.0

    def send(self, frames: list[bytes], lane: int) -> bool:
        queue = self.lanes[lane]
        room = self.room if lane == TOPICS else CALLS_ROOM
        if queue and len(queue) + len(frames) > room:
            self.refused = True
            return False
        queue.extend(frames)
        if len(queue) > max(room, len(frames)):
            raise Failure(f"a lane of {self.wire} holds {len(queue)} frames, its bound is {room}")
        self._go()
        return True

    @property
    def busy(self) -> bool:
        return bool(self.flying or self.lanes[0] or self.lanes[1])

    def _go(self) -> None:
        if not self._departing and not self.wire.over:
            self._departing = True
            self.wire.world.after(0.0, self._depart)

    def _depart(self) -> None:
        self._departing = False
        wire = self.wire
        if wire.over or wire.stalled:
            return
        under_way = sum(len(batch.frames) for batch in self.flying)
        batch: list[bytes] = []
        for queue in self.lanes:
            while queue and len(batch) < self._burst and under_way + len(batch) < FLYING:
                batch.append(queue.popleft())
        if batch:
            self._last = max(self._last, wire.world.now + self._delay())
            self.flying.append(Batch(batch, self._last))
            self._await_landing()
        if self.refused and len(self.lanes[TOPICS]) * 2 <= self.room:
            self.refused = False
            wire.world.after(0.0, self._room_again)
        if (self.lanes[0] or self.lanes[1]) and batch:
            self._departing = True
            wire.world.after(0.0005, self._depart)

    def _delay(self) -> float:
        weather, chance = self.wire.weather, self._chance
        late = weather.latency + (chance.random() * weather.jitter if weather.jitter else 0.0)
        if weather.loss and chance.random() < weather.loss:
            late += 0.2 + chance.random()
        return late

    def _room_again(self) -> None:
        writer = self.wire.other(self.to)
        if not self.wire.over and writer.alive:
            if writer.frozen:
                self.wire.world.after(writer.frozen_until - self.wire.world.now, self._room_again)
            else:
                writer.has_room(self.wire)

    def _await_landing(self) -> None:
        if not self._landing and self.flying:
            self._landing = True
            self.wire.world.after(self.flying[0].lands - self.wire.world.now, self._land)

    def _land(self) -> None:
        self._landing = False
        wire, now = self.wire, self.wire.world.now
        if wire.over or wire.stalled or not self.to.alive:
            return
        if self.to.frozen:
            self._landing = True
            wire.world.after(self.to.frozen_until - now, self._land)
            return
        frames: list[bytes] = []
        while self.flying and self.flying[0].lands <= now:
            frames += self.flying.popleft().frames
        self._await_landing()
        self._go()
        if frames:
            if wire.world.trace is not None:
                for frame in frames:
                    wire.world.trace(
                        f"{now:9.4f}  {wire.id:3} {wire.other(self.to).name}>{self.to.name}  {frame.decode()}"
                    )
            self.to.arrived(wire, frames)

    def go_on(self) -> None:
        """After a stall."""
        self._await_landing()
        self._go()


class Wire:
    """One connection; ``id`` is what both ends call it. ``over``: it carries nothing any more, known or not. The one
    who dialled is called ``spoke``, also where both are hubs."""

    def __init__(self, net: Network, id: int, spoke: End, hub: End) -> None:
        self.net, self.world, self.weather, self.id = net, net.world, net.weather, id
        self.spoke, self.hub = spoke, hub
        chance = net.world.chance("wire", spoke.name, net.count(spoke.name))
        room, burst = net.weather.room, net.weather.burst
        self.up, self.down = Pipe(self, hub, chance, room, burst), Pipe(self, spoke, chance, room, burst)
        self.over = False
        self._stalled_at: float | None = None
        self._told: list[End] = []

    def __str__(self) -> str:
        return f"the wire {self.id} of {self.spoke.name} to {self.hub.name}"

    def other(self, end: End) -> End:
        return self.hub if end is self.spoke else self.spoke

    def out(self, end: End) -> Pipe:
        """Where this end writes."""
        return self.up if end is self.spoke else self.down

    @property
    def busy(self) -> bool:
        return not self.over and (self.up.busy or self.down.busy)

    @property
    def stalled(self) -> bool:
        return self._stalled_at is not None

    def stall(self) -> None:
        """Nothing gets through until `clear`. When that takes longer than the idle timeout, it breaks."""
        if not self.over and not self.stalled:
            since = self._stalled_at = self.world.now
            self.world.after(IDLE, lambda: self.cut(0.0, 0.0) if self._stalled_at == since else None)

    def clear(self) -> None:
        if self.stalled and not self.over:
            self._stalled_at = None
            self.up.go_on()
            self.down.go_on()

    def cut(self, spoke_hears: float, hub_hears: float) -> None:
        """It breaks. What is under way is gone; each end hears of it after so many seconds."""
        if not self.over:
            self.over = True
            self.world.after(spoke_hears, lambda: self._tell(self.spoke, None))
            self.world.after(hub_hears, lambda: self._tell(self.hub, None))

    def close(self, by: End, code: int) -> None:
        """One end ends it: its calls and control messages still arrive, events do not."""
        if self.over:
            return
        pipe = self.out(by)
        last = [frame for batch in pipe.flying for frame in batch.frames] + list(pipe.lanes[CALLS])
        self.over = True
        other = self.other(by)
        self.world.after(0.0, lambda: self._tell(by, code))
        self.world.after(self.weather.latency, lambda: self._last_words(other, last, code))

    def _last_words(self, other: End, frames: list[bytes], code: int) -> None:
        if self.stalled:
            self.world.after(IDLE, lambda: self._tell(other, None))
            return
        if other.frozen:
            wait = other.frozen_until - self.world.now
            self.world.after(wait, lambda: self._last_words(other, frames, code))
            return
        if frames and other not in self._told:
            other.arrived(self, frames)
        self._tell(other, code)

    def _tell(self, end: End, code: int | None) -> None:
        if not end.alive or end in self._told:
            return
        if end.frozen:
            self.world.after(end.frozen_until - self.world.now, lambda: self._tell(end, code))
            return
        self._told.append(end)
        self.net.forget(self, len(self._told) == 2)
        end.ended(self, code)


class Network:
    """All wires, and who can reach whom."""

    def __init__(self, world: World, weather: Weather) -> None:
        self.world, self.weather = world, weather
        self.wires: dict[int, Wire] = {}
        self._ids = 0
        self._opened: dict[str, int] = {}
        self._apart: dict[str, int] = {}
        self._healed_at = 0.0

    def count(self, name: str) -> int:
        self._opened[name] = self._opened.get(name, 0) + 1
        return self._opened[name]

    def reach(self, a: str, b: str) -> bool:
        """Whether packets get from one to the other."""
        return self._apart.get(a, 0) == self._apart.get(b, 0)

    @property
    def whole(self) -> bool:
        """Whether everybody reaches everybody, and no connection stands still."""
        return not self._apart and not any(wire.stalled and not wire.over for wire in self.wires.values())

    def open(self, spoke: End, hub: End) -> Wire:
        self._ids += 1
        wire = self.wires[self._ids] = Wire(self, self._ids, spoke, hub)
        return wire

    def forget(self, wire: Wire, known_to_both: bool) -> None:
        if known_to_both or not (wire.spoke.alive and wire.hub.alive):
            self.wires.pop(wire.id, None)

    def of(self, end: End) -> list[Wire]:
        return [wire for wire in self.wires.values() if wire.spoke is end or wire.hub is end]

    def split(self, sides: dict[str, int], seconds: float) -> None:
        """A partition: who is not named is on side 0. A second one takes the place of the first."""
        self._apart = sides
        self._healed_at = self.world.now + seconds
        for wire in list(self.wires.values()):
            if self.reach(wire.spoke.host, wire.hub.host):
                wire.clear()
            else:
                wire.stall()
        self.world.after(seconds, self._heal)

    def _heal(self) -> None:
        if self.world.now >= self._healed_at:
            self._apart = {}
            for wire in list(self.wires.values()):
                wire.clear()
