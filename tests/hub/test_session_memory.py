"""What a session that does nothing costs the hub in Python: bytes that the hub's code has allocated and holds. Not
here: what a connection costs the extension (`make bench ARGS=memory`)."""

from __future__ import annotations

import gc
import tracemalloc
from contextlib import AsyncExitStack

from tests.hub.gossips import a_gossiper
from tests.rig import a_hub, a_peer

FIRST, MORE = 10, 40
MOST = 2_400
"""Bytes. Measured: 1,820 to 1,850 (CPython 3.11). One more deque a session is 624."""


def held_by_the_hub() -> int:
    gc.collect()
    ours = [tracemalloc.Filter(True, f"*/broker/{part}/*", all_frames=True) for part in ("hub", "protocol")]
    traces = tracemalloc.take_snapshot().filter_traces(ours).traces
    return sum(trace.size for trace in traces)


async def test_a_session_that_does_nothing_costs_a_bounded_number_of_bytes() -> None:
    async with a_hub() as hub, AsyncExitStack() as stack:
        tracemalloc.start(8)  # frames: what a dataclass makes has none of the hub's files in its last one
        stack.callback(tracemalloc.stop)
        for number in range(FIRST):  # what is made once is no session's
            await stack.enter_async_context(a_gossiper(hub, f"first {number}"))
        before = held_by_the_hub()
        for number in range(MORE):
            await stack.enter_async_context(a_gossiper(hub, f"spoke {number}"))
        async with a_peer(hub.ticket):  # the hub is done with what the others have said
            each = (held_by_the_hub() - before) / MORE
        assert each < MOST, f"{each:.0f} bytes"
