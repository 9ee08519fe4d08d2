"""Processes that die, hang, come late or come back while a topic travels by gossip, all on loopback: what each
subscriber says at the end is true."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import COMMAND, environment
from tests.faults.gossiping import Place, metric, published, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

DONE = 90.0
SLEEP = 20.0

DYING = """
import importlib, os, signal, sys
module, owner, name, when, left = sys.argv.pop(1).split(":")
left = [int(left)]
owner = getattr(importlib.import_module(module), owner)
function = getattr(owner, name)
def step(*args, **options):
    left[0] -= 1
    if left[0] == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = function(*args, **options)
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, name, step)
from broker.cli import main
sys.exit(main())
"""
"""A hub that kills itself at one step, the so-manieth time that it comes there."""

STEPS = {
    "the batch has come": "broker.hub.swarm:TopicSwarm:from_gossip:before:20",
    "the event is in order": "broker.hub.topics:Topics:accept:before:20",
    "it is in the history": "broker.hub.topics:Topics:accept:after:20",
    "it is passed on": "broker.hub.fan_out:FanOut:flush:after:20",
    "about to acknowledge": "broker.hub.fan_out:FanOut:ack:before:4",
    "acknowledged": "broker.hub.fan_out:FanOut:ack:after:4",
}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Place(tmp_path) as place:
        yield place


def in_the_swarm(ready: dict[str, object], members: int) -> None:
    until(lambda: metric(ready, "broker_swarm_members") >= members, DONE)


@pytest.mark.parametrize("step", STEPS)
def test_a_hub_killed_at_a_step_of_a_publish(place: Place, step: str) -> None:
    count = 400
    hub, ready = place.hub("hub", script=("-c", DYING, STEPS[step]))
    subs = [place.sub(f"s{n}", ready["ticket"], count) for n in range(2)]
    in_the_swarm(ready, 2)
    author = place.pub("author", ready["ticket"], count, "--rate", 100)
    assert hub.status(DONE) == -signal.SIGKILL
    assert author.running
    place.hub("hub")
    authors = dict([published(author, count, DONE)])
    for sub in subs:
        assert sub.verdict(authors, DONE) == [0], "the author still had all that the hub took with it"


def test_an_author_restarted_with_its_key_and_a_clock_that_is_a_day_off(place: Place) -> None:
    """Once more on the day before, when its epoch looks older than the one that all know."""
    count, key = 300, place.folder / "author.key"
    subprocess.run([*COMMAND, "key", "new", str(key)], check=True, env=environment(), timeout=DONE)
    _, ready = place.hub("hub")
    subs = [place.sub(f"s{n}", ready["ticket"], 4 * count) for n in range(2)]
    in_the_swarm(ready, 2)
    authors = {}
    for clock in ("", "", "+1d", "-1d"):
        author = place.pub("author", ready["ticket"], count, "--key", key, **faked(clock))
        of, number = published(author, count, DONE)
        authors[of] = number
    assert len({epoch for _, epoch in authors}) == 4
    assert len({author for author, _ in authors}) == 1
    for sub in subs:
        assert sub.verdict(authors, DONE) == [0, 0, 0, 0], "no false gap"
        stamps = [row["meta"]["ts"] / 1000 - time.time() for row in sub.program.rows() if "meta" in row]
        assert (min(stamps) < -80_000, max(stamps) > 80_000) == (True, True), "the clocks were off"


def faked(clock: str) -> dict[str, str]:
    """What makes the time of day another to a process, and leaves its timers alone."""
    if not clock:
        return {}
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    return {"LD_PRELOAD": str(library), "FAKETIME": clock, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def test_a_subscriber_that_sleeps_is_a_neighbour_that_stops_reading(place: Place) -> None:
    """The others do not wait for it, and it is told the truth when it is back."""
    count = 12_000
    _, ready = place.hub("hub")
    sleeper, *others = [place.sub(f"s{n}", ready["ticket"], count) for n in range(4)]
    in_the_swarm(ready, 4)
    author = place.pub("author", ready["ticket"], count)
    until(lambda: sleeper.program.lines() > 100, DONE)
    sleeper.program.send(signal.SIGSTOP)
    slept = time.monotonic()
    try:
        authors = dict([published(author, count, DONE)])
        for sub in others:
            assert sub.verdict(authors, DONE) == [0]
        until(lambda: time.monotonic() - slept > SLEEP, SLEEP + 1)
    finally:
        sleeper.program.send(signal.SIGCONT)
    sleeper.verdict(authors, DONE)


def test_a_joiner_in_mid_flood_whose_bootstrap_peers_are_gone(place: Place) -> None:
    count = 4_000
    hub, ready = place.hub("hub")
    first, second = (place.sub(f"s{n}", ready["ticket"], count) for n in range(2))
    in_the_swarm(ready, 2)
    author = place.pub("author", ready["ticket"], count, "--rate", 500)
    until(lambda: second.program.lines() > 200, DONE)
    first.program.kill()
    joiner = place.sub("joiner", ready["ticket"], count, "--since", "start")
    assert author.running, "in mid-flood"
    hub.kill()
    place.hub("hub")
    last = place.sub("last", ready["ticket"], count, "--since", "start")
    authors = dict([published(author, count, DONE)])
    for sub in (second, joiner, last):
        assert sub.verdict(authors, DONE) == [0]


def test_two_hubs_one_of_them_killed(place: Place) -> None:
    count = 2_000
    one, ready = place.hub("one")
    _, other = place.hub("two", "--join", realm_invite(place, ready["ticket"]))
    subs = [place.sub(f"s{n}", at["ticket"], 2 * count) for n, at in enumerate((ready, ready, other))]
    in_the_swarm(other, 1)
    pubs = [place.pub(f"author{n}", at["ticket"], count, "--rate", 200) for n, at in enumerate((ready, other))]
    until(lambda: all(sub.program.lines() > 200 for sub in subs), DONE)
    assert all(pub.running for pub in pubs)
    one.kill()
    authors = dict(published(pub, count, DONE) for pub in pubs)
    for sub in subs:
        assert sub.verdict(authors, DONE) == [0, 0]


def realm_invite(place: Place, ticket: str) -> str:
    """What lets a further hub into the realm."""
    invite = place.start(
        "admin", "invite", ticket, "--key", place.folder / "data-one" / "admin.key", "--scopes", "realm", "--json"
    )
    assert invite.status(DONE) == 0, invite.errors
    return str(invite.rows()[0]["ticket"])


MANY = """
import asyncio, sys
from broker import connect
async def main(ticket, topics, count):
    async with connect(ticket, name="author", timeout=60) as spoke:
        for n in range(1, count + 1):
            for topic in range(topics):
                await spoke.publish(f"many.{topic}", n, carrier="gossip", timeout=60)
        await spoke.flush(60)
        print('"done"', flush=True)
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


def test_two_hundred_topics_at_once(place: Place) -> None:
    topics, each = 200, 20
    _, ready = place.hub("hub")
    names = [f"many.{number}" for number in range(topics)]
    subs = [place.sub(f"s{n}", ready["ticket"], topics * each, topics=names) for n in range(2)]
    in_the_swarm(ready, 2 * topics)
    author = place.start("author", ready["ticket"], topics, each, script=("-c", MANY))
    assert author.status(DONE) == 0, author.errors
    for sub in subs:
        assert sub.program.status(DONE) == 0, sub.program.errors
        rows = sub.program.rows()
        verdicts = {row["topic"]: (row["received"], row["lost"]) for row in rows if row.get("event") == "verdict"}
        assert verdicts == dict.fromkeys(names, (each, []))
        for name in names:
            assert [row["detail"] for row in rows if row.get("type") == name] == list(range(1, each + 1))
