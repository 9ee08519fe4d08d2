"""Who is let in, while the hub runs and across restarts: the config's lists, and what administrators added to them.

State is what was decided live: NodeIds that an invite admitted, NodeIds that are banned, invites not yet spent (as
hashes: who reads the file cannot join). With a data directory it is written before it counts; a ban counts at once.
The extension holds the resulting sets, so that a refused handshake costs no Python. While there are unspent
invites it lets strangers through the handshake; what they are until they bring one is guests.py. Not here: who may ask
for a change (administration.py), what the admitted may do (protocol/access.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson

from broker import _gossip_ext as ext
from broker.config import HubConfig, scope_name
from broker.errors import ConfigError, ExecutionFailed, ValidationFailed
from broker.keys import write_atomically
from broker.protocol import bans
from broker.protocol.access import MAX_ENTRIES, Grant, Policy, Scope
from broker.protocol.bans import Bans
from broker.protocol.wire import REALM_SCOPE

__all__ = ["Admission", "Invite", "State", "read_admissions"]

log = logging.getLogger("broker.hub")

FILE: Final = "admissions.json"
SECRET_BYTES: Final = 32
DEFAULT_TTL: Final = 86_400.0
"""Seconds until an invite that nobody used is void."""
MAX_TTL: Final = 31_536_000.0
MAX_INVITES: Final = 1_000
"""Unspent at a time: a guest's secret is compared with each, which takes 0.2 ms then."""
MAX_SCOPES: Final = 64
"""Of one NodeId or invite."""
MAX_GRANTS: Final = 1_000
"""Sets of scopes whose decisions are remembered."""

HUB_GRANT: Final = Grant((REALM_SCOPE,), (), everything=True)

_NODE_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """``hash`` is the SHA-256 of the secret in hex, ``expires`` Unix seconds."""

    hash: str
    scopes: tuple[str, ...] = ()
    expires: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What was decided while hubs ran."""

    admitted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Scopes by NodeId."""
    bans: Bans = field(default_factory=dict)
    """Of those that are banned or were: the numbers of decisions (protocol/bans.py)."""
    invites: tuple[Invite, ...] = ()


