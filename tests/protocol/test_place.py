"""Places as peers may write them: the meta of an event, and where a subscriber says that it is."""

from __future__ import annotations

from typing import Any

import pytest

from broker.errors import FrameError
from broker.protocol.place import Origin, origin, parse_since

T, A, E = "t", "a" * 64, "0" * 16


def test_origin() -> None:
    assert origin(None) is None
    assert origin({"id": 1}) is None
    assert origin({"author": A, "epoch": E, "seq": 3, "x": 1}) == Origin(A, E, 3)
    good = {"author": A, "epoch": E, "seq": 3}
    bad: dict[str, Any]
    for bad in ({"seq": True}, {"seq": 0}, {"seq": 1.0}, {"epoch": 7}, {"author": ""}, {"author": "x" * 1_000}):
        with pytest.raises(FrameError):
            origin({**good, **bad})
    for key in good:
        with pytest.raises(FrameError):
            origin({k: v for k, v in good.items() if k != key})


def test_parse_since() -> None:
    assert parse_since(None) is None
    assert parse_since("start") == "start"
    assert parse_since(7) == 7
    assert parse_since({T: {A: [E, 3]}}) == {T: {A: (E, 3)}}
    wrong: Any
    for wrong in (True, -1, 1.0, "end", [], {T: 1}, {T: {A: 1}}, {T: {A: [E]}}, {T: {A: [E, -1]}}, {T: {A: [3, E]}}):
        with pytest.raises(FrameError) as caught:
            parse_since(wrong)
        assert caught.value.close_code == 24
