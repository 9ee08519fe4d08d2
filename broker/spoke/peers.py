"""Other spokes that the hub has introduced: who they are, what they and we are granted, and until when.

Whoever wants to call another one directly asks the hub (``hub.introduce``), which tells both where the other is. Grants
are renewed at half of their life while there is a hub. Without one they count to their end, and so does the connection.

Not here: connections (directs.py), and who is introduced to whom (hub/introductions.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from broker import _gossip_ext as ext
from broker.errors import (
    AccessDenied,
    CallError,
    Closed,
    ExecutionFailed,
    FrameError,
    Refused,
    Unreachable,
    ValidationFailed,
)
from broker.protocol.grants import BadGrant, Claims, check, read
from broker.protocol.registration import MAX_ADDRS, MAX_RELAYS, Registration
from broker.protocol.wire import DIRECT, CloseCode
from broker.spoke.calls import Calls
from broker.spoke.direct import DirectLink
from broker.spoke.introductions import Introduction, introduction
from broker.spoke.link import Link
from broker.spoke.options import SpokeOptions

__all__ = ["DIAL_TIMEOUT", "Peer", "Peers"]

log = logging.getLogger("broker.spoke")

MAX_PEERS: Final = 64
"""Other spokes at a time, in both directions together."""
HEAD_START: Final = 0.15
"""Seconds that the asking side has before the other dials too: where nothing is in the way, one dial is enough."""
DIAL_TIMEOUT: Final = 10.0
LAST_MOMENT: Final = 1_000
"""Milliseconds before its grant's end in which nothing new is asked on a connection."""
FIRST_AGAIN, MOST_AGAIN = 0.5, 30.0
"""Seconds between attempts to have a lost connection again, with full jitter."""
RETURNED: Final = 1.0
"""Seconds over which spokes that have a hub again renew their grants."""
MAX_CUT: Final = 1_024
"""NodeIds whose grants were taken back, those that count longest. They are here for minutes."""
SAID: Final = 1.5
"""Seconds that the extension takes to end a connection at most, with what was still to be said."""
ENDED: Final = "not admitted: the grant has ended"


