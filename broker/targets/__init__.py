"""The seam between a program and its transport: event targets, and publish/subscribe on top of any of them."""

from broker.targets.event_target import CLOSE, DRAIN, ERROR, Close, Event, EventTarget, Listener
from broker.targets.iroh import (
    IrohConnection,
    IrohEndpoint,
    create_hub_iroh_event_target,
    create_spoke_iroh_event_target,
)
from broker.targets.memory import create_memory_event_target
from broker.targets.pubsub import PubSub, create_pubsub, filter, map, pipe

__all__ = [
    "CLOSE",
    "DRAIN",
    "ERROR",
    "Close",
    "Event",
    "EventTarget",
    "IrohConnection",
    "IrohEndpoint",
    "Listener",
    "PubSub",
    "create_hub_iroh_event_target",
    "create_memory_event_target",
    "create_pubsub",
    "create_spoke_iroh_event_target",
    "filter",
    "map",
    "pipe",
]
