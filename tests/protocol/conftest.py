"""The fixture that the tests of the hub's call table share; what it is made of is in talk.py."""

from __future__ import annotations

import pytest

from tests.protocol.talk import ANN, BOB, Talk


@pytest.fixture
def talk() -> Talk:
    """Ann asks, Bob answers."""
    talk = Talk()
    talk.join(ANN)
    talk.join(BOB, "get", "put", "watch")
    return talk
