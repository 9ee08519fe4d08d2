"""What a spoke answers when it is asked for events, and what it makes of answers; and of a hub that says nonsense."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from typing import Any

import orjson
import pytest

from broker import Spoke
from broker import _gossip_ext as ext
from broker.errors import FrameError
from broker.spoke import repairs as repairs_module
from broker.spoke.swarm_messages import batch_data, invitation, peer_list, range_of
from tests.rig import PATIENCE, until
from tests.spoke.swarming import TOPIC, publish, reading, swarm_of

pytestmark = pytest.mark.timeout(60)

NODE = "a" * 64


class Said:
    """In the place of a spoke's way to its hub."""

    def __init__(self, spoke: Spoke) -> None:
        self.frames: list[bytes] = []
        self.lost: list[tuple[int, int]] = []
        spoke._repairs._send = self._send
        spoke._repairs._control = self._control

    def _send(self, frames: list[bytes]) -> bool:
        self.frames += frames
        return True

    def _control(self, type: str, detail: Any) -> None:
        assert type == "topic.lost"
        self.lost.append((detail["from"], detail["to"]))

    def messages(self) -> list[dict[str, Any]]:
        return [orjson.loads(frame) for frame in self.frames]


def ask(author: str, epoch: str, a: int, b: int) -> dict[str, Any]:
    return {"topic": TOPIC, "author": author, "epoch": epoch, "from": a, "to": b}


async def test_an_author_answers_with_its_events_and_names_what_it_never_had() -> None:
    async with swarm_of(2) as (_, (a, b)), reading(b) as rb:
        await publish(a, range(50))
        await rb.has(range(50))
        epoch, said = rb.events.verdicts[0].epoch, Said(a)
        a._repairs.asked(ask(a.node_id, epoch, 10, 14))
        assert [message["meta"]["seq"] for message in said.messages()] == [10, 11, 12, 13, 14]
        assert said.lost == []
        a._repairs.asked(ask(a.node_id, epoch, 49, 60))
        assert [message["meta"]["seq"] for message in said.messages()][5:] == [49, 50]
        assert said.lost == [], "what is not published yet is not lost"
        a._repairs.asked(ask(a.node_id, "0" * 16, 1, 3))
        assert said.lost == [(1, 3)], "of an epoch that this process knows nothing of"


async def test_a_member_answers_with_signed_batches_that_hold_and_names_what_it_has_not() -> None:
    async with swarm_of(3) as (_, (a, b, c)), reading(b) as rb, reading(c) as rc:
        await publish(a, [*range(30), "x" * 40_000, *range(31, 40)])
        await until(lambda: len(rb.got) == len(rc.got) == 40)
        epoch, said = rb.events.verdicts[0].epoch, Said(b)
        b._repairs.asked(ask(a.node_id, epoch, 5, 45))
        have: set[int] = set()
        for message in said.messages():
            assert message["type"] == "topic.batch"
            topic, data = batch_data(message["detail"])
            author, of_epoch, first, frames = ext.open_batch(topic, b64decode(data))
            assert (author, of_epoch) == (a.node_id, epoch)
            have |= {seq for seq, frame in enumerate(frames, first) if isinstance(frame, bytes)}
        assert set(range(5, 41)) - {31} <= have
        assert said.lost == [(31, 31), (41, 45)], "what is only named in a batch is not had"


async def test_a_batch_goes_in_parts_to_a_hub_that_takes_small_frames() -> None:
    async with swarm_of(3) as (_, (a, b, c)), reading(b) as rb, reading(c) as rc:
        await publish(a, [f"{number} {'x' * 300}" for number in range(60)])
        await until(lambda: len(rb.got) == len(rc.got) == 60)
        said = Said(b)
        b._repairs.most = 4_096
        b._repairs.asked(ask(a.node_id, rb.events.verdicts[0].epoch, 1, 60))
        assert max(map(len, said.frames)) <= 4_096
        details = [message["detail"] for message in said.messages()]
        assert any(detail.get("more") for detail in details), "else nothing was cut"
        have: set[int] = set()
        whole = ""
        for detail in details:
            whole += detail["data"]
            if not detail.get("more"):
                _, _, first, frames = ext.open_batch(TOPIC, b64decode(whole))
                have |= set(range(first, first + len(frames)))
                whole = ""
        assert have == set(range(1, 61))
        assert not whole


