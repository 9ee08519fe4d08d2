"""What a subscriber is handed. Not the wire: that is protocol/codec.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker.protocol.codec import Message

__all__ = ["Event"]


class Event(Message):
    """An event as it was published. ``type`` is its topic."""

    __slots__ = ()
    if TYPE_CHECKING:
        meta: dict[str, Any]
        """``author`` (NodeId), ``epoch``, ``seq`` and what else came with it. Of a datagram ``carrier`` says so, and
        there is neither ``epoch`` nor ``seq``."""

    @property
    def author(self) -> str:
        return str(self.meta.get("author", ""))

    @property
    def seq(self) -> int:
        return int(self.meta.get("seq", 0))

    @property
    def reliable(self) -> bool:
        """It has its place in a sequence, of which a verdict speaks. False for a datagram."""
        return "seq" in self.meta
