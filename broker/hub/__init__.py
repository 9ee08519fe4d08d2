"""The shell of a hub: sessions, router, topics, its own operations, metrics, HTTP."""

from broker.hub.hub import Hub

__all__ = ["Hub"]