class Admission:
    """The lists of one hub. ``admins`` are beside the config's. Without ``data`` nothing outlasts the process."""

    def __init__(
        self,
        config: HubConfig,
        endpoint: ext.Endpoint,
        *,
        data: Path | None = None,
        admins: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.on_change: Callable[[list[int]], None] = lambda _ended: None
        """Told after each change, with the connections that the extension has ended for it."""
        self._config, self._endpoint, self._clock = config, endpoint, clock
        self._path = data / FILE if data is not None else None
        self._admins = frozenset(config.admission.admins).union(admins)
        self._scopes = {name: Scope(**dict(scope)) for name, scope in config.access.scopes.items()}
        self._state = read_admissions(self._path) if self._path is not None else State()
        self._grants: dict[tuple[str, ...], Grant] = {}
        self._hubs: frozenset[str] = frozenset()
        self._draining: list[str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.policy = Policy()
        self._apply()

    @property
    def durable(self) -> bool:
        return self._path is not None

    @property
    def invites(self) -> bool:
        """Whether there are any that can be used now."""
        now = self._clock()
        return self._draining is None and any(invite.expires > now for invite in self._state.invites)

    def grant(self, node_id: str) -> Grant:
        """What a NodeId may do."""
        if node_id in self._hubs:
            return HUB_GRANT
        scopes = self.policy.scopes_of(node_id)
        if REALM_SCOPE in scopes:
            return HUB_GRANT
        if (grant := self._grants.get(scopes)) is None:
            if len(self._grants) >= MAX_GRANTS:
                self._grants.clear()
            grant = self._grants[scopes] = self.policy.grant(scopes)
        return grant

    def drain(self, node_ids: list[str]) -> None:
        """From now on nobody but these, who are here."""
        self._draining = node_ids
        self._apply()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # What other hubs of the realm decide.

    def trust(self, hubs: Iterable[str]) -> None:
        """These are hubs of this realm, and may do everything that a hub does."""
        if (now := frozenset(hubs)) != self._hubs:
            self._hubs = now
            self._apply()

    def told(self) -> dict[str, Any]:
        """What other hubs of the realm are told."""
        state = self._state
        return {
            "admitted": {node_id: list(scopes) for node_id, scopes in state.admitted.items()},
            "banned": sorted(bans.banned(state.bans)),
            "bans": dict(state.bans),
        }

    def merge(self, detail: Mapping[str, Any]) -> bool:
        """Takes over what another hub has told: who is admitted there, and who is banned or is not any more. A hub of
        the realm is not banned by another. Whether anything is another now. ValueError when it is malformed."""
        admitted = {_node_id(one): _names(scopes) for one, scopes in detail["admitted"].items()}
        state = self._state
        told = bans.numbered(state.bans, detail["banned"], detail.get("bans"))
        told = {_node_id(one): number for one, number in told.items() if one not in self._hubs}
        merged = bans.merge(state.bans, told, MAX_ENTRIES)
        state = replace(state, admitted={**admitted, **state.admitted}, bans=merged)
        if len(state.admitted) > MAX_ENTRIES:
            raise ValueError(f"more than {MAX_ENTRIES} NodeIds are admitted")
        if state == self._state:
            return False
        self._take(state)
        try:
            self._save(state)
        except ExecutionFailed as error:
            log.error("what another hub decided counts, but is not kept: %s", error)
        return True

    # Changes.

    def invite(self, scopes: tuple[str, ...], ttl: float) -> tuple[str, float]:
        """The secret of a new invite, and when it expires."""
        for scope in scopes:
            self._check_scope(scope)
        if not 0 < ttl <= MAX_TTL:
            raise ValidationFailed(f"ttl is seconds above 0, at most {MAX_TTL:g}")
        now = self._clock()
        live = tuple(invite for invite in self._state.invites if invite.expires > now)
        if len(live) >= MAX_INVITES:
            raise ExecutionFailed(f"{MAX_INVITES} invites are unspent, which is the limit; some expire with time")
        secret = secrets.token_hex(SECRET_BYTES)
        made = Invite(hash=_hash(secret), scopes=scopes, expires=now + ttl)
        self._become(replace(self._state, invites=(*live, made)))
        return secret, made.expires

    def redeem(self, node_id: str, secret: object) -> bool:
        """Whether ``secret`` is an unspent invite's. Then it is spent, durably, and the NodeId is admitted."""
        if not isinstance(secret, str) or len(secret) > 2 * SECRET_BYTES or node_id in self.policy.deny:
            return False
        wanted, now, found = _hash(secret), self._clock(), None
        for invite in self._state.invites:  # all of them: the time taken tells nothing
            if hmac.compare_digest(invite.hash, wanted) and invite.expires > now:
                found = invite
        if found is None:
            return False
        state = self._state
        if node_id not in state.admitted and len(self.policy.allow) >= MAX_ENTRIES:
            log.error("an invite cannot be used: %d NodeIds are admitted, which is the limit", MAX_ENTRIES)
            return False
        scopes = found.scopes or state.admitted.get(node_id, ())
        rest = tuple(invite for invite in state.invites if invite is not found)
        try:
            self._become(replace(state, admitted={**state.admitted, node_id: scopes}, invites=rest))
        except ExecutionFailed as error:
            log.error("an invite cannot be used: %s", error)
            return False
        log.info("%s joins with an invite (scopes: %s)", node_id[:10], ", ".join(scopes) or "the default ones")
        return True

    def ban(self, node_id: str) -> bool:
        """False when it was banned already. It counts even if it cannot be written; then this raises."""
        if len(self.policy.deny) >= MAX_ENTRIES and node_id not in self.policy.deny:
            raise ExecutionFailed(f"{MAX_ENTRIES} NodeIds are banned, which is the limit")
        decided = bans.decide(self._state.bans, node_id, True)
        if decided == self._state.bans:
            return False
        try:
            self._take(replace(self._state, bans=decided))
        except ValueError:
            raise ValidationFailed("64 hex digits, but no NodeId: no key has them") from None
        self._save(self._state)
        return True

    def unban(self, node_id: str) -> bool:
        """False when it was not banned."""
        if node_id in self._config.admission.deny:
            raise ValidationFailed("this NodeId is denied by the hub's config (admission.deny), and only there")
        decided = bans.decide(self._state.bans, node_id, False)
        if decided == self._state.bans:
            return False
        self._become(replace(self._state, bans=bans.trimmed(decided, MAX_ENTRIES)))
        return True

    def _become(self, state: State) -> None:
        """Durable first: a hub that is killed between the two must not have done what it forgets."""
        self._save(state)
        self._state = state
        self._apply()

    def _take(self, state: State) -> None:
        """From now on this. ValueError, and nothing has changed, when the extension knows no key for a NodeId in it."""
        before, self._state = self._state, state
        try:
            self._apply()
        except ValueError:
            self._state = before
            self._apply()
            raise

    def _check_scope(self, scope: str) -> None:
        try:
            scope_name(scope)
        except ValueError as error:
            raise ValidationFailed(str(error)) from None
        if self._scopes and scope not in self._scopes and scope != REALM_SCOPE:
            raise ValidationFailed(f"the hub's config has no [access.scopes.{scope}]")

    # What follows from a change.

    def _apply(self) -> None:
        config, state = self._config, self._state
        self.policy = Policy(
            open=config.open,
            allow=frozenset(config.admission.allow).union(state.admitted, self._hubs),
            deny=frozenset(config.admission.deny) | bans.banned(state.bans),
            admins=self._admins,
            scopes=self._scopes,
            nodes=self._nodes(),
            default=config.access.default,
        )
        self._grants.clear()
        self._arm()
        self._admit()

    def _admit(self) -> None:
        policy, deny = self.policy, list(self.policy.deny)
        if self._draining is not None:
            ended = self._endpoint.admit(open=False, allow=self._draining, deny=deny)
        else:
            allow = [*policy.allow, *policy.admins]
            ended = self._endpoint.admit(open=policy.open or self.invites, allow=allow, deny=deny)
        self.on_change(ended)

    def _nodes(self) -> dict[str, tuple[str, ...]]:
        """The config's scopes of each NodeId, and its invite's besides."""
        nodes = dict(self._config.access.nodes)
        for node_id, scopes in self._state.admitted.items():
            nodes[node_id] = tuple(dict.fromkeys((*nodes.get(node_id, ()), *scopes)))
        return nodes

    def _arm(self) -> None:
        """The door closes when the last invite expires."""
        self.stop()
        self._timer = None
        last = max((invite.expires for invite in self._state.invites), default=0.0)
        if (left := last - self._clock()) > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._expired)

    def _expired(self) -> None:
        self._arm()  # the wall clock may have been set meanwhile
        if self._timer is None:
            self._admit()

    def _save(self, state: State) -> None:
        if self._path is None:
            return
        content = {
            "admitted": {node_id: {"scopes": scopes} for node_id, scopes in state.admitted.items()},
            "banned": sorted(bans.banned(state.bans)),
            "bans": state.bans,
            "invites": [{"hash": one.hash, "scopes": one.scopes, "expires": one.expires} for one in state.invites],
        }
        try:
            write_atomically(self._path, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n", mode=0o600)
        except OSError as error:
            raise ExecutionFailed(f"the hub cannot write {self._path.name}: {error.strerror}") from None

    # What is shown.

    def listing(self, most: int) -> dict[str, Any]:
        """The lists as they are now, at most so many rows of each; the counts are of all."""
        config, state, now = self._config.admission, self._state, self._clock()
        admitted = sorted(self.policy.allow | self.policy.admins)
        banned = sorted(self.policy.deny)
        invites = [one for one in state.invites if one.expires > now]
        return {
            "open": self.policy.open,
            "durable": self.durable,
            "admitted": [
                {
                    "node_id": node_id,
                    "scopes": list(self.policy.scopes_of(node_id)),
                    "by": "config" if node_id in {*config.allow, *self._admins} else "invite",
                }
                for node_id in admitted[:most]
            ],
            "banned": [
                {"node_id": node_id, "by": "config" if node_id in config.deny else "command"}
                for node_id in banned[:most]
            ],
            "invites": [{"scopes": list(one.scopes), "expires": one.expires} for one in invites],
            "counts": {"admitted": len(admitted), "banned": len(banned), "invites": len(invites)},
        }


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def read_admissions(path: Path) -> State:
    """What the last hub left. A file that cannot be read is no empty one: a hub must not forget its bans."""
    try:
        value = orjson.loads(path.read_bytes())
        return State(
            admitted={_node_id(node_id): _names(row["scopes"]) for node_id, row in value["admitted"].items()},
            bans=_bans(value["banned"], value.get("bans")),
            invites=tuple(
                Invite(hash=str(row["hash"]), scopes=_names(row["scopes"]), expires=float(row["expires"]))
                for row in value["invites"]
            ),
        )
    except FileNotFoundError:
        return State()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the hub's admissions cannot be read ({error})\nrepair the file or restore it from a backup; without it "
            "the hub forgets who is banned and who was invited",
            file=str(path),
        ) from None


def _node_id(value: Any) -> str:
    if not isinstance(value, str) or not _NODE_ID.fullmatch(value):
        raise ValueError(f"{str(value)[:80]!r} is not a NodeId")
    return value


def _bans(names: list[Any], known: Any) -> dict[str, int]:
    """Of a file, which somebody may have edited: the list is what counts."""
    banned = frozenset(map(_node_id, names))
    numbers = bans.numbered({}, names, known)
    every = {_node_id(one): numbers.get(one, 0) for one in (*numbers, *names)}
    return {one: number + (number % 2 != (one in banned)) for one, number in every.items()}


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("scopes are a list of names")
    return tuple(value)
