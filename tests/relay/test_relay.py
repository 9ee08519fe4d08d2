"""A relay of ours between a hub and its spokes: who gets through, what it shows, and what stays when it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.relay.stage import Stage, by_relay
from tests.rig import serving, spokes, until


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "pki")


async def test_a_spoke_reaches_a_hub_by_relay_alone_and_moves_to_a_direct_path(stage: Stage) -> None:
    async with stage.relay() as relay, stage.hub(relay.url) as hub:
        async with (
            serving(by_relay(hub), "answers", options=stage.options, echo=lambda text: text),
            spokes(by_relay(hub), "asks", options=stage.options) as (asks,),
        ):
            assert await asks.call("echo", {"text": "through"}, timeout=10) == "through"
            assert relay.relay.counters()["clients"] == 3
            await until(lambda: (stats := asks.stats()) is not None and stats.path in ("direct", "mixed"))