class Peer:
    """One that was introduced."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.name: str | None = None
        self.addrs: tuple[str, ...] = ()
        self.relays: tuple[str, ...] = ()
        self.grant: dict[str, Any] | None = None
        self.claims: Claims | None = None
        """What we may ask it, as the hub signed it and as it is read."""
        self.until = 0.0
        """Until when it may ask us, as the hub has said: the door is open for it so long."""
        self.link: DirectLink | None = None
        self.token = 0
        """Of a dial that is under way."""
        self.wanted = False
        """The program wants a connection."""
        self.attempt = 0
        self.ask_at = math.inf
        """When the hub is asked again."""
        self.failure: BaseException | None = None
        self.change = asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None
        self.asking: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return self.name or self.node_id[:10]

    def signal(self) -> None:
        self.change.set()
        self.change = asyncio.Event()

    def stop(self) -> None:
        for timer in (self.timer, self.asking):
            if timer is not None:
                timer.cancel()

    @property
    def usable(self) -> bool:
        """Whether it can be asked something."""
        return self.link is not None and self.link.accepted and self.claims is not None


class Peers:
    """All of them. ``dial`` makes a connection, ``changed`` is told when something else can be called than before."""

    def __init__(
        self,
        link: Link,
        calls: Calls,
        options: Callable[[], SpokeOptions],
        *,
        dial: Callable[[Peer], None],
        changed: Callable[[], None],
    ) -> None:
        self._link, self._calls, self._options = link, calls, options
        self._dial, self._changed = dial, changed
        self.counts: Counter[str] = Counter()
        """Grants ``refused_...`` by their reason, and connections that the hub has ended (``cut``)."""
        self.stopping = False
        self.introduces = False
        """Whether the hub makes introductions, and knows ``again``."""
        self.by_id: dict[str, Peer] = {}
        self._cut: dict[str, float] = {}
        """Whom the hub took back, and when the last of its grants ends."""
        self._hubs: tuple[str, ...] = ()
        self._told, self._told_at = 0.0, 0.0
        link.receivers["hub.introduce"] = self._on_introduce

    @property
    def me(self) -> str:
        return self._link.endpoint.node_id if self._link.endpoint is not None else ""

    def find(self, spoke: str) -> list[Peer]:
        """By name or NodeId."""
        return [one for one in self.by_id.values() if spoke in (one.node_id, one.name)]

    def holds(self, peer: Peer) -> bool:
        """Whether it is still one of them."""
        return self.by_id.get(peer.node_id) is peer

    # The hub.

    def hub_up(self, hub: Registration, node_id: str) -> None:
        """It is told with whom there are connections, so that it can say who of them must not be."""
        self._hubs = tuple(dict.fromkeys((node_id, *hub.hubs)))
        self.introduces = DIRECT in hub.capabilities
        if self.introduces and self.by_id:
            self._link.control("hub.introduced", {"with": list(self.by_id)})
        for peer in list(self.by_id.values()):
            if peer.wanted:
                self.ask_soon(peer, RETURNED)

    def _on_introduce(self, detail: Any) -> None:
        """Somebody may call us directly, or must not any more."""
        said = introduction(detail)
        if said.grant is None:
            self.cut(said.node_id, f"the hub says that this is over: {said.reason}")
            return
        self._clock(said.now)
        try:
            until = self._acceptable(said)
        except BadGrant as error:
            self.counts[f"refused_{error.reason}"] += 1
            self._link.control("hub.introduced", {"ref": said.ref, "refused": str(error)})
            return
        self._cut.pop(said.node_id, None)
        peer = self._introduced(said)
        peer.until = max(peer.until, until)
        self._admit()
        self._link.control("hub.introduced", {"ref": said.ref, **self._place()})
        self.look(peer)
        asyncio.get_running_loop().call_later(HEAD_START, self._dial, peer)

    def _acceptable(self, said: Introduction) -> int:
        """Until when its grant counts. BadGrant says why this introduction is not taken."""
        if not self._options().introduced:
            raise BadGrant("takes_none", "it takes no introductions (SpokeOptions.direct)")
        if self.stopping:
            raise BadGrant("stopping", "it is about to stop")
        if said.node_id not in self.by_id and len(self.by_id) >= MAX_PEERS:
            raise BadGrant("limit", f"it has {MAX_PEERS} direct connections, which is the limit")
        return self.read(said.grant, caller=said.node_id).until

    async def introduce(self, spoke: str, timeout: float) -> Peer:
        """Asks the hub. CallError is its refusal, or the other spoke's."""
        if self._link.endpoint is None:
            raise Closed("the spoke was closed, or has not started")
        if not self._link.up or not self.introduces:
            raise ExecutionFailed("there is no hub now that makes introductions", retryable=not self._link.up)
        if len(self.by_id) >= MAX_PEERS and not self.find(spoke):
            raise ExecutionFailed(f"{MAX_PEERS} direct connections are the limit", retryable=True)
        input = {"spoke": spoke, **self._place()}
        said = introduction(await self._calls.call("hub.introduce", input, timeout=timeout, parent=None))
        self._clock(said.now)
        try:
            claims = read(said.grant, self._hubs, ext.verify)
            check(claims, caller=self.me, callee=said.node_id, now=self.now())
        except BadGrant as error:
            raise ExecutionFailed(f"the hub gave a grant that does not count: {error}") from None
        peer = self._introduced(said)
        peer.grant, peer.claims, peer.failure = said.grant, claims, None
        self._admit()
        if peer.link is not None:
            peer.link.tell()
        else:
            self._dial(peer)
        return peer

    async def connected(self, peer: Peer) -> None:
        """Returns when it can be asked something. Raises what stands in the way: Refused, Unreachable."""
        while not peer.usable:
            if not self.holds(peer):
                raise peer.failure or Refused(f"{peer} is not to be connected with any more")
            if peer.failure is not None and not peer.token and peer.link is None:
                raise peer.failure
            await peer.change.wait()

    def _place(self) -> dict[str, Any]:
        endpoint = self._link.endpoint
        assert endpoint is not None
        return {"addrs": endpoint.addrs()[:MAX_ADDRS], "relays": endpoint.relay_urls()[:MAX_RELAYS]}

    # Grants.

    def read(self, grant: Any, *, caller: str) -> Claims:
        """What a grant says, if ``caller`` may show it here now. BadGrant."""
        claims = read(grant, self._hubs, ext.verify)
        check(claims, caller=caller, callee=self.me, now=self.now())
        return claims

    def _clock(self, now: float) -> None:
        self._told, self._told_at = now, time.monotonic()

    def now(self) -> float:
        """The hub's clock in milliseconds, as it was last told: grants are by that."""
        if not self._told:
            return time.time_ns() / 1e6
        return self._told + (time.monotonic() - self._told_at) * 1000

    # Who is one of them.

    def _introduced(self, said: Introduction) -> Peer:
        peer = self.by_id.get(said.node_id) or self.by_id.setdefault(said.node_id, Peer(said.node_id))
        peer.name, peer.addrs, peer.relays = said.name or peer.name, said.addrs, said.relays
        return peer

    def came(self, node_id: str, claims: Claims) -> bool:
        """One that brings a grant, of which the hub has not told us. False: there is no room, or it was cut."""
        if len(self.by_id) >= MAX_PEERS or claims.until <= self._cut.get(node_id, 0):
            return False
        peer = self.by_id[node_id] = Peer(node_id)
        peer.until = claims.until
        self.look(peer)
        return True

    def _admit(self) -> None:
        """Lets those in that were introduced, and whoever may be let in anyway."""
        if (endpoint := self._link.endpoint) is not None:
            endpoint.admit(open=self._options().accept, allow=list(self.by_id), deny=[])

    def drop(self, peer: Peer, code: int, reason: str) -> None:
        """It is none any more, and has no connection."""
        self.by_id.pop(peer.node_id, None)
        peer.wanted, peer.grant, peer.claims = False, None, None
        peer.failure = peer.failure or Refused(reason, close_code=code, reason=reason)
        peer.stop()
        if peer.link is not None:
            peer.link.close(code, reason)
        # Not at once: that would end the connection before the other side has heard why.
        asyncio.get_running_loop().call_later(SAID, self._admit)
        peer.signal()

    def cut(self, node_id: str, reason: str) -> None:
        """It must not call here any more, whatever grant it shows, unless the hub introduces it anew."""
        if (peer := self.by_id.get(node_id)) is not None:
            theirs = peer.link.theirs if peer.link is not None else None
            self._cut[node_id] = max(peer.until, theirs.until if theirs is not None else 0)
            self.counts["cut"] += 1
            self.drop(peer, CloseCode.BANNED, reason)
        if len(self._cut) > MAX_CUT:
            del self._cut[min(self._cut, key=self._cut.__getitem__)]

    # Time.

    def wants(self, peer: Peer) -> None:
        """Its grant is to be renewed, and its connection made again, until it is dropped."""
        peer.wanted, peer.attempt = True, 0
        if peer.claims is not None:
            peer.ask_at = peer.claims.until - peer.claims.life / 2
        self.look(peer)

    def ask_soon(self, peer: Peer, most: float) -> None:
        """Within so many seconds."""
        peer.ask_at = self.now() + random.uniform(0, most) * 1000
        self.look(peer)

    def look(self, peer: Peer) -> None:
        """What is over ends, what will be soon is renewed. Comes again when there is something to do."""
        if not self.holds(peer):
            return
        now, link = self.now(), peer.link
        if peer.claims is not None and peer.claims.until - LAST_MOMENT <= now:
            peer.claims = peer.grant = None
            self._changed()
        if link is not None and link.theirs is not None and link.theirs.until <= now:
            link.theirs = None
            link.tell()
        mine = 0 if peer.claims is None else peer.claims.until - LAST_MOMENT
        theirs = max(peer.until, 0 if link is None or link.theirs is None else link.theirs.until)
        if max(mine, theirs) <= now:
            if not peer.wanted:
                self.drop(peer, CloseCode.NOT_ADMITTED, ENDED)
                return
            if link is not None:
                link.close(CloseCode.NOT_ADMITTED, ENDED)
        if peer.wanted and peer.ask_at <= now:
            self._ask(peer)
        if peer.timer is not None:
            peer.timer.cancel()
        dues = (mine, theirs, peer.ask_at if peer.wanted else math.inf)
        due = min((due for due in dues if due > now), default=math.inf)
        if due < math.inf:
            seconds = max(due - now, 1.0) / 1000
            peer.timer = asyncio.get_running_loop().call_later(seconds, self.look, peer)

    def _ask(self, peer: Peer) -> None:
        """For a new grant, and for a connection if there is none."""
        peer.ask_at = math.inf
        if peer.asking is None:
            peer.asking = asyncio.create_task(self._asked(peer), name=f"broker-direct-{peer}")

    async def _asked(self, peer: Peer) -> None:
        """The last grant counts to its end, also while there is no hub to ask."""
        try:
            async with asyncio.timeout(DIAL_TIMEOUT):
                if self._link.up or peer.claims is None:
                    await self.introduce(peer.node_id, DIAL_TIMEOUT)
                elif peer.link is None:
                    peer.failure = None
                    self._dial(peer)
                await self.connected(peer)
            peer.attempt = 0
        except (AccessDenied, ValidationFailed) as error:
            log.warning("no direct connection with %s any more: %s", peer, error)
            peer.wanted = False
        except (CallError, Unreachable, Refused, Closed, FrameError, TimeoutError) as error:
            log.info("no direct connection with %s yet: %s", peer, error)
            peer.attempt = min(peer.attempt + 1, 16)
        finally:
            peer.asking = None
        if peer.attempt:
            self.ask_soon(peer, min(FIRST_AGAIN * 2**peer.attempt, MOST_AGAIN))
        elif peer.wanted:
            self.wants(peer)
