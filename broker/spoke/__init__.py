"""The shell of a spoke: connection keeping, typed operations, calls, publishing, subscriptions."""

from broker.spoke.calls import Answer, Missing, RollCall
from broker.spoke.directs import Neighbour
from broker.spoke.operations import Call
from broker.spoke.options import SpokeOptions
from broker.spoke.publisher import Published
from broker.spoke.session import connect
from broker.spoke.spoke import Spoke
from broker.spoke.subscription import Subscription

__all__ = [
    "Answer",
    "Call",
    "Missing",
    "Neighbour",
    "Published",
    "RollCall",
    "Spoke",
    "SpokeOptions",
    "Subscription",
    "connect",
]
