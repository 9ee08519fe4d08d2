"""A message hub for Python: JSON events over iroh, calls and topics, one honest word on every message.

    Hub, HubConfig         run a hub (or the command ``broker hub``)
    Spoke, SpokeOptions    offer operations, listen to topics
    connect                a connected spoke for the time of a block
    Event, Verdict         what a subscriber is handed, and the truth about what is missing
    run                    an event loop that shares its thread with the network (asyncio.run works too)

Errors are in ``broker.errors``. This is a broker of events between programs that trust one hub; it is not a database,
and what it keeps it keeps in memory.
"""

from broker.config import HubConfig
from broker.events import Event
from broker.hub import Hub
from broker.loop import run
from broker.protocol.sequence import Verdict
from broker.spoke import Published, Spoke, SpokeOptions, connect
from broker.version import VERSION as __version__

__all__ = [
    "Event",
    "Hub",
    "HubConfig",
    "Published",
    "Spoke",
    "SpokeOptions",
    "Verdict",
    "__version__",
    "connect",
    "run",
]
