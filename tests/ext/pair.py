"""Two endpoints on loopback in one process, and a reader of their inboxes that waits for items and never for time."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from broker import _gossip_ext as ext

# A busy machine is slow; a test that needs this long has failed.
PATIENCE = 20.0


class Node:
    """An endpoint with everything that its inbox ever gave."""

    def __init__(self, secret: bytes | None = None, **options: Any) -> None:
        self.secret = secret or ext.generate_secret()
        self.endpoint = ext.Endpoint.bind(self.secret, **options)
        self.items: list[tuple[Any, ...]] = []

    @property
    def node_id(self) -> str:
        return self.endpoint.node_id

    def collect(self, wait: float) -> None:
        """Waits for the eventfd, at most ``wait`` s, and takes what is there."""
        if select.select([self.endpoint.fileno()], [], [], wait)[0]:
            self.items += self.endpoint.drain()

    def wait(self, *kinds: int, conn: int | None = None, patience: float = PATIENCE) -> tuple[Any, ...]:
        """The first item of one of the kinds (of ``conn``). It is taken off ``items``."""
        deadline = time.monotonic() + patience
        while True:
            for place, item in enumerate(self.items):
                if item[0] in kinds and conn in (None, item[1]):
                    return self.items.pop(place)
            left = deadline - time.monotonic()
            assert left > 0, f"no item of kind {kinds}; there are {[item[:2] for item in self.items]}"
            self.collect(left)

    def frames(self, conn: int, count: int, patience: float = PATIENCE) -> list[bytes]:
        """The next ``count`` payloads of ``conn`` or more: all that came with them."""
        got: list[bytes] = []
        while len(got) < count:
            got += self.wait(ext.FRAMES, conn=conn, patience=patience)[2]
        return got

    def dial(self, other: Node, token: int = 1) -> int:
        self.endpoint.dial(token, other.node_id, other.endpoint.addrs())
        item = self.wait(ext.OPENED, ext.DIAL_FAILED)
        assert item[0] == ext.OPENED, item
        return int(item[1])

    def kinds(self) -> list[int]:
        return [item[0] for item in self.items]


@contextmanager
def node(**options: Any) -> Iterator[Node]:
    ext.start_thread()
    made = Node(**options)
    try:
        yield made
    finally:
        made.endpoint.close()


@contextmanager
def hub(**options: Any) -> Iterator[Node]:
    """A node that takes everybody, unless the options say otherwise."""
    with node(**({"accept": True, "open": True} | options)) as made:
        yield made


def connect(spoke: Node, to: Node) -> tuple[int, int]:
    """Dials and says hello. The connection's id on either side."""
    near = spoke.dial(to)
    assert spoke.endpoint.send(near, b"hello")
    far = int(to.wait(ext.OPENED)[1])
    assert to.frames(far, 1) == [b"hello"]
    return near, far


def wait_until(true: Any, patience: float = PATIENCE) -> None:
    """Polls something that has no descriptor to wait for (a counter, a gauge)."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        select.select([], [], [], 0.005)
