"""What is asked of connections behind NAT and does not hold yet. Not in CI: `make unmet` runs it.

Seen on 2026-11-29, two cores, other tests beside. The relay killed in the moment in which a path became direct: in one
run of two no event came for 60 s, in others nothing happened. One relay of two killed for ever, whichever was home:
events came again after 14 to 80 s, and once not within 40 s, where 10 s are asked for. What is supposed of the cause is
in docs/decisions/0011."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nat.rig import a_wan
from tests.nat.test_survives import calls_go

pytestmark = [pytest.mark.unmet, pytest.mark.timeout(300)]

SOON = 20.0
ASKED = 10.0


def test_who_has_just_found_a_direct_path_does_not_miss_the_relay(tmp_path: Path) -> None:
    with a_wan(tmp_path) as wan:
        traffic = wan.traffic()
        traffic.wait_path("direct", SOON)
        wan.relays["relay1"].kill()
        for _ in range(3):
            traffic.flows(ASKED)
        assert traffic.path == "direct"
        traffic.ends()


@pytest.mark.parametrize("name", ["relay1", "relay2"])
def test_one_relay_of_two_is_stopped_for_ever(tmp_path: Path, name: str) -> None:
    """Either of them: all are at home on one."""
    with a_wan(tmp_path, hub="symmetric", spokes="symmetric", relays=2) as wan:
        traffic = wan.traffic()
        traffic.wait_path("relay", SOON)
        wan.relays[name].kill()
        traffic.flows(ASKED)
        calls_go(wan)
        traffic.ends()
