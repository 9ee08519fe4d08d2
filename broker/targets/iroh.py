"""The two factories of the iroh transport, for our connections and for those of other libraries alike.

The dialler of a connection is its spoke side here and opens the stream; the listener is its hub side and accepts it.
Both get the same event target. ALPN ``alkhub/1``, frames of a 4-byte length and ``{"type", "detail", "meta"?}``. Not
here: how frames travel on ours (iroh_endpoint.py) and on foreign connections (iroh_streams.py).
"""

from __future__ import annotations

from typing import Any

from broker.targets.iroh_endpoint import IrohConnection, IrohEndpoint
from broker.targets.iroh_streams import OPEN_TIMEOUT, StreamCarrier, open_stream
from broker.targets.remote import Carrier, RemoteEventTarget

__all__ = ["IrohConnection", "IrohEndpoint", "create_hub_iroh_event_target", "create_spoke_iroh_event_target"]


async def create_spoke_iroh_event_target(
    connection: Any, *, subscribe: bool = True, open_timeout: float = OPEN_TIMEOUT, **limits: Any
) -> RemoteEventTarget:
    """The target of a connection that was dialled from here; it opens the stream.

    The peer learns of the stream with the first event: dispatch ``hub.register`` at once, it waits for that with a
    deadline. ``subscribe``: the first listener of a topic says ``__subscribe`` to the peer, the last one to leave
    ``__unsubscribe``. ``limits`` are those of :class:`~broker.targets.iroh_streams.StreamCarrier`, for foreign
    connections; ours were set when the endpoint was bound.
    """
    carrier = await _carrier(connection, accepted=False, open_timeout=open_timeout, limits=limits)
    return RemoteEventTarget(carrier, subscribe=subscribe)


async def create_hub_iroh_event_target(
    connection: Any, *, subscribe: bool = False, open_timeout: float = OPEN_TIMEOUT, **limits: Any
) -> RemoteEventTarget:
    """The target of a connection that was accepted here; it waits for the peer's stream, up to ``open_timeout``.

    A hub sends to each spoke what that asked for and subscribes to nothing, hence the default. Raises ConnectionLost.
    """
    carrier = await _carrier(connection, accepted=True, open_timeout=open_timeout, limits=limits)
    return RemoteEventTarget(carrier, subscribe=subscribe)


async def _carrier(connection: Any, *, accepted: bool, open_timeout: float, limits: dict[str, Any]) -> Carrier:
    if not isinstance(connection, IrohConnection):
        stream = await open_stream(connection, accepted=accepted, open_timeout=open_timeout)
        return StreamCarrier(connection, stream, accepted=accepted, **limits)
    if limits:
        raise TypeError(f"{', '.join(limits)}: an IrohConnection has the limits that its endpoint was bound with")
    if connection.incoming != accepted:
        right = "create_hub_iroh_event_target" if connection.incoming else "create_spoke_iroh_event_target"
        raise ValueError(f"this connection was {'accepted' if connection.incoming else 'dialled'}: use {right}")
    return connection