async def test_a_batch_for_a_repair_is_checked_like_one_of_the_swarm() -> None:
    async with swarm_of(2) as (_, (a, b)), reading(b) as rb:
        await publish(a, range(20))
        await rb.has(range(20))
        epoch = rb.events.verdicts[0].epoch
        (batch, *_) = b._swarms.batches(TOPIC, a.node_id, epoch, 1, 20, 100_000)
        b._repairs.batch({"topic": TOPIC, "data": b64encode(batch).decode()})
        assert rb.events.verdicts[0].duplicates > 0, "it went the way of all events"
        forged = bytearray(batch)
        forged[-1] ^= 1
        before = rb.events.verdicts[0].duplicates
        for data in (b64encode(forged).decode(), "no base64 !", ""):
            b._repairs.batch({"topic": TOPIC, "data": data})
        assert b.gossip_counts()["bad_batches"] == 3
        assert rb.events.verdicts[0].duplicates == before


async def test_answers_are_bounded_in_size_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with swarm_of(2) as (_, (a, b)), reading(b) as rb:
        await publish(a, ["x" * 1_000] * 600)
        await until(lambda: len(rb.got) == 600)
        epoch, said = rb.events.verdicts[0].epoch, Said(a)
        a._repairs.asked(ask(a.node_id, epoch, 1, 600))
        assert 0 < sum(map(len, said.frames)) <= repairs_module.ANSWER_BYTES
        assert said.lost == [], "what did not fit is asked again"
        answered = len(said.frames)
        monkeypatch.setattr(repairs_module, "BYTES_A_SECOND", 1)
        a._repairs._left = -1_000.0
        a._repairs.asked(ask(a.node_id, epoch, 1, 600))
        assert len(said.frames) == answered
        assert a.gossip_counts()["repairs_refused"] == 1


async def test_the_numbers_of_a_spoke_in_a_swarm() -> None:
    from prometheus_client import CollectorRegistry

    from broker.cli.spoke_swarms import SwarmCollector

    async with swarm_of(2) as (_, (a, b)), reading(b) as rb:
        await publish(a, range(25))
        await rb.has(range(25))
        registry = CollectorRegistry()
        registry.register(SwarmCollector(b))
        assert registry.get_sample_value("broker_swarms") == 1
        assert registry.get_sample_value("broker_swarm_events_total", {"direction": "in"}) == 25
        assert (registry.get_sample_value("broker_swarm_neighbours") or 0) >= 1
        assert registry.get_sample_value("broker_swarm_bad_batches_total", {"reason": "unreadable"}) == 0
        words = ("complete", "repaired", "lost", "pending", "unknown")
        counts = [registry.get_sample_value("broker_subscription_sequences", {"verdict": word}) for word in words]
        assert sum(count or 0 for count in counts) == 1
        b.subscribe(TOPIC, carrier="stream")
        await until(lambda: b.gossip_counts()["swarms"] == 0)
        assert registry.get_sample_value("broker_swarm_events_total", {"direction": "in"}) == 25, "totals stay"
        await publish(a, range(25, 50))
        await rb.has(range(50))
        async with asyncio.timeout(PATIENCE):
            await a.flush()


GOOD = {"topic": "t", "generation": 1, "id": NODE, "bootstrap": [], "hubs": [NODE], "authors": None, "max": 4096}


@pytest.mark.parametrize(
    "change",
    [
        {"topic": None},
        {"generation": "1"},
        {"id": "short"},
        {"id": "Z" * 64},
        {"id": 7},
        {"bootstrap": {"id": NODE}},
        {"bootstrap": [{}]},
        {"bootstrap": [{"id": NODE, "addrs": "127.0.0.1:1"}]},
        {"bootstrap": [{"id": NODE, "addrs": [1]}]},
        {"bootstrap": [{"id": NODE}] * 65},
        {"hubs": ["x"]},
        {"hubs": NODE},
        {"authors": [1]},
    ],
)
def test_an_invitation_is_wholly_right_or_refused(change: dict[str, Any]) -> None:
    assert invitation(GOOD).id == NODE
    assert invitation({"topic": "t", "generation": 0, "id": None}).id is None
    with pytest.raises(FrameError) as error:
        invitation({**GOOD, **change})
    assert error.value.close_code == 24


@pytest.mark.parametrize("detail", [None, 7, {"add": [1]}, {"remove": "x"}, {"add": ["A" * 64]}])
def test_a_list_of_peers_is_wholly_right_or_refused(detail: Any) -> None:
    assert peer_list({"add": [NODE], "full": True}) == ((NODE,), (), True)
    with pytest.raises(FrameError):
        peer_list(detail)


@pytest.mark.parametrize("change", [{"from": 0}, {"from": 5}, {"to": 2**53}, {"author": 1}, {"epoch": "e" * 200}])
def test_a_range_is_wholly_right_or_refused(change: dict[str, Any]) -> None:
    good = ask(NODE, "0" * 16, 1, 4)
    assert range_of(good)[3:] == (1, 4)
    with pytest.raises(FrameError):
        range_of(good | change)
